"""Time every pair of hosts or ranks, and name the rank or link that is slow.

    torchrun --nproc-per-node 4 comms/links.py
    mpirun -n 4 python comms/links.py --transport mpi
    srun python comms/links.py --between hosts --out records
    srun python comms/links.py --per-host all --sizes 8,64MiB --exclude-file exclude.txt

All pairs meet in the rounds of a tournament, every round several pairs at once, in each direction and in both. What is
slow there is measured again alone, by turns with healthy pairs, before it is named. Then one half of the hosts talks to
the other. One way, a transfer ends with a reply of 4 bytes, so that one clock, the sender's, times all of it.
"""

import os
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from assay.beacon import Beacon
from assay.clock import now
from assay.collectives.operations import OPERATIONS
from assay.collectives.pattern import EVALUATIONS, fill
from assay.collectives.refusals import refuse_beyond_memory
from assay.collectives.setting import Buffers, Setting, allocate
from assay.errors import BadInput, RunFailed
from assay.hang_watch import beacon_of
from assay.links.bisection import ALONE_PAIRS, ALONE_PASSES, PASSES
from assay.links.exclusion import clear, exclude, scheduler_name
from assay.links.faults import CONFIRM_PASSES, CONFIRM_TRANSFERS, MOST_SUSPECTS, Suspect
from assay.links.matrix import BOTH_WAYS, ONE_WAY
from assay.links.rounds import Pair, cuts, lanes, rounds, spread
from assay.links.survey import (
    ALONE,
    BISECTION,
    CONFIRM,
    MATRIX,
    Key,
    Limits,
    condensed,
    crossings,
    matrices,
    suspects,
    verdict,
)
from assay.links.tables import heading, matrix_lines
from assay.links.verdict import bisection_sentence, sentences
from assay.options import parse_command_line
from assay.options.links import FEWEST, ITEM, LinksOptions
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import TagValue
from assay.transports import Transport, open_transport
from assay.units import format_duration, format_size

QUICK_LOOK = 1 << 16  # pattern values computed per check, but in the first pass


@dataclass(frozen=True)
class Turn:
    """Pairs of ranks that talk at the same time, while all others wait.

    seconds: for the timed transfers of each pair. count: exactly so many transfers, if it is not 0.
    """

    pairs: Sequence[Pair]
    size: int
    ways: str
    seconds: float
    phase: str
    number: int
    cut: int = -1
    count: int = 0
    tags: Mapping[str, TagValue] = field(default_factory=dict)

    @property
    def op(self) -> str:
        """The operation that moves the data."""
        return "pt2pt" if self.ways == ONE_WAY else "pt2pt_bidirectional"


class Part:
    """This rank's part in every turn. timed: s of the pairs that it leads, since they were last told to all."""

    def __init__(self, options: LinksOptions, here: Session, transport: Transport, beacon: Beacon) -> None:
        self.options, self.here, self.transport, self.beacon = options, here, transport, beacon
        self.synchronize = here.device.synchronize
        self.common: dict[str, TagValue] = {"dtype": "float32", "backend": transport.name, "world": here.world.size}
        self.timed: dict[Key, list[float]] = defaultdict(list)
        self.right: dict[tuple[str, int], int] = defaultdict(int)
        self.wrong = 0
        device, count = here.device.torch_device, max(options.sizes) // ITEM
        self.setting = Setting(here.world.rank, here.world.size, (0, 1), torch.float32, device, options.seed, count)
        self.whole = allocate(self.setting, count, count, in_place=False)
        self.reply = torch.zeros(1, device=device)
        fill(self.setting, self.whole)

    def buffers(self, size: int) -> Buffers:
        """The first `size` bytes of what is sent and received."""
        return Buffers(self.whole.sent[: size // ITEM], self.whole.received[: size // ITEM])

    def bind(self, turn: Turn, pair: Pair) -> Callable[[], object]:
        """One transfer of the pair, complete when it returns."""
        setting, buffers, synchronize = replace(self.setting, pair=pair), self.buffers(turn.size), self.synchronize
        move = OPERATIONS[turn.op].bind(setting, self.transport, buffers).call
        if turn.ways == BOTH_WAYS:
            return lambda: (move(), synchronize())
        leads = self.here.world.rank == pair[0]
        reply = self.transport.receive(self.reply, pair[1]) if leads else self.transport.send(self.reply, pair[0])
        return lambda: (move(), reply.call(), synchronize())

    def prepare(self, turn: Turn, pair: Pair, transfer: Callable[[], object]) -> int:
        """A first transfer, of fresh data that are checked; how many to time, as the pair's first rank says."""
        if turn.number == 0:
            transfer()  # connects the pair, where that is done at the first call
        buffers = self.buffers(turn.size)
        buffers.received.fill_(self.setting.levels + 1)
        self.synchronize()
        begun = now()
        transfer()
        took = max(now() - begun, 1e-9)
        look = EVALUATIONS if turn.phase == MATRIX and turn.number == 0 else QUICK_LOOK
        found = OPERATIONS[turn.op].check(replace(self.setting, pair=pair), buffers, look)
        if found.wrong:
            seen = {"looked_at": found.looked_at, "of": found.total}
            self.here.recorder.block("check_errors", "1", [found.wrong], {**self.tags(turn, pair), **seen})
            self.wrong += found.wrong
        elif found.total:
            self.right[turn.phase, turn.size] += 1
        channel = self.here.world.channel
        if self.here.world.rank == pair[1]:
            return int(channel.receive(pair[0]))
        count = turn.count or max(FEWEST, min(self.options.transfers, int(turn.seconds / took)))
        channel.send(float(count), pair[1])
        return count

    def take(self, turn: Turn) -> None:
        """Time and record this rank's pair, together with all other pairs of the turn; wait, if it has none."""
        pair = next((pair for pair in turn.pairs if self.here.world.rank in pair), None)
        self.beacon.phase(turn.op, turn.size, f"{turn.phase}, pass {turn.number}")
        transfer: Callable[[], object] = idle
        count = 0
        if pair:
            transfer = self.bind(turn, pair)
            count = self.prepare(turn, pair, transfer)
        self.here.world.barrier()
        self.beacon.cell[0] = 1
        times = []
        for _ in range(count):
            # ---- timed region
            start = now()
            transfer()
            end = now()
            # ----
            times.append(end - start)
        if pair and self.here.world.rank == pair[0]:
            self.here.recorder.block("pair_time", "s", times, self.tags(turn, pair))
            self.timed[turn.phase, turn.size, turn.ways, turn.cut, turn.number, pair] += times
        # What is prepared for the next turn must not disturb who is not done with this one.
        self.here.world.barrier()
        self.beacon.cell[0] = 2

    def tags(self, turn: Turn, pair: Pair) -> dict[str, TagValue]:
        """What tells a record of this pair from others."""
        hosts = self.here.world.hosts
        return {
            "from": pair[0],
            "to": pair[1],
            "from_host": hosts[pair[0]],
            "to_host": hosts[pair[1]],
            "bytes": turn.size,
            "ways": turn.ways,
            "phase": turn.phase,
            "pass": turn.number,
            **turn.tags,
            **({"cut": turn.cut} if turn.cut >= 0 else {}),
            **self.common,
        }

    def end_phase(self) -> dict[Key, float]:
        """The median times of all pairs in this phase, on rank 0. Records the checks that found nothing wrong.

        Each phase its own, so that its data are known to have been right if the run is killed in a later one.
        """
        for (phase, size), count in self.right.items():
            self.here.recorder.block("check_errors", "1", [0] * count, {"bytes": size, "phase": phase, **self.common})
        mine, found = condensed(self.timed), dict[Key, float]()
        self.right.clear()
        self.timed.clear()
        for theirs in self.here.world.collect(mine) or ():
            found |= theirs
        return found


def measure_pairs(options: LinksOptions, part: Part, groups: Sequence[Sequence[int]]) -> None:
    """Every pair in every size and way, once a pass; rounds in another order in each."""
    schedule = list(enumerate(rounds(len(groups[0]))))
    order = random.Random(options.seed)
    total, seconds = options.passes * len(schedule), options.budget / options.passes
    for number in range(options.passes):
        order.shuffle(schedule)
        for done, (index, pairs) in enumerate(schedule, number * len(schedule)):
            there = spread(pairs, groups)
            back = [(b, a) for a, b in there]
            for size in options.sizes:
                for ways, talking in ((ONE_WAY, there), (ONE_WAY, back), (BOTH_WAYS, there)):
                    part.take(Turn(talking, size, ways, seconds, MATRIX, number, tags={"round": index}))
            tell_progress(part.here, done + 1, total, "all pairs")


def idle() -> None:
    """What a rank without a pair transfers."""


def confirm(part: Part, again: Sequence[Suspect]) -> None:
    """Every suspect's pairs and the healthy ones that it is held against, one pair at a time, by turns."""
    wanted = dict.fromkeys((pair, one.bytes, one.ways) for one in again for pair in (*one.edges, *one.controls))
    for number in range(CONFIRM_PASSES):
        for pair, size, ways in wanted:
            part.take(Turn([pair], size, ways, 0.0, CONFIRM, number, count=CONFIRM_TRANSFERS))
        tell_progress(part.here, number + 1, CONFIRM_PASSES, f"{len(again)} suspects again")


def bisect(options: LinksOptions, part: Part, groups: Sequence[Sequence[int]]) -> None:
    """Every cut in both directions: all its pairs at once, and by turns with that some of them alone."""
    halves = cuts(len(groups[0]))
    size, seconds = max(options.sizes), options.budget / PASSES
    for index, cut in enumerate(halves):
        chosen = np.linspace(0, len(cut.pairs) - 1, min(ALONE_PAIRS, len(cut.pairs))).round().astype(int)
        for number in range(PASSES):
            for pairs in (cut.pairs, [(b, a) for a, b in cut.pairs]):
                part.take(Turn(spread(pairs, groups), size, ONE_WAY, seconds, BISECTION, number, index))
                for one in chosen if number < ALONE_PASSES else ():
                    part.take(Turn(spread([pairs[one]], groups), size, ONE_WAY, seconds, ALONE, number, index))
        tell_progress(part.here, index + 1, len(halves), "bisection")


def links(options: LinksOptions, here: Session, transport: Transport, beacon: Beacon) -> None:
    """Measure all pairs, confirm suspects, cut the world in halves; rank 0 prints. Raises BadInput before it measures.

    Raises RunFailed when all is told: on wrong data, or if the hosts to exclude cannot be written.
    """
    world, first, limits = here.world, here.world.is_first, Limits(options.threshold, options.latency_factor)
    groups = lanes(world.hosts, options.between, options.per_host)
    refuse_beyond_memory(here, 2 * max(options.sizes), f"--sizes: a pair of {format_size(max(options.sizes))}")
    hosts, names = dict(enumerate(world.hosts)), world.collect(scheduler_name()) or []
    part, begun = Part(options, here, transport, beacon), now()
    listed = options.exclude_file or (options.out / "exclude.txt" if options.out else None)
    # All ranks hear of a refusal, or those that measure on would fail for want of rank 0.
    refusal = world.first_said(clear(listed) if first and listed else "")
    if refusal:
        raise BadInput(refusal)
    if first:
        print(heading(options, groups, len(set(world.hosts)), f"{transport.name}; {here.device.name}"), flush=True)
    measure_pairs(options, part, groups)
    times = part.end_phase()
    measured = matrices(groups, hosts, times)
    # Rank 0 decides for all: floating point may differ in its last digit between hosts, and ranks would part ways.
    again = world.broadcast(suspects(measured, limits)[1][:MOST_SUSPECTS])
    if first:
        print("\n".join(line for one in measured for line in matrix_lines(one)), flush=True)
    comparable = [one for one in again if one.controls]
    if comparable:
        confirm(part, comparable)
        times |= part.end_phase()
    if options.bisection:
        bisect(options, part, groups)
        times |= part.end_phase()
    beacon.phase("", 0, "the end")
    wrong = int(world.total(part.wrong))
    if first:
        for crossed in crossings(groups, hosts, times):
            print(f"# bisection {bisection_sentence(*crossed)}")
        found = verdict(measured, limits, times)
        print("\n".join(f"# {sentence}." for sentence in sentences(found)))
        kept = f"raw samples in {options.out}" if options.out else "no raw samples kept; give --out DIR to keep them"
        print(f"# {format_duration(now() - begun)}; {kept}")
        failed = [f"{wrong} elements were wrong after their transfer; trust no figure of this run"] if wrong else []
        try:
            print(f"# {exclude(listed, list(dict.fromkeys(names[rank] for rank in found.slow_ranks)))}")
        except RunFailed as error:
            failed.append(str(error))
        if failed:
            raise RunFailed("; ".join(failed))


def tell_progress(here: Session, done: int, total: int, what: str) -> None:
    """Under the runner, a progress line."""
    if here.world.is_first and "ASSAY_RUN" in os.environ:
        print(progress_line(done, total, what), flush=True)


if __name__ == "__main__":
    arguments = parse_command_line(LinksOptions, __doc__)
    with session(arguments, "comms/links") as joined:
        opened = open_transport(joined.world.backend, joined.world, joined.device, [range(joined.world.size)])
        with beacon_of(joined.world, arguments.out, arguments.hang_limit) as alive:
            links(arguments, joined, opened, alive)
