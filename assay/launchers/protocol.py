"""One interface for all that starts ranks: the runner knows no more of a launcher than this page.

command = launcher.render(job, port, env)           pure: `assay plan` prints it
running = launcher.submit(command, job, keep_fd, on_line)
outcome = running.watch(job.time_limit)             to the end, or to the time limit
running.cancel()                                    at any moment
complaints = launcher.collect(job)                  what other hosts hold comes into the job's folder
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from assay.beacon import Diagnosis
from assay.layout import Layout


@dataclass(frozen=True)
class Job:
    """What is to be started. program: the script with its arguments; folder: where logs and records go.

    watched: a runner reads the ranks' progress; else a person does.
    """

    name: str
    program: tuple[str, ...]
    layout: Layout
    folder: Path
    watched: bool = True


@dataclass(frozen=True)
class Command:
    """What is started: argv, and the variables set on top of the environment.

    afar: the ranks are no children of this process (srun, mpirun), and are asked to end before they are made to.
    """

    argv: list[str]
    env: dict[str, str]
    afar: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    sentence: the first error sentence that a rank printed. At a time limit also stacks, the files with the ranks' stacks,
    and diagnosis: where the ranks were, None if they have told nothing.
    """

    exit_code: int
    timed_out: bool
    seconds: float
    sentence: str | None
    stacks: list[Path] = field(default_factory=list)
    diagnosis: Diagnosis | None = None


class Running(Protocol):
    """A job that was submitted."""

    def watch(self, limit: float) -> Outcome:
        """Wait for the end, at most `limit` s. On any exception (Ctrl-C included) everything started is ended first."""

    def cancel(self) -> None:
        """End it; `watch` then returns."""


class Launcher(Protocol):
    """What starts ranks. hosts: on which, first to last; none: this host alone."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts' names."""

    @property
    def address(self) -> str:
        """Where the first of them is reached."""

    def render(self, job: Job, port: int | None, env: Mapping[str, str]) -> Command:
        """The command that starts the job. Pure. port: where ranks meet; None where the launcher finds one itself."""

    def on_each_host(
        self, nodes: int, argv: Sequence[str], given: Mapping[str, str], env: Mapping[str, str]
    ) -> Command:
        """The command that starts `argv` once on each of the first `nodes` hosts, `given` on top of `env`. Pure."""

    def meeting_port(self, asked: int | None) -> int | None:
        """The port for the next job, free on the first host at this moment. Raises BadInput if the asked one is taken."""

    def submit(self, command: Command, job: Job, keep_fd: int | None, on_line: Callable[[str], None]) -> Running:
        """Start it. Every line of stdout also goes to `on_line`. keep_fd stays open as long as anything of it lives."""

    def collect(self, job: Job) -> Sequence[str]:
        """Fetch what hosts without the shared file system hold; a sentence for every host that could not deliver."""
