"""From a run folder to figures: reads every rank's records and hands them to the script's own reader."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from assay.arrival import Lateness
from assay.errors import BadInput
from assay.links.survey import Survey
from assay.record import RankFile, read_rank_file
from assay.rundir import CaseDir, RunDir, read_document
from assay.scoring import (
    ceilings,
    comms,
    doubts,
    energy,
    imported,
    links,
    overlap,
    sensors,
    specifications,
    steps,
    training,
)
from assay.scoring.prediction import with_predictions
from assay.scoring.result import CaseResult, Curve, Doubt, Figure, RunResult, StepStudy
from assay.scoring.roofline import rooflines
from assay.scoring.sensors import SensorFile, read_sensors

T = TypeVar("T")
Derived = tuple[list[Figure], list[Curve]]
Reader = Callable[[list[RankFile], Mapping[str, Any], list[Figure]], Derived]

# Each script's records are read by one function; ceilings come first, because the others are shown as shares of them.
READERS: dict[str, Reader] = {
    "comms/bench": comms.derive,
    links.SCRIPT: links.derive,
    overlap.SCRIPT: overlap.derive,
    specifications.SCRIPT: specifications.derive,
    **dict.fromkeys(training.SCRIPTS, training.derive),
    **dict.fromkeys(imported.SCRIPTS.values(), imported.derive),
}
# What needs the sensors beside the ranks too.
METERED: dict[str, Callable[[list[RankFile], list[SensorFile], Mapping[str, Any]], list[Figure]]] = {
    specifications.SCRIPT: lambda files, beside, _: specifications.efficiency(files, beside),
    **dict.fromkeys(training.SCRIPTS, energy.derive),
}


def read_run(path: Path) -> RunResult:
    """Everything a run folder tells, derived from raw records. Raises BadInput if it is no run folder of ours."""
    run = RunDir.open(path)
    document = run.document()
    resolved = {case.get("name"): case for case in document["suite"].get("cases", []) if isinstance(case, dict)}
    found = [_open_case(run.case(name), resolved.get(name, {})) for name in document["cases"]]
    provenance = [_provenance(run.case(name)) for name in document["cases"]]
    # Where a run was begun on a login node, the machine is the one that its jobs were on.
    document["host"] = next((one["machine"] for one in provenance if "machine" in one), document["host"])
    noted: list[Doubt] = []
    limits: list[Figure] = []
    for case, files in found:
        if case.script == "specs/limits":
            known_limits, doubted = doubts.of_ceilings(
                case.name, _guarded(case, partial(ceilings.derive, files), [], noted)
            )
            limits += known_limits
            noted += doubted
    cases: list[CaseResult] = []
    for case, files in found:
        nothing: Derived = ([], [])
        figures, curves = nothing
        if case.script in READERS:
            read = partial(READERS[case.script], files, case.options, limits)
            figures, curves = _guarded(case, read, nothing, noted)
        beside = _sensors(files)
        no_figures: list[Figure] = []
        no_notes: list[str] = []
        if case.script in METERED:
            figures = figures + _guarded(
                case, partial(METERED[case.script], files, beside, case.options), no_figures, noted
            )
        sensed = _guarded(case, partial(_sensed, beside), no_figures, noted)
        noted += _guarded(case, partial(doubts.of_sensors, case.name, beside), [], noted)
        told = _guarded(case, partial(sensors.notes, beside, files), no_notes, noted)
        noted += [doubts.doubt("sensors_missing", case.name, "sensors", text) for text in told]
        nobody: list[Lateness] = []
        late = (
            _guarded(case, partial(comms.late_ranks, files), nobody, noted) if case.script == "comms/bench" else nobody
        )
        unknown: Survey | None = None
        survey = _guarded(case, partial(_survey, case, files), unknown, noted)
        unstudied: StepStudy | None = None
        studied = (
            _guarded(case, partial(steps.study, files), unstudied, noted)
            if case.script in training.SCRIPTS
            else unstudied
        )
        known = replace(
            case,
            figures=figures,
            curves=curves,
            sensed=sensed,
            late=late,
            survey=survey,
            steps=studied,
            about=_about(files),
        )
        noted += doubts.of_case(known, files, document["host"].get("cores_usable"))
        cases.append(doubts.beside_figures(known, [item for item in noted if item.case == case.name]))
    checkups = run.checkups()
    # First of all: what makes every figure doubtful.
    noted = [
        *doubts.of_suite(document),
        *doubts.of_checkups(checkups),
        *([] if checkups else doubts.of_machine(document)),
        *noted,
    ]
    noted += doubts.of_provenance(document, provenance)
    roofs = rooflines([(case, files) for case, (_, files) in zip(cases, found, strict=True)], limits)
    cases = with_predictions(cases, limits)
    return RunResult(str(path), document, cases, limits, noted, checkups=checkups, rooflines=roofs)


def _guarded(case: CaseResult, read: Callable[[], T], nothing: T, noted: list[Doubt]) -> T:
    # Records are foreign input: whatever is wrong with those of one case must not cost the others.
    try:
        return read()
    except (ValueError, KeyError, TypeError, IndexError, ArithmeticError, AttributeError) as error:
        message = f"the records do not make sense ({type(error).__name__}: {error})"
        noted.append(doubts.doubt("unreadable_records", case.name, "records", message))
        return nothing


def _sensors(files: list[RankFile]) -> list[SensorFile]:
    if not files:
        return []
    try:
        return read_sensors(files[0].path.parent)
    except OSError as error:
        raise BadInput(f"{error.filename}: {(error.strerror or str(error)).lower()}; mend it or remove it") from error


def _survey(case: CaseResult, files: list[RankFile]) -> Survey | None:
    return links.survey(files, case.options) if case.script == links.SCRIPT else None


def _sensed(files: list[SensorFile]) -> list[Figure]:
    return [*energy.device_figures(files), *sensors.derive(files)]


def _provenance(folder: CaseDir) -> Mapping[str, Any]:
    latest = folder.latest()
    command = latest[0] / "command.json" if latest else None
    return read_document(command).get("provenance", {}) if command and command.exists() else {}


def _open_case(folder: CaseDir, resolved: Mapping[str, Any]) -> tuple[CaseResult, list[RankFile]]:
    latest = folder.latest()
    attempt, status = latest if latest else (None, None)
    files = [_read(path) for path in sorted(attempt.glob("rank-*.jsonl"))] if attempt else []
    case = CaseResult(
        name=folder.name,
        script=str(resolved.get("script", "")),
        world=int(resolved.get("world", 0)),
        options=resolved.get("options", {}),
        labels=resolved.get("labels") or {},
        status=status,
        attempts=len(folder.attempts()),
    )
    return case, files


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
