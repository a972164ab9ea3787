"""Options of specs/limits.py."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from assay.options.base import ScriptOptions, Size, split_list, without_twins

Dtype = Literal["float64", "float32", "tf32", "bfloat16", "float16"]


class LimitsOptions(ScriptOptions):
    """What is measured as this machine's ceilings."""

    synopsis: ClassVar[str] = "ceilings of this machine: matrix multiplication FLOP/s and memory copy B/s"

    seconds: float = Field(1.0, gt=0, description="seconds of measuring per ceiling")
    gemm_size: int | None = Field(None, ge=64, description="side of the matrices [the fastest shape of a search]")
    copy_bytes: Size | None = Field(
        None, ge=4096, description="bytes per buffer [four times the caches on a CPU, 1GiB elsewhere]"
    )
    dtypes: Annotated[tuple[Dtype, ...], BeforeValidator(split_list), AfterValidator(without_twins)] = Field(
        ("float32",), min_length=1, description="element types of the matrices, comma-separated"
    )
