"""The verdict: who is named, and in what words."""

from collections.abc import Sequence
from dataclasses import dataclass

from assay.estimates import Estimate
from assay.links.bisection import Crossing, slower_half
from assay.links.faults import EXCHANGES, RECEIVES, SENDS, Finding, Suspect
from assay.links.matrix import BOTH_WAYS, LATENCY_BYTES
from assay.units import format_si, format_size

_MOST_HOSTS = 4  # of a half, by name


@dataclass(frozen=True)
class Verdict:
    """What was found. ends: how many were paired. findings: all that was measured again. beyond: suspects that were not.

    uneven: (bytes, ways, slow pairs) of matrices with too many slow pairs to blame links.
    """

    ends: int
    findings: tuple[Finding, ...] = ()
    beyond: int = 0
    uneven: tuple[tuple[int, str, int], ...] = ()

    @property
    def named(self) -> list[list[Finding]]:
        """Confirmed findings by culprit (a link's two directions together), ranks before links."""
        groups: dict[tuple[int, ...], list[Finding]] = {}
        for finding in self.findings:
            if finding.confirmed and finding.suspect.ranks:
                groups.setdefault(tuple(sorted(finding.suspect.ranks)), []).append(finding)
        return sorted(groups.values(), key=lambda group: group[0].suspect.is_link)

    @property
    def split(self) -> list[Finding]:
        """Where the usual pair is slow beside the fastest, confirmed: it may be the ends of the others that are well."""
        return [finding for finding in self.findings if finding.confirmed and not finding.suspect.ranks]

    @property
    def slow_ranks(self) -> list[int]:
        """Named ranks; the ends of named links are not among them."""
        return [group[0].suspect.ranks[0] for group in self.named if not group[0].suspect.is_link]


def culprit(suspect: Suspect) -> str:
    """`rank 2 on node3`, `the link between rank 1 on node2 and rank 2 on node3` or `the usual pair`."""
    if not suspect.ranks:
        return "the usual pair"
    ends = [f"rank {rank} on {host}" for rank, host in zip(suspect.ranks, suspect.hosts, strict=True)]
    return f"the link between {ends[0]} and {ends[1]}" if suspect.is_link else ends[0]


def deed(finding: Finding) -> str:
    """What is slow and by how much: `sends 4MiB at 0.048 [0.047, 0.05] of the usual rate`."""
    suspect = finding.suspect
    usual = "usual" if suspect.ranks else "fastest pairs'"
    if suspect.is_link or not suspect.ranks:
        does = f"carries {{}} from {suspect.ranks[0]} to {suspect.ranks[1]}" if suspect.is_link else "carries {}"
        does = "carries {} both ways at once" if suspect.does == EXCHANGES else does
    else:
        does = {SENDS: "sends {}", RECEIVES: "receives {}", EXCHANGES: "exchanges {} both ways at once"}[suspect.does]
    what = does.format(format_size(suspect.bytes))
    if suspect.bytes <= LATENCY_BYTES:
        return f"{what} with {factor(_inverse(finding.ratio) or 1 / suspect.ratio)} times the {usual} latency"
    return f"{what} at {factor(finding.ratio or suspect.ratio)} of the {usual} rate"


def factor(ratio: Estimate | float) -> str:
    """A ratio with its interval, two digits each."""
    if isinstance(ratio, float):
        return f"{ratio:.2g}"
    interval = f" [{ratio.low:.2g}, {ratio.high:.2g}]" if ratio.low is not None and ratio.high is not None else ""
    return f"{ratio.value:.2g}{interval}"


def _inverse(ratio: Estimate | None) -> Estimate | None:
    if ratio is None:
        return None
    low, high = (1 / end if end else None for end in (ratio.high, ratio.low))
    return Estimate(1 / ratio.value, low, high, ratio.samples, ratio.method)


def sentences(verdict: Verdict) -> list[str]:
    """The verdict, most important first, without full stops."""
    told = [f"{culprit(group[0].suspect)} is slow: it {'; '.join(map(deed, group))}" for group in verdict.named]
    if verdict.ends == 2:
        told.append("there is one pair only, so nothing to compare it with; give 3 hosts or ranks at least")
    unclear = [finding for finding in verdict.findings if not finding.confirmed]
    unknown = [finding for finding in unclear if finding.unknown]
    if verdict.ends > 2 and not told:
        unsure = unknown or verdict.uneven or verdict.split
        told.append(f"no rank and no link is {'named' if unsure else 'slow'} among {verdict.ends}")
    told += [
        f"the usual pair {deed(one)}: pairs fall into two groups, and neither can be called usual; see the heat map and the "
        "bisection"
        for one in verdict.split
    ]
    told += [f"{culprit(one.suspect)} looks slow, but {one.unknown}; not named" for one in unknown]
    cleared = len(unclear) - len(unknown)
    if cleared:
        told.append(
            f"{cleared} looked slow among all, but not surely when measured alone, and {_be(cleared)} not named"
        )
    if verdict.beyond:
        told.append(
            f"{verdict.beyond} more looked slow and were not measured again; mend what is named, then run again"
        )
    for size, ways, count in verdict.uneven:
        both = ", both ways at once" if ways == BOTH_WAYS else ""
        told.append(
            f"{count} pairs look slow at {format_size(size)}{both}, too many to be single links: the network is uneven or "
            "busy; see the heat map and the bisection"
        )
    return told


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def half(names: Sequence[str]) -> str:
    """`node1, node2, node3, … (8)`."""
    shown = ", ".join(names[:_MOST_HOSTS])
    return shown if len(names) <= _MOST_HOSTS else f"{shown}, … ({len(names)})"


def bisection_sentence(there: Crossing, back: Crossing) -> str:
    """One cut in both directions, and which half sends less."""
    slow = slower_half(there, back)
    fast = back if slow is there else there
    which = f"; {half(slow.senders)} sends slower, {slow.rate.value / fast.rate.value:.2g} of the other" if slow else ""
    return f"{half(there.senders)} | {half(there.receivers)}: {_carried(there)} there, {_carried(back)} back{which}"


def _carried(one: Crossing) -> str:
    share = f" ({one.of_alone:.2g} of its pairs alone)" if one.of_alone is not None else ""
    return f"{format_si(one.rate.value, 'B/s')}{share}"
