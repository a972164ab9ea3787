"""How others start the pre-flight: the command of one host, and the secret that all share."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from assay import machine
from assay.errors import BadInput
from assay.layout import fold_hosts

TOKEN_VARIABLE = "ASSAY_PREFLIGHT_TOKEN"  # noqa: S105 # the variable's name
_LEAST_TOKEN = 16  # characters


def new_token() -> str:
    """A secret for one pre-flight. It goes to the hosts in TOKEN_VARIABLE, never on a command line, which all can read."""
    return secrets.token_hex(16)


def token_of(env: Mapping[str, str]) -> str:
    """The secret of this pre-flight. Raises BadInput without one, or if it could be guessed."""
    token = env.get(TOKEN_VARIABLE, "")
    if len(token) < _LEAST_TOKEN:
        raise BadInput(
            f"{TOKEN_VARIABLE} is {'too short' if token else 'not set'}: give all hosts the same secret of at least "
            f"{_LEAST_TOKEN} characters, such as from: openssl rand -hex 16"
        )
    return token


def argv(
    meet: str,
    hosts: Sequence[str],
    *,
    folder: Path,
    devices: int | None = None,
    free: int | None = None,
    clock_bound: float | None = None,
    interface: str | None = None,
    wait: float | None = None,
    json: Path | None = None,
    torch: bool = False,
    python: str | None = None,
) -> list[str]:
    """The command that is started once on every host, the same everywhere, with TOKEN_VARIABLE in its environment.

    meet: HOST:PORT on the first host; hosts: names, or node lists as Slurm writes them, first the one of index 0; free:
    bytes; clock_bound, wait: s; json: where the first host writes the document. What is None is left to the default.
    """
    given = {
        "--meet": meet,
        "--hosts": ",".join(hosts) if any("[" in host for host in hosts) else fold_hosts(hosts),
        "--folder": str(folder),
        "--devices": devices,
        "--free": free,
        "--clock-bound": clock_bound,
        "--interface": interface,
        "--wait": wait,
        "--json": json,
    }
    words = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    return [python or machine.python(), "-m", "assay.preflight", *words, *(["--torch"] if torch else [])]
