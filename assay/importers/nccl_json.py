"""The JSON document that nccl-tests writes with -J, versions 1 to 3.

It lists the environment of the measuring process, and with -I every call's time.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assay.errors import BadInput
from assay.importers.nccl_run import Result, Run, mean_row, op_of, versions_of
from assay.importers.output import Given, Output, Row, agreed_world
from assay.options.base import problems

_OVER = {"0": "on rank 0", "1": "mean over ranks", "2": "shortest of the ranks", "3": "longest of the ranks"}
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Measured = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)  # keys that later versions add are left alone


class _Body(_Part):
    """One placement's means: µs and GB/s of 10⁹."""

    time: _Measured | None = None
    cpu_time: _Measured | None = None
    alg_bw: _Measured
    bus_bw: _Measured
    nwrong: _Measured | None = None


class _PerIteration(_Part):
    """Every call's µs, by device events, the longest of the processes; the first ones may be left out of statistics."""

    times_us: list[_Measured] = []
    skipped_iterations: _Count = 0


class _Result(_Part):
    size: _Count
    type: str
    redop: str = ""
    root: str = ""
    out_of_place: _Body | None = None
    in_place: _Body | None = None
    out_of_place_per_iter: _PerIteration | None = None
    in_place_per_iter: _PerIteration | None = None


class _Device(_Part):
    rank: _Count
    group: int = 0
    pid: int
    hostname: str
    device_info: str | None = None


class _Config(_Part):
    nthreads: _Count
    ngpus: _Count
    iterations: _Count
    aggregated_iterations: _Count = 1
    graph: _Count = 0
    blocking_collectives: str = "false"
    devices: list[_Device] = []


class _Document(_Part):
    version: int
    start_time: str | None = None
    args: list[str]
    env: list[str | None] = []
    nccl_version: _Count | None = None
    config: _Config
    results: list[_Result]


def parse(text: str, source: str, given: Given) -> Output:
    """Every result of the document. Raises BadInput, naming the key, for what cannot be read or does not agree."""
    document = _read(text, source)
    config = document.config
    run = Run(
        op=op_of(document.args[0]) if document.args else None,
        local=config.nthreads * config.ngpus,
        versions=versions_of(None, document.nccl_version),
    )
    run.over = _OVER.get(_option(document.args, "-a", "--average") or "1", run.over)
    run.count(config.iterations, config.aggregated_iterations, config.graph)
    if config.blocking_collectives == "true":
        timed = _option(document.args, "-z", "--blocking") == "1"
        run.settings["blocking"] = "barrier timed" if timed else "each waited for"
    for device in config.devices:
        run.ranks.add((device.group, device.rank))
        run.processes.add((device.group, device.hostname, device.pid))
        run.devices.add((device.device_info or "").strip())
    rows = []
    for index, result in enumerate(document.results):
        rows += _rows(f"{source}: results[{index}]", run, result, config.iterations, given)
    return Output(
        rows,
        device="cuda",
        device_name=(min(run.devices) or None) if len(run.devices) == 1 else None,
        hosts=run.hosts or None,
        versions=run.versions,
        environment=dict(item.split("=", 1) for item in document.env if item and "=" in item),
        measured=document.start_time,
    )


def _read(text: str, source: str) -> _Document:
    try:
        return _Document.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{source}:{error.lineno}: is no valid JSON ({error.msg}); nccl-tests completes the file when it ends"
        ) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            path, said = problems(error, _Document)[0]
            where = ".".join(map(str, path)) or "the document"
            raise BadInput(f"{source}: {where}: {said}; import a file that nccl-tests wrote with -J") from None
        raise BadInput(f"{source}: is no JSON that can be read ({error})") from None


def _rows(where: str, run: Run, result: _Result, iterations: int, given: Given) -> list[Row]:
    op = run.collective(where, given)
    world = agreed_world(where, run.world, given.world)
    rows = []
    for placement, body, calls in (
        ("out", result.out_of_place, result.out_of_place_per_iter),
        ("in", result.in_place, result.in_place_per_iter),
    ):
        if body is None:
            continue
        if body.time is None:
            raise BadInput(f"{where}: cpu_time is what the host took to start the calls; run nccl-tests without -C 1")
        printed = Result(
            size=result.size,
            dtype=result.type,
            redop=result.redop,
            root=result.root,
            placement=placement,
            # As nccl-tests wrote them: what rounding may have changed is half of the sixth decimal.
            time=f"{body.time:.6f}",
            algbw=f"{body.alg_bw:.6f}",
            busbw=f"{body.bus_bw:.6f}",
            wrong=None if body.nwrong is None else int(body.nwrong),
        )
        mean = mean_row(where, run, world, op, printed)
        rows.append(mean)
        if calls and calls.times_us:
            # The list may hold the calls that statistics skip, or not.
            skip = calls.skipped_iterations if len(calls.times_us) >= iterations else 0
            seconds = tuple(value * 1e-6 for value in calls.times_us[skip:])
            each = replace(mean, seconds=seconds, statistic="sample", timing="device_events", wrong=None)
            rows.append(replace(each, over="longest of the processes", calls=len(seconds)))
    return rows


def _option(args: Sequence[str], short: str, long: str) -> str | None:
    """The value of a command line's option, in any of the ways that getopt takes; None if it is not there."""
    for index, word in enumerate(args):
        if word in (short, long) and index + 1 < len(args):
            return args[index + 1]
        if word.startswith(f"{long}="):
            return word.partition("=")[2]
        if word.startswith(short) and not word.startswith("--") and len(word) > len(short):
            return word[len(short) :]
    return None
