"""What the three scripts in launch/ share: their command line, and a job made of it."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from assay.errors import SENTENCE_MARK, AssayError, BadInput
from assay.launchers.protocol import Command, Job, Launcher
from assay.layout import Layout
from assay.options import SCRIPTS
from assay.options.base import nearest
from assay.placement import tells_of_a_rank
from assay.scripts import script_path


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of ours: one sentence."""

    def error(self, message: str) -> NoReturn:
        unknown = message.startswith("unrecognized")
        hint = "our own come before the script, the script's behind --" if unknown else "--help tells what there is"
        fail(BadInput(f"{message}; {hint}"))


def parser(description: str, *, nodes: bool) -> argparse.ArgumentParser:
    """The command line: -N, -n, the script, and behind `--` the script's own arguments."""
    made = _Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    if nodes:
        made.add_argument("-N", "--nodes", type=_count, default=1, metavar="N", help="number of hosts [1]")
    made.add_argument("-n", "--per-node", type=_count, default=1, metavar="N", help="ranks on each host [1]")
    made.add_argument("--port", type=_port, default=None, help="where ranks meet [a free one]")
    made.add_argument("--dry-run", action="store_true", help="print what would be started, and start nothing")
    made.add_argument("script", help="a script of ours, such as comms/bench.py, or any other")
    made.add_argument("arguments", nargs="*", help="the script's own, behind --")
    return made


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, got {text!r}")
    return int(text)


def job(told: argparse.Namespace) -> Job:
    """The job that the command line describes. Raises BadInput if the script is nowhere."""
    path = find_script(told.script)
    layout = Layout(getattr(told, "nodes", 1) * told.per_node, told.per_node)
    return Job(path.stem, (str(path), *told.arguments), layout, Path(), watched=False)


def find_script(text: str) -> Path:
    """A file as it is given, or a script of ours by name, with or without `.py`. Raises BadInput."""
    if Path(text).is_file():
        return Path(text).resolve()
    name = text.removesuffix(".py")
    if name in SCRIPTS:
        return script_path(name)
    raise BadInput(f"script {text!r}: no such file{nearest(name, list(SCRIPTS))}")


def become(told: argparse.Namespace, launcher: Launcher) -> None:
    """Become what the launcher starts, or print it. Raises BadInput if the script is nowhere or the port is taken."""
    command = launcher.render(job(told), launcher.meeting_port(told.port), surroundings())
    if told.dry_run:
        show(command)
    else:
        replace_process(command)


def replace_process(command: Command) -> NoReturn:
    """Become the command: its output, its signals and its exit code are this process's own."""
    sys.stdout.flush()
    os.execvpe(command.argv[0], command.argv, {**surroundings(), **command.env})


def surroundings() -> dict[str, str]:
    """The environment without what an outer launcher said of this process, and without the runner's mark: a person reads."""
    return {name: value for name, value in os.environ.items() if name != "ASSAY_RUN" and not tells_of_a_rank(name)}


def fail(error: AssayError) -> NoReturn:
    """End with the error's one sentence and its exit code."""
    print(f"{SENTENCE_MARK}{error}", file=sys.stderr, flush=True)
    raise SystemExit(error.exit_code)


def show(command: Command) -> None:
    """Print a command as it would be typed."""
    for name, value in command.env.items():
        print(f"{name}={shlex.quote(value)}", end=" ")
    print(shlex.join(command.argv))
