"""Strict suite YAML: every key is known, every error names file, line, key and what was expected."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from assay.errors import BadInput
from assay.layout import Layout, lay_out
from assay.located import KeyPath, Where, read_yaml
from assay.options import SCRIPTS, LimitsOptions, ScriptOptions, TrainingOptions
from assay.options.base import nearest, problems
from assay.suite_format import NAME, CaseEntry, SuiteFile

LIMITS_SCRIPT = "specs/limits"
MOST_RANKS_ON_A_HOST = 1024  # far above any host; a slip of the finger must not fork the machine to death
Launch = Callable[[Mapping[str, Any]], Mapping[str, object]]
_OWNED = ("out",)  # options that the runner sets


@dataclass(frozen=True)
class Case:
    """One case, ready to be launched. time_limit, reuse_within in s."""

    name: str
    script: str
    world: int
    time_limit: float
    options: ScriptOptions
    reuse_within: float = 0.0
    labels: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The case as a suite would write it, every option included."""
        options = self.options.model_dump(mode="json", exclude=set(_OWNED))
        return {
            "name": self.name,
            "script": self.script,
            "world": self.world,
            "time_limit": self.time_limit,
            "reuse_within": self.reuse_within,
            "labels": dict(self.labels),
            "options": options,
        }


@dataclass(frozen=True)
class Suite:
    """A validated suite: what was written, and the cases it expands to."""

    source: str
    file: SuiteFile
    cases: list[Case]

    def document(self) -> dict[str, Any]:
        """The resolved suite: a suite file without matrices, which resumes to the same cases."""
        head = self.file.model_dump(mode="json", exclude={"cases"})
        return {**head, "limits": False, "cases": [case.document() for case in self.cases]}


def load_suite(path: Path, overrides: Mapping[str, str] | None = None, launch: Launch | None = None) -> Suite:
    """Read, check and expand a suite. `overrides`: `option` or `case.option` → text of its YAML value.

    launch: from the file's own keys to those that replace them: how it is launched is not the file's alone to say.

    Raises BadInput with one sentence a problem: file, line, key, what was expected, the nearest valid name.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise BadInput(
            f"{path}: {(error.strerror or str(error)).lower()}; give a suite file or a name from `assay list`"
        ) from error
    return parse_suite(text, str(path), overrides, launch)


def parse_suite(
    text: str,
    source: str,
    overrides: Mapping[str, str] | None = None,
    launch: Launch | None = None,
) -> Suite:
    """As load_suite, from text. `source` stands for the file in sentences."""
    data, lines = read_yaml(text, source)
    return build_suite(data, source, lines, overrides, launch)


def build_suite(
    data: object,
    source: str,
    lines: Mapping[KeyPath, int] | None = None,
    overrides: Mapping[str, str] | None = None,
    launch: Launch | None = None,
) -> Suite:
    """A suite from plain data, such as the resolved suite in run.json. Raises BadInput."""
    where = Where(source, lines or {})
    if not isinstance(data, dict):
        raise BadInput(f"{source}: expected a mapping with the keys assay, name and cases; see suites/quick.yaml")
    try:
        file = SuiteFile.model_validate({**data, **(launch(data) if launch else {})}, strict=True)
    except ValidationError as error:
        raise BadInput("\n".join(where.sentence(path, said) for path, said in problems(error, SuiteFile))) from None
    cases = _expand(file, where, _parse_overrides(overrides or {}))
    if file.limits:
        cases = [*_limit_cases(file, cases), *cases]
    names: set[str] = set()
    for case in cases:
        if case.name.lower() in names:
            raise BadInput(f"{source}: two cases are called {case.name!r}; give each its own name")
        names.add(case.name.lower())
    return Suite(source, file, cases)


def _parse_overrides(overrides: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, text in overrides.items():
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            values[key] = text
    return values


def _expand(file: SuiteFile, where: Where, overrides: Mapping[str, object]) -> list[Case]:
    used: set[str] = set()
    cases: list[Case] = []
    for index, entry in enumerate(file.cases):
        model = SCRIPTS[entry.script]
        for suffix, world, chosen in _combinations(entry, model, where, index):
            name = f"{entry.name}{suffix}"
            if not NAME.fullmatch(name):
                raise BadInput(
                    where.sentence(("cases", index, "name"), f"{name!r}, as the matrix makes it, is too long")
                )
            mine = _overrides_of(entry, name, model, overrides)
            for option, key in mine.items():
                if option in chosen or (option == "world" and "worlds" in entry.matrix):
                    raise BadInput(f"-o {key}: case {entry.name!r} varies it in its matrix; change the suite instead")
            used |= set(mine.values())
            values = {option: overrides[key] for option, key in mine.items()}
            try:
                ranks = _ranks(values.pop("world", world), file)
            except ValueError as error:
                place = where.sentence(("cases", index, "world"), str(error))
                raise BadInput(f"-o {mine['world']}: {error}" if "world" in mine else place) from None
            limit = _seconds(values.pop("time_limit", entry.time_limit or file.time_limit), mine.get("time_limit", ""))
            options = _options(model, {**entry.options, **chosen, **values}, where, index, name, ranks, mine)
            if entry.reuse_within and not entry.script.startswith("specs/"):
                path = ("cases", index, "reuse_within")
                raise BadInput(where.sentence(path, f"{entry.script} is measured in every run; leave it out"))
            cases.append(Case(name, entry.script, ranks, limit, options, entry.reuse_within, entry.labels))
    for case in cases:
        try:
            layout = layout_of(case, file)
        except BadInput as error:
            raise BadInput(where.sentence((), f"case {case.name!r}: {error}")) from None
        if layout.per_node > MOST_RANKS_ON_A_HOST:
            said = (
                f"{layout.per_node} ranks on one host; {MOST_RANKS_ON_A_HOST} are the most; give -n with ranks per host"
            )
            raise BadInput(where.sentence((), f"case {case.name!r}: {said}"))
        if case.options.needs_mpi and file.launcher != "mpi":
            said = f"the {file.launcher} launcher starts ranks that are no MPI world; run the suite with --launcher mpi"
            raise BadInput(where.sentence((), f"case {case.name!r}: {said}"))
    for key in overrides:
        if key not in used:
            raise BadInput(_unknown_override(key, file, cases))
    return cases


def _overrides_of(
    entry: CaseEntry, name: str, model: type[ScriptOptions], overrides: Mapping[str, object]
) -> dict[str, str]:
    """Option → the override's key, of the overrides that reach this case; the more exact one wins."""
    known = {"world", "time_limit", *model.model_fields} - set(_OWNED)
    found: dict[str, str] = {}
    for wanted in ("", entry.name, name):
        for key in overrides:
            target, _, option = key.rpartition(".")
            if target == wanted and option in known:
                found[option] = key
    return found


def _seconds(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise BadInput(f"-o {key}: expected seconds above 0, got {value!r}")
    return float(value)


def layout_of(case: Case, file: SuiteFile) -> Layout:
    """How a case's ranks lie on hosts. Raises BadInput if they do not fit on them."""
    if file.launcher == "local":
        return Layout(case.world, case.world)
    return lay_out(case.world, file.per_node or case.world, file.nodes)


def _ranks(value: object, file: SuiteFile) -> int:
    """The number of ranks that `world` means. Raises ValueError with a sentence if it means none."""
    if value == "all":
        nodes = 1 if file.launcher == "local" else file.nodes
        if nodes is None or file.per_node is None:
            lacking = "ranks there are on each host; give -n" if nodes else "hosts there are; give -N, and -n"
            raise ValueError(f"all needs to know how many {lacking}")
        return nodes * file.per_node
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"expected a whole number above 0, got {value!r}")
    return value


def _unknown_override(key: str, file: SuiteFile, cases: Sequence[Case]) -> str:
    target, _, option = key.rpartition(".")
    names = list(dict.fromkeys([*(entry.name for entry in file.cases), *(case.name for case in cases)]))
    if target and target not in names:
        return f"-o {key}: the suite has no case {target!r}{nearest(target, names)}"
    known = {"world", "time_limit"}
    for case in cases:
        if not target or case.name.startswith(target):
            known |= set(SCRIPTS[case.script].model_fields) - set(_OWNED)
    return f"-o {key}: no case has the option {option!r}{nearest(option, sorted(known))}"


def _combinations(
    entry: CaseEntry, model: type[ScriptOptions], where: Where, index: int
) -> Iterator[tuple[str, int | str, dict[str, Any]]]:
    axes: list[list[tuple[str, Any]]] = []
    for key, values in entry.matrix.items():
        path: KeyPath = ("cases", index, "matrix", key)
        option = _singular(key, model)
        if option is None:
            known = ["worlds", *(f"{name}s" for name in model.model_fields if name not in _OWNED)]
            raise BadInput(where.sentence(path, f"unknown axis {key!r}{nearest(key, known)}"))
        if not values:
            raise BadInput(where.sentence(path, "expected at least one value"))
        axes.append([(option, value) for value in values])
    for combination in product(*axes):
        chosen = dict(combination)
        world = chosen.pop("world", entry.world)
        if world != "all" and (isinstance(world, bool) or not isinstance(world, int) or world < 1):
            path = ("cases", index, "matrix", "worlds")
            raise BadInput(where.sentence(path, f"expected whole numbers above 0, got {world!r}"))
        suffix = "".join(f"-{_part(option, value)}" for option, value in combination)
        yield suffix, world, chosen


def _singular(key: str, model: type[ScriptOptions]) -> str | None:
    known = ["world", *(name for name in model.model_fields if name not in _OWNED)]
    return next((name for name in known if key in (name, f"{name}s")), None)


def _part(option: str, value: object) -> str:
    """What stands for one value of a matrix in a case's name: a switch is named, on or off."""
    if isinstance(value, bool):
        return _slug(option if value else f"no {option}")
    return _slug(value)


def _slug(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(value)).strip("-") or "value"


def _options(
    model: type[ScriptOptions],
    values: dict[str, Any],
    where: Where,
    index: int,
    name: str,
    world: int,
    overridden: Mapping[str, str],
) -> ScriptOptions:
    path: KeyPath = ("cases", index, "options")
    for key in _OWNED:
        if key in values:
            raise BadInput(where.sentence((*path, key), f"the runner sets {key!r}; leave it out"))
    try:
        options = model.model_validate(values, strict=True)
    except ValidationError as error:
        said = [
            f"-o {overridden[str(inner[0])]}: {text}"
            if inner and inner[0] in overridden
            else where.sentence((*path, *inner), text)
            for inner, text in problems(error, model)
        ]
        raise BadInput("\n".join(said)) from None
    try:
        options.check_world(world)
    except ValueError as error:
        raise BadInput(where.sentence(path, f"case {name!r}: {error}")) from None
    return options


def _limit_cases(file: SuiteFile, cases: list[Case]) -> list[Case]:
    # A ceiling bounds only what ran on the same device with as many ranks, in the same element type.
    trained: dict[tuple[int, str, str], set[str]] = {}
    for case in cases:
        if not case.script.startswith("specs/"):  # these measure what ceilings are made of
            dtypes = trained.setdefault((case.world, case.options.device, case.options.backend), set())
            if isinstance(case.options, TrainingOptions):
                dtypes.add(case.options.dtype)
    several = len({(device, backend) for _, device, backend in trained}) > 1
    made = []
    for (world, device, backend), dtypes in sorted(trained.items()):
        options = LimitsOptions(
            device=device, backend=backend, dtypes=tuple(sorted(dtypes, reverse=True)) or ("float32",)
        )
        name = f"limits-{world}" + (f"-{_slug(device)}-{_slug(backend)}" if several else "")
        case = Case(name, LIMITS_SCRIPT, world, file.time_limit, options)
        # Which hosts several were is not known to be the same next time.
        made.append(replace(case, reuse_within=file.limits_max_age) if layout_of(case, file).nodes == 1 else case)
    return made
