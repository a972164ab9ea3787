"""Latency and asymptotic bandwidth of every sweep of a case, from its times per call (assay/latency_model.py)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assay.bandwidth import COLLECTIVES
from assay.latency_model import LatencyModel, Point, fit_latency
from assay.scoring.result import Figure

METRICS = ("alpha", "bandwidth_asymptotic")
_TIME = "batch_call_time"  # back to back: what the bandwidths are made of, too


@dataclass(frozen=True)
class SweepModel:
    """One op of one case at one setting: its tags without the size, and the model of its times.

    points: what was fitted, in order of size. model: None where there is none, `reason` then says why. busbw: the
    figure of the largest size that has a ceiling, from which the ceiling of the asymptotic bandwidth is known.
    """

    tags: Mapping[str, Any]
    points: tuple[Point, ...]
    model: LatencyModel | None
    reason: str | None
    busbw: Figure | None = None

    @property
    def op(self) -> str:
        """The collective."""
        return str(self.tags["op"])


def sweep_models(figures: Sequence[Figure]) -> list[SweepModel]:
    """The models of all sweeps, in the order measured. A single size, or an op that moves no bytes, is no sweep.

    figures: of one case; those of metric batch_call_time are fitted, sizes without a time stay out.
    """
    sweeps: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.metric in (_TIME, "busbw") and _is_sized(figure.tags):
            sweeps.setdefault(repr(sorted(_without_size(figure.tags).items())), []).append(figure)
    models = [_sweep_model(sweep) for sweep in sweeps.values()]
    return [model for model in models if len({point.size for point in model.points}) > 1]


def latency_figures(models: Sequence[SweepModel]) -> list[Figure]:
    """alpha (s) and bandwidth_asymptotic (B/s) of every sweep, tagged like it; unknown with the reason where not known."""
    return [figure for model in models for figure in _figures(model)]


def _is_sized(tags: Mapping[str, Any]) -> bool:
    op, size, world = tags.get("op"), tags.get("bytes"), tags.get("world")
    if op not in COLLECTIVES or type(size) is not int or type(world) is not int or size <= 0 or world <= 0:
        return False
    return COLLECTIVES[op].bus(world) > 0


def _without_size(tags: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tags.items() if key != "bytes"}


def _sweep_model(sweep: Sequence[Figure]) -> SweepModel:
    ordered = sorted(sweep, key=lambda figure: int(figure.tags["bytes"]))
    points = tuple(
        Point(int(figure.tags["bytes"]), estimate.value, estimate.low, estimate.high)
        for figure in ordered
        if figure.metric == _TIME and (estimate := figure.estimate) and 0 < estimate.value < math.inf
    )
    tags = _without_size(ordered[0].tags)
    model, reason = fit_latency(points, COLLECTIVES[str(tags["op"])].bus(int(tags["world"])))
    busbw = [figure for figure in ordered if figure.metric == "busbw" and figure.value and figure.share is not None]
    return SweepModel(tags, points, model, reason, busbw[-1] if busbw else None)


def _figures(sweep: SweepModel) -> list[Figure]:
    model = sweep.model
    bandwidth = model.bandwidth if model else None
    share = least = named = None
    if bandwidth and sweep.busbw and sweep.busbw.value and sweep.busbw.share is not None:
        # The ceiling is that of the busbw figures: one rate, in the same unit.
        ratio = bandwidth.value / sweep.busbw.value
        share, named = sweep.busbw.share * ratio, sweep.busbw.share_of
        least = sweep.busbw.least_share * ratio if sweep.busbw.least_share is not None else None
    reason = sweep.reason or (model.reason if model else None)
    return [
        Figure("alpha", "s", model.alpha if model else None, sweep.tags, better="lower", reason=sweep.reason),
        Figure(
            "bandwidth_asymptotic",
            "B/s",
            bandwidth,
            sweep.tags,
            better="higher",
            share=share,
            share_of=named,
            least_share=least,
            reason=reason,
        ),
    ]
