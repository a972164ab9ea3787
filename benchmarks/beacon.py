"""What the beacon of assay/beacon.py costs in a loop of calls that do nothing.

    python benchmarks/beacon.py

Must reach: at most 100 ns an update (one of two in an iteration). Every sample is one loop of many rounds, with the empty
loop beside it subtracted. The second figure is the whole change of a phase, once a phase; it has no limit. The last is
how long an assignment may take when the page has just been written back, in memory and in the temporary folder's file.
"""

import os
import tempfile
import time
import timeit
from pathlib import Path

from assay.beacon import Beacon, memory_folder, open_beacon
from assay.estimates import median_interval

LIMIT = 100e-9
ROUNDS, SAMPLES = 100_000, 25
SYNCS = 60


def updates(beacon: Beacon) -> list[float]:
    """Seconds of one update, entered or left, beyond an empty round."""
    loop = timeit.Timer("cell[0] = 2 * k + 1; cell[0] = 2 * k + 2", globals={"cell": beacon.cell, "k": 12_345})
    empty = timeit.Timer("pass")
    return [(loop.timeit(ROUNDS) - empty.timeit(ROUNDS)) / (2 * ROUNDS) for _ in range(SAMPLES)]


def phases(beacon: Beacon) -> list[float]:
    """Seconds of one change of phase."""
    loop = timeit.Timer('phase("all_reduce", 4096, "call by call")', globals={"phase": beacon.phase})
    return [loop.timeit(ROUNDS // 10) / (ROUNDS // 10) for _ in range(SAMPLES)]


def after_write_back(beacon: Beacon) -> list[float]:
    """Seconds of the assignment that follows upon the kernel's writing of everything to the disk."""
    found = []
    for number in range(SYNCS):
        beacon.cell[0] = number
        os.sync()
        start = time.perf_counter()
        beacon.cell[0] = number
        found.append(time.perf_counter() - start)
    return found


def report(what: str, samples: list[float], limit: float | None = None) -> None:
    """One line: the median in ns, its interval (the range, where there is none), its limit."""
    cost = median_interval(samples)
    low, high = cost.low or min(samples), cost.high or max(samples)
    verdict = ""
    if limit is not None:
        word = "holds" if high <= limit else "fails" if low > limit else "undecided"
        verdict = f", limit {limit * 1e9:,.0f} ns: {word}"
    print(f"{what}: {cost.value * 1e9:,.0f} ns [{low * 1e9:,.0f}, {high * 1e9:,.0f}]{verdict} ({cost.method})")


def main() -> None:
    """Measure and print all of it."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as memory, tempfile.TemporaryDirectory() as disk:
        beacon = open_beacon(Path(memory), 0, 1)
        report("an update", updates(beacon), LIMIT)
        report("a change of phase", phases(beacon))
        for name, folder in (("memory", memory), ("the temporary folder", disk)):
            report(f"an update after write-back, file in {name}", after_write_back(open_beacon(Path(folder), 0, 1)))


if __name__ == "__main__":
    main()
