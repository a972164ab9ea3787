"""Judging who reaches whom, whether interfaces are there, and whether launchers agree on who is who."""

from collections.abc import Mapping

from assay.preflight.check import Check, plural, some
from assay.preflight.equality import split
from assay.preflight.facts import Report
from assay.preflight.surroundings import called, named


def reachability(reports: Mapping[str, Report], names: Mapping[int, str]) -> list[Check]:
    """Directions in which nobody answered; a host that is in all of them is named as the likely cause.

    names: of every index that was knocked at. Of n hosts there are n·(n − 1) directions.
    """
    tried = [(host, names[knock.to], knock.error) for host, item in reports.items() for knock in item.knocks]
    failed = [(start, end, error) for start, end, error in tried if error is not None]
    count = len(names)
    if count < 2:
        return []
    share = f"{len(tried):,} of {count * (count - 1):,} directions tried"
    if not failed:
        return [Check("network", "ok", f"{share}, all answered")]
    told = some([f"{start} → {end} ({error})" for start, end, error in failed])
    fix = "look at cables, routes and firewall between them (ip route get, ip link), or leave one of them out"
    hosts = tuple(dict.fromkeys(host for start, end, _ in failed for host in (start, end)))
    culprit = _in_all(failed)
    if culprit:
        ways = sum(culprit in (start, end) for start, end, _ in tried)
        told = f"{culprit} is in all {plural(len(failed), 'failure')}, of {ways} directions with it: {told}"
        fix = f"look at {culprit}: its cable, interface, routes and firewall (ip link, ip route), or leave it out"
        hosts = (culprit,)
    return [Check("network", "failed", f"{told}; {share}", fix, hosts)]


def _in_all(failed: list[tuple[str, str, str]]) -> str | None:
    """The one host that is an end of every failed direction; None if there is none, or two (a single pair)."""
    common = set(failed[0][:2]).intersection(*({start, end} for start, end, _ in failed))
    return common.pop() if len(common) == 1 else None


def interfaces(reports: Mapping[str, Report]) -> list[Check]:
    """Whether the interfaces that were asked for are there, and whether all variables mean the same one."""
    networks = {host: report.network for host, report in reports.items() if report.network is not None}
    absent = {
        host: (some([f"{wish.source}={wish.value}" for wish in network.wishes if not wish.means]), network.names)
        for host, network in networks.items()
        if not all(wish.means for wish in network.wishes)
    }
    found = []
    for (wanted, there), hosts in split(absent).groups:
        told = f"{some(hosts)}: {wanted} names no interface there (there are: {', '.join(there)})"
        fix = "name one that is on all hosts (ip -br addr shows them)"
        found.append(Check("interface", "failed", told, fix, hosts))
    unusable = {
        host: some([f"{wish.source}={wish.value}" for wish in network.wishes])
        for host, network in networks.items()
        if network.name is None and any(wish.means and not wish.value.startswith("^") for wish in network.wishes)
    }
    for wanted, hosts in split(unusable).groups:
        told = f"{some(hosts)}: {wanted} is down or has no address"
        found.append(Check("interface", "failed", told, "bring it up (ip link set … up), or name another", hosts))
    found += _contradictions(reports)
    if not found:
        used = split({host: network.name or "the way to the first host" for host, network in networks.items()})
        rows = [name if used.equal else f"{name} on {some(hosts)}" for name, hosts in used.groups]
        found.append(Check("interface", "ok", f"used: {some(rows)}"))
    return found


def _contradictions(reports: Mapping[str, Report]) -> list[Check]:
    said = {}
    for host, report in reports.items():
        wishes = [wish for wish in (report.network.wishes if report.network else ()) if wish.means]
        if wishes and not set(wishes[0].means).intersection(*(wish.means for wish in wishes)):
            said[host] = ", ".join(f"{wish.source}={wish.value}" for wish in wishes)
    fix = "name one interface in all of them, unless backends are meant to go different ways"
    return [
        Check("interface", "warning", f"{some(hosts)}: different interfaces are named: {told}", fix, hosts)
        for told, hosts in split(said).groups
    ]


def launchers(reports: Mapping[str, Report]) -> list[Check]:
    """Whether variables of two launchers say different things of the same process."""
    said: dict[str, tuple[str, ...]] = {}
    for host, report in reports.items():
        if not report.seats:
            continue
        believed, *others = report.seats
        # mpirun starts its own daemons as a Slurm step, whose numbers its ranks inherit.
        own = {"Open MPI", "MPICH"} if believed.launcher in ("Open MPI", "MPICH") else set()
        apart = [
            seat
            for seat in others
            if (seat.rank, seat.world) != (believed.rank, believed.world) and not (own and seat.launcher == "Slurm")
        ]
        if apart:
            said[host] = tuple(named(seat) for seat in (believed, *apart))
    if said:
        host, rows = next(iter(said.items()))
        told = f"{some(list(said))}: launchers disagree ({host}: {some(rows)}); the first was believed"
        fix = "start with one launcher, and unset the variables that another has left (env | grep -E 'RANK|SLURM|OMPI')"
        return [Check("launcher", "warning", told, fix, tuple(said))]
    names = dict.fromkeys(called(seat.launcher) for report in reports.values() for seat in report.seats)
    return [Check("launcher", "ok", f"places by {some([*names])}" if names else "none: one process, started by hand")]
