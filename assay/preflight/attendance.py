"""Which of the hosts that were asked for have come: names for indices, and checks of who is missing or came twice."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from assay.preflight.check import Check, plural, some
from assay.preflight.facts import Arrival
from assay.preflight.meeting import Gathered


def names_of(hosts: Sequence[str], arrivals: Sequence[Arrival]) -> dict[int, str]:
    """The name of every arrival, by its index: the one it was asked for by, where that is what its host calls itself.

    Launchers need not keep the order of `hosts`; so names count first, and the index only where a host calls itself
    something else (an alias, an address). Who fits neither keeps its own name, with its index. Names are unique.
    """
    left = {_short(host): host for host in hosts}
    named = {arrival.index: host for arrival in arrivals if (host := left.pop(_short(arrival.name), None)) is not None}
    known = {_short(host) for host in named.values()}
    free = set(left.values())
    for arrival in arrivals:
        if arrival.index in named:
            continue
        expected = hosts[arrival.index]
        if expected in free and _short(arrival.name) not in known:
            free.remove(expected)
            named[arrival.index] = expected
        else:
            named[arrival.index] = f"{arrival.name} (index {arrival.index})"
    return named


def _short(host: str) -> str:
    """`node1.cluster` → `node1`; an address as it is."""
    try:
        return str(ip_address(host))
    except ValueError:
        return host.partition(".")[0].lower()


def attendance(heard: Gathered, names: Mapping[int, str], where: str) -> list[Check]:
    """Who answered; one failed check for all that did not, for all that came but did not report, and for each kind of double."""
    # Who came under somebody else's index has answered all the same.
    came = {
        *names.values(),
        *(host for host in heard.hosts for item in heard.doubles if _short(host) == _short(item.name)),
    }
    missing = [host for host in heard.hosts if host not in came]
    found = []
    if missing:
        fix = (
            f"see that {some(missing)} {'is' if len(missing) == 1 else 'are'} up (ping, scontrol show node), that the "
            f"pre-flight starts there and reaches {where}, or leave {'it' if len(missing) == 1 else 'them'} out"
        )
        found.append(Check("hosts", "failed", f"{some(missing)} did not answer", fix, tuple(missing)))
    for why in dict.fromkeys(heard.silent.values()):
        silent = [names[index] for index, reason in heard.silent.items() if reason == why]
        fix = f"look at what the pre-flight printed on {some(silent)}"
        found.append(Check("hosts", "failed", f"{some(silent)} answered, but {why}", fix, tuple(silent)))
    found += _doubles(heard, names)
    if heard.strangers:
        fix = "give all hosts the starter's ASSAY_PREFLIGHT_TOKEN (mpirun -x, srun --export)"
        told = f"somebody at {some(heard.strangers)} called with another token and was refused"
        found.append(Check("hosts", "warning", told, fix))
    if not any(check.state == "failed" for check in found):
        found.append(Check("hosts", "ok", f"{plural(len(heard.hosts), 'host')} of {len(heard.hosts)} answered"))
    return found


def _doubles(heard: Gathered, names: Mapping[int, str]) -> list[Check]:
    found = []
    once = "start one process on each host (srun --ntasks-per-node=1, mpirun --map-by ppr:1:node)"
    for double in heard.doubles:
        told = f"two processes came as index {double.index}: on {names.get(double.index, '?')} and on {double.name}"
        found.append(Check("hosts", "failed", told, once, (double.name,)))
    by_name: dict[str, list[Arrival]] = {}
    for arrival in heard.arrivals:
        by_name.setdefault(arrival.name, []).append(arrival)
    for name, same in by_name.items():
        indices = some([str(arrival.index) for arrival in same])
        if len(same) == 1:
            continue
        if len({arrival.clock for arrival in same}) == 1:
            told = f"{len(same)} processes run on {name}: indices {indices}"
            found.append(Check("hosts", "failed", told, once, (name,)))
        else:
            told = f"{len(same)} hosts call themselves {name}: indices {indices}"
            fix = "give each its own host name: results are told apart by it"
            found.append(Check("hosts", "warning", told, fix, (name,)))
    return found
