"""From what the hosts told to checks. Pure: the same reports give the same checks."""

from dataclasses import asdict, dataclass

from assay.preflight import connections, equality, places
from assay.preflight.attendance import attendance, names_of
from assay.preflight.check import Check, Verdict, sorted_checks
from assay.preflight.meeting import Gathered

FREE_BYTES = 1 << 30  # records of a long suite are some tens of MB; reports, logs and a core file come to that
CLOCK_BOUND = 0.1  # s


@dataclass(frozen=True)
class Wanted:
    """What is asked of every host. devices: None for any number; free: bytes; clock_bound: s."""

    devices: int | None = None
    free: int = FREE_BYTES
    clock_bound: float = CLOCK_BOUND


def judge(heard: Gathered, wanted: Wanted, where: str) -> tuple[Check, ...]:
    """Every check, what weighs most first. where: HOST:PORT at which they met, for what to do."""
    names = names_of(heard.hosts, heard.arrivals)
    reports = {names[index]: report for index, report in sorted(heard.reports.items())}
    return sorted_checks(
        [
            *attendance(heard, names, where),
            *equality.software(reports),
            *equality.code(reports),
            *places.clocks(reports, names[0], wanted.clock_bound),
            *places.devices(reports, wanted.devices),
            *places.disk(reports, wanted.free, heard.probe),
            *places.memory(reports, wanted.free),
            *connections.interfaces(reports),
            *connections.reachability(reports, names),
            *connections.launchers(reports),
            *equality.settings(reports),
        ]
    )


def verdict(heard: Gathered, wanted: Wanted, where: str, *, seconds: float, when: str) -> Verdict:
    """The checks with all that they rest on."""
    names = names_of(heard.hosts, heard.arrivals)
    told = {names[index]: asdict(report) for index, report in sorted(heard.reports.items())}
    return Verdict(judge(heard, wanted, where), heard.hosts, told, seconds, when)
