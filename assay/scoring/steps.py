"""Where the time of training steps goes, which steps took far longer than usual, and which rank held the others up.

Ranks of a training march together: a rank that is slow before the gradients are added up makes the step longer for all
of them, and their step times tell nothing. Two things do. A rank that is held up after the gradients were added up has a
long step by itself, and the others wait in the next one. And in the sampled steps, in which ranks begin together, a slow
rank works longer and waits less.
"""

from collections.abc import Sequence

import numpy as np

from assay.estimates import Estimate, median_interval, student
from assay.record import RankFile
from assay.scoring.result import SlowRank, StepOutlier, StepStudy
from assay.scoring.samples import Array, by_rank, first_step, scalar, stacked

PHASES = ("data", "forward", "backward", "optimizer")
_MEASURED = {"phase": "measured"}

# A step is an outlier if it exceeds the median by DEVIATIONS standard deviations (1.4826 × MAD, as of a normal
# distribution) and by MATERIAL of the median. In 4 million simulated steps without a cause, none was one where the noise
# was normal or lognormal up to 10 %, correlated or not; 1.5 in a million for lognormal noise of 20 %, 14 in a million where
# the slowest of 8 such ranks counts.
DEVIATIONS = 8.0
MATERIAL = 0.1
MOST_LISTED = 20
FLOOR = 1e-3  # s; less is what leaving a barrier does
# In simulated runs without a slow rank, one was named in 0.4 % (2 ranks, 3 sampled steps, noise of 10 %) or less; with
# noise of 30 % in 2.2 % for 2 ranks, 0.4 % for 4, 0.03 % for 8. Five sampled steps: half of that or less.
FEWEST_STEPS = 3
# Where waiting is not known (the backend does not hold the host up), these engines' data and forward phases are still
# work alone: they communicate in backward and in the optimizer only.
_LOCAL_FORWARD = ("none", "ddp", "zero1", "zero2")


def study(files: list[RankFile]) -> StepStudy | None:
    """What the records tell of a training's steps; None without measured steps of every rank."""
    times = by_rank(files, "step_time", _MEASURED)
    if not times:
        return None
    ranks = sorted(times)
    steps = stacked(times)
    if not steps.size:
        return None
    tokens = by_rank(files, "tokens", _MEASURED)
    alike = _alike(steps, tokens[min(tokens)] if tokens else None)
    usual, (_, limit) = float(np.median(steps.max(axis=0))), threshold(alike.max(axis=0))
    corrected = not np.array_equal(alike, steps)
    first = first_step(files, "step_time", _MEASURED)
    outliers = find_outliers(steps, alike, ranks, first, limit, _hosts(files))
    samples = {phase: by_rank(files, f"{phase}_time", {}) for phase in PHASES}
    sampled = {phase: stacked(found) for phase, found in samples.items() if set(found) == set(ranks)}
    whole = len(sampled) == len(PHASES) and len({array.shape for array in sampled.values()}) == 1
    phases = sampled if whole and sampled["data"].shape[1] else {}
    if not phases:
        listed, beyond = outliers[:MOST_LISTED], len(outliers[MOST_LISTED:])
        return StepStudy({}, {}, {}, None, None, "", 0, usual, limit, listed, beyond, corrected=corrected)
    exposed, why = _exposed(files, ranks, phases["data"].shape)
    total = np.asarray(sum(phases.values()))
    engine = next((block.tags.get("engine") for file in files for block in file.of("step_time")), None)
    slow, slow_why = _slow_rank(phases, exposed, ranks, _hosts(files), str(engine))
    medians = {phase: np.median(array, axis=1) for phase, array in phases.items()}
    return StepStudy(
        {phase: _over_ranks(array) for phase, array in phases.items()},
        {rank: {phase: float(medians[phase][row]) for phase in PHASES} for row, rank in enumerate(ranks)},
        {phase: ranks[int(median.argmax())] for phase, median in medians.items()},
        median_interval(total.max(axis=0)),
        _over_ranks(exposed) if exposed is not None else None,
        why,
        total.shape[1],
        usual,
        limit,
        outliers[:MOST_LISTED],
        len(outliers[MOST_LISTED:]),
        slow,
        slow_why,
        corrected,
    )


def threshold(slowest: Array) -> tuple[float, float]:
    """The usual step (median, s) and what a step must exceed to be an outlier (s), from each step's slowest rank."""
    usual = float(np.median(slowest))
    spread = 1.4826 * float(np.median(np.abs(slowest - usual)))
    return usual, usual + max(DEVIATIONS * spread, MATERIAL * usual)


def find_outliers(
    steps: Array, alike: Array, ranks: Sequence[int], first: int, limit: float, hosts: dict[int, str]
) -> list[StepOutlier]:
    """The steps whose slowest rank exceeds `limit`, in order, each with the ranks that held the others up.

    steps, alike: [ranks, steps] in s, as measured and with what the tokens explain taken out. A step in which ranks only
    wait for those that were held up in the one before belongs to that one. Who it was can be told only if other ranks'
    steps were not long too: "long" is above half of what the slowest rank has beyond its median.
    """
    excess = alike - np.median(alike, axis=1, keepdims=True)
    found: dict[int, StepOutlier] = {}
    for place in np.flatnonzero(alike.max(axis=0) > limit).tolist():
        long = excess[:, place] > excess[:, place].max() / 2
        if place and not long.all():
            # The mirror image of the step before: these ranks waited for the others, who had ended it late.
            before = excess[:, place - 1] > excess[:, place].max() / 2
            if (before == ~long).all():
                place, long = place - 1, before
        if place in found:
            continue
        culprits = [] if long.all() else [ranks[row] for row in np.flatnonzero(long).tolist()]
        found[place] = StepOutlier(
            first + place,
            float(steps[:, place].max()),
            tuple(culprits),
            tuple(dict.fromkeys(hosts[rank] for rank in culprits)),
            "" if culprits or len(ranks) == 1 else "cannot be told: all ranks were held up in the same step",
        )
    return list(found.values())


def _alike(steps: Array, tokens: Array | None) -> Array:
    """Times without what the tokens of a step explain: batches of unequal length are no outliers."""
    if tokens is None or tokens.size != steps.shape[1] or not tokens.sum() > 0:
        return steps
    per_token = steps.sum(axis=1, keepdims=True) / tokens.sum()
    return np.asarray(steps - per_token * (tokens - tokens.mean()))


def _hosts(files: Sequence[RankFile]) -> dict[int, str]:
    return {file.header.rank: file.header.host for file in files if file.header}


def _over_ranks(samples: Array) -> Estimate:
    """Median over ranks and steps. In the order taken, so that what ranks share in a step counts as correlation."""
    return median_interval(samples.T.ravel())


def _exposed(files: list[RankFile], ranks: Sequence[int], shape: tuple[int, ...]) -> tuple[Array | None, str]:
    """[ranks, steps] of waiting for communication, in s; (None, reason) where it was not measured."""
    metric = "exposed_communication_time"
    found = by_rank(files, metric, {})
    waited = stacked(found) if set(found) == set(ranks) else np.empty((0, 0))
    if waited.shape != shape:
        return None, "not recorded"
    if not np.isfinite(waited).all():
        return None, scalar(files, metric)[1] or "not measured"
    return waited, ""


def _slow_rank(
    phases: dict[str, Array], exposed: Array | None, ranks: Sequence[int], hosts: dict[int, str], engine: str
) -> tuple[SlowRank | None, str]:
    """The rank whose own work is longer than the others' in every sampled step; why it could not be looked for, if so.

    Longer by the largest of FLOOR, MATERIAL of a step and what the others are usually apart, in every step and with the
    lower end of Student's interval over steps.
    """
    if len(ranks) < 2:
        return None, ""
    parts = phases if exposed is not None else {name: phases[name] for name in ("data", "forward")}
    if exposed is None and engine not in _LOCAL_FORWARD:
        return None, "waiting cannot be told from work with this engine and backend"
    work = np.asarray(sum(parts.values())) - (exposed if exposed is not None else 0.0)
    count = work.shape[1]
    if count < FEWEST_STEPS:
        return None, f"{count} sampled steps, {FEWEST_STEPS} are needed (--phase-steps)"
    row = int(work.mean(axis=1).argmax())
    others = np.delete(work, row, axis=0)
    excess = work[row] - np.median(others, axis=0)
    whole = float(np.median(np.asarray(sum(phases.values())).max(axis=0)))
    least = max(FLOOR, MATERIAL * whole, float(np.median(np.ptp(others, axis=0))))
    low = float(excess.mean()) - student(count - 1) * float(excess.std(ddof=1)) / count**0.5
    if min(low, float(excess.min())) <= least:
        return None, ""
    beyond = {
        name: float(np.median(part[row] - np.median(np.delete(part, row, axis=0), axis=0)))
        for name, part in parts.items()
    }
    mean = float(excess.mean())
    phase = max(beyond, key=lambda name: beyond[name])
    return SlowRank(ranks[row], hosts[ranks[row]], mean, mean / whole, phase, count), ""
