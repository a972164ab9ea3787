"""Options of specs/limits.py."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from assay.options.base import ScriptOptions, Size, split_list


class LimitsOptions(ScriptOptions):
    """What is measured as this machine's ceilings."""

    synopsis: ClassVar[str] = "ceilings of this machine: matrix multiplication FLOP/s and memory copy B/s"

    seconds: float = Field(1.0, gt=0, description="seconds of measuring per ceiling")
    gemm_size: int | None = Field(None, ge=64, description="side of the matrices [1024 on a CPU, 8192 elsewhere]")
    copy_bytes: Size | None = Field(None, ge=4096, description="bytes per memory copy [64MiB on a CPU, 1GiB elsewhere]")
    dtypes: Annotated[tuple[Literal["float32", "bfloat16", "float16"], ...], BeforeValidator(split_list)] = Field(
        ("float32",), min_length=1, description="element types of the matrices, comma-separated"
    )
