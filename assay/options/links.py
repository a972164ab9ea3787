"""Options of comms/links.py."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from assay.options.base import PathText, Size, split_list, without_twins
from assay.options.transport import TransportOptions

ITEM = 4  # bytes of an element: float32
FEWEST = 2  # timed transfers of a pair in a pass, however long they take: three passes then give an interval


def _sizes(values: tuple[int, ...]) -> tuple[int, ...]:
    if not values:
        raise ValueError("expected one size or more, such as 8,4MiB")
    for value in values:
        if value <= 0 or value % ITEM:
            raise ValueError(f"expected sizes that are a multiple of {ITEM} bytes, got {value}")
    return tuple(sorted(without_twins(values)))


class LinksOptions(TransportOptions):
    """Which pairs are timed, at which sizes, and what counts as slow."""

    synopsis: ClassVar[str] = "every pair of hosts or ranks, then every half against the other: names who is slow"

    between: Literal["auto", "hosts", "ranks"] = Field(
        "auto", description="who is paired: hosts, or every rank with every other; auto: hosts if there are several"
    )
    per_host: Literal["one", "all"] = Field(
        "one", description="ranks that talk for their host: its first, or all at once, the k-th with the other's k-th"
    )
    sizes: Annotated[tuple[Size, ...], BeforeValidator(split_list), AfterValidator(_sizes)] = Field(
        (8, 4 << 20), description="bytes of a transfer, comma-separated: a small size for latency, a large one for rate"
    )
    passes: int = Field(3, ge=1, description="times that all pairs are measured, in another order each time")
    transfers: int = Field(10, ge=FEWEST, description="most timed transfers of a pair in a pass, of each size and way")
    budget: float = Field(
        0.3, gt=0, description=f"seconds per pair, size and way over all passes, but {FEWEST} transfers a pass at least"
    )
    threshold: float = Field(
        0.7, gt=0, lt=1, description="share of the usual rate below which a pair is slow; confirmed before it is named"
    )
    latency_factor: float = Field(3.0, gt=1, description="times the usual latency above which a pair is slow")
    bisection: bool = Field(True, description="after the pairs, let one half of them talk to the other, all at once")
    exclude_file: PathText | None = Field(
        None, description="where the hosts to exclude are written; without it exclude.txt in --out, if that is given"
    )
    seed: int = Field(1, ge=0, lt=2**31, description="seed of the data pattern and of the order of rounds")

    def check_world(self, world: int) -> None:
        """Raise ValueError unless there is a pair."""
        if world < 2:
            raise ValueError(
                f"links need at least 2 ranks, got {world}; start with torchrun --nproc-per-node 4 or more"
            )
