"""Options of comms/bench.py."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from assay.bandwidth import COLLECTIVES, round_down
from assay.options.base import ScriptOptions, Size, flags, nearest, split_list
from assay.units import format_size

ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2, "int32": 4, "int64": 8, "uint8": 1}
DtypeName = Literal["float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8"]


def _known_ops(value: object) -> object:
    names = split_list(value)
    if not isinstance(names, tuple) or not names:
        raise ValueError(f"expected collectives out of {', '.join(COLLECTIVES)}, got {value!r}")
    if names == ("all",):
        return tuple(COLLECTIVES)
    for name in names:
        if not isinstance(name, str) or name not in COLLECTIVES:
            raise ValueError(f"unknown collective {name!r}{nearest(str(name), list(COLLECTIVES))}")
    if len(set(names)) < len(names):
        raise ValueError(f"expected every collective once, got {', '.join(map(str, names))}")
    return names


class CommsOptions(ScriptOptions):
    """Which collectives are timed, over which sizes, and for how long."""

    synopsis: ClassVar[str] = "collectives over torch.distributed: latency, algbw and busbw over sizes"

    ops: Annotated[tuple[str, ...], BeforeValidator(_known_ops)] = Field(
        ("all_reduce",), description=f"collectives, comma-separated, or all: {', '.join(COLLECTIVES)}"
    )
    # nccl-tests' names beside ours: torchrun takes a bare --max for an abbreviation of its own --max-restarts.
    min: Size = Field(
        1 << 10,
        gt=0,
        description="smallest size of the sweep, S as in docs/metrics.md",
        json_schema_extra=flags("-b", "--minbytes", metavar="SIZE"),
    )
    max: Size = Field(
        16 << 20,
        gt=0,
        description="largest size; behind torchrun write -e or --maxbytes, it takes --max for itself",
        json_schema_extra=flags("-e", "--maxbytes", metavar="SIZE"),
    )
    factor: int = Field(4, ge=2, description="ratio of successive sizes", json_schema_extra=flags("-f", "--stepfactor"))
    size: Size | None = Field(None, gt=0, description="one size, exactly, instead of a sweep")
    dtype: DtypeName = Field("float32", description="element type")
    warmup: int = Field(5, ge=0, description="untimed calls before each timing")
    calls: int = Field(20, ge=1, description="back-to-back calls per batch, under one clock")
    batches: int = Field(6, ge=1, description="back-to-back batches per size, at least")
    max_calls: int = Field(640, ge=1, description="most calls timed one by one per size")
    budget: float = Field(1.0, gt=0, description="seconds per size for each of the two timings, at most")
    target: float = Field(0.02, gt=0, description="half width of the 95 % interval at which sampling stops, relative")
    seed: int = Field(1, ge=0, lt=2**31, description="seed of the data pattern")
    style: Literal["nccl", "deepspeed"] = Field("nccl", description="columns and definitions of the printed table")

    @model_validator(mode="after")
    def _sweep_is_ordered(self) -> "CommsOptions":
        if self.size is None and self.min > self.max:
            raise ValueError(
                f"--min {format_size(self.min)} is above --max {format_size(self.max)}; give a sweep from small to large"
            )
        return self

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return ITEM_BYTES[self.dtype]

    def sizes(self, op: str, world: int) -> Iterator[int]:
        """The sizes S of `op`'s sweep, rounded down to whole elements per part as nccl-tests does, without repeats."""
        wanted = self.size if self.size is not None else self.min
        last, before = self.size if self.size is not None else self.max, 0
        while wanted <= last:
            size = round_down(wanted, op, world, self.itemsize)
            if size > before:
                yield size
                before = size
            wanted *= self.factor

    def check_world(self, world: int) -> None:
        """Raise ValueError unless `world` ranks can run every op at the sizes asked for."""
        if world < 2:
            raise ValueError(
                f"collectives need at least 2 ranks, got {world}; start with torchrun --nproc-per-node 2 or more"
            )
        for op in self.ops:
            grain = self.itemsize * COLLECTIVES[op].parts(world)
            if self.size is not None and self.size % grain:
                low = self.size // grain * grain
                near = f"{low} or {low + grain}" if low else str(grain)
                raise ValueError(
                    f"--size {self.size} does not divide for {op}: {world} ranks × {self.itemsize} bytes need "
                    f"a multiple of {grain}; the nearest is {near}"
                )
            if not any(True for _ in self.sizes(op, world)):
                raise ValueError(
                    f"--max {self.max} is too small for {op}: {world} ranks × {self.itemsize} bytes need {grain} or more"
                )
