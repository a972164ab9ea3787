"""How fast initial weights are made on one core, against the raw random generator that they are made from.

    python benchmarks/weights.py
    python benchmarks/weights.py --pairs 40 --elements 16777216

The generator gives 64 bits per element. A pair is `elements` of each, in one process and one thread; successive pairs
swap the order (ABBA), so that a drifting machine favours neither. The generator runs in pieces that stay in the core's
cache, which is as fast as it gets; in one call, where it writes to memory, it is slower. It holds if the lower end of
the 95 % interval of the median ratio of rates is at least 0.5. "Before" is the same numbers by plain array expressions.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from assay.clock import now
from assay.estimates import Estimate, compare_pairs, median_interval
from assay.training.model import INITIALIZER_RANGE
from assay.training.weights import CHUNK, PIECE, draw, draw_into, initialise, raw_bits

REQUIRED = 0.5
WARMUP_PAIRS = 3
SEED, NAME = 1, "weight"


def main() -> None:
    """Time the pairs and print each ratio with its interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100, help="interleaved pairs [100]")
    parser.add_argument("--elements", type=int, default=1 << 21, help="elements of each in a pair [2097152]")
    given = parser.parse_args()
    torch.set_num_threads(1)
    count = given.elements
    out = np.empty(count, dtype=np.float32)
    matrix = nn.Embedding(count // 1024, 1024)
    same_bits(matrix)
    print(f"{given.pairs} pairs of {count} elements, one thread")
    raw, once = (lambda: raw_in_pieces(count)), (lambda: raw_bits(SEED, NAME, 0, count))
    contenders: list[tuple[str, Callable[[], object], Callable[[], object], bool]] = [
        ("numbers/raw", lambda: draw_into(out, SEED, NAME, 0), raw, True),
        ("initialise/raw", lambda: initialise(matrix, SEED), raw, True),
        ("before/raw", lambda: before(count), raw, False),
        ("numbers/raw in one call", lambda: draw_into(out, SEED, NAME, 0), once, False),
        ("numbers/before", lambda: draw_into(out, SEED, NAME, 0), lambda: before(count), False),
    ]
    for name, ours, theirs, claimed in contenders:
        times = [time_pair(ours, theirs, swap=pair % 2 == 1) for pair in range(WARMUP_PAIRS + given.pairs)]
        a, b = zip(*times[WARMUP_PAIRS:], strict=True)
        # Rates are inverse to times: ours/theirs is their time by ours.
        ratio = compare_pairs(a, b).ratio
        each = median_interval(np.array(a) / count * 1e9)
        print(f"{name:24} {verdict(ratio, claimed)}; {each.value:.2f} ns an element")


def verdict(ratio: Estimate, claimed: bool) -> str:
    """The ratio and its interval, and whether the requirement holds where there is one."""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.3f}: undecided, {ratio.method}"
    known = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    if not claimed:
        return known
    word = "holds" if ratio.low >= REQUIRED else "fails" if ratio.high < REQUIRED else "undecided"
    return f"{known}, at least {REQUIRED} required: {word}"


def time_pair(ours: Callable[[], object], theirs: Callable[[], object], swap: bool) -> tuple[float, float]:
    """Seconds of (ours, theirs)."""
    seconds = {}
    for run in (theirs, ours) if swap else (ours, theirs):
        start = now()
        run()
        seconds[run] = now() - start
    return seconds[ours], seconds[theirs]


def raw_in_pieces(count: int) -> None:
    """The generator alone, its outputs dropped while they are in the cache."""
    philox = np.random.Philox(key=SEED)
    for _ in range(0, count, PIECE):
        philox.random_raw(PIECE)


def before(count: int) -> NDArray[np.float32]:
    """The numbers as plain array expressions make them, a new array for each."""
    halves, sixteen = np.uint64(0x0000FFFF0000FFFF), np.uint64(16)
    scale = np.float32(INITIALIZER_RANGE / np.sqrt(4 * (2**32 - 1) / 12))
    parts = []
    for start in range(0, count, CHUNK):
        bits = raw_bits(SEED, NAME, start, min(CHUNK, count - start))
        pairs = (bits & halves) + ((bits >> sixteen) & halves)
        total = (pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))
        parts.append((total.astype(np.int32) - np.int32(131070)).astype(np.float32) * scale)
    return np.concatenate(parts)


def same_bits(matrix: nn.Embedding) -> None:
    """Stop unless both ways, and a whole model's initialisation, give the same numbers to the bit."""
    initialise(matrix, SEED)
    made = matrix.weight.detach().numpy().tobytes()
    count = matrix.weight.numel()
    if not made == before(count).tobytes() == draw(SEED, NAME, 0, count).tobytes():
        raise SystemExit("the ways do not give the same numbers")


if __name__ == "__main__":
    main()
