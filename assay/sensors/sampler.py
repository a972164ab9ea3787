"""The sampler: reads every source at its pace and writes what it read, some thirty ticks at a time.

A source is read at every tick, or at its own longer period. One that costs too much is read less often: so rarely that
reading it fills at most a tenth of the time (if a reading takes more than 0.1 s) and takes at most 0.5 ms of a
processor a tick, but at least every 30 s. Its stamps say when it was read, so nothing else has to know.
"""

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence

from assay.record import Tags, encode_block
from assay.recorder import Recorder
from assay.sensors.source import Gauge, Reading, Source

FLUSH_TICKS = 30
SLOW = 0.1  # s that a reading may take before it is made less often
BUSY_SHARE = 0.1  # of the time that reading a slow source may fill
CPU_A_TICK = 0.0005  # s of a processor that reading one source may take, spread over the ticks
LONGEST = 30.0  # s; the rarest that a source is read
HANG = 20  # s (whole ones) in one reading after which the kernel ends this process
LAST_READING = 0.5  # s; a source that takes longer is not read once more at the end
_POWER_METRICS = {"power", "energy"}


class Channel:
    """One source, its samples since the last flush, and how often it is read."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.due = -math.inf
        self.cost = 0.0  # s that a reading takes, the median of the last ones
        self.failed = False
        self.told_power = False  # whether power or energy has been written
        self._costs: deque[tuple[float, float]] = deque(maxlen=5)
        self._times: list[float] = []
        self._rows: list[list[Reading]] = []
        self._notes: list[str] = []

    def read(self) -> None:
        """Take one sample of everything. A source that breaks is noted and read no more."""
        if self.failed:
            return
        began, began_cpu = time.monotonic(), time.process_time()
        try:
            readings = self.source.read()
            self._notes += self.source.notes()
        except Exception as error:  # whatever a driver's library raises must not cost the other sources
            self._notes.append(f"{self.source.name}: {type(error).__name__}: {error}; it is read no more")
            self.failed = True
            return
        ended = time.monotonic()
        self._costs.append((ended - began, time.process_time() - began_cpu))
        self._times.append((began + ended) / 2)
        self._rows.append(readings)  # sorted into series when they are written: that is cheaper than at every tick

    def spacing(self, interval: float) -> float:
        """Seconds until the next reading, in whole ticks `interval` s apart."""
        least = max(interval, self.source.period)
        if not self._costs:
            return least
        self.cost = sorted(wall for wall, _ in self._costs)[len(self._costs) // 2]
        if self.cost > SLOW:
            least = max(least, self.cost / BUSY_SHARE)
        if len(self._costs) == self._costs.maxlen:  # the first readings are dearer than the rest
            least = max(least, interval * sorted(cpu for _, cpu in self._costs)[len(self._costs) // 2] / CPU_A_TICK)
        least = max(interval, self.source.period, min(least, LONGEST))
        return math.ceil(least / interval - 0.001) * interval

    def lines(self) -> list[str]:
        """The encoded blocks since the last call: notes, stamps, then the series. Forgets them."""
        name, times = self.source.name, self._times
        lines = [note_line(note, {"source": name}) for note in self._notes]
        if times:
            first, last = times[0], times[-1]
            lines.append(_line("sensor_time", "s", times, {"source": name}, first, last))
            for gauge, column in self._columns().items():
                if all(value is None for value in column):
                    continue
                self.told_power = self.told_power or gauge.metric in _POWER_METRICS
                reason = "not read at this moment" if None in column else None
                tags = {"source": name, **gauge.tags}
                lines.append(_line(gauge.metric, gauge.unit, column, tags, first, last, reason))
        self._notes, self._times, self._rows = [], [], []
        return lines

    def _columns(self) -> dict[Gauge, list[float | None]]:
        columns: dict[Gauge, list[float | None]] = {}
        for number, row in enumerate(self._rows):
            for gauge, value in row:
                column = columns.get(gauge)
                if column is None:
                    column = columns[gauge] = [None] * len(self._rows)
                column[number] = value
        return columns


def _line(
    metric: str,
    unit: str,
    samples: Sequence[float | None],
    tags: Tags,
    first: float,
    last: float,
    reason: str | None = None,
) -> str:
    return encode_block(metric, unit, samples, tags=tags, first_step=None, t_first=first, t_last=last, reason=reason)


def note_line(sentence: str, tags: Tags) -> str:
    """A sentence as a record: a null sample whose reason it is."""
    now = time.monotonic()
    return _line("sensor_note", "1", [None], tags, now, now, sentence)


def sample(
    sources: list[Source],
    recorder: Recorder,
    interval: float,
    wait: Callable[[float], bool],
    why_no_power: Callable[[], str],
) -> None:
    """Read `sources` every `interval` s until `wait` says so, and write to `recorder`.

    wait(seconds) sleeps at most that long and returns True when sampling should stop. Every source is read once more
    then, so that the records reach the end. `why_no_power` is asked where no source has told power or energy by the
    first flush. Raises RunFailed if the disk does not take the records.
    """
    channels = [Channel(source) for source in sources]
    started = time.monotonic()
    power_told = stop = False
    tick, next_flush = 0, 1  # the first samples are written soon, so that a case killed early has them too
    while not stop:
        _read_due(channels, time.monotonic(), interval)
        # Ticks that a slow reading has taken are left out.
        tick = max(tick + 1, math.ceil((time.monotonic() - started) / interval))
        stop = wait(max(0.0, started + tick * interval - time.monotonic()))
        if stop:
            _read_all(channels)
        elif tick < next_flush:
            continue
        for channel in channels:
            recorder.write("".join(channel.lines()))  # in one piece, so that a kill leaves little half-written
        power_told = power_told or any(channel.told_power for channel in channels)
        if not power_told and (stop or tick >= FLUSH_TICKS):
            now = time.monotonic()
            recorder.write(_line("power", "W", [None], {}, now, now, why_no_power()))
            power_told = True
        next_flush = tick + FLUSH_TICKS


def _read_due(channels: list[Channel], now: float, interval: float) -> None:
    signal.alarm(HANG)
    for channel in channels:
        # Half an interval of grace: a tick that comes a little early must not put a reading off to the next one.
        if now >= channel.due - interval / 2:
            channel.read()
            channel.due = now + channel.spacing(interval)
    signal.alarm(0)


def _read_all(channels: list[Channel]) -> None:
    signal.alarm(HANG)
    for channel in channels:
        if channel.cost <= LAST_READING:
            channel.read()
    signal.alarm(0)
