"""The α–β model: it finds what made the times, says how well, and refuses where sizes cannot tell."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.bandwidth import COLLECTIVES, busbw
from assay.estimates import Estimate
from assay.latency_model import LatencyModel, Point, fit_latency
from assay.scoring.latency import latency_figures, sweep_models
from assay.scoring.result import Figure

SIZES = [1024 * 4**step for step in range(9)]
ALPHA, RATE, FACTOR = 20e-6, 5e9, 1.5


def model_of(points: list[Point], factor: float = FACTOR) -> LatencyModel:
    model, reason = fit_latency(points, factor)
    assert reason is None
    assert model is not None
    return model


def line(sizes: list[int] = SIZES, alpha: float = ALPHA, rate: float = RATE, factor: float = FACTOR) -> list[Point]:
    return [Point(size, alpha + size * factor / rate) for size in sizes]


def noisy(points: list[Point], generator: np.random.Generator, scatter: float) -> list[Point]:
    return [Point(point.size, point.seconds * math.exp(scatter * generator.standard_normal())) for point in points]


@given(
    st.floats(1e-7, 1e-2),
    st.floats(1e6, 1e12),
    st.floats(0.5, 2),
    st.lists(st.integers(3, 34), min_size=4, max_size=20, unique=True),
)
def test_exact_times_give_back_what_made_them(alpha: float, rate: float, factor: float, exponents: list[int]) -> None:
    sizes = [2**exponent for exponent in exponents]
    model, _ = fit_latency(line(sizes, alpha, rate, factor), factor)
    if model is None:
        assert max(sizes) < 16 * min(sizes)
        return
    # Where one of the two makes less than a thousandth of every time, it cannot be known.
    if alpha > 1e-3 * min(sizes) * factor / rate:
        assert model.alpha.value == pytest.approx(alpha, rel=1e-5)
    if max(sizes) * factor / rate > 1e-3 * alpha:
        assert model.bandwidth is not None
        assert model.bandwidth.value == pytest.approx(rate, rel=1e-5)
        assert busbw_half(model, factor) == pytest.approx(model.bandwidth.value / 2, rel=1e-4)
    assert max(map(abs, model.residuals)) < 1e-6
    assert model.switch_at is None


def busbw_half(model: LatencyModel, factor: float) -> float:
    """The bus bandwidth that the model predicts at its half size."""
    assert model.half_size is not None
    assert model.bandwidth is not None
    return model.half_size * factor / (model.alpha.value + model.half_size * factor / model.bandwidth.value)


@pytest.mark.parametrize("sizes", [SIZES, SIZES[::2], [1024 * 16**step for step in range(4)]])
def test_intervals_hold_what_made_the_times(sizes: list[int]) -> None:
    generator = np.random.default_rng(1)
    trials, alphas, rates = 200, 0, 0
    for _ in range(trials):
        model = model_of(noisy(line(sizes), generator, 0.05))
        assert model.alpha.low is not None
        assert model.alpha.high is not None
        alphas += model.alpha.low <= ALPHA <= model.alpha.high
        assert model.bandwidth is not None
        assert model.bandwidth.low is not None
        assert model.bandwidth.high is not None
        rates += model.bandwidth.low <= RATE <= model.bandwidth.high
    assert alphas >= 0.92 * trials
    assert rates >= 0.92 * trials


def test_one_disturbed_size_moves_the_model_little_and_is_named() -> None:
    points = noisy(line(), np.random.default_rng(2), 0.02)
    points[6] = Point(points[6].size, points[6].seconds * 3)
    model = model_of(points)
    assert model.alpha.value == pytest.approx(ALPHA, rel=0.1)
    assert model.bandwidth is not None
    assert model.bandwidth.value == pytest.approx(RATE, rel=0.1)
    assert model.switch_at is None
    assert model.worst[0] == SIZES[6]
    assert model.worst[1] == pytest.approx(2, abs=0.3)


def test_a_switch_of_protocols_is_found_and_alpha_is_of_the_small_sizes() -> None:
    eager, rendezvous = line(alpha=10e-6, rate=2e9), line(alpha=30e-6, rate=10e9)
    made = [*eager[:4], *rendezvous[4:]]
    model = model_of(noisy(made, np.random.default_rng(3), 0.02))
    assert model.switch_at == SIZES[4]
    assert model.alpha.value == pytest.approx(10e-6, rel=0.1)
    assert model.bandwidth is not None
    assert model.bandwidth.value == pytest.approx(10e9, rel=0.1)
    assert model.half_size == pytest.approx(30e-6 * 10e9 / FACTOR, rel=0.2)
    assert max(map(abs, model.residuals)) < 0.1


def test_noise_is_no_switch() -> None:
    generator = np.random.default_rng(4)
    switches = sum(model_of(noisy(line(), generator, 0.1)).switch_at is not None for _ in range(100))
    assert switches <= 3


def test_wide_intervals_of_the_points_widen_those_of_the_model() -> None:
    points = noisy(line(), np.random.default_rng(5), 0.01)
    narrow = model_of(points).alpha.half_width
    wide = model_of([Point(p.size, p.seconds, p.seconds * 0.8, p.seconds * 1.2) for p in points]).alpha.half_width
    assert narrow is not None
    assert wide is not None
    assert wide > 3 * narrow


def test_what_sizes_cannot_tell_is_not_told() -> None:
    assert fit_latency(line(SIZES[:3]), 1.0) == (None, "3 sizes, a fit needs 4")
    assert fit_latency(line([1000, 2000, 3000, 4000]), 1.0) == (None, "sizes span a factor of 4, a fit needs 16")
    assert fit_latency([line()[0]] * 6, 1.0)[1] == "1 sizes, a fit needs 4"
    assert fit_latency(line(), 0.0) == (None, "the op moves no bytes")
    with pytest.raises(ValueError, match="above 0"):
        fit_latency([Point(1024, 0.0)], 1.0)


def test_latency_alone_has_no_bandwidth_and_bandwidth_alone_no_latency() -> None:
    flat = model_of(noisy([Point(size, ALPHA) for size in SIZES[:6]], np.random.default_rng(6), 0.05))
    assert flat.bandwidth is None
    assert flat.half_size is None
    assert "larger sizes" in (flat.reason or "")
    assert flat.alpha.value == pytest.approx(ALPHA, rel=0.1)
    steep = model_of(noisy(line(SIZES[4:], alpha=1e-9), np.random.default_rng(7), 0.02))
    assert steep.alpha.value >= 0
    assert steep.alpha.low == 0
    assert steep.bandwidth is not None
    assert steep.bandwidth.value == pytest.approx(RATE, rel=0.05)


def test_times_that_follow_no_line_are_said_to_grow() -> None:
    cliff = [Point(1 << 10, 10e-6), Point(1 << 14, 11e-6), Point(1 << 18, 30e-6), Point(1 << 22, 17e-3)]
    model, _ = fit_latency(cliff, 1.0)
    assert model is not None
    assert model.bandwidth is None
    assert "follow no line: at " in (model.reason or "")


def figures(op: str, sizes: list[int], world: int = 4, ceiling: float | None = None, **more: object) -> list[Figure]:
    found = []
    for size in sizes:
        seconds = ALPHA + size * COLLECTIVES[op].bus(world) / RATE
        tags = {"op": op, "bytes": size, "dtype": "float32", "backend": "gloo", "world": world, **more}
        found.append(Figure("batch_call_time", "s", Estimate(seconds, None, None, 20, "mean"), tags))
        rate = busbw(op, size, seconds, world)
        share = rate / ceiling if ceiling else None
        named = "payload of copy rate" if ceiling else None
        found.append(Figure("busbw", "B/s", Estimate(rate, None, None, 20, "mean"), tags, share=share, share_of=named))
    return found


def test_every_sweep_of_a_case_gets_its_figures() -> None:
    both = [*figures("all_reduce", SIZES), *figures("all_gather", SIZES), *figures("all_reduce", SIZES, redop="max")]
    models = sweep_models(both)
    assert [dict(model.tags).get("redop") for model in models] == [None, None, "max"]
    alpha, bandwidth, *_ = made = latency_figures(models)
    assert [figure.metric for figure in made] == ["alpha", "bandwidth_asymptotic"] * 3
    assert alpha.tags == {"op": "all_reduce", "dtype": "float32", "backend": "gloo", "world": 4}
    assert (alpha.unit, bandwidth.unit) == ("s", "B/s")
    assert alpha.value == pytest.approx(ALPHA)
    assert bandwidth.value == pytest.approx(RATE)
    assert bandwidth.share is None


def test_the_share_of_the_ceiling_is_that_of_the_asymptotic_bandwidth() -> None:
    _, bandwidth = latency_figures(sweep_models(figures("all_reduce", SIZES, ceiling=10e9)))
    assert bandwidth.share == pytest.approx(0.5)
    assert bandwidth.share_of == "payload of copy rate"


def test_a_size_without_a_time_stays_out_and_too_few_have_a_reason() -> None:
    unknown = Figure("batch_call_time", "s", None, figures("all_reduce", [1 << 30])[0].tags, reason="out of memory")
    (model,) = sweep_models([*figures("all_reduce", SIZES), unknown])
    assert model.model is not None
    assert model.model.sizes == tuple(SIZES)
    few = latency_figures(sweep_models(figures("all_reduce", SIZES[:2])))
    assert [(figure.value, figure.reason) for figure in few] == [(None, "2 sizes, a fit needs 4")] * 2


def test_single_sizes_and_ops_without_bytes_are_no_sweeps() -> None:
    barrier = [
        Figure(
            "batch_call_time", "s", Estimate(1e-5, None, None, 9, "mean"), {"op": "barrier", "bytes": size, "world": 4}
        )
        for size in SIZES
    ]
    alien = [
        Figure("batch_call_time", "s", Estimate(1e-5, None, None, 9, "mean"), {"op": "own", "bytes": 8, "world": 2})
    ]
    assert sweep_models([*barrier, *alien, *figures("all_reduce", SIZES[:1])]) == []
