"""From a run folder to figures: reads every rank's records and hands them to the script's own reader."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from assay.errors import BadInput
from assay.record import RankFile, read_rank_file
from assay.rundir import CaseDir, RunDir, Status, read_document
from assay.scoring import ceilings, comms, doubts, training
from assay.scoring.result import CaseResult, Curve, Doubt, Figure, RunResult

Derived = tuple[list[Figure], list[Curve]]
Reader = Callable[[list[RankFile], Mapping[str, Any], list[Figure]], Derived]

# Each script's records are read by one function; ceilings come first, because the others are shown as shares of them.
READERS: dict[str, Reader] = {
    "comms/bench": comms.derive,
    "workloads/pretrain": training.derive,
}


def read_run(path: Path) -> RunResult:
    """Everything a run folder tells, derived from raw records. Raises BadInput if it is no run folder of ours."""
    run = RunDir.open(path)
    document = run.document()
    found = [_open_case(run.case(str(name))) for name in document.get("cases", [])]
    limits: list[Figure] = []
    for case, files in found:
        if case.script == "specs/limits":
            limits += ceilings.derive(files)
    cases: list[CaseResult] = []
    noted: list[Doubt] = []
    for case, files in found:
        figures, curves = READERS[case.script](files, case.options, limits) if case.script in READERS else ([], [])
        read = replace(case, figures=figures, curves=curves, about=_about(files))
        about_case = doubts.of_case(read, files, document.get("host", {}).get("cores_usable"))
        cases.append(doubts.beside_figures(read, about_case))
        noted += about_case
    noted += doubts.of_machine(document)
    return RunResult(str(path), document, cases, limits, noted)


def _open_case(folder: CaseDir) -> tuple[CaseResult, list[RankFile]]:
    resolved: dict[str, Any] = {}
    if (folder.path / "case.json").exists():
        resolved = read_document(folder.path / "case.json")
    latest = folder.latest()
    attempt, status = latest if latest else (None, None)
    files = [_read(path) for path in sorted(attempt.glob("rank-*.jsonl"))] if attempt else []
    case = CaseResult(
        name=folder.name,
        script=str(resolved.get("script", "")),
        world=int(resolved.get("world", 0)),
        options=resolved.get("options", {}),
        status=status or (None if attempt else _never_started()),
        attempts=len(folder.attempts()),
    )
    return case, files


def _never_started() -> Status:
    return Status("skipped", "launch", None, 0.0, "not started", "resume the run")


def _read(path: Path) -> RankFile:
    try:
        return read_rank_file(path)
    except OSError as error:
        raise BadInput(f"{path}: {(error.strerror or str(error)).lower()}; mend it or remove the attempt") from error


def _about(files: Iterable[RankFile]) -> dict[str, Any]:
    headers = [file.header for file in files if file.header]
    if not headers:
        return {}
    first = headers[0]
    return {
        "device": first.device,
        "device_name": first.device_name,
        "backend": first.backend,
        "hosts": len({header.host for header in headers}),
        "one_clock": comms.has_one_clock(files),
        "bytes_logged": sum(file.path.stat().st_size for file in files),
        **{key: value for key, value in first.about.items() if key != "code"},
    }
