"""What our timing costs a collective: comms/bench.py's loops against naked loops of the same shape, by turns.

    python benchmarks/collective_calls.py             # starts 2 ranks over MPI, then 2 over gloo

Must reach, for all_reduce of 1 KiB to 1 MiB on 2 ranks over MPI: our call-by-call median within ±5 % of a naked mpi4py
loop (barrier, clock, call, clock), back to back within ±3 %. Over gloo: no difference that 20 pairs could decide. A pair
is one turn of each, in changing order; both are taken from the last entry to the last exit.
"""

import argparse
import os
import subprocess
import sys
from typing import Any

import numpy as np
import torch.distributed as dist

from assay.beacon import memory_folder, open_beacon
from assay.clock import now
from assay.clock_sync import Alignment
from assay.collectives.job import Job
from assay.collectives.trial import Trial, Variant
from assay.estimates import compare_pairs
from assay.options import CommsOptions
from assay.ranks import Session, session
from assay.scripts import load_script
from assay.transports import open_transport
from assay.units import format_size
from assay.world import MPI_BACKEND

SIZES = (1 << 10, 1 << 13, 1 << 16, 1 << 20)
LIMITS = {"call by call": 0.05, "back to back": 0.03}


class NakedMpi:
    """The loops that a person would write with mpi4py for the same buffer."""

    def __init__(self, trial: Trial) -> None:
        self.array = trial.buffers[0].received.numpy()

    def calls(self, count: int) -> tuple[list[float], list[float]]:
        """Entries and exits (s) of single calls."""
        from mpi4py import MPI

        comm, array, entries, exits = MPI.COMM_WORLD, self.array, [], []
        for _ in range(count):
            comm.Barrier()
            enter = now()
            comm.Allreduce(MPI.IN_PLACE, [array, MPI.FLOAT], MPI.SUM)
            leave = now()
            entries.append(enter)
            exits.append(leave)
        return entries, exits

    def batch(self, count: int) -> float:
        """Seconds of so many calls back to back."""
        from mpi4py import MPI

        comm, array = MPI.COMM_WORLD, self.array
        comm.Barrier()
        start = now()
        for _ in range(count):
            comm.Allreduce(MPI.IN_PLACE, [array, MPI.FLOAT], MPI.SUM)
        return now() - start


class NakedTorch:
    """The same with torch.distributed."""

    def __init__(self, trial: Trial) -> None:
        self.buffer = trial.buffers[0].received

    def calls(self, count: int) -> tuple[list[float], list[float]]:
        """Entries and exits (s) of single calls."""
        buffer, entries, exits = self.buffer, [], []
        for _ in range(count):
            dist.barrier()
            enter = now()
            dist.all_reduce(buffer)
            leave = now()
            entries.append(enter)
            exits.append(leave)
        return entries, exits

    def batch(self, count: int) -> float:
        """Seconds of so many calls back to back."""
        buffer = self.buffer
        dist.barrier()
        start = now()
        for _ in range(count):
            dist.all_reduce(buffer)
        return now() - start


def pairs_of(bench: Any, job: Job, trial: Trial, pairs: int, count: int) -> dict[str, tuple[list[float], list[float]]]:
    """Per way of timing: our medians (s) and the naked loop's, pair by pair, the same on every rank."""
    here: Session = job.here
    loops = NakedMpi(trial) if trial.transport.name == MPI_BACKEND else NakedTorch(trial)
    found: dict[str, tuple[list[float], list[float]]] = {way: ([], []) for way in LIMITS}

    def ours_single() -> float:
        trial.entries, trial.exits = [], []
        bench.time_turn(job, trial, count, checked=False)
        return completion(trial.entries, trial.exits)

    def naked_single() -> float:
        trial.refill()
        return completion(*loops.calls(count))

    def completion(entries: list[float], exits: list[float]) -> float:
        return float(np.median(here.world.largest(np.array(exits)) - here.world.largest(np.array(entries))))

    def ours_batch() -> float:
        trial.batches, trial.calls = [], count
        bench.time_batches(job, [trial])
        return float(here.world.largest(np.array(trial.batches))[0])

    def naked_together() -> float:
        trial.refill()
        return float(here.world.largest(np.array([loops.batch(count)]))[0])

    for number in range(pairs):
        for way, ours, theirs in (
            ("call by call", ours_single, naked_single),
            ("back to back", ours_batch, naked_together),
        ):
            turns = [(0, ours), (1, theirs)]
            for side, take in turns if number % 2 else reversed(turns):
                found[way][side].append(take())
    return found


def measure(transport: str, pairs: int) -> None:
    """In a rank: every size, and rank 0 prints the ratios."""
    bench: Any = load_script("comms/bench")
    # One batch each time: the stopping rule must not decide here.
    options = CommsOptions(transport="mpi" if transport == "mpi" else "torch", device="cpu", batches=1, budget=1e-9)
    with session(options, "benchmarks/collective_calls") as here:
        opened = open_transport(here.world.backend, here.world, here.device, options.groups(here.world.size))
        beacon = open_beacon(memory_folder(), here.world.rank, here.world.size)
        job = Job(options, here, beacon, Alignment(here.world, here.recorder))
        for size in SIZES:
            trial = Trial(options, here, opened, Variant("all_reduce", "float32", "sum", "auto"), size)
            trial.prepare(options)
            trial.refill()
            for _ in range(20):
                trial.call()
            # A turn must be long enough for a median, and short enough for the machine not to change within a pair.
            count = 400 if transport == "mpi" and size < 1 << 20 else 50
            found = pairs_of(bench, job, trial, pairs, count)
            for way, (ours, theirs) in found.items():
                ratio = compare_pairs(theirs, ours).ratio
                limit, low, high = LIMITS[way], ratio.low or 0.0, ratio.high or 9.0
                if transport == "mpi":
                    within = 1 - limit <= low and high <= 1 + limit
                    said = "holds" if within else "fails" if low > 1 + limit or high < 1 - limit else "undecided"
                else:
                    said = "no difference decided" if low <= 1 <= high else "a difference"
                if here.world.is_first:
                    median = np.median(ours) / (1 if way == "call by call" else trial.calls)
                    print(
                        f"{transport:>5} {format_size(size):>6} {way}: ours {median * 1e6:8.2f} us, ours / naked "
                        f"{ratio.value:.3f} [{low:.3f}, {high:.3f}] in {pairs} pairs: {said}",
                        flush=True,
                    )
            trial.release()


def main() -> None:
    """Start the ranks of each transport, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", type=int, default=120, help="pairs of turns for each size, over gloo 20 at most [120]"
    )
    parser.add_argument("--rank-of", choices=("mpi", "gloo"), help="what a rank is started with")
    given = parser.parse_args()
    if given.rank_of:
        measure(given.rank_of, given.pairs if given.rank_of == "mpi" else min(given.pairs, 20))
        return
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # in a container everybody is root
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", __file__]
    for transport, argv in (("mpi", ["mpirun", "-n", "2", sys.executable, __file__]), ("gloo", torchrun)):
        subprocess.run([*argv, "--rank-of", transport, "--pairs", str(given.pairs)], check=True, env=env)


if __name__ == "__main__":
    main()
