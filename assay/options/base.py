"""Strict option models, and the command line derived from them. No torch here: a suite is checked without it."""

import argparse
import difflib
import os
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from assay.errors import BAD_INPUT_EXIT, REPEAT_SECONDS, SENTENCE_MARK, BadInput
from assay.placement import placement
from assay.units import parse_size

PathText = Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]
"""A path, written as text: strict validation would otherwise want a Path object."""

Size = Annotated[int, BeforeValidator(parse_size)]
"""Bytes, written as 4096, 64KiB or 2GB."""


def lower_case(value: object) -> object:
    """Names of backends: torch takes NCCL for nccl, but as tags and in comparisons they must be one."""
    return value.lower() if isinstance(value, str) else value


def flags(*also: str, metavar: str = "X") -> dict[str, Any]:
    """Further names of an option on the command line, for `Field(json_schema_extra=…)`."""
    return {"also": list(also), "metavar": metavar}


class Options(BaseModel):
    """Base of everything a user may write: unknown keys are errors, and so are numbers that are none (nan, inf)."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class ScriptOptions(Options):
    """What every runnable script takes besides its own options."""

    synopsis: ClassVar[str]
    """One line: what the script measures, for --help and `assay list`."""

    out: PathText | None = Field(
        None, description="folder for the JSONL records, one file a rank; none are kept without it"
    )
    device: str = Field(
        "auto", description="auto, cpu, or any device that torch.accelerator offers (cuda, xpu, npu, …)"
    )
    backend: Annotated[str, BeforeValidator(lower_case)] = Field(
        "auto", description="torch.distributed backend; auto takes torch's default for the device"
    )
    join_timeout: float = Field(120.0, gt=0, description="seconds that ranks may take to find each other")

    @property
    def needs_mpi(self) -> bool:
        """Whether ranks find each other through MPI instead of torch.distributed."""
        return False

    @property
    def needs_torch(self) -> bool:
        """Whether torch.distributed is wanted, beside MPI too."""
        return True

    @property
    def backend_is_torch(self) -> bool:
        """Whether what is measured goes over torch.distributed."""
        return True

    @property
    def torch_backend(self) -> str:
        """The backend of torch.distributed's default group; auto: torch's default for the device."""
        return self.backend

    def check_world(self, world: int) -> None:
        """Raise ValueError with one sentence if `world` ranks cannot run these options."""


S = TypeVar("S", bound=ScriptOptions)


def problems(error: ValidationError, model: type[BaseModel]) -> list[tuple[tuple[str | int, ...], str]]:
    """What is wrong, as (path of the key, sentence). Unknown keys get the nearest valid name."""
    found = []
    for item in error.errors(include_url=False):
        path = item["loc"]
        if item["type"] == "extra_forbidden":
            found.append((path, f"unknown key {path[-1]!r}{nearest(str(path[-1]), _known_keys(model, path[:-1]))}"))
        elif item["type"] == "missing":
            found.append((path, f"key {path[-1]!r} is missing"))
        else:
            message = item["msg"].removeprefix("Value error, ")
            told = "got " in message or repr(item["input"]) in message
            given = "" if told or not path or not _short(item["input"]) else f", got {item['input']!r}"
            found.append((path, message[0].lower() + message[1:] + given))
    return found


def _short(value: object) -> bool:
    return isinstance(value, str | int | float | bool | None) and len(repr(value)) <= 80


def _known_keys(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    here: type[BaseModel] | None = model
    for part in path:
        if here is None or isinstance(part, int):
            continue
        field = here.model_fields.get(part)
        here = _inner_model(field.annotation) if field else None
    return [_field_key(name, here) for name in here.model_fields] if here else []


def _field_key(name: str, model: type[BaseModel]) -> str:
    return model.model_fields[name].alias or name


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_inner_model, get_args(annotation)) if m), None)


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` or the list of what is known, to be put behind an unknown name."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def one_of(kind: str, names: Collection[str]) -> BeforeValidator:
    """A check that a value is one of `names`; the error has the nearest. kind: what they are, for the sentence."""

    def known(value: object) -> object:
        if value is not None and value not in names:
            raise ValueError(f"unknown {kind} {value!r}{nearest(str(value), list(names))}")
        return value

    return BeforeValidator(known)


def validate(model: type[S], values: dict[str, Any]) -> S:
    """Options from plain values. Raises BadInput with one sentence per problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadInput("; ".join(f"{_flag_of(path)}: {text}" for path, text in problems(error, model))) from None


def _flag_of(path: tuple[str | int, ...]) -> str:
    return "--" + str(path[0]).replace("_", "-") if path else "options"


def build_parser(model: type[ScriptOptions], description: str) -> argparse.ArgumentParser:
    """An argparse parser with one flag per field; values stay text, pydantic turns them into what they mean."""
    parser = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    for name, field in model.model_fields.items():
        flag = "--" + name.replace("_", "-")
        also = _extra(field, "also", [])
        text = (field.description or "").replace("%", "%%")
        default = "" if field.default is None else f" [{_as_text(field.default)}]"
        if field.annotation is bool:
            parser.add_argument(
                flag, *also, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text + default
            )
        else:
            parser.add_argument(flag, *also, dest=name, default=None, metavar=_metavar(field), help=text + default)
    return parser


def _metavar(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    return str(_extra(field, "metavar", "X"))


def _extra(field: FieldInfo, key: str, default: Any) -> Any:
    extra = field.json_schema_extra
    return extra.get(key, default) if isinstance(extra, dict) else default


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((c for c in map(_choices, get_args(annotation)) if c), ())


def _as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse_command_line(model: type[S], description: str | None, argv: Sequence[str] | None = None) -> S:
    """A script's options from its command line. On bad input prints one sentence and exits with code 2."""
    parser = build_parser(model, description or model.synopsis)
    try:
        given = vars(parser.parse_args(argv))
        return validate(model, {name: value for name, value in given.items() if value is not None})
    except BadInput as error:
        # Every rank was given the same. Rank 0 says so, and the launcher then ends the others.
        if _is_another_rank():
            time.sleep(REPEAT_SECONDS)
        print(f"{SENTENCE_MARK}{error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT_EXIT) from None


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of ours: one sentence, with the nearest name for an unknown one."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            word = unknown.split()[0]
            known = [flag for action in self._actions for flag in action.option_strings]
            raise BadInput(f"unknown argument {word!r}{nearest(word.partition('=')[0], known)}")
        raise BadInput(f"{message}; --help tells what there is")


def _is_another_rank() -> bool:
    try:
        return placement(os.environ).rank > 0
    except BadInput:
        return False


def command_line(options: ScriptOptions) -> list[str]:
    """The argv that gives exactly `options` (fields at their default are left out)."""
    argv: list[str] = []
    for name in type(options).model_fields:
        value = getattr(options, name)
        if value == type(options).model_fields[name].default:
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            argv.append(flag if value else "--no-" + name.replace("_", "-"))
        elif value is not None:
            argv.append(f"{flag}={_as_text(value)}")  # in one word: a value may begin with a dash
    return argv


def without_twins(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values as they are. Raises ValueError if one is there twice: it would be measured twice under one name."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value!r} is there twice; keep one")
    return values


def split_list(value: object) -> object:
    """Text with commas becomes a tuple, as the command line and suites both write lists. A comma may end it.

    Raises ValueError where there is nothing between two commas.
    """
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        if "" in parts[:-1] and any(parts):
            raise ValueError(f"there is nothing between two commas in {value!r}")
        return tuple(part for part in parts if part)
    return tuple(value) if isinstance(value, list) else value
