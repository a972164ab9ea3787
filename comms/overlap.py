"""Time a collective, matrix products, and both at once: how much communication hides behind computation.

    torchrun --nproc-per-node 2 comms/overlap.py
    torchrun --nproc-per-node 8 comms/overlap.py --op reduce_scatter --size 4MiB,64MiB,256MiB --gemm 4096
    mpirun -n 4 python comms/overlap.py --transport mpi --size 1MiB --out records

A round times three things, each after a barrier and in random order: the products alone, the collective alone, and both:
begin the collective, run the products, await the collective's handle. Clocks stop when the handle has been awaited and
the device is synchronised. Exposed communication is both − products; the overlap share says how much of the shorter of
the two disappeared behind the longer. Each is taken within a round, from the slowest rank's times. The collective's data
and the products are checked, alone and at the same time.

What makes no progress by itself hides nothing: MPI mostly moves data inside its own calls only, and gloo's threads need
the cores that the products use.
"""

import math
import os
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from assay.beacon import Beacon
from assay.clock import now
from assay.collectives.pattern import EVALUATIONS
from assay.collectives.refusals import refuse_beyond_memory
from assay.collectives.trial import Trial, Variant
from assay.errors import BadInput, RunFailed
from assay.estimates import FEWEST_SETTLED, Estimate, independent_count, median_interval, next_look
from assay.hang_watch import beacon_of
from assay.limits.products import KINDS, Kind, Shape, Unsupported, product, refusals
from assay.limits.timing import take_samples
from assay.options import OverlapOptions, parse_command_line
from assay.overlap import PARTS, Array, exposed_times, overlap_shares
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import TagValue
from assay.transports import Transport, open_transport
from assay.units import format_duration, format_size

FEWEST_ROUNDS = 6  # timed even when the budget is gone: the fewest that give a 95 % interval
TURN = 10  # rounds on one filling of the buffers; the first of them is checked
QUICK_LOOK = 1 << 16  # pattern values computed per check of a round: it must not eat the time for timing
TRIED = 7  # calls of the collective that tell how long it takes, about
SEVERAL = 8  # products that fit into the time asked for, where their size is chosen: few would be a coarse measure
CPU_SIDES, ACCELERATOR_SIDES = (64, 128, 256, 512, 1024, 2048), (512, 1024, 2048, 4096, 8192)
SEARCHED = 0.02  # s for every size of product that is tried
PROOF_ROWS = 16  # of the first product, compared with float64 on the host
LAYOUT = " {:>12} {:>14} {:>12} {:>12} {:>12} {:>12} {:>8} {:>7} {:>7} {:>7}"


@dataclass(frozen=True)
class Part:
    """What one timed region does. A part without a collective begins and awaits nothing, one without products runs none."""

    begin: Callable[[], Any]
    multiply: Callable[[], object]
    products: range
    wait: Callable[[Any], object]


def time_part(here: Session, part: Part) -> float:
    """Seconds until all that was begun is done. Whatever `begin` gives is awaited before the clock stops."""
    begin, multiply, products, wait, synchronize = (
        part.begin, part.multiply, part.products, part.wait, here.device.synchronize
    )  # fmt: skip
    # ---- timed region
    start = now()
    handle = begin()
    for _ in products:
        multiply()
    wait(handle)
    synchronize()
    end = now()
    # ----
    return end - start


class Product:
    """The product of two square matrices of integers, proven right once and unchanged ever after.

    Sums of the integers are exact in float32, so that no order of additions may change an element.
    """

    def __init__(self, here: Session, kind: Kind, side: int, seed: int) -> None:
        self.kind, self.side = kind, side
        highest = min(math.isqrt((1 << 24) // side), 256)  # a bfloat16 holds every integer up to 256
        device = here.device.torch_device
        numbers = torch.Generator().manual_seed(seed)
        drawn = torch.randint(-highest, highest + 1, (2, side, side), dtype=torch.int32, generator=numbers)
        left, right = drawn.to(kind.dtype).to(device)
        self.multiply = kind.bind(left, right)
        self.result = self.multiply()
        rows = torch.arange(0, side, -(-side // PROOF_ROWS), device=device)
        exact = left[rows].cpu().double() @ right.cpu().double()
        error = float((self.result[rows].cpu().double() - exact).norm() / exact.norm())
        if not error <= kind.error[1]:
            raise RunFailed(
                f"the {kind.name} product of {side} x {side} is wrong: relative error {error:.1g}, at most "
                f"{kind.error[1]:g} is expected; trust nothing of this device"
            )
        self._right = self.result.clone()

    def clear(self) -> None:
        """Forget the result, so that the next check sees the next product."""
        self.result.zero_()

    def wrong(self) -> int:
        """Elements of the latest product that are not what they were when it was proven."""
        return int(torch.count_nonzero(self.result != self._right))


class Overlap:
    """One collective at one size beside products: its three parts, their times (s), and what was found wrong.

    times: part → seconds of every round on this rank. wrong: products that differed, per check.
    """

    def __init__(self, options: OverlapOptions, here: Session, trial: Trial, beacon: Beacon) -> None:
        self.here, self.trial, self.target, self.beacon = here, trial, options.target, beacon
        beacon.phase(trial.op, trial.size, "choice of products")
        begin: Callable[[], Any] = nothing
        wait: Callable[[Any], object] = nothing
        if trial.takes_part:
            begin = trial.operation.bind(trial.settings[0], trial.transport, trial.buffers[0]).start
            wait = trial.transport.wait
        alone = Part(begin, nothing, range(0), wait)
        self.compute, self.count = choose_products(options, here, trial, typical_time(here, trial, alone))
        products = range(self.count)
        self.parts = {
            "compute": Part(nothing, self.compute.multiply, products, nothing),
            "communication": alone,
            "both": Part(begin, self.compute.multiply, products, wait),
        }
        self.times: dict[str, list[float]] = {name: [] for name in PARTS}
        self.wrong: list[int] = []
        self.tags: dict[str, TagValue] = {
            **trial.tags,
            "gemm": self.compute.side,
            "gemm_dtype": self.compute.kind.name,
            "products": self.count,
        }

    def turn(self, name: str, look: int | None) -> float:
        """One part after a barrier, in s. look: pattern values that its check may compute; None: it is not checked."""
        if look is not None:
            self.trial.refill()
            self.compute.clear()
        self.beacon.cell[0] += 1
        self.trial.barrier()
        seconds = time_part(self.here, self.parts[name])
        self.beacon.cell[0] += 1
        if look is not None and name != "compute":
            self.trial.check(look)
        if look is not None and name != "communication":
            self.wrong.append(self.compute.wrong())
        return seconds

    def slowest(self) -> tuple[Array, Array, Array]:
        """Seconds of compute, communication and both, [rounds] each, in the slowest of the ranks that take part."""
        own = np.array([self.times[name] for name in PARTS], dtype=np.float64)
        if not self.trial.takes_part:
            own.fill(-np.inf)
        compute, communication, both = self.here.world.largest(own.reshape(-1)).reshape(own.shape)
        return compute, communication, both

    def is_known(self) -> bool:
        """Whether the overlap share's interval is narrow enough. Absolute: what is about 0 has no relative width."""
        shares = overlap_shares(*self.slowest())
        half = half_width(median_interval(shares))
        return half is not None and half <= self.target and independent_count(shares) >= FEWEST_SETTLED

    def record(self) -> None:
        """Write the raw samples."""
        recorder, trial = self.here.recorder, self.trial
        if trial.takes_part:
            for name in PARTS:
                recorder.block(f"{name}_time", "s", self.times[name], self.tags)
        seen = {"looked_at": trial.looked_at, "of": trial.elements}
        recorder.block("check_errors", "1", trial.checks, {**self.tags, **seen, "checked": "data"})
        recorder.block("check_errors", "1", self.wrong, {**self.tags, "checked": "products"})
        if trial.late:
            recorder.block("late_elements", "1", [trial.late], self.tags)


def measure(options: OverlapOptions, here: Session, overlap: Overlap) -> None:
    """Warm up, then rounds of all three parts, until the overlap share is known well enough or time is up."""
    op, size = overlap.trial.op, overlap.trial.size
    overlap.beacon.phase(op, size, "warm-up")
    for name in PARTS:
        for number in range(options.warmup):
            overlap.turn(name, EVALUATIONS if number == 0 else None)
    overlap.beacon.phase(op, size, "parts by turns")
    begun, order, chance = now(), list(PARTS), random.Random(options.seed)  # the same order in all ranks
    for done in range(1, options.max_rounds + 1):
        chance.shuffle(order)
        for name in order:
            overlap.times[name].append(overlap.turn(name, QUICK_LOOK if done % TURN == 1 else None))
        enough = next_look(done - 1) == done and overlap.is_known()
        spent = done >= FEWEST_ROUNDS and now() - begun >= options.budget
        if here.world.agree(enough or spent):
            return


def typical_time(here: Session, trial: Trial, alone: Part) -> float:
    """Seconds of the collective alone, about: rank 0's median, the same number in all ranks."""
    trial.refill()
    seen = []
    for _ in range(TRIED):
        trial.barrier()
        seen.append(time_part(here, alone))
    return from_first_rank(here, statistics.median(seen))


def choose_products(options: OverlapOptions, here: Session, trial: Trial, typical: float) -> tuple[Product, int]:
    """Matrices, and how often they are multiplied, for about `ratio` times `typical` s. Rank 0 decides."""
    on_cpu = here.device.type == "cpu"
    name = options.gemm_dtype if options.gemm_dtype != "auto" else "float32" if on_cpu else "bfloat16"
    kind, wanted, side, one = KINDS[name], options.ratio * typical, 0, 0.0
    try:
        with refusals(here.device):
            for tried in (options.gemm,) if options.gemm else CPU_SIDES if on_cpu else ACCELERATOR_SIDES:
                # All ranks at once: they share a host's cores and memory when it counts, too.
                here.world.barrier()
                known = from_first_rank(here, time_of_product(here, kind, tried) if trial.takes_part else 0.0)
                if side and known > wanted / SEVERAL:
                    break
                side, one = tried, known
            return Product(here, kind, side, options.seed), max(1, round(wanted / one))
    except Unsupported as error:
        raise BadInput(f"--gemm-dtype {name}: {error}; choose another, or a smaller --gemm") from None


def time_of_product(here: Session, kind: Kind, side: int) -> float:
    """Seconds of one product, about, while other ranks multiply too."""
    taken = take_samples(here.device, SEARCHED, product(here.device, kind, Shape(side, side, side)).call, fewest=3)
    return statistics.median(taken.times) / taken.calls


def from_first_rank(here: Session, seconds: float) -> float:
    """Rank 0's seconds in all ranks, to the nanosecond and above 0."""
    return max(1, here.world.agree(round(seconds * 1e9))) / 1e9


def half_width(estimate: Estimate) -> float | None:
    """Half of the interval's width in the estimate's own unit; None without an interval."""
    return None if estimate.low is None or estimate.high is None else (estimate.high - estimate.low) / 2


def nothing(*_: object) -> None:
    """Stands where a part has no collective or no products."""


def heading_of(options: OverlapOptions, here: Session, transport: Transport) -> str:
    """The lines above the table."""
    hosts = len(set(here.world.hosts))
    where = f"{here.world.size} ranks on {hosts} host{'s' if hosts > 1 else ''}, {transport.name}, {here.device.name}"
    columns = ("size", "products", "compute", "comm", "both", "exposed", "overlap", "±", "rounds", "#wrong")
    units = ("(B)", "", "(us)", "(us)", "(us)", "(us)", "", "", "", "")
    return (
        f"# {options.op}, {options.dtype}, beside products: {where}\n"
        "# medians over rounds of the slowest rank; exposed: both - compute; overlap: (compute + comm - both) / the "
        "shorter of the two; ±: half of its 95 % interval\n"
        f"#{LAYOUT.format(*columns)[1:]}\n#{LAYOUT.format(*units)[1:].rstrip()}"
    )


def row_of(overlap: Overlap, wrong: int) -> str:
    """One size in the table. wrong: elements over all ranks."""
    compute, _, both = times = overlap.slowest()
    share = median_interval(overlap_shares(*times))
    half = half_width(share)
    microseconds = [f"{np.median(one) * 1e6:.2f}" for one in (*times, exposed_times(compute, both))]
    products = f"{overlap.count} x {overlap.compute.side}^3"
    shown = "NA" if half is None else f"{half:.3f}"
    return LAYOUT.format(overlap.trial.size, products, *microseconds, f"{share.value:.3f}", shown, both.size, wrong)


def bench(options: OverlapOptions, here: Session, transport: Transport, beacon: Beacon) -> None:
    """Measure every size and print the table. Raises RunFailed on rank 0 if any check failed."""
    asked = [options.collective(size) for size in options.size]
    variant = Variant(options.op, options.dtype, "sum", "auto")
    trials = [Trial(one, here, transport, variant, size) for one, size in zip(asked, options.size, strict=True)]
    if trials[0].refused:
        raise BadInput(f"--op {options.op} --dtype {options.dtype}: {trials[0].refused}; choose another")
    matrices = 64 * (options.gemm or 0) ** 2  # operands, results, and what they are made of: 8 of at most 8 bytes each
    largest = max(trials, key=lambda trial: trial.bytes_needed)
    what = f"--size, --gemm: {options.op} of {format_size(largest.size)} beside the products"
    refuse_beyond_memory(here, largest.bytes_needed + matrices, what)
    first, begun, wrong = here.world.is_first, now(), 0
    if first:
        print(heading_of(options, here, transport), flush=True)
    for done, (one, trial) in enumerate(zip(asked, trials, strict=True), 1):
        trial.prepare(one)
        overlap = Overlap(options, here, trial, beacon)
        measure(options, here, overlap)
        overlap.record()
        trial.release()
        here_wrong = int(here.world.total(sum(trial.checks) + sum(overlap.wrong)))
        row, wrong = row_of(overlap, here_wrong), wrong + here_wrong
        if first:
            print(row, flush=True)
            # By hand, the rows themselves are the progress; under the runner they go to a log.
            if "ASSAY_RUN" in os.environ:
                print(progress_line(done, len(trials), f"{options.op} {format_size(trial.size)}"), flush=True)
    if first:
        kept = f"raw samples in {options.out}" if options.out else "no raw samples kept; give --out DIR to keep them"
        print(f"# {len(trials)} measurements in {format_duration(now() - begun)}; {kept}")
    if wrong and first:
        raise RunFailed(f"{wrong} elements of data or products are wrong; trust no figure of this run")


if __name__ == "__main__":
    arguments = parse_command_line(OverlapOptions, __doc__)
    with session(arguments, "comms/overlap") as joined:
        opened = open_transport(joined.world.backend, joined.world, joined.device, [range(joined.world.size)])
        with beacon_of(joined.world, arguments.out, arguments.hang_limit) as alive:
            bench(arguments, joined, opened, alive)
