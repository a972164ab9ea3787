"""How much of the memory-copy ceiling the CPU transports reach: all_reduce of 1 MiB and 64 MiB on 2 ranks.

    python benchmarks/share.py

Ceilings (specs/limits.py), MPI and gloo are measured in turn, each in processes of its own. The share is busbw over the
payload rate of the copy with as many ranks loaded; its interval takes both ends of both. No limit: docs/communication.md
says what bounds it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from assay.record import RankFile, read_rank_file
from assay.scoring import ceilings, comms
from assay.scoring.ceilings import find_figure
from assay.scripts import script_path
from assay.units import format_si, format_size

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
SWEEP = ["--min", "1MiB", "--max", "64MiB", "--factor", "64", "--budget", "8", "--no-audit", "--device", "cpu"]


def records(out: Path, argv: list[str]) -> list[RankFile]:
    """Run a command that writes records into `out`, and read them."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # in a container everybody is root
    subprocess.run([*argv, "--out", str(out)], check=True, env=env, stdout=subprocess.DEVNULL)
    return [read_rank_file(path) for path in sorted(out.glob("rank-*.jsonl"))]


def main() -> None:
    """Measure and print."""
    bench, limits = str(script_path("comms/bench")), str(script_path("specs/limits"))
    with tempfile.TemporaryDirectory() as folder:
        measured = ceilings.derive(
            records(Path(folder) / "limits", [sys.executable, *TORCHRUN, limits, "--device", "cpu"])
        )
        copy = find_figure(measured, "copy_rate", 2, "cpu")
        if copy is None or copy.estimate is None:
            raise SystemExit("no ceiling was measured")
        low, high = copy.estimate.low or copy.estimate.value, copy.estimate.high or copy.estimate.value
        print(f"payload of the copy, 2 ranks together: {format_si(copy.estimate.value / 2, 'B/s')}")
        for name, argv in (
            ("mpi", ["mpirun", "-n", "2", sys.executable, bench, "--transport", "mpi"]),
            ("gloo", [sys.executable, *TORCHRUN, bench]),
        ):
            figures, _ = comms.derive(records(Path(folder) / name, [*argv, *SWEEP]), {}, measured)
            for figure in (one for one in figures if one.metric == "busbw" and one.estimate):
                bus = figure.estimate
                assert bus is not None
                least, most = (bus.low or bus.value) / (high / 2), (bus.high or bus.value) / (low / 2)
                print(
                    f"{name:>5} {format_size(int(figure.tags['bytes'])):>6}: busbw {format_si(bus.value, 'B/s')}, "
                    f"{figure.share or 0:.1%} of it [{least:.1%}, {most:.1%}]",
                    flush=True,
                )


if __name__ == "__main__":
    main()
