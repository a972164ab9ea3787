"""A/A noise: the same short case twice, five times. What differs between the two arms is the machine.

Pair i has the ratio rᵢ = Bᵢ / Aᵢ of the seconds of its two arms. The noise of n pairs is

    noise = max over i of max(rᵢ, 1/rᵢ) − 1

so it does not matter which arm is called A, nor how fast the machine is. The smallest and the largest of n ratios hold
the median ratio with a confidence of 1 − 2·(1/2)ⁿ, whatever the distribution (each ratio falls on either side of the
median like a coin): 93.75 % for five pairs. A change by less than the noise would leave that interval around 1, so five
pairs cannot decide it here.

All ratios on one side of 1 happen by chance with 2·(1/2)ⁿ (one time in sixteen); more likely the machine drifts, since
B always runs after A.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from assay.doctor.finding import Finding, share
from assay.errors import RunFailed
from assay.record import Block

METRIC = "aa_time"
ARMS = ("A", "B")
PAIRS = 5
PRODUCTS, STEPS = "matrix products", "small kernels"
WORKS = (PRODUCTS, STEPS)
WHOLE = "whole case"

# A suite is asked to tell differences of a few percent; one of a fifth is larger than most that two engines show.
NOISE_WARN, NOISE_BAD = 0.05, 0.20
DRIFT_WARN = 0.01  # median difference between the arms; less than that moves no figure that a report shows


@dataclass(frozen=True)
class Noise:
    """The pairs of one kind of work: seconds of arm A and of arm B, in the order in which they ran."""

    work: str
    pairs: tuple[tuple[float, float], ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """B / A of every pair."""
        return tuple(b / a for a, b in self.pairs)

    @property
    def value(self) -> float:
        """The largest relative difference of a pair, a pure number."""
        return max(max(ratio, 1 / ratio) for ratio in self.ratios) - 1

    @property
    def drift(self) -> Literal["slower", "faster"] | None:
        """Which way the machine goes, if all ratios lie on one side of 1."""
        if all(ratio > 1 for ratio in self.ratios):
            return "slower"
        return "faster" if all(ratio < 1 for ratio in self.ratios) else None


def confidence(pairs: int) -> float:
    """With which confidence the smallest and largest of so many ratios hold the median ratio: 1 − 2·(1/2)ⁿ."""
    return 1 - 2 * 0.5**pairs


def whole_case(parts: Sequence[Noise]) -> Noise:
    """The cases' whole time: the seconds of all kinds of work, added up pair by pair."""
    pairs = zip(*(part.pairs for part in parts), strict=True)
    return Noise(WHOLE, tuple((sum(a for a, _ in same), sum(b for _, b in same)) for same in pairs))


def noise_of(blocks: Iterable[Block]) -> tuple[Noise, ...]:
    """The noise per kind of work, then of the whole case, from the records of specs/noise.py.

    Raises RunFailed if a time is missing, twice there, or no time.
    """
    seconds: dict[tuple[str, int, str], float] = {}
    for block in blocks:
        if block.metric != METRIC or block.unit != "s":
            continue
        where = (str(block.tags.get("work")), _pair(block.tags), str(block.tags.get("arm")))
        if len(block.samples) != 1 or where in seconds:
            raise RunFailed(f"the noise run's records of {where} are not one time; run it again")
        seconds[where] = float(block.samples[0])
    parts = []
    for work in WORKS:
        pairs = []
        for number in range(1, PAIRS + 1):
            times = tuple(seconds.get((work, number, arm), math.nan) for arm in ARMS)
            if not all(math.isfinite(time) and time > 0 for time in times):
                raise RunFailed(f"the noise run's records lack a time of {work}, pair {number}; run it again")
            pairs.append((times[0], times[1]))
        parts.append(Noise(work, tuple(pairs)))
    return (*parts, whole_case(parts))


def _pair(tags: Mapping[str, object]) -> int:
    number = tags.get("pair")
    return number if isinstance(number, int) else 0


def noise_finding(noises: Sequence[Noise]) -> Finding:
    """What differences can be decided here. The noisiest kind of work counts: a suite has cases of each."""
    largest = max(noises, key=lambda noise: noise.value)
    found = f"{share(largest.value)} in {largest.work}: smaller differences cannot be decided here with {PAIRS} pairs"
    if largest.value <= NOISE_WARN:
        return Finding("noise", "good", found)
    advice = "see to the other findings first; then measure on a quieter machine, or with more pairs"
    return Finding("noise", "bad" if largest.value > NOISE_BAD else "warn", found, advice)


def drift_finding(noises: Sequence[Noise]) -> Finding:
    """Whether the machine became slower or faster while the whole case was repeated."""
    whole = noises[-1]
    ratios = sorted(whole.ratios)
    middle = ratios[len(ratios) // 2]
    if whole.drift is None:
        return Finding("drift", "good", "none: B was now faster, now slower than A")
    found = f"in all {len(ratios)} pairs the second arm was {whole.drift}, by {share(abs(middle - 1))} in the median"
    if abs(middle - 1) <= DRIFT_WARN:
        return Finding("drift", "good", found)
    advice = "let the machine settle (heat, boost, other load) and look again; interleave what is to be compared"
    return Finding("drift", "warn", found, advice)
