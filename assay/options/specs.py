"""Options of specs/bench.py."""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from assay.options.base import PathText, ScriptOptions, Size, split_list, without_twins

Dtype = Literal[
    "float64", "float32", "tf32", "bfloat16", "float16", "float8_e4m3fn", "float8_e4m3fnuz", "int8", "int16"
]
Part = Literal["products", "memory", "host", "links", "disk", "energy"]


class SpecsOptions(ScriptOptions):
    """What is measured of the basic technical parameters."""

    synopsis: ClassVar[str] = "basic technical parameters: rates by element type, memory, links, disk, energy"

    parts: Annotated[tuple[Part, ...], BeforeValidator(split_list), AfterValidator(without_twins)] = Field(
        get_args(Part), min_length=1, description="what is measured, comma-separated"
    )
    dtypes: Annotated[tuple[Dtype, ...], BeforeValidator(split_list), AfterValidator(without_twins)] = Field(
        get_args(Dtype), min_length=1, description="element types of the matrix products, comma-separated"
    )
    seconds: float = Field(3.0, gt=0, description="seconds of measuring per figure")
    sustain: float = Field(
        120.0,
        ge=0,
        description="seconds under load for the sustained rate of each element type; 0: none",
    )
    idle: float = Field(10.0, ge=0, description="seconds of rest in which the idle power is taken")
    copy_bytes: Size | None = Field(
        None, ge=4096, description="bytes per buffer [four times the caches on a CPU, 1GiB elsewhere]"
    )
    disk: PathText | None = Field(
        None, description="folder whose disk is measured [that of --out, else the present one]"
    )
    disk_bytes: Size = Field(256 << 20, ge=16 << 20, description="bytes written or read per pass")
    disk_passes: int = Field(7, ge=1, description="passes per way of access; six are the fewest for an interval")
