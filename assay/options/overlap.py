"""Options of comms/overlap.py."""

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from assay.bandwidth import COLLECTIVES
from assay.options.base import Size, nearest, split_list, without_twins
from assay.options.comms import ITEM_BYTES, CommsOptions
from assay.options.transport import TransportOptions
from assay.units import parse_size


def _one_of(known: Sequence[str], what: str) -> Callable[[object], object]:
    def checked(value: object) -> object:
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}{nearest(str(value), list(known))}")
        return value

    return checked


def _sizes(value: object) -> object:
    sizes = split_list(value)
    if isinstance(sizes, int):
        sizes = (sizes,)
    if not isinstance(sizes, tuple) or not sizes:
        raise ValueError(f"expected sizes, comma-separated, such as 1MiB,16MiB, got {value!r}")
    return tuple(parse_size(one) for one in sizes)


_OPS = tuple(op for op in COLLECTIVES if op != "barrier")  # a barrier moves nothing that could be hidden


class OverlapOptions(TransportOptions):
    """Which collective is held against which work, and for how long."""

    synopsis: ClassVar[str] = "a collective and matrix products at the same time: how much communication stays exposed"

    op: Annotated[str, BeforeValidator(_one_of(_OPS, "collective"))] = Field(
        "all_reduce", description=f"one of {', '.join(_OPS)}"
    )
    size: Annotated[
        tuple[Annotated[Size, Field(gt=0)], ...], BeforeValidator(_sizes), AfterValidator(without_twins)
    ] = Field((1 << 20, 16 << 20), description="sizes S as in docs/metrics.md, comma-separated")
    dtype: Annotated[str, BeforeValidator(_one_of(list(ITEM_BYTES), "element type"))] = Field(
        "float32", description=f"element type of the collective: {', '.join(ITEM_BYTES)}"
    )
    gemm: int | None = Field(
        None,
        ge=8,
        le=1 << 15,
        description="rows and columns of the matrices; without it, the largest of which several fit into the collective's time",
    )
    gemm_dtype: Literal["auto", "float32", "float64", "bfloat16"] = Field(
        "auto", description="element type of the matrices; auto: float32 on a CPU, bfloat16 on an accelerator"
    )
    ratio: float = Field(1.0, gt=0, le=1000, description="time of the products over that of the collective, about")
    warmup: int = Field(2, ge=1, description="untimed turns of each of the three before the first round")
    max_rounds: int = Field(640, ge=1, description="most rounds per size; each times all three once")
    budget: float = Field(4.0, gt=0, description="seconds per size, at most, but for the first six rounds")
    target: float = Field(
        0.05, gt=0, description="half width of the overlap share's 95 % interval at which sampling stops"
    )
    seed: int = Field(1, ge=0, lt=2**31, description="seed of the data, and of the order within rounds")

    def collective(self, size: int) -> CommsOptions:
        """The collective alone, at one size, in comms/bench.py's terms."""
        return CommsOptions(
            transport=self.transport, backend=self.backend, ops=(self.op,), size=size, dtype=(self.dtype,), seed=self.seed
        )  # fmt: skip

    def check_world(self, world: int) -> None:
        """Raise ValueError unless `world` ranks can run the collective at every size."""
        for size in self.size:
            self.collective(size).check_world(world)
