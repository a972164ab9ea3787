"""A file of another tool becomes a run folder of ours, with the file beside the records made of it."""

import hashlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from assay import clock, machine
from assay.errors import BadInput, RunFailed
from assay.importers import deepspeed, nccl_tests, osu
from assay.importers.output import MOST_RANKS, Given, Output, Row, numbered_lines
from assay.record import Header, TagValue, encode_block, encode_header
from assay.rundir import RunDir, Status, write_document
from assay.scoring.imported import CALL_TIME, CHECK_ERRORS, SCRIPTS
from assay.units import format_size

MOST_BYTES = 256 * 2**20  # of a file; results are some KiB, but logs of many ranks can be long

Parser = Callable[[str, str, Given], Output]
PARSERS: dict[str, Parser] = {"nccl-tests": nccl_tests.parse, "osu": osu.parse, "deepspeed": deepspeed.parse}
_EXPECTED = {
    "nccl-tests": "the table that nccl-tests prints, or the JSON that it writes with -J",
    "osu": "the tables that an OSU micro-benchmark prints, with their title",
    "deepspeed": "the tables that DeepSpeed's communication suite prints, with their title",
}

# How the first line of a table begins. Seen further to the right it stands behind a mark that is not known.
_TITLES = {"nccl-tests": "# nThread ", "osu": "# OSU ", "deepspeed": "---- Performance of "}


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
    if world is not None and not 1 <= world <= MOST_RANKS:
        raise BadInput(f"--world: expected 1 to {MOST_RANKS} ranks; give the number of ranks that were measured")
    for option, given in (("--op", op), ("--dtype", dtype), ("--backend", backend)):
        if given is not None and not given.strip():
            raise BadInput(f"{option}: is empty; give a name, or leave {option} out")
    if op is not None and tool != "nccl-tests":
        raise BadInput(f"--op {op}: only outputs of older nccl-tests need it; those of {tool} name the collective")
    content = _content(path)
    text = content.decode("utf-8-sig", "replace")
    output = PARSERS[tool](text, str(path), Given(world, op, dtype))
    rows = [row for row in output.rows if row.counts]
    if not rows:
        more = f" ({len(output.rows)} rows of 0 bytes or no time)" if output.rows else ""
        raise BadInput(_marked(tool, text, path) or f"{path}: holds no result{more}; expected {_EXPECTED[tool]}")
    for row in rows:
        if dtype and row.dtype and row.dtype != dtype:
            raise BadInput(f"{row.where}: the elements are {row.dtype}, --dtype says {dtype}; leave --dtype out")
        # Forks of nccl-tests print its table for libraries of their own.
        if backend and row.backend and backend != row.backend and tool != "nccl-tests":
            raise BadInput(
                f"{row.where}: was measured through {row.backend}, --backend says {backend}; leave --backend out"
            )
    _check_repeats(rows)
    source = {"tool": tool, "file": path.name, "sha256": hashlib.sha256(content).hexdigest()}
    most = max(row.world for row in rows)
    run = RunDir.create(out, _document(output, source, most))
    try:
        case = run.case(tool)
        write_document(case.path / "case.json", _case(source, most))
        attempt = case.new_attempt()
        _write(attempt / f"imported{'.json' if content.lstrip()[:1] == b'{' else '.txt'}", content)
        _write(attempt / "rank-00000.jsonl", _records(tool, output, rows, backend, dtype).encode())
        run.write_status(attempt, _status(rows, output, clock.now() - begun))
    finally:
        run.unlock()
    return out


def _content(path: Path) -> bytes:
    try:
        about = path.stat()
        # Before it is opened: a pipe without a writer would wait for one, a device may have no end.
        if not stat.S_ISREG(about.st_mode):
            raise BadInput(f"{path}: is no regular file; write what the tool printed into one, and import that")
        if about.st_size > MOST_BYTES:
            raise BadInput(
                f"{path}: is larger than {format_size(MOST_BYTES)}; import only the lines that the tool printed"
            )
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"{path}: {(error.strerror or str(error)).lower()}; give a file that the tool printed"
        ) from error


def _marked(tool: str, text: str, path: Path) -> str | None:
    """The refusal of a file whose tables stand behind marks that nobody takes off; None where there are none."""
    for where, line in numbered_lines(text, str(path)):
        mark = line[: max(line.find(_TITLES[tool]), 0)]
        if mark.strip():
            return (
                f"{where}: a table's title stands behind {mark[:80]!r}; take the marks before every line off the file"
            )
    return None


def _check_repeats(rows: list[Row]) -> None:
    """Raise BadInput, naming both lines, where one figure would be of two machines or libraries."""
    seen: dict[tuple[object, ...], Row] = {}
    for row in rows:
        settings = tuple(sorted(row.settings.items()))
        key = (row.op, row.bytes, row.world, row.dtype, row.backend, settings, row.statistic, row.timing)
        first = seen.setdefault(key, row)
        if first.origin and row.origin and first.origin != row.origin:
            raise BadInput(
                f"{row.where}: is of {row.origin}, the same measurement at {first.where} of {first.origin}; "
                "put them into files of their own and import each"
            )


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
        backend=backend or ", ".join(sorted({row.backend for row in rows if row.backend})) or "unknown",
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
            "backend": backend or row.backend,
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
