"""Outputs of DeepSpeed's communication suite (DeepSpeedExamples, benchmarks/communication; ds_bench), scanned or raw.

Sizes are those of one rank's input, so of all_gather one rank's part; the description `elements x bytes` tells them
exactly. Throughput and BusBW are in 10⁹ bits (Gbps) or 10⁹ bytes (GBps) per second, all_reduce counts 2S.
"""

import re
from dataclasses import dataclass

from assay.bandwidth import busbw, deepspeed_throughput
from assay.errors import BadInput
from assay.importers.output import (
    Given,
    Output,
    Row,
    agreed_world,
    check_rate,
    half_digit,
    known_op,
    number,
    numbered_lines,
    whole,
)
from assay.options.comms import ITEM_BYTES

_TITLE = re.compile(r"\s*---- Performance of (\w+) on (\d+) devices? -*\s*")
_HEAD = re.compile(
    r"\s*Size \(Bytes\)\s+Description\s+Duration( \(us\))?\s+Throughput \((Gbps|GBps)\)\s+BusBW \(\2\)\s*"
)
_LIKE_A_ROW = re.compile(r"\s*[\d.]+(?: [KMGTPE]?B)?\s+\d+x\d+\b")
_ROW = re.compile(
    r"\s*(?P<size>[\d.]+)(?: (?P<prefix>[KMGTPE]?)B)?\s+(?P<elements>\d+)x(?P<itemsize>\d+)"
    r"\s+(?P<duration>\S+)(?: (?P<unit>us|ms|s))?\s+(?P<throughput>\S+)\s+(?P<busbw>\S+)\s*"
)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass
class _Table:
    """The collective whose lines are being read. unit: of durations without one. rate: B/s of a printed 1."""

    op: str
    world: int
    unit: str | None = None
    rate: float | None = None


def parse(text: str, source: str, given: Given) -> Output:
    """Every row of every table. Raises BadInput, with file and line, for what cannot be read or does not agree."""
    table: _Table | None = None
    rows: list[Row] = []
    for where, line in numbered_lines(text, source):
        if title := _TITLE.fullmatch(line):
            table = _begin(where, title[1], whole(where, "devices", title[2]), given)
        elif table and (head := _HEAD.fullmatch(line)):
            table.unit = "us" if head[1] else None
            table.rate = 1e9 / 8 if head[2] == "Gbps" else 1e9
        elif table and _LIKE_A_ROW.match(line):
            rows.append(_row(where, table, line, given))
    return Output(rows)


def _begin(where: str, op: str, devices: int, given: Given) -> _Table:
    # The suite says 2 for pt2pt, whatever the number of ranks that were started.
    if op == "pt2pt":
        return _Table(known_op(where, op), agreed_world(where, None, given.world or devices))
    return _Table(known_op(where, op), agreed_world(where, devices, given.world))


def _row(where: str, table: _Table, line: str, given: Given) -> Row:
    found = _ROW.fullmatch(line)
    unit = (found["unit"] or table.unit) if found else None
    if found is None or unit is None or table.rate is None:
        raise BadInput(
            f"{where}: expected size, elements x bytes, duration, throughput and busbw below the suite's head, "
            f"got {line.strip()[:80]!r}; remove the line"
        )
    size = _input_bytes(where, found, given.dtype)
    duration = number(where, "Duration", found["duration"]) * _SECONDS[unit]
    total = size * table.world if table.op == "all_gather" else size
    # The suite does not name the element type: tables of two widths are of two types.
    origin = f"elements of {found['itemsize']} bytes"
    row = Row(where, table.op, total, (duration,), "mean", "back_to_back", "on rank 0", table.world, origin=origin)
    rounding = half_digit(found["duration"]) * _SECONDS[unit]
    for name, printed, rate in (
        ("throughput", found["throughput"], lambda t: deepspeed_throughput(row.op, row.bytes, t, row.world) / 8),
        ("busbw", found["busbw"], lambda t: busbw(row.op, row.bytes, t, row.world)),
    ):
        check_rate(row, name, printed, table.rate, rounding, rate)
    return row


def _input_bytes(where: str, found: re.Match[str], dtype: str | None) -> int:
    width = whole(where, "Description", found["itemsize"])
    if ITEM_BYTES.get(dtype or "", width) != width:
        raise BadInput(f"{where}: elements of {width} bytes are no {dtype}; give another --dtype, or none")
    size = whole(where, "Description", found["elements"]) * width
    shown = number(where, "Size", found["size"])
    # Rounded to two decimals of its unit, or exact where it has none.
    unit, rounding = (1, 0.0) if found["prefix"] is None else (1024 ** " KMGTPE".index(found["prefix"] or " "), 0.0051)
    if abs(size / unit - shown) > rounding:
        raise BadInput(f"{where}: {size} bytes by the description are not the size before it; remove the line")
    return size
