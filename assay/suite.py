"""Strict suite YAML: every key is known, every error names file, line, key and what was expected."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from assay.errors import BadInput
from assay.located import KeyPath, Where, read_yaml
from assay.options import SCRIPTS, LimitsOptions, Options, PretrainOptions, ScriptOptions
from assay.options.base import nearest, problems

LIMITS_SCRIPT = "specs/limits"
MOST_LOCAL_RANKS = 1024  # far above any host; a slip of the finger must not fork the machine to death
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_OWNED = ("out",)  # options that the runner sets


def _plain_name(value: object) -> object:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"expected a name of letters, digits, '.', '_' and '-', got {value!r}")
    return value


def _known_script(value: object) -> object:
    if not isinstance(value, str) or value not in SCRIPTS:
        raise ValueError(f"unknown script {value!r}{nearest(str(value), list(SCRIPTS))}")
    return value


Name = Annotated[str, BeforeValidator(_plain_name)]


class CaseEntry(Options):
    """One entry under `cases:`; a matrix makes several cases of it."""

    name: Name = Field(description="name of the case's folder")
    script: Annotated[str, BeforeValidator(_known_script)] = Field(
        description="which script measures, such as comms/bench"
    )
    world: int = Field(1, ge=1, description="number of ranks")
    time_limit: float | None = Field(None, gt=0, description="seconds after which the case is ended")
    options: dict[str, Any] = Field(default_factory=dict, description="the script's own options")
    matrix: dict[str, list[Any]] = Field(
        default_factory=dict, description="worlds, or options in the plural: a case for every combination"
    )


class SuiteFile(Options):
    """The whole file."""

    assay: Literal[1] = Field(description="version of this format")
    name: Name = Field(description="name of the suite; run folders are called after it")
    description: str = Field("", description="what the suite is for")
    launcher: Literal["local"] = Field("local", description="what starts the ranks")
    port: int | None = Field(None, ge=1, le=65535, description="rendezvous port; a free one is chosen without it")
    limits: bool = Field(True, description="measure this machine's ceilings first, for every number of ranks")
    time_limit: float = Field(600.0, gt=0, description="seconds per case, where the case gives none")
    profile: str | None = Field(None, description="scoring profile; the default one without it")
    cases: list[CaseEntry] = Field(min_length=1, description="what is run, in this order")


@dataclass(frozen=True)
class Case:
    """One case, ready to be launched. time_limit in s."""

    name: str
    script: str
    world: int
    time_limit: float
    options: ScriptOptions

    def document(self) -> dict[str, Any]:
        """The case as a suite would write it, every option included."""
        options = self.options.model_dump(mode="json", exclude=set(_OWNED))
        return {
            "name": self.name,
            "script": self.script,
            "world": self.world,
            "time_limit": self.time_limit,
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


def load_suite(path: Path, overrides: Mapping[str, str] | None = None) -> Suite:
    """Read, check and expand a suite. `overrides`: `option` or `case.option` → text of its YAML value.

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
    return parse_suite(text, str(path), overrides)


def parse_suite(text: str, source: str, overrides: Mapping[str, str] | None = None) -> Suite:
    """As load_suite, from text. `source` stands for the file in sentences."""
    data, lines = read_yaml(text, source)
    return build_suite(data, source, lines, overrides)


def build_suite(
    data: object, source: str, lines: Mapping[KeyPath, int] | None = None, overrides: Mapping[str, str] | None = None
) -> Suite:
    """A suite from plain data, such as the resolved suite in run.json. Raises BadInput."""
    where = Where(source, lines or {})
    if not isinstance(data, dict):
        raise BadInput(f"{source}: expected a mapping with the keys assay, name and cases; see suites/quick.yaml")
    try:
        file = SuiteFile.model_validate(data)
    except ValidationError as error:
        raise BadInput("\n".join(where.sentence(path, said) for path, said in problems(error, SuiteFile))) from None
    cases = _expand(file, where, _parse_overrides(overrides or {}))
    if file.limits:
        cases = [*_limit_cases(file, cases), *cases]
    names = [case.name for case in cases]
    for index, name in enumerate(names):
        if name.lower() in (other.lower() for other in names[:index]):
            raise BadInput(f"{source}: two cases are called {name!r}; give each its own name")
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
            options = {**entry.options, **chosen}
            limit = entry.time_limit or file.time_limit
            for key, value in overrides.items():
                target, _, option = key.rpartition(".")
                if target not in ("", entry.name, name):
                    continue
                if option == "world":
                    world = _whole(value, key)
                elif option == "time_limit":
                    limit = float(_whole(value, key))
                elif option in model.model_fields and option not in _OWNED:
                    options[option] = value
                else:
                    continue
                used.add(key)
            cases.append(Case(name, entry.script, world, limit, _options(model, options, where, index, name, world)))
    for case in cases:
        if case.world > MOST_LOCAL_RANKS:
            said = f"case {case.name!r}: {case.world} ranks on one host; the local launcher starts {MOST_LOCAL_RANKS} at most"
            raise BadInput(where.sentence((), said))
    for key in overrides:
        if key not in used:
            raise BadInput(_unknown_override(key, file))
    return cases


def _whole(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadInput(f"-o {key}: expected a whole number above 0, got {value!r}")
    return value


def _unknown_override(key: str, file: SuiteFile) -> str:
    target, _, option = key.rpartition(".")
    names = [entry.name for entry in file.cases]
    if target and target not in names:
        return f"-o {key}: the suite has no case {target!r}{nearest(target, names)}"
    known = {"world", "time_limit"}
    for entry in file.cases:
        if target in ("", entry.name):
            known |= set(SCRIPTS[entry.script].model_fields) - set(_OWNED)
    return f"-o {key}: no case has the option {option!r}{nearest(option, sorted(known))}"


def _combinations(
    entry: CaseEntry, model: type[ScriptOptions], where: Where, index: int
) -> Iterator[tuple[str, int, dict[str, Any]]]:
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
        if isinstance(world, bool) or not isinstance(world, int) or world < 1:
            path = ("cases", index, "matrix", "worlds")
            raise BadInput(where.sentence(path, f"expected whole numbers above 0, got {world!r}"))
        suffix = "".join(f"-{_slug(value)}" for _, value in combination)
        yield suffix, world, chosen


def _singular(key: str, model: type[ScriptOptions]) -> str | None:
    known = ["world", *(name for name in model.model_fields if name not in _OWNED)]
    return next((name for name in known if key in (name, f"{name}s")), None)


def _slug(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(value)).strip("-") or "value"


def _options(
    model: type[ScriptOptions], values: dict[str, Any], where: Where, index: int, name: str, world: int
) -> ScriptOptions:
    path: KeyPath = ("cases", index, "options")
    for key in _OWNED:
        if key in values:
            raise BadInput(where.sentence((*path, key), f"the runner sets {key!r}; leave it out"))
    try:
        options = model.model_validate(values)
    except ValidationError as error:
        found = problems(error, model)
        raise BadInput("\n".join(where.sentence((*path, *inner), said) for inner, said in found)) from None
    try:
        options.check_world(world)
    except ValueError as error:
        raise BadInput(where.sentence(path, f"case {name!r}: {error}")) from None
    return options


def _limit_cases(file: SuiteFile, cases: list[Case]) -> list[Case]:
    worlds = sorted({case.world for case in cases if case.script != LIMITS_SCRIPT})
    # MFU needs the ceiling of the element type that is trained in.
    trained = {case.options.dtype for case in cases if isinstance(case.options, PretrainOptions)}
    options = LimitsOptions(dtypes=tuple(sorted(trained, reverse=True)) or ("float32",))
    return [Case(f"limits-{world}", LIMITS_SCRIPT, world, file.time_limit, options) for world in worlds]
