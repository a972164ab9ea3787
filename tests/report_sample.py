"""A made-up run that looks like a real one, for the tests of the report. No figure of it was measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from assay.bandwidth import algbw, busbw, deepspeed_throughput
from assay.estimates import Estimate, mean_of_batches, median_interval, percentile
from assay.rundir import Status
from assay.scoring.result import CaseResult, Curve, Doubt, Figure, Row, RunResult, Scorecard, Section

OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "pt2pt")
SIZES = [1 << exponent for exponent in range(10, 27, 2)]
CEILING = 11.6e9  # B/s


def sample_result(*, troubled: bool = True, scored: bool = True) -> RunResult:
    """A run of two communication cases, one training and, if `troubled`, one failed case with doubts."""
    cases = [_comms("comms-8", 8, OPS), _comms("comms-4", 4, ("all_reduce", "all_gather")), _training()]
    if troubled:
        cases += [_failed(), _unfinished()]
    document = {**DOCUMENT, "cases": [case.name for case in cases]}
    doubts = DOUBTS if troubled else []
    return RunResult("runs/quick-1", document, cases, _ceilings(), doubts, _scorecard() if scored else None)


DOCUMENT: Mapping[str, Any] = {
    "schema": "assay-run/1",
    "suite": {
        "name": "quick",
        "description": "A few minutes on any machine: collectives and a tiny model.",
        "cases": [],
    },
    "created": "2026-11-21T23:12:45+00:00",
    "code": {"version": "0.1.0", "path": "/opt/assay", "revision": "66f7c6de5b0a1c2d3e4f", "diff": "1 file"},
    "software": {"python": "3.11.2", "torch": "2.13.0+cpu", "numpy": "2.4.6", "deepspeed": None, "mpi4py": None},
    "host": {
        "name": "node-17",
        "cpu": "AMD EPYC 9654 96-Core Processor",
        "cores_logical": 16,
        "cores_physical": 8,
        "cores_usable": 16,
        "memory_bytes": 67_430_000_000,
        "os": "Debian GNU/Linux 12 (bookworm)",
        "kernel": "6.1.0-18-amd64",
        "architecture": "x86_64",
        "gcc": None,
        "load_1min": 0.42,
    },
    "environment": {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "2", "HCCL_TOKEN": "(withheld)"},
}

DOUBTS = [
    Doubt(
        "wide_interval",
        "comms-8",
        "all_reduce, 1 KiB",
        "The interval is ±6.1 % wide, the target is ±2 %.",
        "Run again on a quiet machine, or raise the time budget of the case.",
    ),
    Doubt(
        "above_ceiling",
        "comms-8",
        "broadcast, 64 MiB",
        "busbw of 12.1 GB/s exceeds the measured copy rate of 11.6 GB/s.",
        "Measure the ceilings again with all ranks loaded.",
    ),
    Doubt("coarse_clock", "train-llama", "step_time", "Steps are near the clock's resolution.", "Use a larger batch."),
]


def _comms(name: str, world: int, ops: tuple[str, ...]) -> CaseResult:
    random = np.random.default_rng(world)
    figures: list[Figure] = []
    for order, op in enumerate(ops):
        for size in SIZES:
            typical = 42e-6 * (1 + 0.2 * order) + size * (1 + 0.3 * order) / (7e9 * 4 / world)
            calls = typical * random.lognormal(0, 0.06, 200)
            batches = 0.94 * typical * random.lognormal(0, 0.09, 20) * 50
            figures += _point(op, size, world, calls, mean_of_batches(batches, 50))
    if world == 4:
        tags = {"op": "all_gather", "bytes": 1 << 28, "world": world, "dtype": "float32", "backend": "gloo"}
        for metric in ("call_time_p50", "busbw"):
            figures.append(
                Figure(metric, "s" if metric != "busbw" else "B/s", None, tags, reason="out of memory at 256 MiB")
            )
    about = {"device": "cpu", "device_name": "AMD EPYC 9654", "backend": "gloo", "torch": "2.13.0+cpu", "threads": 2}
    options = {"ops": list(ops), "min": 1024, "max": SIZES[-1], "dtype": "float32"}
    status = Status("passed", "run", 0, 83.4)
    return CaseResult(name, "comms/bench.py", world, options, status, 1, figures, [], about)


def _point(
    op: str, size: int, world: int, calls: np.ndarray[Any, np.dtype[np.float64]], mean: Estimate
) -> list[Figure]:
    tags = {"op": op, "bytes": size, "world": world, "dtype": "float32", "backend": "gloo"}
    rate = _inverse(mean, lambda seconds: busbw(op, size, seconds, world))
    figures = [
        Figure("call_time_p50", "s", median_interval(calls), tags, "lower"),
        Figure("call_time_p95", "s", Estimate(percentile(calls, 95), None, None, calls.size, "95th percentile"), tags),
        Figure("call_time_p99", "s", Estimate(percentile(calls, 99), None, None, calls.size, "99th percentile"), tags),
        Figure("batch_call_time", "s", mean, tags, "lower"),
        Figure("algbw", "B/s", _inverse(mean, lambda seconds: algbw(size, seconds)), tags, "higher"),
        Figure("busbw", "B/s", rate, tags, "higher", rate.value / CEILING, "copy rate, all ranks together"),
        Figure("check_errors", "1", Estimate(0.0, None, None, 1, "sum over calls"), tags),
    ]
    if op == "all_reduce":
        deepspeed = _inverse(mean, lambda seconds: deepspeed_throughput(op, size, seconds, world))
        figures.insert(6, Figure("throughput_deepspeed", "bit/s", deepspeed, tags, "higher"))
    return figures


def _inverse(time: Estimate, rate: Any) -> Estimate:
    low, high = (None, None) if time.low is None or time.high is None else (rate(time.high), rate(time.low))
    return Estimate(rate(time.value), low, high, time.samples, time.method)


def _training() -> CaseResult:
    random = np.random.default_rng(3)
    steps = np.arange(240)
    loss = 4.1 + 3.6 * np.exp(-steps / 60) + random.normal(0, 0.03, steps.size)
    norm = 1.1 + 2 * np.exp(-steps / 20) + random.exponential(0.1, steps.size)
    times = random.lognormal(np.log(0.142), 0.03, 200)
    times[[31, 160]] = 0.61, 0.31
    curves = []
    for metric, values in (("loss", loss), ("grad_norm", norm), ("learning_rate", 3e-4 * np.minimum(1, steps / 60))):
        curves.append(Curve(metric, "1", values[:40], steps[:40], {"phase": "warmup"}))
        curves.append(Curve(metric, "1", values[40:], steps[40:], {"phase": "measured"}))
    curves.append(Curve("step_time", "s", np.full(40, 0.2), steps[:40], {"phase": "warmup"}))
    curves.append(Curve("step_time", "s", times, steps[40:], {"phase": "measured"}))
    median = median_interval(times)
    speed = Estimate(14_420.0, 14_310.0, 14_505.0, 200, "all tokens over all time of the measured steps")
    figures = [
        Figure("tgs", "tokens/s/device", speed, {}, "higher"),
        Figure("mfu", "1", Estimate(0.314, 0.309, 0.317, 200, "from TGS"), {}, "higher", 0.314, "GEMM rate, together"),
        Figure("step_time_p50", "s", median, {}, "lower"),
        Figure("step_time_p95", "s", Estimate(percentile(times, 95), None, None, 200, "95th percentile"), {}, "lower"),
        Figure("step_time_p99", "s", Estimate(percentile(times, 99), None, None, 200, "99th percentile"), {}, "lower"),
        Figure("final_loss", "1", Estimate(float(loss[-20:].mean()), None, None, 20, "mean of 20 steps"), {}, "lower"),
        Figure("ppl", "1", Estimate(63.8, None, None, 512, "exp of the mean evaluation loss"), {}, "lower"),
        Figure("peak_memory", "B", None, {}, reason="the device does not report its peak memory"),
        Figure("parameters", "1", Estimate(2_360_832.0, None, None, 1, "counted"), {}),
        Figure("flops_per_token", "FLOP/token", Estimate(14.2e6, None, None, 1, "formula"), {}),
        Figure("setup_time", "s", Estimate(3.81, None, None, 1, "single reading"), {}, "lower"),
    ]
    options = {"model": "llama-tiny", "steps": 200, "warmup": 40, "global_batch": 16}
    about = {"device": "cpu", "device_name": "AMD EPYC 9654", "backend": "gloo", "threads": 2}
    status = Status("passed", "run", 0, 141.0)
    return CaseResult("train-llama", "workloads/pretrain.py", 2, options, status, 2, figures, curves, about)


def _failed() -> CaseResult:
    status = Status(
        "failed",
        "run",
        1,
        12.7,
        "rank 3: the loss became NaN at step 17",
        "Lower --learning-rate or use bfloat16, then run the same folder again.",
    )
    return CaseResult("train-internlm", "workloads/pretrain.py", 4, {"model": "internlm-tiny"}, status, 3)


def _unfinished() -> CaseResult:
    return CaseResult("comms-16", "comms/bench.py", 16, {}, None, 1)


def _ceilings() -> list[Figure]:
    alone = {"loaded": "alone", "ranks": 1, "dtype": "float32"}
    together = {"loaded": "together", "ranks": 8, "dtype": "float32"}
    method = "best of 5 windows"
    return [
        Figure("gemm_rate", "FLOP/s", Estimate(412.6e9, 408.1e9, 415.0e9, 50, method), alone, "higher"),
        Figure("gemm_rate", "FLOP/s", Estimate(118.2e9, 115.7e9, 120.4e9, 50, method), together, "higher"),
        Figure("copy_rate", "B/s", Estimate(23.9e9, 23.4e9, 24.2e9, 50, method), alone, "higher"),
        Figure("copy_rate", "B/s", Estimate(CEILING, 11.5e9, 11.8e9, 50, method), together, "higher"),
    ]


def _scorecard() -> Scorecard:
    rows = [
        Row("all_reduce, 8 ranks, 64 MiB", 0.25, 21.4e9, 1200e9, "bit/s", 0.0178, 0.0178),
        Row("all_reduce, 32 ranks, 64 MiB", 0.25, None, 600e9, "bit/s", None, None),
        Row("pt2pt, 8 ranks, 64 MiB", 0.0625, None, 258e9, "bit/s", None, 0.0, "failed: rank 3 ran out of memory"),
    ]
    training = [
        Row("llama-tiny, 2 devices", 1.0, 14_420.0, None, "tokens/s/device", None, None, "the baseline has none")
    ]
    return Scorecard(
        "a100",
        "a100-published",
        "the published table of an A100 cluster",
        [
            Section("communication", "Communication", "Σ weight × throughput / baseline", rows, 0.00446),
            Section(
                "training",
                "Training performance",
                "Σ weight × TGS / baseline",
                training,
                None,
                "No row could be scored.",
            ),
        ],
    )
