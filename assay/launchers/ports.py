"""Ports at which ranks meet: free at the moment when they are chosen, and not where other programs take theirs."""

import random
import socket

from assay.errors import BadInput

LOWEST, HIGHEST = 20000, 32767  # below the range from which Linux gives ports to outgoing connections
_TRIES = 200


def check_port(port: int | None) -> None:
    """Raise BadInput if the rendezvous port that the user asked for is taken on this host."""
    if port is None:
        return
    refusal = _refusal(port)
    if refusal is not None:
        raise BadInput(f"port {port}: {refusal}; give a free one, or none")


def port_text(port: int | None) -> str:
    """The port as a command line has it; in a plan, which is made before any is chosen, a word for it."""
    return "PORT" if port is None else str(port)


def free_port() -> int:
    """A port of this host that nobody listens on, chosen at random so that two jobs on one host seldom meet.

    Raises BadInput if there is none.
    """
    for _ in range(_TRIES):
        port = random.randint(LOWEST, HIGHEST)
        if _refusal(port) is None:
            return port
    raise BadInput(f"no free port between {LOWEST} and {HIGHEST} on this host; give one with port: in the suite")


def _refusal(port: int) -> str | None:
    # Every address: torch's store listens on all of them, whatever name it is reached by.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None
