"""How long `assay --help` takes, and how long a whole `assay run suites/quick.yaml`.

    python benchmarks/startup.py            # --help only
    python benchmarks/startup.py --quick    # the quick suite too

Must reach: `assay --help` in 0.5 s or less, without torch; the quick suite in 120 s or less on 2 cores.
"""

import argparse
import subprocess
import sys
import tempfile
import time

from assay.estimates import median_interval

HELP_LIMIT, QUICK_LIMIT = 0.5, 120.0


def seconds_of(argv: list[str], runs: int) -> list[float]:
    """Wall-clock seconds of a whole process, `runs` times after one that fills the caches."""
    times = []
    for counted in [False] + [True] * runs:
        start = time.monotonic()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        if counted:
            times.append(time.monotonic() - start)
    return times


def verdict(times: list[float], limit: float) -> str:
    """Whether the interval (with too few runs for one: the range) lies below the limit, above it, or on both sides."""
    estimate = median_interval(times)
    low, high = estimate.low or min(times), estimate.high or max(times)
    word = "holds" if high <= limit else "fails" if low > limit else "undecided"
    return f"{estimate.value:.3f} s [{low:.3f}, {high:.3f}], limit {limit:g} s: {word} ({estimate.method})"


def main() -> None:
    """Time the commands and print each with its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="time the quick suite too, 3 runs")
    args = parser.parse_args()
    print("assay --help:", verdict(seconds_of([sys.executable, "-m", "assay", "--help"], args.runs), HELP_LIMIT))
    if args.quick:
        with tempfile.TemporaryDirectory() as folder:
            argv = [sys.executable, "-m", "assay", "run", "quick", "--out", folder]
            print("assay run quick:", verdict(seconds_of(argv, 3), QUICK_LIMIT))


if __name__ == "__main__":
    main()
