"""What the sensors of a case's hosts tell: series out of records, figures of each device, and reasons for doubt.

Power and energy are told in energy.py.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from assay.estimates import Estimate
from assay.record import Block, Header, RankFile, TagValue, read_rank_file
from assay.scoring.result import Figure
from assay.sensors.nvml import NO_FAULT

Array = NDArray[np.float64]
Span = tuple[float, float]
"""Two monotonic instants (s) of one host's clock."""

STOLEN = 0.02  # of the cores' time
HELD_BACK = 0.001  # of the span, in seconds of waiting threads, that a quota may take unnoticed
GAPS = 3.0  # intervals without a reading above which a time counts as not covered

# Counters that rise in ordinary traffic: a dropped arrival is most often a frame that nobody on the host had asked for.
_ORDINARY = {"rx_dropped"}


@dataclass(frozen=True)
class SensorSeries:
    """All known readings of one gauge. times: monotonic s, rising; values: in `unit`, as many; unknown ones left out."""

    device: str
    metric: str
    unit: str
    tags: Mapping[str, TagValue]
    times: Array
    values: Array
    clock_id: str
    host: str

    @property
    def interval(self) -> float:
        """Seconds between readings, the median; nan with fewer than two."""
        return float(np.median(np.diff(self.times))) if self.times.size > 1 else float("nan")


@dataclass(frozen=True)
class SensorFile:
    """One host's sensors. notes: what the sampler had to say; no_power: why there is neither power nor energy."""

    path: Path
    header: Header | None
    series: list[SensorSeries]
    notes: list[str]
    no_power: str | None
    garbage: list[str]

    @property
    def span(self) -> Span | None:
        """First and last reading of anything; None without two."""
        times = [(float(one.times[0]), float(one.times[-1])) for one in self.series]
        first, last = min((a for a, _ in times), default=0.0), max((b for _, b in times), default=0.0)
        return (first, last) if last > first else None


def read_sensors(attempt: Path) -> list[SensorFile]:
    """The sensors' files of an attempt, by rank; none where sampling was off. Raises OSError if one cannot be read."""
    return [_open(path) for path in sorted(attempt.glob("sensors-*.jsonl"))]


def _open(path: Path) -> SensorFile:
    read = read_rank_file(path)
    host, clock_id = (read.header.host, read.header.clock_id) if read.header else ("", "")
    gathered: dict[tuple[object, ...], tuple[Block, list[Array], list[Array]]] = {}
    times: dict[str, Array] = {}
    notes, reasons = [], []
    for block in read.blocks:
        source = str(block.tags.get("source"))
        if block.metric == "sensor_time":
            times[source] = block.samples
        elif block.metric == "sensor_note":
            notes.append(block.reason or "")
        elif "source" not in block.tags:
            reasons.append(block.reason)
        else:
            stamps = times.get(source, np.empty(0))
            if stamps.size != block.samples.size or (block.t_first, block.t_last) != (*stamps[:1], *stamps[-1:]):
                continue  # the line with its own stamps is lost
            key = (block.metric, *sorted((name, str(value)) for name, value in block.tags.items()))
            _, at, values = gathered.setdefault(key, (block, [], []))
            at.append(stamps)
            values.append(block.samples)
    series = []
    for first, at, values in gathered.values():
        moments, readings = np.concatenate(at), np.concatenate(values)
        known = np.isfinite(readings) & np.isfinite(moments)
        if known.any():
            tags = {key: value for key, value in first.tags.items() if key != "device"}
            device = str(first.tags.get("device"))
            series.append(
                SensorSeries(device, first.metric, first.unit, tags, moments[known], readings[known], clock_id, host)
            )
    no_power = None if any(one.metric in ("power", "energy") for one in series) else next(iter(reasons), None)
    return SensorFile(path, read.header, series, notes, no_power, read.garbage)


def pick(series: Iterable[SensorSeries], metric: str, **tags: TagValue) -> list[SensorSeries]:
    """The series of one metric whose tags hold `tags`."""
    return [one for one in series if one.metric == metric and all(one.tags.get(k) == v for k, v in tags.items())]


def within(series: SensorSeries, span: Span) -> Array:
    """The values read inside the span, ends included."""
    return series.values[(series.times >= span[0]) & (series.times <= span[1])]


def _around(series: SensorSeries, span: Span) -> slice:
    """From the last reading before the span to the first one after it, as far as there are such."""
    first = max(int(np.searchsorted(series.times, span[0], "right")) - 1, 0)
    return slice(first, int(np.searchsorted(series.times, span[1])) + 1)


def increase(series: SensorSeries, span: Span) -> float | None:
    """By how much a counter rose, from the last reading before the span to the first after it; None without two.

    A counter that its driver has set back is followed from there.
    """
    steps = np.diff(series.values[_around(series, span)])
    return float(steps[steps > 0].sum()) if steps.size else None


def stolen_share(series: SensorSeries, span: Span) -> float | None:
    """Share of all cores' time that a hypervisor gave to others, out of a `cpu_steal` series; None if unknown.

    The counter's rise is set against the time between the readings that it was taken from, not against the span.
    """
    seconds, cores = increase(series, span), series.tags.get("cores")
    if seconds is None or not isinstance(cores, int) or cores < 1:
        return None
    times = series.times[_around(series, span)]
    return seconds / (float(times[-1] - times[0]) * cores)


def derive(files: Sequence[SensorFile], spans: Mapping[str, Span] | None = None) -> list[Figure]:
    """Figures of every device of every host, but for power and energy (energy.py).

    spans: clock_id → the span of interest on that clock, such as the measured steps; each file's own time without it.
    """
    figures = []
    for file, span in with_spans(files, spans):
        by_device: dict[str, list[SensorSeries]] = defaultdict(list)
        for one in file.series:
            by_device[one.device].append(one)
        for device, series in by_device.items():
            tags = {"device": device, "host": series[0].host}
            figures += _of_state(series, span, tags)
            figures += _of_counters(series, span, tags)
    return figures


def with_spans(files: Sequence[SensorFile], spans: Mapping[str, Span] | None) -> Iterable[tuple[SensorFile, Span]]:
    """Each host's file with the span of interest on its clock: its own time if no `spans` are given."""
    for file in files:
        span = file.span if spans is None else spans.get(file.header.clock_id) if file.header else None
        if span is not None:
            yield file, span


def _of_state(series: list[SensorSeries], span: Span, tags: Mapping[str, TagValue]) -> list[Figure]:
    figures = []
    hottest = [(float(values.max()), one) for one, values in _inside(series, "temperature", span)]
    if hottest:
        value, where = max(hottest, key=lambda item: item[0])
        sensor = where.tags.get("sensor")
        method = f"highest of {within(where, span).size} readings" + (f" ({sensor})" if sensor else "")
        figures.append(_figure("temperature_max", "degC", value, where.values.size, method, tags, "lower"))
    domains: dict[str, list[Array]] = defaultdict(list)
    for one, values in _inside(series, "clock", span):
        domains[str(one.tags.get("domain"))].append(values)
    for domain, arrays in domains.items():
        clocks = np.concatenate(arrays)
        of = f"{clocks.size} readings of {len(arrays)} clock{'s' if len(arrays) > 1 else ''}"
        known = {**tags, "domain": domain}
        figures.append(_figure("clock_min", "Hz", float(clocks.min()), clocks.size, f"lowest of {of}", known, "higher"))
        figures.append(
            _figure("clock_median", "Hz", float(np.median(clocks)), clocks.size, f"median of {of}", known, "higher")
        )
    figures += _throttled(series, span, tags)
    return figures + _of_use(series, span, tags)


def _of_use(series: list[SensorSeries], span: Span, tags: Mapping[str, TagValue]) -> list[Figure]:
    figures = []
    busy = [values for _, values in _inside(series, "utilisation", span)]
    if busy:
        shares = np.concatenate(busy)
        method = f"mean of {shares.size} readings"
        figures.append(_figure("utilisation_mean", "1", float(shares.mean()), shares.size, method, tags, "higher"))
    held = [values for _, values in _inside(series, "memory_used", span)]
    if held:
        sizes = np.concatenate(held)
        method = f"highest of {sizes.size} readings"
        figures.append(_figure("memory_used_max", "B", float(sizes.max()), sizes.size, method, tags, "lower"))
    return figures


def _inside(series: Iterable[SensorSeries], metric: str, span: Span) -> list[tuple[SensorSeries, Array]]:
    return [(one, values) for one in pick(series, metric) if (values := within(one, span)).size]


def throttled_shares(series: Iterable[SensorSeries], span: Span) -> dict[str, float]:
    """Reason → share of one device's readings in the span at which it was slowed down for that reason."""
    return {
        str(one.tags.get("reason")): float((values > 0).mean()) for one, values in _inside(series, "throttled", span)
    }


def _throttled(series: list[SensorSeries], span: Span, tags: Mapping[str, TagValue]) -> list[Figure]:
    told = [(one, values > 0) for one, values in _inside(series, "throttled", span)]
    if told:
        count = min(flags.size for _, flags in told)
        value = float(np.any([flags[:count] for _, flags in told], axis=0).mean())
        shares = throttled_shares(series, span)
        reasons = ", ".join(f"{reason} {share:.0%}" for reason, share in shares.items() if share)
        method = f"share of {count} readings" + (f" ({reasons})" if reasons else "")
        return [_figure("throttled_share", "1", value, count, method, tags, "lower")]
    for one in pick(series, "throttle_time"):
        seconds = increase(one, span)
        if seconds is not None:
            share = min(1.0, seconds / (span[1] - span[0]))
            return [
                _figure("throttled_share", "1", share, one.values.size, "seconds counted by the kernel", tags, "lower")
            ]
    return []


_COUNTERS = ("link_errors", "ecc_corrected", "ecc_uncorrected", "xid_events", "throttle_events", "cpu_throttled")


def _of_counters(series: list[SensorSeries], span: Span, tags: Mapping[str, TagValue]) -> list[Figure]:
    figures = []
    for one in series:
        rise = increase(one, span) if one.metric in (*_COUNTERS, "cpu_steal") else None
        if rise is None:
            continue
        if one.metric == "cpu_steal":
            share = stolen_share(one, span)
            if share is not None:
                method = "time that the hypervisor gave to others / (time × cores)"
                figures.append(_figure("stolen_share", "1", share, one.values.size, method, tags, "lower"))
        elif rise:
            known = {**tags, **{key: one.tags[key] for key in ("counter", "cgroup", "kind") if key in one.tags}}
            method = "rise of the counter"
            figures.append(_figure(one.metric, one.unit, rise, one.values.size, method, known, "lower"))
    return figures


def _figure(
    metric: str,
    unit: str,
    value: float,
    samples: int,
    method: str,
    tags: Mapping[str, TagValue],
    better: Literal["higher", "lower"],
) -> Figure:
    return Figure(metric, unit, Estimate(value, None, None, samples, method), tags, better=better)


def doubts(files: Sequence[SensorFile], spans: Mapping[str, Span] | None = None) -> list[tuple[str, str, str]]:
    """(kind, subject, message) of everything that the sensors give reason to doubt; `spans` as for `derive`.

    Kinds: throttled, memory_errors, driver_errors, link_errors, stolen_time, cpu_quota. The subject is the device and its host.
    """
    found: list[tuple[str, str, str]] = []
    for file, span in with_spans(files, spans):
        for device in dict.fromkeys(one.device for one in file.series):
            series = [one for one in file.series if one.device == device]
            subject = f"{device} on {series[0].host}"
            found += [(kind, subject, message) for kind, message in _doubts_of(series, span)]
    return found


def _doubts_of(series: list[SensorSeries], span: Span) -> Iterable[tuple[str, str]]:
    for reason, share in throttled_shares(series, span).items():
        if share > 0 and reason not in NO_FAULT:
            yield "throttled", f"was slowed down ({reason}) at {share:.0%} of the readings"
    for one in series:
        rise = increase(one, span)
        if not rise:
            continue
        if one.metric == "throttle_events":
            yield "throttled", f"was slowed down by heat {rise:.0f} times"
        elif one.metric == "ecc_uncorrected":
            yield "memory_errors", f"{rise:.0f} memory errors could not be corrected"
        elif one.metric == "xid_events":
            kind = one.tags.get("kind")
            newest = next(
                (int(last.values[_around(last, span)][-1]) for last in pick(series, "xid_last", kind=kind)), None
            )
            about = "memory_errors" if kind == "memory" else "driver_errors"
            yield about, f"the driver reported {rise:.0f} XID errors, the last one of number {newest}"
        elif one.metric == "link_errors" and one.tags.get("counter") not in _ORDINARY:
            yield "link_errors", f"{one.tags.get('counter')} rose by {rise:.0f}"
        elif one.metric == "cpu_throttled" and rise > HELD_BACK * (span[1] - span[0]):
            yield "cpu_quota", f"the quota of cgroup {one.tags.get('cgroup')} held threads back for {rise:.3g} s in all"
        elif one.metric == "cpu_steal":
            stolen = stolen_share(one, span) or 0.0
            if stolen > STOLEN:
                yield "stolen_time", f"the hypervisor gave {stolen:.1%} of the cores' time to others"


def notes(files: Sequence[SensorFile], ranks: Sequence[RankFile]) -> list[str]:
    """Why a case's sensors tell less than they should, a sentence each: what the samplers and the ranks noted, hosts
    without readings, and readings that end before the ranks' own records do.

    Nothing where no host has sensors and no rank says why: sampling was switched off then.
    """
    found = [f"{file.header.host if file.header else file.path.name}: {note}" for file in files for note in file.notes]
    lasts: dict[tuple[str, str], float] = {}
    for rank in ranks:
        if rank.header is None:
            continue
        host = rank.header.host
        own = [block for block in rank.blocks if block.metric == "sensor_note"]
        found += [f"{host}: {block.reason}" for block in own]
        latest = max((block.t_last for block in rank.blocks if block.metric != "sensor_note"), default=float("-inf"))
        lasts[rank.header.clock_id, host] = max(latest, lasts.get((rank.header.clock_id, host), latest))
    if files:
        found += filter(None, (_shortfall(files, *where, last) for where, last in lasts.items()))
    return list(dict.fromkeys(found))


def _shortfall(files: Sequence[SensorFile], clock_id: str, host: str, last: float) -> str | None:
    """What is missing of a host's readings, whose ranks wrote their last record at `last` (monotonic s)."""
    here = [file for file in files if file.header and (file.header.clock_id, file.header.host) == (clock_id, host)]
    ends = [float(one.times[-1]) for file in here for one in file.series]
    if not ends:
        return f"{host}: no sensors were recorded"
    # A series has the pace of its source; the quickest one would have reached the end.
    pace = min((one.interval for file in here for one in file.series if one.times.size > 1), default=0.0)
    early = last - max(ends)
    return f"{host}: the sensors' readings end {early:.3g} s before the ranks' records" if early > GAPS * pace else None
