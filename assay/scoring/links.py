"""Figures of comms/links.py: the rate of every pair, what halves carry, and the verdict on ranks and links."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from assay.estimates import Estimate, median_interval
from assay.links.bisection import Crossing
from assay.links.matrix import BOTH_WAYS, LATENCY_BYTES, ONE_WAY
from assay.links.rounds import Pair
from assay.links.survey import (
    ALONE,
    BISECTION,
    CONFIRM,
    MATRIX,
    Key,
    Limits,
    Survey,
    condensed,
    crossings,
    matrices,
    verdict,
)
from assay.links.verdict import culprit, deed, half
from assay.options.links import LinksOptions
from assay.record import Block, RankFile
from assay.scoring.result import Curve, Figure
from assay.scoring.samples import rate, world_of

SCRIPT = "comms/links"
ADVICE = {
    "slow_rank": "look at that host's card, cable, driver and other load; leave it out (sbatch --exclude) until it is mended",
    "slow_link": "look at the cable and the switch ports between the two hosts; both are well with others",
    "no_usual_pair": "see in the heat map who is fast with whom (half of the hosts may be slow), and measure each group alone",
}
MOST_FIGURES = 1000  # pairs of one size and way that become figures, the slowest; the heat map has all

_PHASES = (MATRIX, CONFIRM, BISECTION, ALONE)


@dataclass(frozen=True)
class Records:
    """Raw times (s) of pairs by key, the host of each rank, and what all records share (dtype, backend, world)."""

    samples: Mapping[Key, list[float]]
    hosts: Mapping[int, str]
    common: Mapping[str, Any]


def read_records(files: Iterable[RankFile]) -> Records:
    """The times of all pairs; blocks that do not tell what they are of are left out."""
    samples: dict[Key, list[float]] = {}
    hosts: dict[int, str] = {}
    common: dict[str, Any] = {}
    for file in files:
        for block in file.blocks:
            key = _key(block) if block.metric == "pair_time" else None
            times = [time for time in block.samples.tolist() if 0 < time < np.inf]
            if key is None or not times:
                continue
            samples.setdefault(key, []).extend(times)
            for rank, name in zip(key[5], ("from_host", "to_host"), strict=True):
                hosts[rank] = str(block.tags.get(name, f"rank {rank}"))
            common = {name: block.tags.get(name) for name in ("dtype", "backend", "world")}
    return Records(samples, hosts, common)


def _key(block: Block) -> Key | None:
    tags = block.tags
    numbers = [tags.get(name) for name in ("bytes", "pass", "from", "to")] + [tags.get("cut", -1)]
    whole = [number for number in numbers if isinstance(number, int) and not isinstance(number, bool)]
    phase, ways = tags.get("phase"), tags.get("ways")
    if len(whole) < len(numbers) or phase not in _PHASES or ways not in (ONE_WAY, BOTH_WAYS) or whole[0] <= 0:
        return None
    return str(phase), whole[0], str(ways), whole[4], whole[1], (whole[2], whole[3])


def survey(files: Iterable[RankFile], options: Mapping[str, Any]) -> Survey | None:
    """Matrices, verdict and bisection of a case; None without records. Thresholds: the case's, or else the defaults."""
    return _survey(read_records(files), options)


def _survey(records: Records, options: Mapping[str, Any]) -> Survey | None:
    if not records.samples:
        return None
    times = condensed(records.samples)
    groups = _groups(pair for phase, *_, pair in times if phase == MATRIX)
    if not groups:
        return None
    limits = Limits(*(float(options.get(name, _default(name))) for name in ("threshold", "latency_factor")))
    measured = matrices(groups, records.hosts, times)
    crossed = crossings(groups, records.hosts, times)
    return Survey(tuple(measured), verdict(measured, limits, times), tuple(crossed))


def _default(name: str) -> Any:
    return LinksOptions.model_fields[name].default


def _groups(pairs: Iterable[Pair]) -> list[list[int]]:
    # Ranks that were paired with each other, directly or over others: one group, or one for each rank of a host.
    group: dict[int, set[int]] = {}
    for a, b in set(pairs):
        one, other = group.setdefault(a, {a}), group.setdefault(b, {b})
        if one is not other:
            less, more = sorted((one, other), key=len)
            more |= less
            group.update(dict.fromkeys(less, more))
    unique = {min(members): sorted(members) for members in {id(one): one for one in group.values()}.values()}
    return [unique[first] for first in sorted(unique)]


def derive(files: list[RankFile], options: Mapping[str, Any], limits: list[Figure]) -> tuple[list[Figure], list[Curve]]:
    """Rates of pairs (latencies at a small size), what each cut carries, and the data check. No curves."""
    records = read_records(files)
    found = _survey(records, options)
    if found is None:
        return [], []
    pooled: dict[tuple[int, str, Pair], list[float]] = {}
    for (phase, size, ways, *_, pair), times in sorted(records.samples.items()):
        if phase == MATRIX:  # pass by pass, in the order taken
            pooled.setdefault((size, ways, pair), []).extend(times)
    figures: list[Figure] = []
    for measured in found.matrices:
        places = np.argwhere(np.isfinite(measured.times))
        if measured.ways == BOTH_WAYS:
            places = places[places[:, 0] < places[:, 1]]
        order = np.argsort(-measured.times[tuple(places.T)], kind="stable")
        for i, j in sorted(places[order][:MOST_FIGURES].tolist()):
            pair = measured.ranks[i], measured.ranks[j]
            samples = pooled[measured.bytes, measured.ways, pair]
            figures.append(_of_pair(records, pair, measured.bytes, measured.ways, samples))
    figures += [figure for both in found.crossings for one in both for figure in _of_crossing(one, records)]
    return figures + _checked(files, records), []


def _of_pair(records: Records, pair: Pair, size: int, ways: str, samples: Sequence[float]) -> Figure:
    tags = {
        "from": pair[0],
        "to": pair[1],
        "from_host": records.hosts[pair[0]],
        "to_host": records.hosts[pair[1]],
        "bytes": size,
        "ways": ways,
        **records.common,
    }
    time = median_interval(samples)
    if size <= LATENCY_BYTES:
        one_way = ways == ONE_WAY
        how = "half of there and back" if one_way else "both ways at once"
        return Figure("pair_latency", "s", _latency(time, 0.5 if one_way else 1.0, how), tags, better="lower")
    moved = size * (2 if ways == BOTH_WAYS else 1)
    how = "both directions counted" if ways == BOTH_WAYS else "until the reply is there"
    speed = rate(time, lambda seconds: moved / seconds)
    return Figure("pair_rate", "B/s", replace(speed, method=f"{how}; {speed.method}"), tags, better="higher")


def _latency(time: Estimate, share: float, how: str) -> Estimate:
    low, high = (None if end is None else end * share for end in (time.low, time.high))
    return Estimate(time.value * share, low, high, time.samples, f"{how}; {time.method}")


def _of_crossing(one: Crossing, records: Records) -> list[Figure]:
    tags = {"from_half": half(one.senders), "to_half": half(one.receivers), "cut": one.cut, "pairs": one.pairs}
    tags |= {"bytes": one.bytes, **records.common}
    figures = [Figure("bisection_rate", "B/s", one.rate, tags, better="higher")]
    if one.of_alone is not None:
        method = "rates of pairs while all talk at once, over the rates of the same pairs alone"
        share = Estimate(one.of_alone, None, None, one.rate.samples, method)
        figures.append(Figure("bisection_share", "1", share, tags, better="higher"))
    return figures


def _checked(files: Sequence[RankFile], records: Records) -> list[Figure]:
    wrong: dict[int, list[float]] = defaultdict(list)
    checks: dict[int, set[tuple[object, int]]] = defaultdict(set)  # bytes → (phase, rank)
    for file in files:
        for block in file.of("check_errors"):
            size = block.tags.get("bytes")
            if isinstance(size, int):
                wrong[size] += block.samples.tolist()
                checks[size].add((block.tags.get("phase"), file.header.rank if file.header else -1))
    wanted = _receivers(records)
    world = world_of(files)
    there = sum(file.header is not None for file in files)
    figures = []
    for size in sorted({*wrong, *wanted}):
        tags = {"bytes": size, **records.common}
        missing = wanted[size] - checks[size]
        reason = ""
        if there < world:
            reason = f"only {there} of {world} ranks recorded their checks"
        elif missing:
            phases = ", ".join(phase for phase in _PHASES if any(phase == one for one, _ in missing))
            reason = f"{len({rank for _, rank in missing})} of {world} ranks recorded no check of phase {phases}"
        errors = float(sum(wrong[size]))
        # What was found wrong counts, however much is not known.
        if reason and not errors:
            figures.append(Figure("check_errors", "1", None, tags, reason=reason))
            continue
        method = "wrong elements over all ranks, of one transfer of patterned data per turn"
        method += f"; {reason}" if reason else ""
        figures.append(Figure("check_errors", "1", Estimate(errors, None, None, len(wrong[size]), method), tags))
    return figures


def _receivers(records: Records) -> dict[int, set[tuple[object, int]]]:
    # bytes → (phase, rank) of all who received something that was timed, and so have a check to tell of.
    found: dict[int, set[tuple[object, int]]] = defaultdict(set)
    for phase, size, ways, _, _, pair in records.samples:
        found[size] |= {(phase, rank) for rank in (pair if ways == BOTH_WAYS else pair[1:])}
    return found


def doubts(found: Survey) -> list[tuple[str, str, str]]:
    """Doubts about a case as (kind, subject, message): each rank and link that is named, and where none can be."""
    told = []
    for group in found.verdict.named:
        suspect = group[0].suspect
        kind = "slow_link" if suspect.is_link else "slow_rank"
        told.append((kind, culprit(suspect), f"it {'; '.join(map(deed, group))}"))
    grouped = "pairs fall into two groups, so that nobody slow could be told"
    told += [("no_usual_pair", culprit(one.suspect), f"it {deed(one)}: {grouped}") for one in found.verdict.split]
    return told
