"""The metric record: what a rank writes and what everything above reads. The schema lives here alone.

A rank's file is JSON lines. The first line is the header, every other line a block: one metric, many raw
samples. Statistics are derived by readers; nothing is averaged before it is written.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

# numpy is imported when samples are read: who only writes records (the sensors' sidecar) starts without it.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = "assay-record/1"

TagValue = str | int | float | bool | None
Tags = Mapping[str, TagValue]

# JSON has no words for these; as strings they survive any strict parser.
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class Header:
    """Who wrote the file. `monotonic` and `wall` (s) were read together: t − monotonic + wall is the time of day.

    Two ranks with the same `clock_id` read one and the same monotonic clock (same boot of the same host).
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    host: str
    pid: int
    clock_id: str
    device: str
    device_name: str
    backend: str
    script: str
    monotonic: float
    wall: float
    about: Mapping[str, Any] = field(default_factory=dict)
    schema: str = SCHEMA


@dataclass(frozen=True)
class Block:
    """Raw `samples` of one `metric` in base units (s, B, B/s, tokens/s, J, FLOP/s; "1" for pure numbers).

    `first_step`: the step of samples[0], the others follow one by one; None where steps mean nothing.
    `t_first`, `t_last`: monotonic seconds at which the first and the last sample were taken.
    `reason`: why a sample that is null (NaN in `samples`) is unknown.
    """

    metric: str
    unit: str
    samples: "NDArray[np.float64]"
    tags: Tags = field(default_factory=dict)
    first_step: int | None = None
    t_first: float = 0.0
    t_last: float = 0.0
    reason: str | None = None


@dataclass(frozen=True)
class RankFile:
    """One rank's records as read: header (None if the rank died before writing it), blocks, and lines not understood."""

    path: Path
    header: Header | None
    blocks: list[Block]
    garbage: list[str]
    torn: bool

    def of(self, metric: str, op: object = None, size: object = None) -> Sequence[Block]:
        """The blocks of a metric, in order; with an op, only those of it at that size (B). Costs no search."""
        return self._by_metric.get(metric, ()) if op is None else self._by_size.get((metric, op, size), ())

    @cached_property
    def _by_metric(self) -> dict[str, list[Block]]:
        found: dict[str, list[Block]] = {}
        for block in self.blocks:
            found.setdefault(block.metric, []).append(block)
        return found

    @cached_property
    def _by_size(self) -> dict[tuple[str, object, object], list[Block]]:
        found: dict[tuple[str, object, object], list[Block]] = {}
        for block in self.blocks:
            found.setdefault((block.metric, block.tags.get("op"), block.tags.get("bytes")), []).append(block)
        return found


def encode_header(header: Header) -> str:
    """One JSON line (with its newline) for `header`."""
    return json.dumps({"kind": "header", **vars(header)}, allow_nan=False, separators=(",", ":")) + "\n"


def encode_block(
    metric: str,
    unit: str,
    samples: Iterable[float | None],
    *,
    tags: Tags,
    first_step: int | None,
    t_first: float,
    t_last: float,
    reason: str | None = None,
) -> str:
    """One JSON line (with its newline). Samples keep every digit; None is null; NaN and infinities are words."""
    values = list(samples)
    line: dict[str, Any] = {"kind": "block", "metric": metric, "unit": unit, "samples": values}
    line |= {"t": [t_first, t_last], "tags": dict(tags)}
    if first_step is not None:
        line["step"] = first_step
    if reason is not None:
        line["reason"] = reason
    try:
        return json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n"
    except ValueError:
        line["samples"] = [_word(value) for value in values]
        return json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n"


def _word(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def read_rank_file(path: Path) -> RankFile:
    """Read one rank's JSON lines. A torn last line is tolerated; other lines that are no record are kept as garbage.

    Raises OSError if the file cannot be read. A header of another schema is reported as garbage, so that its
    blocks are never taken for ours.
    """
    header: Header | None = None
    blocks: list[Block] = []
    garbage: list[str] = []
    torn = False
    for number, line, complete in _lines(path):
        if not line.strip():
            continue
        try:
            item = _decode(line)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            if not complete:
                torn = True
            else:
                garbage.append(f"line {number}: {error}: {_shorten(line)}")
            continue
        if isinstance(item, Block):
            blocks.append(item)
        elif header is None:
            header = item
        else:
            garbage.append(f"line {number}: a second header: {_shorten(line)}")
    return RankFile(path, header, blocks if header else [], garbage, torn)


def read_header(path: Path) -> Header | None:
    """The header alone; None if the file does not begin with one. Raises OSError if the file cannot be read."""
    with path.open("rb") as file:
        line = file.readline().decode("utf-8", "replace")
    try:
        item = _decode(line)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return item if isinstance(item, Header) else None


def _lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            yield number, raw.decode("utf-8", "replace"), raw.endswith(b"\n")


def _shorten(line: str) -> str:
    text = line.strip()
    return text if len(text) <= 80 else text[:77] + "..."


def _decode(line: str) -> Header | Block:
    data = json.loads(line)
    if not isinstance(data, dict):
        raise ValueError("not a record")
    if data.get("kind") == "block":
        return _decode_block(data)
    if data.get("kind") == "header":
        if data.get("schema") != SCHEMA:
            raise ValueError(f"schema {data.get('schema')!r}, this reader knows {SCHEMA!r}")
        return Header(**{key: value for key, value in data.items() if key in Header.__dataclass_fields__})
    raise ValueError("not a record")


def _decode_block(data: dict[str, Any]) -> Block:
    raw = data["samples"]
    if not isinstance(raw, list) or not isinstance(data["metric"], str) or not isinstance(data["unit"], str):
        raise ValueError("not a record")
    step = data.get("step")
    if step is not None and not isinstance(step, int):
        raise ValueError("step is no integer")
    t_first, t_last = data["t"]
    return Block(
        metric=data["metric"],
        unit=data["unit"],
        samples=_samples(raw),
        tags=dict(data["tags"]),
        first_step=step,
        t_first=float(t_first),
        t_last=float(t_last),
        reason=data.get("reason"),
    )


def _samples(raw: list[Any]) -> "NDArray[np.float64]":
    import numpy as np

    # The common case, numbers only, is left to numpy; words and nulls are rare.
    if not any(isinstance(value, str | list | dict) or value is None for value in raw):
        return np.asarray(raw, dtype=np.float64)
    return np.asarray([_number(value) for value in raw], dtype=np.float64)


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str):
        return _NON_FINITE[value]
    return float(value)
