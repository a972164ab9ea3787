"""How ranks lie on hosts, and which of a launcher's names mean what. Pure functions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from assay.errors import BadInput


@dataclass(frozen=True)
class Layout:
    """`world` ranks, `per_node` on every host: ranks 0 … per_node − 1 on the first, and so on."""

    world: int
    per_node: int

    @property
    def nodes(self) -> int:
        """Number of hosts."""
        return self.world // self.per_node

    def node_of(self, rank: int) -> int:
        """Which host, counted from 0, a rank lies on."""
        return rank // self.per_node


def lay_out(world: int, per_node: int, available: int | None = None) -> Layout:
    """`world` ranks on as few hosts as they need, at most `per_node` on each. available: hosts that there are.

    Raises BadInput if the last host would have fewer ranks than the others, or if there are too few hosts.
    """
    if world <= per_node:
        return Layout(world, world)
    if world % per_node:
        raise BadInput(
            f"{world} ranks do not fill hosts of {per_node} ranks evenly; give a multiple of {per_node}, or another -n"
        )
    layout = Layout(world, per_node)
    if available is not None and layout.nodes > available:
        raise BadInput(
            f"{world} ranks, {per_node} on a host, need {layout.nodes} hosts, but there are {available}; "
            "ask for more hosts, or put more ranks on each with -n"
        )
    return layout


def counts_per_node(text: str) -> list[int]:
    """Slurm's counts by node in order: `2(x3),1` → [2, 2, 2, 1]. What is no number is left out."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match:
            counts += [int(match[1])] * int(match[2] or 1)
    return counts


def expand_hosts(text: str) -> list[str]:
    """The hosts of a Slurm node list: `n[08-10,12],x1` → n08, n09, n10, n12, x1; of `a[1-2]b[1-2]`, four.

    Raises BadInput where a bracket is not closed or a range is none.
    """
    hosts: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", text):
        names = [""]
        for plain, ranges in re.findall(r"([^\[]*)(\[[^\]]*\]?)?", item):
            numbers = _range_numbers(ranges, text) if ranges else [""]
            names = [f"{name}{plain}{number}" for name in names for number in numbers]
        hosts += names
    return hosts


def fold_hosts(hosts: Sequence[str]) -> str:
    """The node list that `expand_hosts` makes these hosts of, with neighbouring numbers as ranges: n08, n09 → n[08-09]."""
    parts: list[str] = []
    first, last, stem = "", "", ""
    for host in hosts:
        match = re.fullmatch(r"(.*?)(\d{1,9})", host, re.ASCII)
        name, number = (match[1], match[2]) if match else (host, "")
        follows = number and name == stem and last and int(number) == int(last) + 1 and len(number) == len(last)
        if not follows:
            parts += [_folded(stem, first, last)] if first or stem else []
            stem, first = name, number
        last = number
    return ",".join([*parts, *([_folded(stem, first, last)] if first or stem else [])])


def _folded(stem: str, first: str, last: str) -> str:
    return f"{stem}[{first}-{last}]" if first != last else f"{stem}{first}"


def _range_numbers(ranges: str, text: str) -> list[str]:
    numbers: list[str] = []
    for part in ranges.removeprefix("[").removesuffix("]").split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not ranges.endswith("]") or not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
            raise BadInput(f"node list {text!r}: {ranges!r} is no range; expected such as node[01-04,7]")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers
