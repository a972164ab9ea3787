"""Bandwidth formulas of the collectives: n ranks, S bytes, t seconds. Pure arithmetic, shared by scripts and scoring.

Sources: nccl-tests doc/PERFORMANCE.md (algbw, busbw and the meaning of S); DeepSpeed's communication suite
(`get_bw`), whose "Throughput" column is what the seed's A100 baseline prints.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Collective:
    """One collective's arithmetic.

    parts: into how many equal parts the S bytes are cut, given n (1: S is one rank's buffer, n: S is n parts).
    bus: factor from algbw to busbw, given n. A flat ring is assumed, as nccl-tests does. 0: it moves no bytes.
    deepspeed_bytes: bytes that DeepSpeed's "Throughput" counts, given S as defined here and n.
    deepspeed_size: bytes that DeepSpeed prints as the size, given S and n.
    ranks: how many ranks take part; None: all.
    waits: no rank can leave before the last has entered, because each needs something of every other.
    """

    name: str
    parts: Callable[[int], int]
    bus: Callable[[int], float]
    deepspeed_bytes: Callable[[int, int], int]
    deepspeed_size: Callable[[int, int], int]
    ranks: int | None = None
    waits: bool = False


def _whole(n: int) -> int:
    return 1


def _each(n: int) -> int:
    return n


def _all_but_own(n: int) -> float:
    return (n - 1) / n


def _same(size: int, n: int) -> int:
    return size


# all_gather, reduce_scatter, gather, scatter: S = n × one rank's part. all_to_all: S = one rank's whole send buffer;
# all_to_all_v: the largest buffer that any rank sends or receives. pt2pt_bidirectional: S each way, both counted.
COLLECTIVES: dict[str, Collective] = {
    item.name: item
    for item in (
        Collective("all_reduce", _whole, lambda n: 2 * (n - 1) / n, lambda size, n: 2 * size, _same, waits=True),
        Collective("all_gather", _each, _all_but_own, _same, lambda size, n: size // n, waits=True),
        Collective("reduce_scatter", _each, _all_but_own, _same, _same, waits=True),
        Collective("all_to_all", _each, _all_but_own, _same, _same, waits=True),
        Collective("all_to_all_v", _whole, _all_but_own, _same, _same),
        Collective("broadcast", _whole, lambda n: 1.0, _same, _same),
        Collective("reduce", _whole, lambda n: 1.0, _same, _same),
        Collective("gather", _each, _all_but_own, _same, _same),
        Collective("scatter", _each, _all_but_own, _same, _same),
        Collective("pt2pt", _whole, lambda n: 1.0, _same, _same, ranks=2),
        Collective("pt2pt_bidirectional", _whole, lambda n: 2.0, _same, _same, ranks=2),
        Collective("sendrecv", _whole, lambda n: 1.0, _same, _same),
        Collective("barrier", _whole, lambda n: 0.0, _same, _same, waits=True),
    )
}


def algbw(size: int, seconds: float) -> float:
    """Algorithm bandwidth in B/s: S / t."""
    return size / seconds


def busbw(op: str, size: int, seconds: float, n: int) -> float:
    """Bus bandwidth in B/s: algbw × the collective's factor (nccl-tests). Raises KeyError on an unknown op."""
    return algbw(size, seconds) * COLLECTIVES[op].bus(n)


def deepspeed_throughput(op: str, size: int, seconds: float, n: int) -> float:
    """DeepSpeed's "Throughput" in bit/s. `size` is S as defined here (all_gather: the gathered whole).

    DeepSpeed prints Gbps of 10⁹ bits; all_reduce counts 2S, all_gather counts n × its printed size.
    """
    return COLLECTIVES[op].deepspeed_bytes(size, n) * 8 / seconds


def deepspeed_busbw(op: str, size: int, seconds: float, n: int) -> float:
    """DeepSpeed's "BusBW" in bit/s: the same factor as nccl-tests', in bits."""
    return busbw(op, size, seconds, n) * 8


def round_down(size: int, op: str, n: int, itemsize: int) -> int:
    """The largest S ≤ `size` that cuts into the op's parts of whole elements; 0 if there is none."""
    grain = COLLECTIVES[op].parts(n) * itemsize
    return size // grain * grain
