"""What should be equal on all hosts: versions, code, settings. The odd one out is named, against what most have."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from assay.preflight.check import Check, State, some
from assay.preflight.facts import Code, Report

T = TypeVar("T", bound=Hashable)
_MOST_VALUE = 60  # characters of a setting
_MOST_THINGS = 6  # packages or settings that one sentence tells


@dataclass(frozen=True)
class Split(Generic[T]):
    """Hosts by value, the most frequent first. tie: no value is more frequent than all others."""

    groups: tuple[tuple[T, tuple[str, ...]], ...]

    @property
    def equal(self) -> bool:
        """Whether all have the same value."""
        return len(self.groups) < 2

    @property
    def tie(self) -> bool:
        """Whether the most frequent value is not the only one of its frequency."""
        return len(self.groups) > 1 and len(self.groups[0][1]) == len(self.groups[1][1])

    @property
    def odd(self) -> tuple[str, ...]:
        """Hosts that have not what most have; all hosts if there is no such value."""
        groups = self.groups if self.tie else self.groups[1:]
        return tuple(host for _, hosts in groups for host in hosts)


def split(values: Mapping[str, T]) -> Split[T]:
    """Hosts (the keys) sorted by their values."""
    groups: dict[T, list[str]] = {}
    for host, value in values.items():
        groups.setdefault(value, []).append(host)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return Split(tuple((value, tuple(hosts)) for value, hosts in ordered))


def software(reports: Mapping[str, Report]) -> list[Check]:
    """Whether Python and the packages are of the same version everywhere."""
    told = {host: dict(report.software) for host, report in reports.items() if report.software is not None}
    packages = sorted({package for versions in told.values() for package in versions})
    splits = {package: split({host: told[host].get(package) for host in told}) for package in packages}
    unequal = {package: parts for package, parts in splits.items() if not parts.equal}
    found = []
    for parts, names in _alike(unequal):
        wanted = [
            f"{package}=={version}"
            for package in names
            if package != "python" and (version := unequal[package].groups[0][0]) is not None
        ]
        fix = f"install the same on {some(parts.odd)}"
        if parts.tie:
            fix = "install one version on all hosts"
        elif wanted:
            fix += f": python -m pip install {' '.join(wanted)}"
        found.append(Check("software", "failed", _told(unequal, names), fix, parts.odd))
    if not found and told:
        known = {package: splits[package].groups[0][0] for package in ("python", "torch") if package in splits}
        versions = ", ".join(f"{package} {version or 'not installed'}" for package, version in known.items())
        found.append(Check("software", "ok", f"the same versions everywhere: {versions}"))
    return found + untold("software", reports)


def settings(reports: Mapping[str, Report]) -> list[Check]:
    """Whether variables that steer communication have the same value everywhere."""
    names = sorted({name for report in reports.values() for name in report.settings})
    splits = {name: split({host: item.settings.get(name) for host, item in reports.items()}) for name in names}
    unequal = {name: parts for name, parts in splits.items() if not parts.equal}
    found = []
    for parts, alike in _alike(unequal):
        fix = "set them alike on all hosts (srun --export=ALL, mpirun -x NAME)"
        found.append(Check("settings", "warning", _told(unequal, alike), fix, parts.odd))
    return found or [Check("settings", "ok", "variables of communication are the same everywhere")]


def code(reports: Mapping[str, Report]) -> list[Check]:
    """Whether the same code runs everywhere, committed or not."""
    told = {host: report.code for host, report in reports.items() if report.code is not None}
    splits = {kind: split({host: value(item) for host, item in told.items()}) for kind, value in _KINDS.items()}
    kinds = [kind for kind, parts in splits.items() if not parts.equal]
    if not told:
        return untold("code", reports)
    if not kinds:
        item = next(iter(told.values()))
        return [Check("code", "ok", f"the same everywhere: {_called(item)}"), *untold("code", reports)]
    kind, parts = kinds[0], splits[kinds[0]]
    state: State = "warning" if kinds == ["revision"] else "failed"
    listed = "; ".join(f"{_called(told[hosts[0]])} on {some(hosts)}" for _, hosts in parts.groups[:_MOST_THINGS])
    if kind != "revision":
        listed = f"the {kind} differ ({listed})"
    if kinds == ["revision"]:
        listed += "; but the sources are equal"
    if parts.tie:
        fix = "bring all hosts to one revision, with nothing uncommitted (git status)"
    else:
        fix = f"bring {some(parts.odd)} to what the others have (git status, git checkout, or install the same wheel)"
    return [Check("code", state, listed, fix, parts.odd), *untold("code", reports)]


def untold(part: str, reports: Mapping[str, Report], state: State = "unknown", fix: str = "") -> list[Check]:
    """Hosts that could not tell `part`, by reason."""
    silent = {host: report.reasons[part] for host, report in reports.items() if part in report.reasons}
    return [Check(part, state, f"{some(hosts)}: {why}", fix, hosts) for why, hosts in split(silent).groups]


def _called(item: Code) -> str:
    if item.revision is None:
        return f"assay {item.version} of no checkout, sources {item.sources[:8]}"
    changed = " with uncommitted changes" if item.changes not in (None, _NO_CHANGES) else ""
    return f"revision {item.revision[:10]}{changed}, sources {item.sources[:8]}"


_NO_CHANGES = hashlib.sha256().hexdigest()
# Revisions tell most to a reader, then that something is not committed; the digest alone only that it differs.
_KINDS: dict[str, Callable[[Code], str | None]] = {
    "revision": lambda item: item.revision,
    "uncommitted changes": lambda item: item.changes or _NO_CHANGES,
    "sources": lambda item: item.sources,
}


def _alike(unequal: Mapping[str, Split[str | None]]) -> list[tuple[Split[str | None], list[str]]]:
    """Names whose odd hosts are the same, together: another virtual environment differs in a dozen packages at once."""
    together: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
    for name, parts in unequal.items():
        together.setdefault((parts.tie, parts.odd), []).append(name)
    return [(unequal[names[0]], names) for names in together.values()]


def _told(unequal: Mapping[str, Split[str | None]], names: Sequence[str]) -> str:
    said = []
    for name in names[:_MOST_THINGS]:
        parts = unequal[name]
        rows = [f"{_value(value)} on {some(hosts)}" for value, hosts in parts.groups[:_MOST_THINGS]]
        # What most have comes first and needs no names; who differs does.
        rows = (
            rows if parts.tie else [*rows[1:], f"{_value(parts.groups[0][0])} on the other {len(parts.groups[0][1])}"]
        )
        said.append(f"{name} {', '.join(rows)}{' (no majority)' if parts.tie else ''}")
    rest = len(names) - _MOST_THINGS
    return "; ".join(said) + (f"; and {rest} more" if rest > 0 else "")


def _value(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= _MOST_VALUE else f"{value[: _MOST_VALUE - 1]}…"
