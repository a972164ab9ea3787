"""Options of comms/bench.py."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from assay.bandwidth import COLLECTIVES, round_down
from assay.options.base import PathText, Size, flags, lower_case, nearest, split_list
from assay.options.transport import MPI, TransportOptions
from assay.units import format_size

ITEM_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2, "int32": 4, "int64": 8, "uint8": 1}
REDUCTIONS = ("sum", "prod", "min", "max", "avg")
Placement = Literal["auto", "in", "out", "both"]


def _names(known: Sequence[str], what: str) -> Callable[[object], object]:
    """A check of comma-separated names out of `known`, each once; `all` stands for every one."""

    def checked(value: object) -> object:
        names = split_list(value)
        if not isinstance(names, tuple) or not names:
            raise ValueError(f"expected {what}s out of {', '.join(known)}, got {value!r}")
        if names == ("all",):
            return tuple(known)
        for name in names:
            if not isinstance(name, str) or name not in known:
                raise ValueError(f"unknown {what} {name!r}{nearest(str(name), list(known))}")
        if len(set(names)) < len(names):
            raise ValueError(f"expected every {what} once, got {', '.join(map(str, names))}")
        return names

    return checked


def _split(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(div|mod):[1-9][0-9]*", value):
        raise ValueError(f"expected div:N or mod:N, such as div:4, got {value!r}")
    return value


class CommsOptions(TransportOptions):
    """Which collectives are timed, over which sizes, and for how long."""

    synopsis: ClassVar[str] = "collectives over torch.distributed or MPI: latency, algbw and busbw over sizes"

    versus: Annotated[str | None, BeforeValidator(lower_case)] = Field(
        None,
        min_length=1,
        description="a second transport, measured by turns with the first: mpi, or a torch.distributed backend",
    )
    ops: Annotated[tuple[str, ...], BeforeValidator(_names(list(COLLECTIVES), "collective"))] = Field(
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
    dtype: Annotated[tuple[str, ...], BeforeValidator(_names(list(ITEM_BYTES), "element type"))] = Field(
        ("float32",), description=f"element types, comma-separated, or all: {', '.join(ITEM_BYTES)}"
    )
    redop: Annotated[tuple[str, ...], BeforeValidator(_names(REDUCTIONS, "reduction"))] = Field(
        ("sum",), description=f"reductions, comma-separated, or all: {', '.join(REDUCTIONS)}"
    )
    placement: Placement = Field("auto", description="in place, out of place or both; auto: each op's usual one")
    asynchronous: bool = Field(
        False, description="begin every call, then await its handle", json_schema_extra=flags("--async")
    )
    coalesce: int = Field(1, ge=1, description="cut S into so many tensors, whose calls are begun and awaited together")
    graph: bool = Field(False, description="replay the call from a CUDA graph (cuda only)")
    split: Annotated[str | None, AfterValidator(_split)] = Field(
        None,
        description="groups that run at the same time: div:4, ranks 0-3, 4-7, …; mod:4, ranks 0, 4, 8, … and 1, 5, …",
    )
    matrix: PathText | None = Field(
        None, description="traffic of all_to_all_v: a file of n lines of n numbers, rank by rank; uneven without it"
    )
    warmup: int = Field(5, ge=0, description="untimed calls before each timing")
    calls: int = Field(20, ge=1, description="back-to-back calls per batch, under one clock")
    batches: int = Field(6, ge=1, description="back-to-back batches per size, at least")
    max_calls: int = Field(640, ge=1, description="most calls timed one by one per size")
    budget: float = Field(1.0, gt=0, description="seconds per size for each of the two timings, at most")
    target: float = Field(0.02, gt=0, description="half width of the 95 % interval at which sampling stops, relative")
    audit: bool = Field(True, description="time a few sizes again in random order, to see whether the order matters")
    seed: int = Field(1, ge=0, lt=2**31, description="seed of the data pattern")
    style: Literal["nccl", "deepspeed"] = Field("nccl", description="columns and definitions of the printed table")

    @model_validator(mode="after")
    def _sweep_is_ordered(self) -> "CommsOptions":
        if self.size is None and self.min > self.max:
            raise ValueError(
                f"--min {format_size(self.min)} is above --max {format_size(self.max)}; give a sweep from small to large"
            )
        if self.graph and (self.asynchronous or self.transport == MPI or self.versus == MPI):
            raise ValueError("--graph replays a captured call of torch; leave out --async and MPI")
        if self.matrix is not None and "all_to_all_v" not in self.ops:
            raise ValueError("--matrix is the traffic of all_to_all_v; add that to --ops, or leave --matrix out")
        if self.transport == MPI and self.versus in (None, MPI) and self.backend != "auto":
            raise ValueError(f"--backend {self.backend} is torch.distributed's; leave it out with --transport mpi")
        return self

    @property
    def needs_mpi(self) -> bool:
        """Whether ranks find each other through MPI."""
        return MPI in (self.transport, self.versus)

    @property
    def needs_torch(self) -> bool:
        """Whether torch.distributed is wanted."""
        return self.transport != MPI or self.versus not in (None, MPI)

    @property
    def torch_backend(self) -> str:
        """The backend of torch.distributed's default group."""
        return self.versus if self.transport == MPI and self.versus not in (None, MPI) else self.backend

    def groups(self, world: int) -> list[list[int]]:
        """The ranks of every group, in the order of ranks; one group without --split."""
        kind, _, text = (self.split or f"div:{world}").partition(":")
        number = int(text)
        members: dict[int, list[int]] = {}
        for rank in range(world):
            members.setdefault(rank // number if kind == "div" else rank % number, []).append(rank)
        return list(members.values())

    def sizes(self, op: str, world: int, itemsize: int) -> Iterator[int]:
        """The sizes S of `op`'s sweep in a group of `world`, rounded down to whole elements per part as nccl-tests does.

        No repeats. A barrier has the one size 0.
        """
        if not COLLECTIVES[op].bus(world):
            yield 0
            return
        wanted = self.size if self.size is not None else self.min
        last, before = self.size if self.size is not None else self.max, 0
        while wanted <= last:
            size = round_down(wanted, op, world, itemsize * self.coalesce)
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
        lengths = {len(members) for members in self.groups(world)}
        if len(lengths) > 1 or min(lengths) < 2:
            raise ValueError(
                f"--split {self.split}: {world} ranks fall into groups of {' and '.join(map(str, sorted(lengths)))}; "
                "expected groups of one size, 2 or more"
            )
        size = lengths.pop()
        if self.split is not None and size == world:
            raise ValueError(f"--split {self.split}: {world} ranks are one group; leave it out, or give another")
        if self.matrix is not None:
            from assay.traffic import read_matrix  # with numpy, which a runner needs for nothing else

            if len(rows := read_matrix(self.matrix)) != size:
                raise ValueError(f"--matrix {self.matrix}: {len(rows)} lines for {size} ranks; give one line a rank")
        for op in self.ops:
            for dtype in self.dtype:
                self._check_sizes(op, size, ITEM_BYTES[dtype])

    def _check_sizes(self, op: str, world: int, itemsize: int) -> None:
        grain = itemsize * COLLECTIVES[op].parts(world) * self.coalesce
        pieces = f" in {self.coalesce} tensors" if self.coalesce > 1 else ""
        if self.size is not None and self.size % grain and COLLECTIVES[op].bus(world):
            low = self.size // grain * grain
            near = f"{low} or {low + grain}" if low else str(grain)
            raise ValueError(
                f"--size {self.size} does not divide for {op}: {world} ranks × {itemsize} bytes{pieces} need "
                f"a multiple of {grain}; the nearest is {near}"
            )
        if not any(True for _ in self.sizes(op, world, itemsize)):
            raise ValueError(
                f"--max {self.max} is too small for {op}: {world} ranks × {itemsize} bytes{pieces} need {grain} or more"
            )
