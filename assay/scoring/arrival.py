"""Entries and exits of calls from rank files onto one clock: times of calls, waiting against transfer, and late ranks."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from assay.arrival import ALIGNED, GOOD, Lateness, clocks_error, late_rank, usable_times, waiting, widened
from assay.clock_sync import METRIC, Probe, align
from assay.estimates import completion_times, median_interval, slowest_rank_times
from assay.record import RankFile
from assay.scoring.result import Figure
from assay.scoring.samples import Array, by_rank, stacked
from assay.units import format_si, format_size

KIND = "late_rank"
ADVICE = "look at that rank's host and device (other load, cores shared, clocks, sensors); every call waits for it"


@dataclass(frozen=True)
class Calls:
    """The calls of one measurement. entries, exits: [ranks, calls], s; on one clock unless `errors` is infinite.

    ranks, hosts: of each row. errors: [ranks], bound of each row's clock error (s), 0 where all read one clock.
    """

    ranks: tuple[int, ...]
    hosts: tuple[str, ...]
    entries: Array
    exits: Array
    errors: Array

    @property
    def error(self) -> float:
        """Bound (s) of the difference between times of any two ranks; infinite if their clocks were not compared."""
        return clocks_error(self.errors)


def read_calls(files: Iterable[RankFile], tags: Mapping[str, Any]) -> Calls | None:
    """Every rank's entries and exits of the measurement whose tags hold `tags`; None where there are none.

    Cut to what every rank has. Calls of which a time is not known (null) are left out for all ranks.
    """
    headers = {file.header.rank: (file, file.header) for file in files if file.header}
    entered, left = by_rank(files, "call_entry", tags), by_rank(files, "call_exit", tags)
    ranks = tuple(sorted(entered.keys() & left.keys()))
    # Rows by turns, so that entries and exits are cut to the same calls: 2 × rank its entries, the next its exits.
    both = stacked({2 * rank + leaves: times[rank] for leaves, times in enumerate((entered, left)) for rank in ranks})
    both = both[:, np.isfinite(both).all(axis=0)]
    if not both.size:
        return None
    entries, exits = both[0::2], both[1::2]
    errors = np.zeros(len(ranks))
    if len({headers[rank][1].clock_id for rank in ranks}) > 1:
        entries, exits, errors = _on_one_clock([probes_of(headers[rank][0]) for rank in ranks], entries, exits)
    return Calls(ranks, tuple(headers[rank][1].host for rank in ranks), entries, exits, errors)


def probes_of(file: RankFile) -> list[Probe]:
    """What a rank's file tells of its clock; what makes no sense is left out."""
    probes = []
    for block in file.blocks:
        error = block.tags.get("error")
        if block.metric == METRIC and block.samples.size and isinstance(error, int | float):
            found = Probe(block.t_first, float(block.samples[0]), float(error))
            if all(map(math.isfinite, (found.at, found.offset, found.error))) and found.error >= 0:
                probes.append(found)
    return probes


def _on_one_clock(probes: Sequence[list[Probe]], entries: Array, exits: Array) -> tuple[Array, Array, Array]:
    if not all(probes):
        return entries, exits, np.full(len(probes), np.inf)
    rows = [align(np.stack([enter, leave]), one) for one, enter, leave in zip(probes, entries, exits, strict=True)]
    times = np.stack([row for row, _ in rows])
    return times[:, 0], times[:, 1], np.array([error for _, error in rows])


def call_times(files: Iterable[RankFile], tags: Mapping[str, Any]) -> tuple[Array, str, float]:
    """Seconds of single calls over the ranks that took part, how they were taken, and the bound of the clocks' error (s).

    From the last entry to the last exit where ranks read one clock, or clocks that were compared well enough (`GOOD`);
    else the longest duration over ranks, which has no error of the clocks.
    """
    calls = read_calls(list(files), tags)
    if calls is None:
        return np.empty(0), ALIGNED, 0.0
    longest = slowest_rank_times(calls.entries, calls.exits)
    times, how = usable_times(completion_times(calls.entries, calls.exits), longest, calls.error)
    return times, how, calls.error if how == ALIGNED else 0.0


def figures(files: Iterable[RankFile], tags: dict[str, Any]) -> list[Figure]:
    """Waiting (mean over ranks) and transfer of a measurement's calls, medians over calls; none without calls."""
    calls = read_calls(list(files), tags)
    if calls is None or len(calls.ranks) < 2:
        return []
    completion = completion_times(calls.entries, calls.exits)
    if usable_times(completion, completion, calls.error)[1] != ALIGNED:
        known = "were not compared" if math.isinf(calls.error) else f"may differ by {format_si(calls.error, 's')}"
        reason = f"the clocks of the ranks {known}: more than {GOOD:.0%} of a call"
        return [
            Figure(metric, "s", None, tags, better="lower", reason=reason)
            for metric in ("waiting_time", "transfer_time")
        ]
    waited = widened(median_interval(waiting(calls.entries).mean(axis=0)), calls.error)
    moved = widened(median_interval(completion), calls.error)
    return [
        Figure(
            "waiting_time",
            "s",
            replace(waited, method=f"own entry to last entry, mean over ranks; {waited.method}"),
            tags,
            better="lower",
        ),
        Figure("transfer_time", "s", replace(moved, method=f"{ALIGNED}; {moved.method}"), tags, better="lower"),
    ]


def late_ranks(files: Iterable[RankFile], measured: Iterable[Mapping[str, Any]]) -> list[Lateness]:
    """The late rank of each measurement that has one, in the order of `measured` (the tags of each)."""
    known = list(files)
    found = []
    for tags in measured:
        calls = read_calls(known, tags)
        if calls is None or math.isinf(calls.error):
            continue
        late = late_rank(calls.ranks, calls.entries, calls.exits, calls.errors)
        if late is not None:
            host = calls.hosts[calls.ranks.index(late.rank)]
            found.append(Lateness(tags, host, late))
    return found


def by_culprit(found: Sequence[Lateness]) -> list[list[Lateness]]:
    """Grouped as they are told: by op and rank, or all in one where the same rank is late everywhere."""
    groups: dict[tuple[Any, ...], list[Lateness]] = {}
    alone = len({item.late.rank for item in found}) == 1
    for item in found:
        key = () if alone else (item.tags.get("op"), item.late.rank)
        groups.setdefault(key, []).append(item)
    return list(groups.values())


def doubts(found: Sequence[Lateness]) -> list[tuple[str, str, str]]:
    """Doubts about a case as (kind, subject, message): who is late, where, and by how much."""
    told = []
    for group in by_culprit(found):
        worst = max(group, key=lambda item: item.late.lateness.value)
        late, gap = worst.late, worst.late.lateness
        interval = f" [{format_si(gap.low, 's')}, {format_si(gap.high, 's')}]" if gap.low is not None else ""
        message = (
            f"rank {late.rank} on {worst.host} enters after all others, by {format_si(gap.value, 's')}{interval} in "
            f"{worst.tags.get('op')} {_size(worst)}; it was the last in {late.last_share:.0%} of those calls"
        )
        if len(group) > 1:
            message += f", and late in {len(group)} measurements: {places(group)}"
        told.append((KIND, f"{ops_of(group)}, rank {late.rank}", message))
    return told


def ops_of(group: Sequence[Lateness]) -> str:
    """The ops of a group, in the order measured."""
    return ", ".join(dict.fromkeys(str(item.tags.get("op")) for item in group))


def places(group: Sequence[Lateness]) -> str:
    """`all_reduce 1KiB–1MiB, broadcast 4KiB`: the ops of a group, with the smallest and the largest size of each."""
    sizes: dict[str, list[int]] = {}
    for item in group:
        count = item.tags.get("bytes")
        sizes.setdefault(str(item.tags.get("op")), []).extend([count] if isinstance(count, int) else [])
    words = []
    for op, counts in sizes.items():
        ends = list(dict.fromkeys((min(counts), max(counts)))) if counts else []
        words.append(" ".join([op, *(["–".join(map(format_size, ends))] if ends else [])]))
    return ", ".join(words)


def _size(item: Lateness) -> str:
    count = item.tags.get("bytes")
    return format_size(count) if isinstance(count, int) else ""
