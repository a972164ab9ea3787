"""A file of another tool becomes a run folder of ours, with the file beside the records made of it."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay import clock, machine
from assay.errors import BadInput, RunFailed
from assay.importers import deepspeed, nccl_tests, osu
from assay.importers.output import Given, Output, Row
from assay.record import Header, TagValue, encode_block, encode_header
from assay.rundir import RunDir, Status, write_document
from assay.scoring.imported import CALL_TIME, CHECK_ERRORS, SCRIPTS

Parser = Callable[[str, str, Given], Output]
PARSERS: dict[str, Parser] = {"nccl-tests": nccl_tests.parse, "osu": osu.parse, "deepspeed": deepspeed.parse}
_EXPECTED = {
    "nccl-tests": "the table that nccl-tests prints, or the JSON that it writes with -J",
    "osu": "the tables that an OSU micro-benchmark prints, with their title",
    "deepspeed": "the tables that DeepSpeed's communication suite prints, with their title",
}


def import_file(
    tool: str,
    path: Path,
    out: Path,
    *,
    world: int | None = None,
    op: str | None = None,
    dtype: str | None = None,
    backend: str | None = None,
) -> Path:
    """Make the run folder `out` of what `tool` (a key of PARSERS) printed into `path`; the folder's path.

    world, op, dtype, backend: what the file does not tell. Raises BadInput, with file and line, for what cannot be read
    or does not agree (nothing is written then), and RunFailed if the disk refuses.
    """
    begun = clock.now()
    if tool not in PARSERS:
        raise BadInput(f"{tool}: is no tool whose outputs can be imported; give one of {', '.join(PARSERS)}")
    if world is not None and world < 1:
        raise BadInput(f"--world {world}: expected a number of ranks above 0")
    if op is not None and tool != "nccl-tests":
        raise BadInput(f"--op {op}: only outputs of older nccl-tests need it; those of {tool} name the collective")
    content = _content(path)
    output = PARSERS[tool](content.decode("utf-8-sig", "replace"), str(path), Given(world, op, dtype))
    rows = [row for row in output.rows if row.counts]
    if not rows:
        more = f" ({len(output.rows)} rows of 0 bytes or no time)" if output.rows else ""
        raise BadInput(f"{path}: holds no result{more}; expected {_EXPECTED[tool]}")
    for row in rows:
        if dtype and row.dtype and row.dtype != dtype:
            raise BadInput(f"{row.where}: the elements are {row.dtype}, --dtype says {dtype}; leave --dtype out")
    if backend and output.backend and backend != output.backend and tool != "nccl-tests":
        raise BadInput(f"{path}: was measured through {output.backend}, --backend says {backend}; leave --backend out")
    known = backend or output.backend
    source = {"tool": tool, "file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    most = max(row.world for row in rows)
    run = RunDir.create(out, _document(output, source, most))
    try:
        case = run.case(tool)
        write_document(case.path / "case.json", _case(source, most))
        attempt = case.new_attempt()
        _write(attempt / f"imported{'.json' if content.lstrip()[:1] == b'{' else '.txt'}", content)
        _write(attempt / "rank-00000.jsonl", _records(tool, output, rows, known, dtype).encode())
        run.write_status(attempt, _status(rows, output, clock.now() - begun))
    finally:
        run.unlock()
    return out


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: {(error.strerror or str(error)).lower()}; give a file that the tool printed"
        ) from error


def _write(path: Path, content: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunFailed(f"{path}: {(error.strerror or str(error)).lower()}; make room and import again") from error


def _document(output: Output, source: dict[str, str], world: int) -> dict[str, Any]:
    # Host, software and variables of the machine that measured, as far as the file tells; not of this one.
    suite = {
        "name": f"import-{source['tool']}",
        "description": f"What {source['tool']} printed into {source['file']}. Nothing was measured by this suite.",
        "cases": [_case(source, world)],
    }
    return {
        "suite": suite,
        "source": source["file"],
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cases": [source["tool"]],
        "code": machine.code(),
        "software": dict(output.versions),
        "host": {},
        "environment": machine.environment(output.environment),
        "imported": {**source, "measured": output.measured, "by": machine.software()},
    }


def _case(source: dict[str, str], world: int) -> dict[str, Any]:
    tool = source["tool"]
    options = {"file": source["file"], "sha256": source["sha256"]}
    return {"name": tool, "script": SCRIPTS[tool], "world": world, "options": options}


def _status(rows: list[Row], output: Output, seconds: float) -> Status:
    left = len(output.rows) - len(rows)
    reason = f"{len(rows)} times imported" + (f", {left} of 0 bytes or no time left out" if left else "")
    return Status("passed", "imported", None, seconds, reason)


def _records(tool: str, output: Output, rows: list[Row], backend: str | None, dtype: str | None) -> str:
    # Readers take hosts and the clock from headers of ranks; here the one header is of the importer.
    about = {"tool": tool, **output.versions, "hosts": output.hosts, "one_clock": None}
    header = Header(
        rank=0,
        world=max(row.world for row in rows),
        local_rank=0,
        local_world=1,
        host="unknown",
        pid=os.getpid(),
        clock_id=machine.clock_id(),
        device=output.device or "unknown",
        device_name=output.device_name or "unknown",
        backend=backend or "unknown",
        script=SCRIPTS[tool],
        monotonic=clock.now(),
        wall=time.time(),
        about=about,
    )
    lines = [encode_header(header)]
    for row in rows:
        tags: dict[str, TagValue] = {
            "op": row.op,
            "bytes": row.bytes,
            "dtype": row.dtype or dtype,
            "backend": backend,
            "world": row.world,
            **row.settings,
            "tool": tool,
        }
        of_time: dict[str, TagValue] = {"statistic": row.statistic, "timing": row.timing, "over": row.over}
        if row.calls is not None:
            of_time["calls"] = row.calls
        lines.append(_block(CALL_TIME, "s", row.seconds, {**tags, **of_time}))
        if row.wrong is not None:
            lines.append(_block(CHECK_ERRORS, "1", (float(row.wrong),), tags))
    return "".join(lines)


def _block(metric: str, unit: str, samples: tuple[float, ...], tags: dict[str, TagValue]) -> str:
    # When the tool took the samples is unknown; written is when they came.
    now = clock.now()
    return encode_block(metric, unit, samples, tags=tags, first_step=None, t_first=now, t_last=now)
