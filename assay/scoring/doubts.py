"""The closed list of reasons to distrust a figure, each with what to do about it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.arrival import LONGEST
from assay.record import RankFile
from assay.scoring import arrival, imported, links, sensors
from assay.scoring.result import CaseResult, Doubt, Figure
from assay.scoring.sensors import SensorFile
from assay.units import format_si, format_size

WIDE = 0.10  # relative half width of an interval above which a figure is hardly a figure
# Rates that a reader takes away: these should carry an interval, and a narrow one.
_MEASURED_RATES = frozenset(
    (
        "busbw",
        "tgs",
        "gemm_rate",
        "copy_rate",
        "triad_rate",
        "host_copy_rate",
        "link_rate",
        "disk_rate",
        "sustained_rate",
    )
)
_DISTINCT = ("dtype", "way", "direction", "memory", "from", "to", "ways", "loaded")
COARSE = 1e-6  # s; calls shorter than this are mostly the clock's own cost

# kind → what to do. No doubt exists outside this list.
ADVICE = {
    "wrong_data": "do not use any figure of this case; find the faulty link, library or device first",
    arrival.KIND: arrival.ADVICE,
    "slow_training_rank": "look at that rank's host and device (other load, clocks, heat, its disk); every step waits for it",
    **links.ADVICE,
    "imported": "for intervals and percentiles measure with comms/bench.py on the same machine",
    "smoke_sizes": "take it as a proof that everything runs; run the suite itself for figures",
    "not_awaited": "the call returns before it is done: no time of this size means anything; await the handle, or mend the backend",
    "order_effect": "the time depends on what ran before: compare only runs with the same sweep, or measure one --size",
    "wider_than_asked": "raise the budget (-o budget=…), or ask for less (-o target=…)",
    "above_ceiling": "measure the ceilings again on a quiet machine (specs/limits.py); if it stays, the figure is wrong",
    "mean_above_p99": "a few calls took very long: look for other load, then raise --calls and --batches",
    "coarse_clock": "raise the size, or read the back-to-back figure only",
    "wide_interval": "run on a quiet machine, or raise the budget (-o budget=…) or the steps",
    "no_common_clock": "times are the longest over ranks and include waiting; compare them with nothing else",
    "no_interval": "take more samples (-o budget=… or steps=…): nothing can be said about the spread yet",
    "unreadable_records": "the case's figures are left out; keep the files and run the case again",
    "mixed_provenance": "run the suite anew: one run should be one machine and one version of the code",
    "garbage_records": "find what else writes into the rank's file; the lines were left out",
    "missing_ranks": "look at the logs of the ranks that are missing",
    "unfit_machine": "do what the findings advise (chapter Machine, or assay doctor), then run again",
    "throttled": "better cooling or a higher power limit; look at temperature and clocks beside the case, then run again",
    "memory_errors": "take the device out of service and look at the driver's log; use no figure of this case",
    "driver_errors": "look the number up in the vendor's list; if no program caused it, have the device tested",
    "sensors_missing": "power, heat and error counters of this case are not whole; mend what the note says, then run again",
    "link_errors": "find the card, cable or switch port whose counter rose, mend it, then run again",
    "stolen_time": "run on a host of your own or with dedicated cores; times of this case hold other machines' work",
    "cpu_quota": "raise the container's CPU quota, or start fewer ranks or threads",
    "busy_machine": "stop other work, then run again",
    "oversubscribed": "start fewer ranks, or set OMP_NUM_THREADS to cores / ranks",
}


def doubt(kind: str, case: str, subject: str, message: str) -> Doubt:
    """A doubt out of the list. Raises KeyError for a kind that is not in it."""
    return Doubt(kind, case, subject, message, ADVICE[kind])


def of_case(case: CaseResult, files: list[RankFile], cores: int | None) -> list[Doubt]:
    """What is doubtful about one case. `cores`: what each host has, None if unknown."""
    foreign = case.script in imported.SCRIPTS.values()
    found = [item for figure in case.figures for item in _of_figure(case.name, figure)]
    if foreign:  # one sentence for all, instead of one beside every figure
        found = [item for item in found if item.kind != "no_interval"]
        message = "averages as another tool printed them: nothing was timed by this suite"
        found.append(doubt("imported", case.name, "all figures", message))
    else:
        found += _mean_above_p99(case)
    found += _order_effect(case)
    slow = links.doubts(case.survey) if case.survey else []
    named = [*arrival.doubts(case.late), *slow]
    found += [doubt(kind, case.name, subject, message) for kind, subject, message in named]
    found += _wider_than_asked(case)
    found += _slow_training_rank(case)
    for file in files:
        if file.garbage:
            message = f"{len(file.garbage)} lines are no records; first: {file.garbage[0]}"
            found.append(doubt("garbage_records", case.name, file.path.name, message))
    ranks = sum(file.header is not None for file in files)
    ended_well = case.status is not None and case.status.state == "passed"
    for file in files:
        if file.torn and ended_well:
            message = "the last line is cut off although the case ended well"
            found.append(doubt("garbage_records", case.name, file.path.name, message))
    if (files or ended_well) and ranks < case.world and not foreign:
        found.append(doubt("missing_ranks", case.name, "records", f"{ranks} of {case.world} ranks have records"))
    apart = [figure for figure in case.figures if figure.estimate and LONGEST in figure.estimate.method]
    if apart:
        message = f"the clocks of the ranks could not be compared well enough for {len(apart)} figures"
        found.append(doubt("no_common_clock", case.name, "call times", message))
    if cores and case.about and case.about["device"] == "cpu":
        threads = case.world // case.about["hosts"] * int(case.about.get("threads", 1))
        if threads > cores:
            message = f"{case.world} ranks ran {threads} threads on {cores} cores a host"
            found.append(doubt("oversubscribed", case.name, "all figures", message))
    return found


def of_ceilings(case: str, figures: Sequence[Figure]) -> tuple[list[Figure], list[Doubt]]:
    """The ceilings of one case knowing their doubts, and these."""
    found = [(figure, _of_figure(case, figure)) for figure in figures]
    known = [replace(figure, doubts=tuple(item.kind for item in items)) for figure, items in found]
    return known, [item for _, items in found for item in items]


def beside_figures(case: CaseResult, found: Sequence[Doubt]) -> CaseResult:
    """The case with every doubted figure knowing its doubts, so that they can be printed beside it."""

    def kinds(figure: Figure) -> tuple[str, ...]:
        return tuple(dict.fromkeys(item.kind for item in found if _concerns(item, figure)))

    return replace(case, figures=[replace(figure, doubts=kinds(figure)) for figure in case.figures])


def _concerns(item: Doubt, figure: Figure) -> bool:
    if item.kind in ("garbage_records", "missing_ranks", "unreadable_records", "memory_errors"):
        return True
    if item.kind == "no_common_clock":
        return figure.estimate is not None and LONGEST in figure.estimate.method
    if item.kind in (
        "wrong_data",
        "not_awaited",
    ):  # wrong data make every figure of that size worthless, not only the count
        return item.subject.partition(" of ")[2] == name_of(figure).partition(" of ")[2]
    # A share of a doubted rate is no better than the rate.
    return item.subject in (name_of(figure), name_of(replace(figure, metric="tgs")) if figure.metric == "mfu" else None)


def of_machine(document: Mapping[str, Any]) -> list[Doubt]:
    """What is doubtful about the machine as the run found it."""
    host = document.get("host", {})
    load, cores = host.get("load_1min"), host.get("cores_usable")
    found = []
    if load is not None and cores and load > 0.5 * cores:
        message = f"load was {load:.1f} on {cores} cores before the run began"
        found.append(doubt("busy_machine", "run", "machine", message))
    return found


def of_suite(document: Mapping[str, Any]) -> list[Doubt]:
    """Whether the run is of a smoke twin, whose figures must not be taken for those of the suite."""
    twin = document.get("suite", {}).get("smoke_of")
    if not twin:
        return []
    message = f"this was the smoke twin of the suite {twin}: the same cases at small sizes"
    return [doubt("smoke_sizes", "run", "all figures", message)]


def of_sensors(case: str, files: Sequence[SensorFile]) -> list[Doubt]:
    """What the sensors beside a case give reason to doubt."""
    return [doubt(kind, case, subject, message) for kind, subject, message in sensors.doubts(files)]


def of_checkups(checkups: Sequence[Mapping[str, Any]]) -> list[Doubt]:
    """Whether the doctor found the machine unfit to be measured, before the run or before a resumption."""
    unfit = [str(checkup.get("sentence")) for checkup in checkups if checkup.get("verdict") == "unfit"]
    return [doubt("unfit_machine", "run", "machine", sentence) for sentence in dict.fromkeys(unfit)]


def of_provenance(document: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> list[Doubt]:
    """Whether cases were run by other code, versions or on another machine than the run began with."""
    began = {"revision": document["code"].get("revision")}
    # Slurm gives every job its hosts, and the run may have been begun on a login node.
    if document["suite"].get("launcher") != "slurm":
        began["host"] = document["host"].get("name")
    for made in attempts:
        for key, value in began.items():
            if key in made and made[key] != value:
                message = f"{key} was {value} when the run began and {made[key]} when a case was resumed"
                return [doubt("mixed_provenance", "run", "all figures", message)]
    return []


def _of_figure(case: str, figure: Figure) -> list[Doubt]:
    if figure.estimate is None:
        return []
    found = []
    subject = name_of(figure)
    shown = format_si(figure.value, figure.unit)
    if figure.metric == "check_errors" and figure.value:
        found.append(doubt("wrong_data", case, subject, f"{figure.value:.0f} elements or more were wrong"))
    above = figure.share if figure.least_share is None else figure.least_share
    if above is not None and above > 1:
        found.append(doubt("above_ceiling", case, subject, f"{shown} is {above:.0%} of the {figure.share_of}"))
    if figure.metric == "late_elements":
        message = f"{figure.value:.0f} elements were wrong when the call returned and right a moment later"
        found.append(doubt("not_awaited", case, subject, message))
    if figure.metric == "left_early":
        message = f"a rank left {figure.value:.0f} calls before the last rank had entered"
        found.append(doubt("not_awaited", case, subject, message))
    if figure.metric in _MEASURED_RATES and figure.estimate.low is None:
        found.append(doubt("no_interval", case, subject, f"{shown} has no interval: {figure.estimate.method}"))
    width = figure.estimate.half_width
    if width is not None and width > WIDE and figure.metric in _MEASURED_RATES:
        found.append(doubt("wide_interval", case, subject, f"{shown} is known to ±{width:.0%} only"))
    if figure.metric == "call_time_p50" and figure.estimate.value < COARSE:
        found.append(doubt("coarse_clock", case, subject, f"a call took {shown}"))
    return found


def _mean_above_p99(case: CaseResult) -> list[Doubt]:
    means = {_key(figure): figure for figure in case.figures if figure.metric == "batch_call_time"}
    found = []
    for figure in case.figures:
        mean = means.get(_key(figure)) if figure.metric == "call_time_p99" else None
        if mean and mean.value and figure.value and mean.value > figure.value:
            message = f"mean {format_si(mean.value, 's')} back to back is above p99 {format_si(figure.value, 's')}"
            found.append(doubt("mean_above_p99", case.name, name_of(mean), message))
    return found


def _order_effect(case: CaseResult) -> list[Doubt]:
    first = {_key(figure): figure for figure in case.figures if figure.metric == "call_time_p50"}
    found = []
    for figure in case.figures:
        usual = first.get(_key(figure)) if figure.metric == "call_time_p50_random_order" else None
        if usual is None or usual.estimate is None or figure.estimate is None:
            continue
        one, other = usual.estimate, figure.estimate
        if one.low is None or one.high is None or other.low is None or other.high is None:
            continue
        apart = other.low > one.high or other.high < one.low
        if apart and abs(other.value / one.value - 1) > WIDE:
            message = f"p50 {format_si(one.value, 's')} in the sweep, {format_si(other.value, 's')} in random order"
            found.append(doubt("order_effect", case.name, name_of(usual), message))
    return found


def _wider_than_asked(case: CaseResult) -> list[Doubt]:
    target = case.options.get("target")
    if not case.script.startswith("comms/") or not isinstance(target, float):
        return []
    widths = [
        (figure.estimate.half_width, figure)
        for figure in case.figures
        if figure.metric in ("busbw", "call_time_p50") and figure.estimate and figure.estimate.half_width
    ]
    wide = [(width, figure) for width, figure in widths if width is not None and width > target]
    if not wide:
        return []
    worst, figure = max(wide, key=lambda item: item[0])
    message = f"{len(wide)} of {len(widths)} intervals are wider than ±{target:.0%}; ±{worst:.0%} for {name_of(figure)}"
    return [doubt("wider_than_asked", case.name, "intervals", message)]


def _slow_training_rank(case: CaseResult) -> list[Doubt]:
    slow = case.steps.slow if case.steps else None
    if slow is None:
        return []
    message = (
        f"rank {slow.rank} on {slow.host} works {format_si(slow.excess, 's')} longer than the others in all {slow.steps} "
        f"sampled steps ({slow.share:.0%} of a step), most of it in {slow.phase}"
    )
    return [doubt("slow_training_rank", case.name, f"rank {slow.rank}", message)]


def _key(figure: Figure) -> tuple[Any, ...]:
    return tuple(sorted((key, str(value)) for key, value in figure.tags.items()))


def name_of(figure: Figure) -> str:
    """A figure's name for people: metric, and what it was taken of."""
    if "op" in figure.tags:
        size = f" {format_size(int(figure.tags['bytes']))}" if figure.tags.get("bytes") else ""
        over = f" over {figure.tags['backend']}" if figure.tags.get("backend") else ""
        usual = ("op", "bytes", "world", "backend", "means", "versus")
        rest = [_worded(key, value) for key, value in figure.tags.items() if key not in usual and value != "float32"]
        return ", ".join([f"{figure.metric} of {figure.tags['op']}{size}{over}", *rest])
    if "model" in figure.tags:
        return f"{figure.metric} of {figure.tags['model']}"
    # What tells apart the figures of one case: element type, way, direction, load.
    words = [str(figure.tags[key]) for key in _DISTINCT if key in figure.tags]
    return " ".join([figure.metric, *words])


def _worded(key: str, value: object) -> str:
    return str(value) if key in ("dtype", "redop") else f"{key} {value}"
