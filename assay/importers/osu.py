"""Outputs of the OSU micro-benchmarks (C, MPI or a collective library below it), plain or with full statistics.

Sizes are those of one rank's message, latencies in µs, bandwidths in MB/s of 10⁶ (both directions counted by
osu_bibw). No output tells the number of ranks.
"""

import re
from dataclasses import dataclass, field

from assay.errors import BadInput
from assay.importers.output import (
    Given,
    Output,
    Row,
    agreed_world,
    all_versions,
    known_op,
    number,
    numbered_lines,
    whole,
)

# OSU's title → our name, and how often S holds the size that OSU prints: n where it is the part for one rank.
_TESTS = {
    "Allreduce Latency Test": ("all_reduce", False),
    "Allgather Latency Test": ("all_gather", True),
    "All-to-All Personalized Exchange Latency Test": ("all_to_all", True),
    "Broadcast Latency Test": ("broadcast", False),
    "Reduce Latency Test": ("reduce", False),
    "Reduce_scatter Latency Test": ("reduce_scatter", False),
    "Gather Latency Test": ("gather", True),
    "Scatter Latency Test": ("scatter", True),
    "Bandwidth Test": ("pt2pt", False),
    "Bi-Directional Bandwidth Test": ("pt2pt_bidirectional", False),
    "Latency Test": ("pt2pt", False),
}
_TITLE = re.compile(r"\s*# OSU (\S+) (.+) v(\d\S*)\s*")
_DTYPE = re.compile(r"\s*# Datatype: (\w+)\.?\s*")
_DTYPES = {"MPI_CHAR": "char", "MPI_INT": "int32", "MPI_FLOAT": "float32"}
# The point-to-point tests of a build for devices tell where both buffers are: host, device, or managed (M, MD, MH).
_BUFFERS = re.compile(r"\s*# Send Buffer on \w+ \((\w+)\) and Receive Buffer on \w+ \((\w+)\)\s*")
_COLUMN = re.compile(
    r"Size|(?:(?:Avg|Min|Max) )?Latency ?\(us\)|Bandwidth ?\(MB/s\)|Iterations|Validation"
    r"|P\d+ Tail (?:Lat ?\(us\)|BW ?\(MB/s\))"
)
_MEANS = ("Avg Latency(us)", "Latency(us)")
_FULL = ["Size", "Avg Latency(us)", "Min Latency(us)", "Max Latency(us)", "Iterations"]


@dataclass
class _Table:
    """The test whose lines are being read. device: whose memory takes part. buffers: where they are, if it says so."""

    title: str
    op: str
    per_rank: bool
    world: int
    backend: str
    device: str | None
    version: str
    buffers: str | None = None
    dtype: str | None = None
    columns: list[str] = field(default_factory=list)

    def take_buffers(self, send: str, receive: str) -> None:
        """Take where the test says that its buffers are, in its letters."""
        device = self.device or "device"
        words = {"H": "host", "D": device}
        places = [words.get(letters, f"{device} managed ({letters})") for letters in (send, receive)]
        self.buffers = " to ".join(dict.fromkeys(places))
        if self.buffers == "host":
            self.device = None


def parse(text: str, source: str, given: Given) -> Output:
    """Every row of every table. Raises BadInput, with file and line, for what cannot be read or is not known."""
    table: _Table | None = None
    tables: list[_Table] = []
    rows: list[Row] = []
    for where, line in numbered_lines(text, source):
        if title := _TITLE.fullmatch(line):
            table = _begin(where, title, given)
            tables.append(table)
        elif table and (named := _DTYPE.fullmatch(line)):
            table.dtype = _DTYPES.get(named[1], named[1])
        elif table and (buffers := _BUFFERS.fullmatch(line)):
            table.take_buffers(buffers[1], buffers[2])
        elif table and line.lstrip().startswith("# Size"):
            table.columns = _columns(where, line)
        elif table and table.columns and line.split()[:1] and line.split()[0].isdigit():
            rows += _rows(where, table, line.split())
    devices = {table.device for table in tables}
    versions = all_versions({"osu-micro-benchmarks": table.version} for table in tables)
    return Output(rows, device=devices.pop() if len(devices) == 1 else None, versions=versions)


def _begin(where: str, head: re.Match[str], given: Given) -> _Table:
    library, _, device = head[1].lower().partition("-")
    title = head[2]
    if title not in _TESTS:
        raise BadInput(f"{where}: OSU's {title!r} cannot be imported; these can: {', '.join(_TESTS)}")
    op, per_rank = _TESTS[title]
    # The point-to-point tests run on two ranks, and refuse any other number.
    pair = 2 if op.startswith("pt2pt") else None
    world = agreed_world(where, None, given.world or pair)
    return _Table(title, known_op(where, op), per_rank, world, library, device or None, head[3])


def _columns(where: str, line: str) -> list[str]:
    strange = _COLUMN.sub("", line.replace("#", "")).strip()
    if strange:
        raise BadInput(f"{where}: unknown column {strange!r}; run the test without the option that adds it")
    return [name.replace(" (", "(") for name in _COLUMN.findall(line)]


def _rows(where: str, table: _Table, cells: list[str]) -> list[Row]:
    columns = table.columns
    # OSU 7.3 prints the statistics of -f below a head that names the average alone.
    if columns == _FULL[:2] and len(cells) == len(_FULL):
        columns = _FULL
    if len(cells) != len(columns):
        raise BadInput(
            f"{where}: expected {len(columns)} columns ({', '.join(columns)}), got {len(cells)}; remove the line"
        )
    named = dict(zip(columns, cells, strict=True))
    size = whole(where, "Size", named["Size"])
    calls = whole(where, "Iterations", named["Iterations"]) if "Iterations" in named else None
    # How many elements were wrong is not printed: 1 stands for at least one.
    wrong = {"Pass": 0, "Fail": 1}.get(named.get("Validation", ""))
    buffers = table.buffers or table.device

    def row(seconds: float, statistic: str, timing: str, wrong: int | None = None) -> Row:
        total = size * table.world if table.per_rank else size
        over = "mean over ranks" if timing == "call_by_call" else "between two ranks"
        return Row(
            where,
            table.op,
            total,
            (seconds,),
            statistic,
            timing,
            over,
            table.world,
            dtype=table.dtype,
            calls=calls,
            wrong=wrong,
            settings={"buffers": buffers} if buffers else {},
            backend=table.backend,
            origin=f"OSU's suite {table.version}",
        )

    if "Bandwidth(MB/s)" in named:
        rate = number(where, "Bandwidth", named["Bandwidth(MB/s)"]) * 1e6
        moved = 2 * size if table.op == "pt2pt_bidirectional" else size
        return [row(moved / rate if rate else 0.0, "mean", "back_to_back", wrong)]
    timing = "ping_pong" if table.title == "Latency Test" else "call_by_call"
    found = []
    for name, cell in named.items():
        statistic = _statistic(name)
        if statistic:
            seconds = number(where, name, cell) * 1e-6
            found.append(row(seconds, statistic, timing, wrong if statistic == "mean" else None))
    return found


def _statistic(column: str) -> str | None:
    if column in _MEANS:
        return "mean"
    if column.startswith("P"):
        return column.partition(" ")[0].lower()
    # The least and the greatest of the ranks' means, not of the calls.
    return {"Min Latency(us)": "fastest_rank", "Max Latency(us)": "slowest_rank"}.get(column)
