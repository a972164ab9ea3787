"""Which figure of a run is the measurement that a profile wants, and how that is called."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from assay.options import CommsOptions
from assay.options.comms import ITEM_BYTES
from assay.scoring.baseline import FREE, MATCHED, PLACED, VARIANTS, BaselineFigure, same_data
from assay.scoring.result import CaseResult, Figure
from assay.scoring.samples import settings
from assay.units import format_size

_KNOWN = {*MATCHED, *VARIANTS, *PLACED, "script"}  # any other key of a baseline's figure is a label of its case
_MOST_NAMED = 2  # of what differs


def agrees(wanted: Mapping[str, Any], tags: Mapping[str, Any], variants: Sequence[str] = ()) -> bool:
    """Whether `tags` are those of the wanted measurement: all that is wanted, and no variant that is not.

    A list of values wants any one of them. A tag that is not there is null.
    """
    return all(
        any(_same(key, tags.get(key), one) for one in (value if isinstance(value, list) else [value]))
        for key, value in [*wanted.items(), *((key, wanted.get(key)) for key in variants)]
    )


def _same(key: str, one: object, other: object) -> bool:
    return same_data(one, other) if key == "data" else one == other


def figure_tags(case: CaseResult, figure: Figure) -> dict[str, Any]:
    """A figure's tags with what is known of its case: the script and the suite's labels."""
    return {**figure.tags, "script": case.script, **case.labels}


def is_wanted(case: CaseResult, figure: Figure, wanted: Mapping[str, Any]) -> bool:
    """Whether a figure is the wanted measurement. Labels are variants: another network is another measurement."""
    return agrees(wanted, figure_tags(case, figure), (*VARIANTS, *case.labels))


def is_base(item: BaselineFigure, wanted: Mapping[str, Any]) -> bool:
    """Whether a baseline's figure is of the wanted measurement."""
    return agrees(wanted, item.match, (*VARIANTS, *(key for key in item.match if key not in _KNOWN)))


def differing(item: BaselineFigure, case: CaseResult, figure: Figure) -> list[str]:
    """In which keys a baseline's figure is another measurement than this one of a run; engine and micro-batch are free."""
    tags = figure_tags(case, figure)
    keys = ["script"] if "script" in item.match else []
    keys += [key for key in (*MATCHED, *VARIANTS) if key not in FREE]
    return [key for key in keys if not _same(key, tags.get(key), item.match.get(key))]


def difference(item: BaselineFigure, case: CaseResult, figure: Figure, keys: Sequence[str]) -> str:
    """The first of the differing keys, in words."""
    tags = figure_tags(case, figure)
    told = [_apart(key, item.match.get(key), tags.get(key)) for key in keys[:_MOST_NAMED]]
    more = f" and {len(keys) - len(told)} more" if len(keys) > len(told) else ""
    return f"the baseline was measured with {', '.join(told)}{more}"


def _apart(key: str, base: object, own: object) -> str:
    if base is None:
        return f"an unknown {key}, not {_words(own)}"
    return f"{key} {_words(base)}, not {'an unknown one' if own is None else _words(own)}"


def meant_to_measure(case: CaseResult, wanted: Mapping[str, Any]) -> bool:
    """Whether a case that was started, and did not pass, is the one that should have given the wanted figure."""
    if (
        case.status is None
        or case.status.state in ("passed", "skipped")
        or case.world != wanted.get("world", case.world)
    ):
        return False
    if "op" in wanted:
        return wanted["bytes"] in _sizes_of(case, str(wanted["op"]))
    known = {**case.options, **settings(case.options), "script": case.script, **case.labels}
    return agrees({key: value for key, value in wanted.items() if key in known}, known)


def _sizes_of(case: CaseResult, op: str) -> list[int]:
    # What the case would have swept, had it not failed.
    try:
        options = CommsOptions.model_validate(case.options)
    except ValidationError:
        return []
    if op not in options.ops:
        return []
    group = len(options.groups(case.world)[0])
    return [size for dtype in options.dtype for size in options.sizes(op, group, ITEM_BYTES[dtype])]


def label_of(match: Mapping[str, Any]) -> str:
    """A row's name: `all_reduce, 8 ranks, 16 MiB`, `all_reduce, 2 ranks, 1 KiB, int32, coalesced 4`, `llama-tiny, ddp`."""
    what = [_words(match[key]) for key in ("op", "model", "method", "engine") if match.get(key) is not None]
    if "world" in match:
        what.append(f"{match['world']} rank{'' if match['world'] == 1 else 's'}")
    if "bytes" in match:
        what.append(format_size(int(match["bytes"])))
    if match.get("dtype", "float32") != "float32":
        what.append(_words(match["dtype"]))
    what += ["int8 base weights"] if match.get("int8") else []
    labels = [key for key in match if key not in _KNOWN and match[key] is not None]
    what += [f"{key} {match[key]}" for key in (*VARIANTS, *PLACED, *labels) if key in match]
    return ", ".join(what)


def _words(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)
