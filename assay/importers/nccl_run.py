"""One run of nccl-tests: what its head tells, in text and in JSON alike, and how a result becomes rows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from assay.bandwidth import algbw, busbw
from assay.errors import BadInput
from assay.importers.output import Given, Row, check_rate, half_digit, known_op, number

# Programs whose name is not ours; the others are called like the collective.
_OPS = {"alltoall": "all_to_all", "alltoallv": "all_to_all_v"}
_DTYPES = {"float": "float32", "half": "float16", "double": "float64", "char": "int8", "int": "int32"}
_PROGRAM = re.compile(r"(?:.*[/\\])?(\w+?)_perf\w*(?:\.exe)?")


@dataclass
class Run:
    """The head of one run. ranks: (group, rank) of every rank listed; processes: (group, host, process).

    local: ranks per process. calls: behind each mean. settings: what was set besides the usual. over: what the mean is of.
    versions: of nccl-tests and NCCL.
    """

    op: str | None = None
    ranks: set[tuple[int, int]] = field(default_factory=set)
    processes: set[tuple[int, str, int]] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)
    local: int = 1
    calls: int | None = None
    settings: dict[str, str | int] = field(default_factory=dict)
    over: str = "mean over ranks unless -a says otherwise"
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def world(self) -> int | None:
        """Ranks in a communicator; None if none is listed.

        JSON lists one rank a process, and text cuts the list of a process with many: so processes × ranks in each.
        """
        groups = {group for group, _ in self.ranks}
        if not groups:
            return None
        first = min(groups)
        listed = sum(group == first for group, _ in self.ranks)
        return max(listed, self.local * sum(group == first for group, _, _ in self.processes))

    @property
    def hosts(self) -> int:
        """Hosts of the ranks listed."""
        return len({host for _, host, _ in self.processes})

    @property
    def origin(self) -> str:
        """Where it was measured and with what, in words."""
        hosts = [f"{self.hosts} host{'' if self.hosts == 1 else 's'}"] if self.hosts else []
        return ", ".join([*hosts, *sorted(filter(None, self.devices)), *(f"{n} {v}" for n, v in self.versions.items())])

    def count(self, iterations: int, aggregated: int, graphs: int) -> None:
        """Take how often a call was made: in groups of `aggregated`, in a graph launched `graphs` times (0: none)."""
        self.calls = iterations * max(aggregated, 1) * max(graphs, 1)
        if aggregated > 1:
            self.settings["coalesced"] = aggregated
        if graphs > 0:
            self.settings["graph"] = graphs

    def collective(self, where: str, given: Given) -> str:
        """The collective, of the head or the user. Raises BadInput if neither tells it, or if they differ."""
        if self.op and given.op and self.op != given.op:
            raise BadInput(f"{where}: the file says {self.op}, --op says {given.op}; leave --op out")
        op = self.op or given.op
        if op is None:
            raise BadInput(f"{where}: the head does not name the collective (older nccl-tests); give it with --op")
        return known_op(where, op)


@dataclass(frozen=True)
class Result:
    """One result as printed, in µs, and GB/s of 10⁹; wrong: None where it was not checked."""

    size: int
    dtype: str
    redop: str
    root: str
    placement: str
    time: str
    algbw: str
    busbw: str
    wrong: int | None


def op_of(program: str) -> str | None:
    """The collective that a program of nccl-tests measures: `build/alltoall_perf` → `all_to_all`; None if it is none."""
    match = _PROGRAM.fullmatch(program.strip())
    return _OPS.get(match[1], match[1]) if match else None


def mean_row(where: str, run: Run, world: int, op: str, result: Result) -> Row:
    """The row of a result. Raises BadInput if its bandwidths are not those of our formulas."""
    settings: dict[str, str | int] = {"placement": result.placement, **run.settings}
    groups = len({group for group, _ in run.ranks})
    if groups > 1:
        settings["groups"] = groups
    if result.redop.strip() not in ("", "none", "sum"):
        settings["redop"] = result.redop.strip()
    if result.root.strip() not in ("", "-1", "0"):
        settings["root"] = result.root.strip()
    row = Row(
        where,
        op,
        result.size,
        (number(where, "time", result.time) * 1e-6,),
        "mean",
        "waited_for" if "blocking" in run.settings else "back_to_back",
        run.over,
        world,
        dtype=_DTYPES.get(result.dtype, result.dtype),
        calls=run.calls,
        wrong=result.wrong,
        settings=settings,
        backend="nccl",
        origin=run.origin,
    )
    rounding = half_digit(result.time) * 1e-6
    check_rate(row, "algbw", result.algbw, 1e9, rounding, lambda t: algbw(row.bytes, t))
    check_rate(row, "busbw", result.busbw, 1e9, rounding, lambda t: busbw(op, row.bytes, t, world))
    return row


def versions_of(tests: str | None, library: int | None) -> Mapping[str, str]:
    """Versions for people: of nccl-tests, and of NCCL out of its number (22807 → 2.28.7)."""
    found = {"nccl-tests": tests} if tests else {}
    if library:
        # Up to 2.8 the number had one digit for the minor version.
        found["nccl"] = (
            f"{library // 10000}.{library // 100 % 100}.{library % 100}"
            if library >= 10000
            else f"{library // 1000}.{library // 100 % 10}.{library % 100}"
        )
    return found
