"""The pre-flight of a suite: started by its launcher, one process a host, before the first case."""

import os
import platform
import subprocess
from pathlib import Path

from assay import machine
from assay.errors import BAD_INPUT_EXIT, BadInput, RunFailed
from assay.launchers.ports import free_port
from assay.launchers.protocol import Launcher
from assay.placement import tells_of_a_rank
from assay.preflight.start import TOKEN_VARIABLE, argv, new_token
from assay.suite import Suite, layout_of

LIMIT_SECONDS = 300.0  # far beyond any pre-flight, for a launcher that hangs
DOCUMENT = "preflight.json"


def look_at_hosts(launcher: Launcher, suite: Suite, folder: Path) -> None:
    """Print the table of checks and keep them in the run folder. Raises RunFailed if the hosts are not ready."""
    layouts = [layout_of(case, suite.file) for case in suite.cases]
    nodes = max(layout.nodes for layout in layouts)
    wanted = {case.options.device for case in suite.cases}
    # Ranks on processors need no devices of their own.
    devices = None if "cpu" in wanted else max(layout.per_node for layout in layouts)
    code = preflight(launcher, nodes, folder, devices, json=folder / DOCUMENT)
    if code == BAD_INPUT_EXIT:
        raise BadInput("the pre-flight could not be made; what it lacks is told above")
    if code:
        raise RunFailed("the pre-flight found the hosts not ready; mend what it names, then resume the run")


def preflight(
    launcher: Launcher, nodes: int, folder: Path, devices: int | None, *, json: Path | None, torch: bool = False
) -> int:
    """Start it on the first `nodes` hosts and wait for it; the exit code of `assay.preflight`.

    devices: how many each host should have; None: any number. torch: ask torch for them. Raises RunFailed if the launcher
    hangs.
    """
    hosts = launcher.hosts[:nodes] or (platform.node(),)
    meet = f"{launcher.address}:{launcher.meeting_port(None) or free_port()}"
    python = machine.node_python(os.environ)
    words = argv(meet, hosts, folder=folder.resolve(), devices=devices, json=json, torch=torch, python=python)
    command = launcher.on_each_host(len(hosts), words, {TOKEN_VARIABLE: new_token()}, os.environ)
    env = {name: value for name, value in os.environ.items() if not tells_of_a_rank(name)} | command.env
    try:
        return subprocess.run(
            command.argv, env=env, stdin=subprocess.DEVNULL, check=False, timeout=LIMIT_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        raise RunFailed(f"the pre-flight did not end within {LIMIT_SECONDS:g} s: {command.argv[0]} hangs") from None
    except OSError as error:
        raise RunFailed(f"{command.argv[0]}: {(error.strerror or str(error)).lower()}") from error
