"""Outputs of NVIDIA nccl-tests (and of forks that print its table): the text of any run, or the file that -J writes.

A row of the table holds both placements; its size is S of docs/metrics.md, its time the mean of the calls.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from assay.errors import BadInput
from assay.importers import nccl_json
from assay.importers.nccl_run import Result, Run, mean_row, op_of, versions_of
from assay.importers.output import Given, Output, Row, agreed_world, all_versions, number, numbered_lines, whole

_VERSION = re.compile(r"# nccl-tests version (\S+)(?:.*\bnccl-library=(\d{1,9}))?.*")
_START = re.compile(r"# Collective test starting: (\S+)\s*")
_SETTINGS = re.compile(r"# nThread (\d{1,6}) nGpus (\d{1,6}) .*?(?<!warmup )(?<!agg )\biters: (\d{1,9})(.*)")
_RANK = re.compile(
    r"#\s+Rank\s+(\d{1,9})(?: Group\s+(\d{1,9}))? Pid\s+(\d{1,18}) on\s+(\S+) device\s+\d+ \[[^\]]*\]\s*(.*)"
)
_BLOCKING = "# Blocking Enabled"
_TIMES = ("time", "cputime")
_PER_ITERATION = {"i_min": "min", "i_max": "max", "i_p99": "p99"}


def parse(text: str, source: str, given: Given) -> Output:
    """Every result of every table, or of the JSON document. Raises BadInput, with file and line, for what cannot be
    read or does not agree."""
    if text.lstrip().startswith("{"):
        return nccl_json.parse(text, source, given)
    run, columns = Run(), list[str]()
    runs, rows = [run], list[Row]()
    versions: Mapping[str, str] = {}
    named: str | None = None
    for where, line in numbered_lines(text, source):
        if version := _VERSION.fullmatch(line):
            versions = versions_of(version[1], int(version[2]) if version[2] else None)
        elif start := _START.fullmatch(line):
            named = op_of(start[1])
            if named is None:
                raise BadInput(f"{where}: {start[1]!r} is no program of nccl-tests; import what one of those prints")
        elif head := _SETTINGS.fullmatch(line):
            # The collective stands in the line before, where it stands at all.
            run, columns, named = _begin(head, named, versions), [], None
            runs.append(run)
        elif line.startswith(_BLOCKING):
            timed = "barrier" in line and "no barrier" not in line and "excludes barrier" not in line
            run.settings["blocking"] = "barrier timed" if timed else "each waited for"
        elif rank := _RANK.fullmatch(line):
            _take_rank(run, rank)
        elif _is_head(line):
            columns = line.strip("# ").split()
        elif columns and (cells := line.split()) and cells[0].isdigit():
            rows += _rows(where, run, columns, cells, given)
    devices = set[str]().union(*(run.devices for run in runs))
    return Output(
        rows,
        device="cuda",
        device_name=devices.pop() or None if len(devices) == 1 else None,
        hosts=max(run.hosts for run in runs) or None,
        versions=all_versions(run.versions for run in runs),
    )


def _begin(head: re.Match[str], op: str | None, versions: Mapping[str, str]) -> Run:
    run = Run(op=op, local=int(head[1]) * int(head[2]), versions=versions)
    aggregated, graphs = (re.search(rf"\b{name}: (\d{{1,9}})", head[4]) for name in ("agg iters", "graph"))
    run.count(int(head[3]), int(aggregated[1]) if aggregated else 1, int(graphs[1]) if graphs else 0)
    return run


def _take_rank(run: Run, rank: re.Match[str]) -> None:
    group = int(rank[2] or 0)
    run.ranks.add((group, int(rank[1])))
    run.processes.add((group, rank[4], int(rank[3])))
    run.devices.add(rank[5].strip())


def _is_head(line: str) -> bool:
    words = line.split()
    return words[:4] == ["#", "size", "count", "type"] and any(name in words for name in _TIMES)


def _rows(where: str, run: Run, columns: Sequence[str], cells: Sequence[str], given: Given) -> list[Row]:
    starts = [index for index, name in enumerate(columns) if name in _TIMES]
    width = starts[1] - starts[0] if len(starts) > 1 else len(columns) - starts[0]
    end = starts[-1] + width
    # Behind both placements forks and options add columns, and a time of day takes two.
    if len(cells) < end or (len(cells) > end and len(columns) <= end):
        raise BadInput(
            f"{where}: expected {end} columns, got {len(cells)}: the row is not whole; remove it, or import what was "
            "printed by a run that ended"
        )
    if "cputime" in columns:
        raise BadInput(f"{where}: cputime is what the host took to start the calls; run nccl-tests without -C 1")
    op = run.collective(where, given)
    world = agreed_world(where, run.world, given.world)
    common = dict(zip(columns[: starts[0]], cells, strict=False))
    rows = []
    for start, placement in zip(starts, ("out", "in"), strict=False):
        printed = dict(zip(columns[start : start + width], cells[start : start + width], strict=False))
        wrong = printed.get("#wrong", "N/A")
        result = Result(
            size=whole(where, "size", common["size"]),
            dtype=common["type"],
            redop=common.get("redop", ""),
            root=common.get("root", ""),
            placement=placement,
            time=printed["time"],
            algbw=printed.get("algbw", ""),
            busbw=printed.get("busbw", ""),
            wrong=None if wrong == "N/A" else int(number(where, "#wrong", wrong)),
        )
        mean = mean_row(where, run, world, op, result)
        rows.append(mean)
        for name, statistic in _PER_ITERATION.items():
            if name in printed:
                seconds = number(where, name, printed[name]) * 1e-6
                each = replace(mean, seconds=(seconds,), statistic=statistic, timing="device_events", wrong=None)
                rows.append(replace(each, over="longest of the processes"))
    return rows
