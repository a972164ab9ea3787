"""Basic technical parameters: figures of specs/bench.py, and the table that holds them against a baseline and a datasheet.

The table follows the evaluation report 0.2.1, table 4, which is shown and not scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from assay.estimates import Estimate, mean_of_batches, median_interval
from assay.record import Block, RankFile
from assay.scoring import ceilings
from assay.scoring.energy import flops_per_watt, job_energy, over_time
from assay.scoring.result import CaseResult, Curve, Figure, Parameter, ParameterRow
from assay.scoring.sensors import SensorFile, Span
from assay.scoring.sensors import derive as of_devices

SCRIPT = "specs/bench"
_WENT_WITH_IT = ("temperature_max", "clock_min", "clock_median", "throttled_share")


PARAMETERS = (
    Parameter("fp64", "FP64 rate", "FLOP/s", "gemm_rate", {"dtype": "float64"}, ("fp64_tensor", "fp64")),
    Parameter(
        "fp32", "FP32 rate, full precision", "FLOP/s", "gemm_rate", {"dtype": "float32"}, ("fp32_tensor", "fp32")
    ),
    Parameter("fp32_tensor", "FP32 rate, on TF32 units", "FLOP/s", "gemm_rate", {"dtype": "tf32"}, ("tf32",)),
    Parameter("tf32", "TF32 rate", "FLOP/s", "gemm_rate", {"dtype": "tf32"}, ("tf32",)),
    Parameter("bf16", "BF16 rate", "FLOP/s", "gemm_rate", {"dtype": "bfloat16"}, ("bf16",)),
    Parameter("fp16", "FP16 rate", "FLOP/s", "gemm_rate", {"dtype": "float16"}, ("fp16",)),
    Parameter("fp8", "FP8 rate", "FLOP/s", "gemm_rate", {"dtype": ("float8_e4m3fn", "float8_e4m3fnuz")}, ("fp8",)),
    Parameter("int8", "INT8 rate", "OP/s", "gemm_rate", {"dtype": "int8"}, ("int8",)),
    Parameter("int16", "INT16 rate", "OP/s", "gemm_rate", {"dtype": "int16"}, ("int16",)),
    Parameter("memory", "Memory capacity", "B", "memory_total", {}, ("memory_bytes",)),
    Parameter("bandwidth", "Memory bandwidth, triad", "B/s", "triad_rate", {}, ("memory_bandwidth",)),
    Parameter("d2d", "Copy within a device (read + written)", "B/s", "copy_rate", {}, ("memory_bandwidth",)),
    Parameter("h2d", "Host to device", "B/s", "host_copy_rate", {"direction": "h2d"}, ("host_link",)),
    Parameter("d2h", "Device to host", "B/s", "host_copy_rate", {"direction": "d2h"}, ("host_link",)),
    Parameter(
        "link", "Between two devices, both ways, fastest pair", "B/s", "link_rate", {"ways": 2}, ("interconnect",)
    ),
    Parameter(
        "link_slowest", "Between two devices, both ways, slowest pair", "B/s", "link_rate", {"ways": 2}, slowest=True
    ),
    Parameter("disk_write", "Disk, written and synced", "B/s", "disk_rate", {"way": "write_fsync"}),
    Parameter("disk_write_direct", "Disk, written directly", "B/s", "disk_rate", {"way": "write_direct"}),
    Parameter("disk_read_direct", "Disk, read directly", "B/s", "disk_rate", {"way": "read_direct"}),
    Parameter("power_idle", "Power at rest", "W", "power_idle"),
    Parameter("power_loaded", "Power under the fastest product", "W", "power_loaded", {"unit": "FLOP/s"}, ("power",)),
    Parameter("flops_per_watt", "Best floating-point efficiency", "FLOP/s/W", "rate_per_watt", {"unit": "FLOP/s"}),
    Parameter("ops_per_watt", "Best integer efficiency", "OP/s/W", "rate_per_watt", {"unit": "OP/s"}),
)


def derive(files: list[RankFile], options: Mapping[str, Any], limits: list[Figure]) -> tuple[list[Figure], list[Curve]]:
    """Figures of specs/bench.py, and the course of the sustained rates."""
    figures = [*ceilings.derive(files), *_capacity(files), *_disk(files)]
    sustained = _blocks(files, "sustained_time")
    figures += [_sustained(group) for group in _by_dtype(sustained)]
    return figures, [_course(group) for group in _by_dtype(sustained) if group[0].samples.sum() > 2]


def parameter_rows(
    cases: Sequence[CaseResult], baseline: Mapping[str, float], datasheet: Mapping[str, float]
) -> list[ParameterRow]:
    """Every parameter with what is known of it; none if no case of the run measures them."""
    figures = [figure for case in cases if case.script == SCRIPT for figure in case.figures]
    if not figures:
        return []
    rows = []
    for one in PARAMETERS:
        printed = next((datasheet[key] for key in one.datasheet if key in datasheet), None)
        rows.append(ParameterRow(one, measured(one, figures), baseline.get(one.key), printed))
    return rows


def measured(parameter: Parameter, figures: Sequence[Figure]) -> Figure | None:
    """The parameter's figure: the highest (or lowest) that matches, else one that says why it is unknown, else None."""
    found = [
        figure
        for figure in figures
        if figure.metric == parameter.metric
        and all(_agrees(figure.tags.get(key), value) for key, value in parameter.match.items())
    ]
    known = [figure for figure in found if figure.value is not None]
    if not known:
        return next(iter(found), None)
    return (min if parameter.slowest else max)(known, key=lambda figure: figure.value or 0.0)


def _agrees(value: object, wanted: object) -> bool:
    return value in wanted if isinstance(wanted, tuple) else value == wanted


def _blocks(files: Sequence[RankFile], metric: str) -> list[tuple[RankFile, Block]]:
    return [(file, block) for file in files for block in file.blocks if file.header and block.metric == metric]


def _by_dtype(found: Sequence[tuple[RankFile, Block]]) -> list[list[Block]]:
    names = dict.fromkeys(str(block.tags.get("dtype")) for _, block in found)
    return [[block for _, block in found if block.tags.get("dtype") == name] for name in names]


def _capacity(files: Sequence[RankFile]) -> list[Figure]:
    """Memory of one device, as its driver (or the kernel) tells it; the smallest where devices differ."""
    blocks = [block for _, block in _blocks(files, "memory_total")]
    if not blocks:
        return []
    values = [float(block.samples[-1]) for block in blocks if block.samples.size and block.reason is None]
    method = f"as the driver tells it, smallest of {len(values)}"
    estimate = Estimate(min(values), None, None, len(values), method) if values else None
    reason = next((block.reason for block in blocks if block.reason), None)
    return [Figure("memory_total", "B", estimate, {}, "higher", reason=reason)]


def _disk(files: Sequence[RankFile]) -> list[Figure]:
    """Rates of whole passes: the median pass, since the best one may have been answered by a cache of the disk itself."""
    figures = []
    found = _blocks(files, "disk_time")
    for way in dict.fromkeys(str(block.tags.get("way")) for _, block in found):
        blocks = [block for _, block in found if block.tags.get("way") == way]
        reasons = [block.reason for block in blocks if block.reason]
        tags = {"way": way, "bytes": blocks[0].tags.get("bytes"), "folder": blocks[0].tags.get("folder")}
        if reasons or not float(tags["bytes"] or 0):
            figures.append(Figure("disk_rate", "B/s", None, tags, "higher", reason=next(iter(reasons), "no size")))
            continue
        rates = [float(block.tags["bytes"] or 0) / block.samples for block in blocks]
        slowest = min(rates, key=lambda values: float(np.median(values)))  # of several hosts
        figures.append(Figure("disk_rate", "B/s", median_interval(slowest), tags, better="higher"))
    return figures


def efficiency(files: Sequence[RankFile], sensors: Sequence[SensorFile]) -> list[Figure]:
    """Power per device at rest and under the sustained products, rate per watt, and the heat and clocks that went with it.

    Unknown, with the reason, without sensors.
    """
    rest = _blocks(files, "rest_time")
    figures = [_power("power_idle", rest, files, sensors, {})] if rest else []
    found = _blocks(files, "sustained_time")
    for group in _by_dtype(found):
        name = group[0].tags.get("dtype")
        loaded = [(file, block) for file, block in found if block.tags.get("dtype") == name]
        rate = _sustained(group)
        tags = {**rate.tags, "unit": rate.unit}
        power = _power("power_loaded", loaded, files, sensors, tags)
        per_watt = flops_per_watt(rate.estimate, power.estimate) if rate.estimate and power.estimate else None
        figures += [power, Figure("rate_per_watt", f"{rate.unit}/W", per_watt, tags, "higher", reason=power.reason)]
        beside = [figure for figure in of_devices(sensors, _spans(loaded)) if figure.metric in _WENT_WITH_IT]
        figures += [replace(figure, tags={**figure.tags, "during": name}) for figure in beside]
    return figures


def _spans(found: Sequence[tuple[RankFile, Block]]) -> dict[str, Span]:
    """clock_id → the time that all ranks on that clock spent in `found`."""
    spans: dict[str, Span] = {}
    for file, block in found:
        clock = file.header.clock_id if file.header else ""
        begin = float(block.tags["begun"] or 0)
        known = spans.get(clock, (begin, begin + float(block.samples.sum())))
        spans[clock] = max(begin, known[0]), min(begin + float(block.samples.sum()), known[1])
    return spans


def _power(
    metric: str,
    found: Sequence[tuple[RankFile, Block]],
    files: Sequence[RankFile],
    sensors: Sequence[SensorFile],
    tags: Mapping[str, Any],
) -> Figure:
    """Mean power per rank over the time that all ranks of a host spent in `found`."""
    energies, what = job_energy(files, sensors, _spans(found))
    if not energies:
        return Figure(metric, "W", None, tags, "lower", reason=what)
    powers = [over_time(energy, span) for energy, span in energies]
    ends = [[one.low for one in powers], [one.high for one in powers]]
    low, high = (None if None in end else sum(bound for bound in end if bound is not None) / len(found) for end in ends)
    value = sum(one.value for one in powers) / len(found)
    method = f"{what}, mean over {powers[0].samples} readings or more, per rank"
    return Figure(metric, "W", Estimate(value, low, high, powers[0].samples, method), tags, "lower")


def _sustained(blocks: list[Block]) -> Figure:
    """All work over all time under load, per device; of the slowest rank, because a job waits for that."""
    tags = {key: blocks[0].tags.get(key) for key in ("dtype", "shape", "loaded", "ranks")}
    unit = "OP/s" if str(tags["dtype"]).startswith("int") else "FLOP/s"
    slowest = min(blocks, key=lambda block: float(block.tags["work"] or 0) / float(block.samples.mean()))
    time = mean_of_batches(slowest.samples, 1)
    work = float(slowest.tags["work"] or 0)
    low, high = (work / bound if bound else None for bound in (time.high, time.low))
    method = f"slowest of {len(blocks)}, {time.method.replace('calls', 'samples')}, over {slowest.samples.sum():.0f} s"
    return Figure("sustained_rate", unit, Estimate(work / time.value, low, high, time.samples, method), tags, "higher")


def _course(blocks: list[Block]) -> Curve:
    """The rate of the first rank in every second, so that throttling is seen."""
    block = blocks[0]
    edges = np.concatenate([[0.0], np.cumsum(block.samples)])
    seconds = np.arange(int(edges[-1]) + 1)
    done = np.interp(seconds, edges, np.arange(edges.size)) * float(block.tags["work"] or 0)
    unit = "OP/s" if str(block.tags.get("dtype")).startswith("int") else "FLOP/s"
    return Curve("sustained_rate", unit, np.diff(done), seconds[1:], {"dtype": block.tags.get("dtype")}, "s")
