"""The per-rank writer of metric records: append-only JSON lines, cheap enough to sit in every step.

A series collects samples in memory and writes them as one block every few seconds or every few thousand samples.
"""

import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path

from assay.errors import RunFailed
from assay.record import Header, Tags, encode_block, encode_header

FLUSH_SECONDS = 5.0
FLUSH_SAMPLES = 4096


class Series:
    """Successive samples of one metric. `add` costs well under a microsecond; see benchmarks/instrumentation.py."""

    def __init__(self, recorder: "Recorder", metric: str, unit: str, tags: Tags, first_step: int | None) -> None:
        self._recorder = recorder
        self._metric = metric
        self._unit = unit
        self._tags = tags
        self._step = first_step
        self._samples: list[float] = []
        self._t_first = 0.0
        self._t_last = 0.0
        self._deadline = 0.0
        self._monotonic = time.monotonic

    def add(self, sample: float) -> None:
        """Take one sample (base unit). The step counts on by one where the series has steps."""
        samples = self._samples
        now = self._monotonic()
        if not samples:
            self._t_first = now
            self._deadline = now + FLUSH_SECONDS
        samples.append(sample)
        self._t_last = now
        if now >= self._deadline or len(samples) >= FLUSH_SAMPLES:
            self.flush()

    def flush(self) -> None:
        """Write what has been taken. Raises RunFailed if the disk does not take it."""
        if not self._samples:
            return
        samples, self._samples = self._samples, []
        self._recorder.write(
            encode_block(
                self._metric,
                self._unit,
                samples,
                tags=self._tags,
                first_step=self._step,
                t_first=self._t_first,
                t_last=self._t_last,
            )
        )
        if self._step is not None:
            self._step += len(samples)


class Recorder:
    """Writes one rank's file. Without a path it takes everything and keeps nothing, so that scripts need no `if`."""

    def __init__(self, path: Path | None, header: Header) -> None:
        self._path = path
        self._series: list[Series] = []
        self._fd: int | None = None
        self._line_is_torn = False
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self.write(encode_header(header))

    def series(self, metric: str, unit: str, tags: Tags | None = None, first_step: int | None = None) -> Series:
        """A new series; `first_step` numbers its samples, one a step."""
        series = Series(self, metric, unit, tags or {}, first_step)
        self._series.append(series)
        return series

    def block(
        self,
        metric: str,
        unit: str,
        samples: Iterable[float | None],
        tags: Tags | None = None,
        first_step: int | None = None,
        reason: str | None = None,
    ) -> None:
        """Write samples that are already at hand as one block. None samples need a `reason`."""
        now = time.monotonic()
        self.write(
            encode_block(
                metric, unit, samples, tags=tags or {}, first_step=first_step, t_first=now, t_last=now, reason=reason
            )
        )

    def write(self, line: str) -> None:
        """Append one encoded line. Raises RunFailed, naming the file, if the disk does not take it whole."""
        if self._fd is None:
            return
        data = line.encode()
        if self._line_is_torn:
            data = b"\n" + data
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise RunFailed(self._refusal(error.errno, len(data))) from error
        if written < len(data):
            self._line_is_torn = True
            raise RunFailed(self._refusal(errno.ENOSPC, len(data) - written))

    def _refusal(self, code: int | None, missing: int) -> str:
        what = "the disk is full" if code in (errno.ENOSPC, errno.EDQUOT) else os.strerror(code or 0).lower()
        return f"{self._path}: {what}, {missing} bytes could not be written; make room and run the folder again"

    def flush(self) -> None:
        """Write every series' samples."""
        for series in self._series:
            series.flush()

    def close(self) -> None:
        """Flush and close. The file is complete afterwards."""
        try:
            self.flush()
        finally:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
