"""Do printed intervals hold what they say they hold, with the stopping rule active? On synthetic noise.

    python benchmarks/coverage.py                 # 1,000 trials each
    python benchmarks/coverage.py --trials 200

Must reach: the 95 % interval of the median holds the true median in at least 93 % of 1,000 trials, for lognormal,
bimodal and AR(0.7) noise, whatever the target and the most samples; for independent noise it is at most 1.1 times as
wide as the interval that takes independence for granted. A trial without an interval counts as a miss where the rule
stops, and is left out (`printed` says how many are left) where a fixed number of samples ends it.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from assay.estimates import interval_ranks, is_settled, median_interval, next_look, percentile_interval

Array = NDArray[np.float64]
NORMAL = NormalDist()
REQUIRED, WIDEST = 0.93, 1.1
STOPS = [
    (0.02, 640),
    (0.02, 5120),
    (0.01, 640),
    (0.05, 640),
    (0.1, 640),
    (None, 6),
    (None, 20),
    (None, 40),
    (None, 100),
]


@dataclass(frozen=True)
class Noise:
    """draw: [trials, samples] of it. quantile: the true quantile below which a share lies. kind: what holds of it."""

    name: str
    draw: Callable[[np.random.Generator, int, int], Array]
    quantile: Callable[[float], float]
    independent: bool = False
    required: bool = False


def autoregressive(generator: np.random.Generator, trials: int, n: int, phi: float) -> Array:
    """[trials, n] of an AR(1) process with unit variance, stationary from the start."""
    noise = generator.standard_normal((n, trials)) * math.sqrt(1 - phi * phi)
    noise[0] /= math.sqrt(1 - phi * phi)
    for step in range(1, n):
        noise[step] += phi * noise[step - 1]
    return np.ascontiguousarray(noise.T)


def modes(generator: np.random.Generator, trials: int, n: int, to_slow: float, to_fast: float) -> NDArray[np.bool_]:
    """[trials, n]: whether a machine of two modes is in the slow one; probabilities of changing it at each sample."""
    chance = generator.random((n, trials))
    slow = chance < to_slow / (to_slow + to_fast)
    for step in range(1, n):
        slow[step] = np.where(slow[step - 1], chance[step] >= to_fast, chance[step] < to_slow)
    return np.ascontiguousarray(slow.T)


def two_modes(share: float, ratio: float) -> Callable[[float], float]:
    """Quantiles of exp(0.05·z), a `share` of it `ratio` times as long, so far apart that the modes do not mix."""

    def quantile(below: float) -> float:
        fast = 1 - share
        z = NORMAL.inv_cdf(below / fast if below < fast else (below - fast) / share)
        return (1.0 if below < fast else ratio) * math.exp(0.05 * z)

    return quantile


def gauss(scale: float) -> Callable[[float], float]:
    """Quantiles of 1 + scale·z."""
    return lambda below: 1 + scale * NORMAL.inv_cdf(below)


def ar(phi: float, required: bool = False) -> Noise:
    """1 + 0.07·AR(phi)."""
    return Noise(f"AR({phi})", lambda g, t, n: 1 + 0.07 * autoregressive(g, t, n, phi), gauss(0.07), required=required)


def _jitter(generator: np.random.Generator, trials: int, n: int) -> Array:
    return np.asarray(np.exp(0.05 * generator.standard_normal((trials, n))))


NOISES = [
    Noise(
        "lognormal",
        lambda g, t, n: np.exp(0.1 * g.standard_normal((t, n))),
        lambda below: math.exp(0.1 * NORMAL.inv_cdf(below)),
        independent=True,
        required=True,
    ),
    Noise(
        "bimodal",
        lambda g, t, n: np.where(g.random((t, n)) < 0.2, 1.6, 1.0) * _jitter(g, t, n),
        two_modes(0.2, 1.6),
        independent=True,
        required=True,
    ),
    ar(0.7, required=True),
    ar(0.2),
    ar(0.4),
    ar(0.9),
    Noise(
        "exp AR(0.7)",
        lambda g, t, n: np.exp(0.1 * autoregressive(g, t, n, 0.7)),
        lambda below: math.exp(0.1 * NORMAL.inv_cdf(below)),
    ),
    Noise(
        "drift beneath",  # weak from sample to sample, and long
        lambda g, t, n: 1 + 0.05 * autoregressive(g, t, n, 0.9) + 0.07 * g.standard_normal((t, n)),
        gauss(math.hypot(0.05, 0.07)),
    ),
    Noise(
        "two modes",  # ten slow samples in a row, then twenty fast ones, on average
        lambda g, t, n: np.where(modes(g, t, n, 0.05, 0.1), 1.3, 1.0) * _jitter(g, t, n),
        two_modes(1 / 3, 1.3),
    ),
]


@dataclass(frozen=True)
class Outcome:
    """What became of all trials: widths are half widths relative to the value, `plain` those that assume independence."""

    printed: int
    held: int
    widths: list[float]
    plain: list[float]
    samples: list[int]


def until_settled(samples: Array, target: float | None, most: int) -> Array:
    """The samples that a measurement would take: to the first look that is settled, or to the most. None: the most."""
    n = most if target is None else min(next_look(0), most)
    while target is not None and n < most and not is_settled(samples[:n], target):
        n = min(next_look(n), most)
    return samples[:n]


def cover(noise: Noise, target: float | None, most: int, trials: int, seed: int = 7) -> Outcome:
    """Let `trials` measurements of `noise` stop by themselves, and see whose interval holds the true median."""
    intervals: list[tuple[float | None, float | None]] = []
    widths: list[float] = []
    plain: list[float] = []
    samples: list[int] = []
    for row in noise.draw(np.random.default_rng(seed), trials, most):
        taken = until_settled(row, target, most)
        estimate, ordered, ranks = median_interval(taken), np.sort(taken), interval_ranks(taken.size)
        intervals.append((estimate.low, estimate.high))
        samples.append(taken.size)
        if estimate.half_width is not None and ranks is not None:
            widths.append(estimate.half_width)
            plain.append(float(ordered[ranks[1]] - ordered[ranks[0]]) / 2 / estimate.value)
    return Outcome(*count(intervals, noise.quantile(0.5)), widths, plain, samples)


def count(intervals: list[tuple[float | None, float | None]], truth: float) -> tuple[int, int]:
    """How many intervals there are, and how many hold the truth."""
    there = [(low, high) for low, high in intervals if low is not None and high is not None]
    return len(there), sum(low <= truth <= high for low, high in there)


def share_interval(held: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, JASA 22, 1927)."""
    if not of:
        return 0.0, 1.0
    z, share = NORMAL.inv_cdf(0.975), held / of
    middle, spread = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - spread) / (1 + z * z / of), (middle + spread) / (1 + z * z / of)


def report(noise: Noise, target: float | None, most: int, trials: int) -> str:
    """One row, and whether what is required of it holds."""
    outcome = cover(noise, target, most, trials)
    of = outcome.printed if target is None else trials
    low, high = share_interval(outcome.held, of)
    share = outcome.held / of if of else math.nan
    width = float(np.median(outcome.widths)) if outcome.widths else math.nan
    widening = width / float(np.median(outcome.plain)) if outcome.plain else math.nan
    words = []
    if noise.required and target is not None:
        words.append(f"≥ {REQUIRED:.0%} {'holds' if share >= REQUIRED else 'fails'}")
    if noise.independent:
        words.append(f"≤ {WIDEST} × {'holds' if widening <= WIDEST else 'fails'}")
    stop = f"{most} samples" if target is None else f"±{target:.0%}, ≤ {most}"
    held = f"{share:.1%} [{low:.1%}, {high:.1%}]"
    return (
        f"{noise.name:<14} {stop:<14} {trials:>6} {outcome.printed / trials:>8.1%} {held:<22} {width:>8.2%} "
        f"{widening:>6.2f} {np.median(outcome.samples):>7.0f} {np.mean(outcome.samples):>7.0f}  {', '.join(words)}"
    )


def report_tail(noise: Noise, q: int, samples: int, trials: int) -> str:
    """One row of a percentile after a fixed number of samples."""
    rows = noise.draw(np.random.default_rng(11), trials, samples)
    estimates = [percentile_interval(row, q) for row in rows]
    printed, held = count([(item.low, item.high) for item in estimates], noise.quantile(q / 100))
    low, high = share_interval(held, printed)
    width = np.median([item.half_width for item in estimates if item.half_width is not None] or [math.nan])
    share = f"{held / printed:.1%} [{low:.1%}, {high:.1%}]" if printed else "none"
    return f"{noise.name:<14} p{q} {samples:>6} {trials:>6} {printed / trials:>8.1%} {share:<22} {width:>8.2%}"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print("median; width: median half width; wider: than if independence were taken for granted")
    print(
        "noise          stops at       trials  printed covered [95 % interval]     width  wider  samples: median, mean"
    )
    for noise in NOISES:
        for target, most in STOPS:
            print(report(noise, target, most, trials), flush=True)
    print("\npercentiles of a fixed number of samples")
    print("noise              samples trials  printed covered [95 % interval]     width")
    for noise in NOISES:
        for q in (95, 99):
            for samples in (100, 400, 640, 2000):
                print(report_tail(noise, q, samples, trials), flush=True)


if __name__ == "__main__":
    main()
