"""Power and energy: of each device over a span, and of a training case per token and per FLOP.

Nothing is estimated: where the readings do not cover a span, or a device has no sensor, the figure is unknown and says
why.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assay.estimates import Estimate
from assay.record import RankFile
from assay.scoring.result import Figure
from assay.scoring.samples import by_rank, scalar, scaled, training_tags
from assay.scoring.sensors import GAPS, SensorFile, SensorSeries, Span, pick, with_spans, within

_MEASURED = {"phase": "measured"}
_METERS = ("energy", "power")  # a counter loses nothing between two readings, so it comes first
_ACCELERATORS = ("tool", "nvml", "hwmon")  # what the user names himself comes first


def uncovered(series: SensorSeries, span: Span) -> str | None:
    """Why the readings do not cover the span; None if they do.

    They must begin before it and end after it, two of them must lie inside, and none may be further from the next than
    three times their usual distance, where that touches the span.
    """
    begin, end = span
    if series.times.size < 2 or series.times[0] > begin or series.times[-1] < end:
        missing = "begin too late" if series.times.size and series.times[0] > begin else "end too early"
        return f"{series.metric} readings of {series.device} {missing} for the span of {end - begin:.3g} s"
    if within(series, span).size < 2:
        return f"the span of {end - begin:.3g} s is too short for readings of {series.device} {series.interval:.3g} s apart"
    touching = (series.times[1:] > begin) & (series.times[:-1] < end)
    widest = float(np.diff(series.times)[touching].max())
    if widest > GAPS * series.interval:
        return f"{series.metric} of {series.device} was not read for {widest:.3g} s (usually every {series.interval:.3g} s)"
    return None


def energy_between(series: SensorSeries, span: Span) -> tuple[Estimate | None, str]:
    """Energy (J) of one series over a span, and how it was found; (None, reason) where the readings do not cover it.

    A counter (`energy`) is interpolated at both ends. Its bounds are hard: the energy is at least what the readings
    inside the span tell and at most what those around it do. Powers are integrated by trapezoids, without bounds.
    """
    reason = uncovered(series, span)
    if reason:
        return None, reason
    begin, end = span
    times, values = series.times, series.values
    inside = within(series, span)
    if series.metric == "energy":
        value = float(np.interp(end, times, values) - np.interp(begin, times, values))
        around = values[np.searchsorted(times, end)] - values[np.searchsorted(times, begin, "right") - 1]
        method = "rise of the energy counter, interpolated at both ends"
        return Estimate(value, float(inside[-1] - inside[0]), float(around), inside.size, method), method
    at = np.concatenate(([begin], times[(times > begin) & (times < end)], [end]))
    power = np.interp(at, times, values)
    value = float(np.sum((power[1:] + power[:-1]) / 2 * np.diff(at)))
    method = "trapezoids over readings of power"
    return Estimate(value, None, None, inside.size, method), method


def device_energy(series: Sequence[SensorSeries], device: str, span: Span) -> tuple[Estimate | None, str]:
    """Energy (J) of a device over a span, by its counter if that covers it, else by its powers; (None, reason) else."""
    reason = f"{device} has no sensor of power or energy"
    for one in _meters(series):
        if one.device == device:
            estimate, reason = energy_between(one, span)
            if estimate is not None:
                return estimate, reason
    return None, reason


def _meters(series: Sequence[SensorSeries]) -> list[SensorSeries]:
    return [one for metric in _METERS for one in pick(series, metric)]


def over_time(energy: Estimate, span: Span) -> Estimate:
    """Mean power (W) out of an energy (J) over its span."""
    return scaled(energy, 1 / (span[1] - span[0]), f"{energy.method}, over its time")


def flops_per_watt(rate: Estimate, watts: Estimate) -> Estimate:
    """FLOP/s per watt: a rate (FLOP/s) over the mean power (W) at which it was reached; bounds where both have them."""
    low = high = None
    if rate.low is not None and watts.high:
        low = rate.low / watts.high
    if rate.high is not None and watts.low:
        high = rate.high / watts.low
    return Estimate(rate.value / watts.value, low, high, rate.samples, f"{rate.method} / {watts.method}")


def device_figures(sensors: Sequence[SensorFile], spans: Mapping[str, Span] | None = None) -> list[Figure]:
    """power_mean (W) and energy (J) of every device that has a meter. `spans`: clock_id → span; the whole case without."""
    figures = []
    for file, span in with_spans(sensors, spans):
        for device in dict.fromkeys(one.device for one in _meters(file.series)):
            meters = [one for one in _meters(file.series) if one.device == device]
            if spans is None:  # sources begin and end some milliseconds apart
                span = max(float(one.times[0]) for one in meters), min(float(one.times[-1]) for one in meters)
            tags = {"device": device, "host": meters[0].host, "part": meters[0].tags.get("part")}
            energy, reason = device_energy(meters, device, span)
            if energy is None:
                figures += _unknown(reason, tags, ("power_mean", "W"), ("energy", "J"))
                continue
            figures.append(Figure("power_mean", "W", over_time(energy, span), tags, better="lower"))
            figures.append(Figure("energy", "J", energy, tags, better="lower"))
    return figures


def _unknown(reason: str, tags: Mapping[str, Any], *figures: tuple[str, str]) -> list[Figure]:
    return [
        Figure(metric, unit, None, tags, better="higher" if metric == "flops_per_watt" else "lower", reason=reason)
        for metric, unit in figures
    ]


def used_meters(file: SensorFile, device: str, ranks: int) -> tuple[list[SensorSeries], str]:
    """The meters of the devices that a host's ranks worked on, and what they are; (nothing, reason) if that is unknown.

    device: the ranks' torch device type; ranks: how many on this host. On a CPU the devices are the RAPL packages. On
    accelerators they are those alone, the first `ranks` that the ranks could see: rank i of a host takes the i-th.
    """
    meters = _meters(file.series)
    if device == "cpu":
        chosen = pick(meters, "energy", part="package")
        what = "processor packages only, by RAPL"
        return (chosen, what) if chosen else ([], file.no_power or "the processor's packages have no energy counter")
    sources = [source for source in _ACCELERATORS if any(one.tags.get("source") == source for one in meters)]
    if not sources:
        return [], file.no_power or f"no power sensor of the {device} devices"
    offered = [one for one in meters if one.tags.get("source") == sources[0]]
    count = len({one.device for one in offered})
    if sources[0] != "tool":
        if len({one.tags.get("driver") for one in offered}) > 1:
            return [], "cards of several drivers have sensors; which of them the ranks used is unknown"
        if count > ranks and any("index" not in one.tags for one in offered):
            return [], f"{count} devices have sensors; which of them the {ranks} ranks used is unknown"
        if count > ranks:
            offered = [one for one in offered if int(one.tags["index"] or 0) < ranks]
        if len({one.device for one in offered}) < ranks:
            return [], f"{len({one.device for one in offered})} of {ranks} devices have a power sensor"
    return offered, f"devices only ({len({one.device for one in offered})} a host), by {sources[0]}"


def measured_spans(files: Sequence[RankFile]) -> dict[str, Span]:
    """clock_id → from the begin of the first measured step to the end of the last, over all ranks on that clock."""
    spans: dict[str, Span] = {}
    for file in files:
        blocks = [b for b in file.blocks if b.metric == "step_time" and b.tags.get("phase") == "measured"]
        blocks = [block for block in blocks if block.samples.size]
        if file.header is None or not blocks:
            continue
        # A sample is stamped when its step has ended.
        begin, end = blocks[0].t_first - float(blocks[0].samples[0]), blocks[-1].t_last
        known = spans.get(file.header.clock_id, (begin, end))
        spans[file.header.clock_id] = (min(begin, known[0]), max(end, known[1]))
    return spans


def job_energy(
    files: Sequence[RankFile], sensors: Sequence[SensorFile], spans: Mapping[str, Span]
) -> tuple[list[tuple[Estimate, Span]], str]:
    """Energy (J) of every device that the ranks used, each with its span, and what was counted; ([], reason) if unknown."""
    found: list[tuple[Estimate, Span]] = []
    what = ""
    for clock_id, span in spans.items():
        headers = [file.header for file in files if file.header and file.header.clock_id == clock_id]
        host = headers[0].host
        here = [file for file in sensors if file.header and file.header.clock_id == clock_id]
        if len(here) != 1:
            why = "no sensors were recorded" if not here else f"{len(here)} sets of sensors were recorded"
            return [], f"{host}: {why}"
        meters, what = used_meters(here[0], headers[0].device, headers[0].local_world)
        if not meters:
            return [], f"{host}: {what}"
        for device in dict.fromkeys(one.device for one in meters):
            energy, reason = device_energy(meters, device, span)
            if energy is None:
                return [], f"{host}: {reason}"
            found.append((energy, span))
    return found, what


def _sum(estimates: Sequence[Estimate], method: str) -> Estimate:
    lows, highs = [one.low for one in estimates], [one.high for one in estimates]
    low = None if None in lows else sum(bound for bound in lows if bound is not None)
    high = None if None in highs else sum(bound for bound in highs if bound is not None)
    return Estimate(sum(one.value for one in estimates), low, high, min(one.samples for one in estimates), method)


def derive(
    files: Sequence[RankFile], sensors: Sequence[SensorFile], options: Mapping[str, Any] | None = None
) -> list[Figure]:
    """energy_per_token (J/token) and flops_per_watt (FLOP/s/W) of a training case; nothing for one without steps.

    Energy of all devices of all hosts from the first measured step's begin to the last one's end, over the tokens of
    those steps; FLOPs are the model's, recomputation never counts.
    """
    spans = measured_spans(files)
    tokens = by_rank(files, "tokens", _MEASURED)
    if not spans or not tokens:
        return []
    tags = training_tags(files, options or {})
    found, what = job_energy(files, sensors, spans)
    if not found:
        return _unknown(what, tags, ("energy_per_token", "J/token"), ("flops_per_watt", "FLOP/s/W"))
    count = float(tokens[min(tokens)].sum())
    energy = _sum([energy for energy, _ in found], what)
    method = f"{what}: {found[0][0].method}, over {count:.0f} tokens"
    figures = [Figure("energy_per_token", "J/token", scaled(energy, 1 / count, method), tags, better="lower")]
    flops, reason = scalar(files, "flops_per_token")
    if flops is None:
        return [*figures, *_unknown(reason or "not recorded", tags, ("flops_per_watt", "FLOP/s/W"))]
    longest = max(end - begin for begin, end in spans.values())
    rate = Estimate(flops * count / longest, None, None, tokens[min(tokens)].size, "model FLOP/s of the measured steps")
    watts = _sum([over_time(energy, span) for energy, span in found], f"mean power, {what}")
    return [*figures, Figure("flops_per_watt", "FLOP/s/W", flops_per_watt(rate, watts), tags, better="higher")]
