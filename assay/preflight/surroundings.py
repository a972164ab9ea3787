"""What the environment says: which launcher counts this process how, which interface is meant, which settings matter."""

import re
import socket
from collections.abc import Mapping, Sequence

import psutil

from assay import machine
from assay.errors import BadInput
from assay.placement import placement
from assay.preflight.facts import Network, Seat, Wish

# The variables of each launcher, so that its place can be asked for as if it were alone.
_LAUNCHERS = (
    re.compile(r"RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE"),
    re.compile(r"OMPI_COMM_WORLD_\w+"),
    re.compile(r"PMI_\w+|MPI_LOCALN?RANK\w*"),
    re.compile(r"SLURM_\w+"),
)
_BY_HAND = {"torchrun": "RANK and WORLD_SIZE"}  # torchrun sets them, and so does a person
INTERFACE_VARIABLES = (
    "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "RCCL_SOCKET_IFNAME", "HCCL_SOCKET_IFNAME",
    "CNCL_SOCKET_IFNAME",
)  # fmt: skip
# What should be equal on all hosts. Names of a host's own interfaces and cards may differ; a port or an algorithm not.
_SHARED = re.compile(r"MASTER_(ADDR|PORT)|(NCCL|RCCL|HCCL|GLOO|UCX|UCC|TORCH_NCCL|PYTORCH|OMP)_\w+")
_OWN = re.compile(r"\w+_(IFNAME|HCA|DEVICES?|IP)")


def seats(env: Mapping[str, str]) -> tuple[Seat, ...]:
    """Every launcher that says a place, each asked for itself, and the one that is believed first."""
    found: list[Seat] = []
    for names in (re.compile(r".*"), *_LAUNCHERS):
        try:
            place = placement({name: value for name, value in env.items() if names.fullmatch(name)})
        except BadInput:
            continue  # the believed one was asked before; what is left of another is not of use
        if place.launcher != "none":
            found.append(Seat(place.launcher, place.rank, place.world))
    return tuple(dict.fromkeys(found))


def called(launcher: str) -> str:
    """A launcher's name for a sentence."""
    return _BY_HAND.get(launcher, launcher)


def named(seat: Seat) -> str:
    """A seat for a sentence: `Slurm: 2 of 4`."""
    return f"{called(seat.launcher)}: {seat.rank} of {seat.world}"


def settings(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that steer communication and should be equal everywhere; what looks secret is withheld."""
    return {
        name: value
        for name, value in machine.environment(env).items()
        if _SHARED.fullmatch(name) and not _OWN.fullmatch(name)
    }


def network(env: Mapping[str, str], interface: str | None, address: str) -> Network:
    """This host's interfaces and what is asked of them. address: the one to use where no usable interface is named."""
    names = interfaces()
    wishes = ([Wish("--interface", interface, means("", interface, list(names)))] if interface else []) + [
        Wish(variable, env[variable], means(variable, env[variable], list(names)))
        for variable in INTERFACE_VARIABLES
        if env.get(variable)
    ]
    for wish in wishes:
        # `^docker0` only says what is not meant; then the way to the first host tells what is.
        usable = [name for name in wish.means if names[name]] if not wish.value.startswith("^") else []
        if usable:
            return Network(tuple(wishes), usable[0], tuple(names), names[usable[0]][0])
    return Network(tuple(wishes), None, tuple(names), address)


def means(variable: str, value: str, names: Sequence[str]) -> tuple[str, ...]:
    """Which of the interfaces `names` are meant, in the order as written.

    NCCL's variable (and its relatives') holds beginnings of names, whole ones after `=`, or after `^` those not to use;
    the others hold whole names.
    """
    begins = variable.endswith("CCL_SOCKET_IFNAME")
    unwanted = begins and value.startswith("^")
    whole = not begins or value.removeprefix("^").startswith("=")
    words = [
        word.strip()
        for word in value.removeprefix("^" if begins else "").removeprefix("=" if begins else "").split(",")
    ]
    hits = [name for word in words if word for name in names if name == word or (not whole and name.startswith(word))]
    if unwanted:
        return tuple(name for name in names if name not in hits and name != "lo")
    return tuple(dict.fromkeys(hits))


def interfaces() -> dict[str, list[str]]:
    """Every interface and its addresses, IPv4 first; those that are down and link-local ones have none."""
    states = psutil.net_if_stats()
    found: dict[str, list[str]] = {}
    for name, addresses in psutil.net_if_addrs().items():
        up = name in states and states[name].isup
        kept = [
            item
            for item in addresses
            if up and item.family in _FAMILIES and not item.address.lower().startswith("fe80")
        ]
        found[name] = [item.address for item in sorted(kept, key=lambda item: _FAMILIES.index(item.family))]
    return found


_FAMILIES = (socket.AF_INET, socket.AF_INET6)
