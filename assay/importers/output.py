"""What another tool's output tells, in our terms: bytes S as in docs/metrics.md, seconds, ranks."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from assay.bandwidth import COLLECTIVES
from assay.errors import BadInput
from assay.units import format_si, format_size

MOST_RANKS = 2**31 - 1  # MPI counts ranks in an int

# Launchers put the origin of a line before it. Open MPI ends it with the stream's name, whatever stands before that
# (job, rank, host, process, time of day); srun and pdsh write `0: ` and `host: `, Hydra and torchrun `[0] ` and `[0]:`.
_ORIGIN = re.compile(r"[^<>]{0,300}<std(?:out|err|diag)>:\x20?|\s*[\w.-]+:(?:\s|$)|\s*\[[^][]{1,100}\](?::\s?|\s|$)")
_SLACK = 1e-6  # relative; binary fractions of what was printed in decimals


@dataclass(frozen=True)
class Given:
    """What the user adds to a file that does not tell it. Whatever the file tells must agree with it."""

    world: int | None = None
    op: str | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Row:
    """One time that a tool printed of one collective at one size.

    bytes: S as docs/metrics.md defines it. seconds: per call; several only where the tool prints every call.
    statistic: mean, min, max, p50 …, sample (every call), fastest_rank, slowest_rank (a rank's mean).
    timing: back_to_back, waited_for (one by one), call_by_call (after a barrier), device_events, ping_pong (half a
    round trip). over: what was done over ranks. calls: behind the statistic. wrong: elements that the tool's own check
    found wrong. backend: the library that moved the bytes. origin: what else the file tells of where the row comes from,
    for people; rows of two origins are no repeats of one measurement. where: file and line.
    """

    where: str
    op: str
    bytes: int
    seconds: tuple[float, ...]
    statistic: str
    timing: str
    over: str
    world: int
    dtype: str | None = None
    calls: int | None = None
    wrong: int | None = None
    settings: Mapping[str, str | int] = field(default_factory=dict)
    backend: str | None = None
    origin: str = ""

    @property
    def counts(self) -> bool:
        """Whether bytes were moved and time was seen to pass; other rows have no bandwidth."""
        return self.bytes > 0 and bool(self.seconds) and all(0 < seconds < math.inf for seconds in self.seconds)


@dataclass(frozen=True)
class Output:
    """One file of a tool. Whatever it does not tell is None or empty; device is torch's type of device.

    device, device_name: None also where its tables differ in it. versions: several of one name stand in one string.
    environment: the variables that the measuring process had. measured: when it began, as the tool wrote it.
    """

    rows: list[Row]
    device: str | None = None
    device_name: str | None = None
    hosts: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    measured: str | None = None


def numbered_lines(text: str, source: str) -> Iterator[tuple[str, str]]:
    """Every line as (`file:line`, text without the launcher's mark of origin)."""
    for number, line in enumerate(text.splitlines(), 1):
        origin = _ORIGIN.match(line)
        yield f"{source}:{number}", line[origin.end() :] if origin else line


def all_versions(told: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The versions that the tables of a file tell, by name; where they differ, all of them: `2.18.3, 2.28.7`."""
    found: dict[str, list[str]] = {}
    for name, version in (item for versions in told for item in versions.items()):
        if version not in found.setdefault(name, []):
            found[name].append(version)
    return {name: ", ".join(versions) for name, versions in found.items()}


def number(where: str, name: str, text: str) -> float:
    """A finite number from 0 up. Raises BadInput, naming line and column, for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise BadInput(f"{where}: column {name} should be a number from 0 up, got {text!r}; mend or remove the line")
    return value


def whole(where: str, name: str, text: str) -> int:
    """A whole number from 0 up. Raises BadInput, naming line and column, for anything else."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise BadInput(f"{where}: column {name} should be a whole number, got {text!r}; mend or remove the line")
    return int(text)


def half_digit(text: str) -> float:
    """Half of the last digit that a printed number shows, which is what rounding may have changed: `12.30` → 0.005."""
    try:
        exponent = Decimal(text).as_tuple().exponent
        return 0.5 * 10.0**exponent if isinstance(exponent, int) else 0.0
    except (InvalidOperation, OverflowError):
        return 0.0


def known_op(where: str, op: str) -> str:
    """`op`. Raises BadInput if it is no collective of ours."""
    if op not in COLLECTIVES:
        raise BadInput(f"{where}: {op} is none of the collectives that assay knows ({', '.join(COLLECTIVES)})")
    return op


def agreed_world(where: str, told: int | None, given: int | None) -> int:
    """The number of ranks. Raises BadInput if neither file nor user tell it, or if they differ."""
    if told is not None and given is not None and told != given:
        raise BadInput(f"{where}: the file tells of {told} ranks, --world says {given}; leave --world out")
    world = told if told is not None else given
    if world is None:
        raise BadInput(f"{where}: the file does not tell the number of ranks; give it with --world")
    if not 1 <= world <= MOST_RANKS:
        raise BadInput(f"{where}: expected 1 to {MOST_RANKS} ranks, got {world}")
    return world


def check_rate(
    row: Row, name: str, printed: str, scale: float, rounding: float, rate: Callable[[float], float]
) -> None:
    """Hold a printed rate against ours. Raises BadInput if they differ by more than both were rounded by.

    printed × scale is in base units. rounding: s that the printed time may be off. rate: our formula, of seconds.
    A difference means that the tool counts otherwise, that the ranks are not so many, or that the line is damaged:
    no figure of such a file can be relied upon.
    """
    if not row.counts:
        return
    seconds = row.seconds[0]
    value, margin = number(row.where, name, printed) * scale, half_digit(printed) * scale
    lowest, highest = rate(seconds + rounding), rate(seconds - rounding) if seconds > rounding else math.inf
    if lowest * (1 - _SLACK) - margin <= value <= highest * (1 + _SLACK) + margin:
        return
    raise BadInput(
        f"{row.where}: {name} is printed as {format_si(value, 'B/s')}, but {row.op} of {format_size(row.bytes)} in "
        f"{format_si(seconds, 's')} on {row.world} ranks makes {format_si(rate(seconds), 'B/s')}; "
        "number of ranks, collective and line do not go together"
    )
