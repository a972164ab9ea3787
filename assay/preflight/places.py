"""Judging what each host has of its own: its clock, its devices, its disk and memory, and whether folders are shared."""

from collections.abc import Mapping

from assay.preflight.check import Check, State, some
from assay.preflight.clocks import Offset, offset_of
from assay.preflight.equality import split, untold
from assay.preflight.facts import Folder, Report
from assay.units import format_si

MEMORY_LEAST = 1 << 20  # bytes: beacons of a thousand ranks, a page of 1 KiB each
_SYNC = "let chronyd or ntpd set it (chronyc tracking)"


def clocks(reports: Mapping[str, Report], first: str, bound: float) -> list[Check]:
    """Whether wall clocks agree within `bound` (s). first: the host against which the offsets were measured.

    Where most differ from the first host's clock, it is that one which is compared to the others' median.
    """
    offsets = {first: Offset(0.0, 0.0)}
    offsets |= {host: offset_of(report.exchanges) for host, report in reports.items() if report.exchanges}
    reference = offsets[first]
    wrong, doubtful = _beyond(offsets, reference, bound)
    if 2 * len(wrong) > len(offsets):
        reference = sorted(offsets.values(), key=lambda offset: offset.seconds)[len(offsets) // 2]
        wrong, doubtful = _beyond(offsets, reference, bound)
    limit = format_si(bound, "s")
    if 2 * len(wrong) >= len(offsets):
        told = f"more than {limit} apart, and no majority is right: {_shown(offsets, list(offsets), offsets[first])}"
        return [Check("clocks", "failed", told, f"on all hosts: {_SYNC}", tuple(offsets))]
    found = []
    if wrong:
        told = f"more than {limit} off the others': {_shown(offsets, wrong, reference)}"
        found.append(Check("clocks", "failed", told, f"on {some(wrong)}: {_SYNC}", tuple(wrong)))
    if doubtful:
        told = f"not known to be within {limit}: {_shown(offsets, doubtful, reference)}"
        fix = "look why messages take so long, or allow more with --clock-bound"
        found.append(Check("clocks", "warning", told, fix, tuple(doubtful)))
    if not found and len(offsets) > 1:
        most = max((offset for host, offset in offsets.items() if host != first), key=lambda item: abs(item.seconds))
        found.append(Check("clocks", "ok", f"within {limit} of {first}'s: {_signed(most)} at most"))
    return found


def _beyond(offsets: Mapping[str, Offset], reference: Offset, bound: float) -> tuple[list[str], list[str]]:
    """Hosts that are beyond the bound for certain, and those that may be."""
    wrong, doubtful = [], []
    for host, offset in offsets.items():
        apart, error = abs(offset.seconds - reference.seconds), offset.error + reference.error
        if apart - error > bound:
            wrong.append(host)
        elif apart + error > bound and offset is not reference:
            doubtful.append(host)
    return wrong, doubtful


def _shown(offsets: Mapping[str, Offset], hosts: list[str], reference: Offset) -> str:
    apart = {host: Offset(offsets[host].seconds - reference.seconds, offsets[host].error) for host in hosts}
    return some([f"{host} {_signed(offset)}" for host, offset in apart.items()])


def _signed(offset: Offset) -> str:
    sign = "−" if offset.seconds < 0 else "+"
    return f"{sign}{format_si(abs(offset.seconds), 's')} ± {format_si(offset.error, 's', 1)}"


def devices(reports: Mapping[str, Report], wanted: int | None) -> list[Check]:
    """Whether every host has as many accelerators as asked for, and where nothing was asked, equally many."""
    known = {host: report.devices for host, report in reports.items() if report.devices is not None}
    counted = {host: item for host, item in known.items() if item.count is not None}
    found = []
    expected = wanted if wanted is not None else max((item.count or 0 for item in counted.values()), default=None)
    fix = "see that its driver is loaded (nvidia-smi, rocm-smi, npu-smi), and what the job asks for (--gpus-per-node)"
    parts = split({host: (item.count, item.source) for host, item in counted.items() if item.count != expected})
    for (count, source), hosts in parts.groups:
        fewer = (count or 0) < (expected or 0)
        state: State = "failed" if fewer and wanted is not None else "warning"
        asked = "were asked for" if wanted is not None else "on others"
        told = f"{some(hosts)}: {count} by {source}; {expected} {asked}"
        found.append(Check("devices", state, told, fix if fewer else "hide the others, or ask for all", hosts))
    for doubt, hosts in split({host: item.doubt for host, item in counted.items() if item.doubt}).groups:
        found.append(Check("devices", "warning", f"{some(hosts)}: {doubt}", "--torch asks torch itself", hosts))
    unknown = {host: item.source for host, item in known.items() if item.count is None}
    # Where others can be counted, a host that shows nothing has lost its driver.
    lost = bool(expected) and bool(counted)
    for source, hosts in split(unknown).groups:
        if wanted == 0 or (wanted is None and not counted):
            continue
        told = f"{some(hosts)}: cannot be counted: {source}"
        worse: State = "unknown" if not lost else "failed" if wanted is not None else "warning"
        found.append(Check("devices", worse, told, fix if lost else "--torch asks torch itself", hosts))
    if not found and unknown:
        found.append(Check("devices", "ok", "none found and none asked for"))
    elif not found and counted:
        sources = some(list(dict.fromkeys(item.source for item in counted.values())))
        found.append(Check("devices", "ok", f"{expected} on every host, by {sources}"))
    return found + untold("devices", reports)


def disk(reports: Mapping[str, Report], wanted: int, probe: str | None) -> list[Check]:
    """Room and rights in the run folder (`wanted` bytes), and whether it is one folder for all hosts.

    probe: why the first host could not write its probe file; None if it could.
    """
    told = {host: report.folder for host, report in reports.items() if report.folder is not None}
    found = _unwritable("disk", told, "give a --folder that can be written everywhere, or mend its rights or mount")
    scarce = {host: item for host, item in told.items() if item.refusal is None and (item.free or 0) < wanted}
    if scarce:
        rows = [f"{host} {format_si(item.free, 'B')} in {item.path}" for host, item in scarce.items()]
        fix = f"make room on {some(list(scarce))}, or give another --folder"
        said = f"less than {format_si(wanted, 'B')} free: {some(rows)}"
        found.append(Check("disk", "failed", said, fix, tuple(scarce)))
    hung = "see whether its network file system answers (ls, dmesg), or give another --folder"
    found += untold_as("disk", "folder", reports, hung)
    if not found and told:
        least = min(told, key=lambda host: told[host].free or 0)
        said = f"{format_si(told[least].free, 'B')} free at least ({least}, {told[least].path})"
        found.append(Check("disk", "ok", said))
    return found + _sharing(reports, probe)


def _sharing(reports: Mapping[str, Report], probe: str | None) -> list[Check]:
    if probe is not None:
        return [Check("sharing", "unknown", f"the first host could not write a probe file: {probe}")]
    shared = {host: report.shared for host, report in reports.items() if report.shared is not None}
    without = [host for host, there in shared.items() if not there]
    if not shared:
        return []
    if not without:
        return [Check("sharing", "ok", "the run folder is one for all hosts")]
    if len(without) == len(shared):
        return [Check("sharing", "ok", "the run folder is each host's own: results are gathered at the end")]
    said = f"the run folder is shared, but not with {some(without)}"
    fix = f"mount it on {some(without)}, else their results are gathered at the end"
    return [Check("sharing", "warning", said, fix, tuple(without))]


def memory(reports: Mapping[str, Report], wanted: int) -> list[Check]:
    """Room and rights where ranks keep beacons and backends exchange buffers (/dev/shm)."""
    told = {host: report.memory for host, report in reports.items() if report.memory is not None}
    found = _unwritable("shared memory", told, "mount -o remount,rw,size=8g /dev/shm, or remove what was left there")
    scarce = {host: item for host, item in told.items() if item.refusal is None and (item.free or 0) < wanted}
    for (path, full), hosts in split(
        {host: (item.path, (item.free or 0) < MEMORY_LEAST) for host, item in scarce.items()}
    ).groups:
        least = format_si(min(scarce[host].free or 0 for host in hosts), "B")
        said = f"{some(hosts)}: {least} free in {path}, where buffers are exchanged"
        fix = f"remove what was left in {path}, or enlarge it (mount -o remount,size=8g {path}, docker --shm-size=8g)"
        found.append(Check("shared memory", "failed" if full else "warning", said, fix, hosts))
    found += untold_as("shared memory", "memory", reports, "see why it does not answer (dmesg)")
    if not found and told:
        least = format_si(min(item.free or 0 for item in told.values()), "B")
        found.append(Check("shared memory", "ok", f"{least} free at least in {next(iter(told.values())).path}"))
    return found


def _unwritable(name: str, told: Mapping[str, Folder], fix: str) -> list[Check]:
    parts = split({host: (item.path, item.refusal) for host, item in told.items() if item.refusal is not None})
    return [
        Check(name, "failed", f"{some(hosts)}: {path} cannot be written: {why}", fix, hosts)
        for (path, why), hosts in parts.groups
    ]


def untold_as(name: str, part: str, reports: Mapping[str, Report], fix: str) -> list[Check]:
    """A folder that could not be asked is one that ranks would hang on."""
    return [Check(name, "failed", item.found, fix, item.hosts) for item in untold(part, reports)]
