"""The Slurm launcher: inside an allocation, every job is a step of it, started by srun.

`render` is pure. One torchrun a host (spawn "torchrun"), or every rank a task of Slurm's (spawn "srun").
"""

import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from assay import machine
from assay.errors import BadInput
from assay.launchers.attended import Attended
from assay.launchers.gathering import gather
from assay.launchers.local import rank_environment
from assay.launchers.ports import check_port, free_port, port_text
from assay.launchers.protocol import Command, Job
from assay.layout import counts_per_node, expand_hosts

SRUN_OPTIONS = "ASSAY_SRUN_OPTIONS"  # a site's own words for srun: a container's image, say
NODE_PREFIX = "ASSAY_NODE_PREFIX"  # a site's own words before what runs on every host: apptainer exec …
_ANSWER_SECONDS = 20.0


@dataclass(frozen=True)
class Allocation:
    """What Slurm has given this job. hosts: in Slurm's order; cores: of the host with fewest; gpus: asked for on each host, None if none were."""

    job: str
    hosts: tuple[str, ...]
    cores: int | None = None
    gpus: int | None = None


def allocation(env: Mapping[str, str]) -> Allocation | None:
    """The allocation that this process is in by Slurm's variables; None outside of any. Raises BadInput if they are torn."""
    job, nodes = env.get("SLURM_JOB_ID"), env.get("SLURM_JOB_NODELIST")
    if not job or not nodes:
        return None
    hosts = expand_hosts(nodes)
    if not hosts:
        raise BadInput(f"environment: SLURM_JOB_NODELIST={nodes!r} names no host; it is Slurm's to set")
    cores = counts_per_node(env.get("SLURM_JOB_CPUS_PER_NODE", ""))
    # What was asked for, a100:4 or 4. Of an exclusive node SLURM_GPUS_ON_NODE counts all, whatever was asked for.
    gpus = env.get("SLURM_GPUS_PER_NODE", "").rpartition(":")[2]
    return Allocation(job, tuple(hosts), min(cores, default=None), int(gpus) if gpus.isdigit() else None)


def _words(env: Mapping[str, str], name: str) -> list[str]:
    try:
        return shlex.split(env.get(name, ""))
    except ValueError as error:
        raise BadInput(f"environment: {name}={env[name]!r}: {str(error).lower()}; quote it as in a shell") from None


class SlurmLauncher:
    """See protocol.Launcher. srun must be there: `check_srun`."""

    def __init__(self, given: Allocation, spawn: str, address: str | None = None) -> None:
        """address: where the first host is reached, if not by its name."""
        self.hosts = given.hosts
        self.address = address or given.hosts[0]
        self._given = given
        self._spawn = spawn

    def render(self, job: Job, port: int | None, env: Mapping[str, str]) -> Command:
        """srun on the first hosts of the allocation."""
        layout = job.layout
        by_srun = self._spawn == "srun"
        tasks = layout.per_node if by_srun else 1
        argv = [*self._srun(job.name, layout.nodes, tasks, env), machine.node_python(env)]
        cores = self._given.cores or machine.usable_cores()
        given = rank_environment(job, env, cores)
        if by_srun:
            given |= {"MASTER_ADDR": self.address, "MASTER_PORT": port_text(port)}
            argv += ["-m", "assay.launchers.task"]
        else:
            meeting = ("--nodes", str(layout.nodes), "--per-node", str(layout.per_node))
            argv += ["-m", "assay.launchers.node", *meeting, "--meet", f"{self.address}:{port_text(port)}", "--"]
        return Command([*argv, *job.program], given, afar=True)

    def _srun(self, name: str, nodes: int, tasks: int, env: Mapping[str, str]) -> list[str]:
        """srun with `tasks` tasks on each of the first `nodes` hosts, up to what they run."""
        argv = ["srun", f"--job-name={name}", f"--nodes={nodes}", f"--ntasks={nodes * tasks}"]
        # Whatever the user's or the job's variables say of it: hosts are filled one after the other, and what this
        # process has in its environment reaches the ranks.
        argv += [f"--ntasks-per-node={tasks}", "--relative=0", "--distribution=block", "--export=ALL"]
        argv += ["--kill-on-bad-exit=1"]
        if "SLURM_STEP_NUM_TASKS" in env:
            argv.append("--overlap")  # in a step already (srun --pty bash), which holds what the allocation has
        if self._given.cores is not None:
            # A step would otherwise take one core a task, and be bound to it.
            argv.append(f"--cpus-per-task={max(1, self._given.cores // tasks)}")
        return [*argv, *_words(env, SRUN_OPTIONS), *_words(env, NODE_PREFIX)]

    def on_each_host(
        self, nodes: int, argv: Sequence[str], given: Mapping[str, str], env: Mapping[str, str]
    ) -> Command:
        """A step with one task a host."""
        return Command([*self._srun("each-host", nodes, 1, env), *argv], dict(given), afar=True)

    def meeting_port(self, asked: int | None) -> int | None:
        """The port that was asked for, or one that is free on this host, which in a batch job is the first one."""
        check_port(asked)
        return asked or free_port()

    def submit(self, command: Command, job: Job, keep_fd: int | None, on_line: Callable[[str], None]) -> Attended:
        """Start the step; srun is attended."""
        return Attended(command, job.folder, keep_fd, on_line)

    def collect(self, job: Job) -> Sequence[str]:
        """What is missing here comes from the hosts that should hold it, through srun."""
        return gather(job, self._given.hosts, _on_host)


def _on_host(host: str, argv: Sequence[str]) -> list[str]:
    # Beside a step of ours that has not quite ended, and in what Slurm lets one task have.
    return ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}", "--job-name=collect", *argv]


def check_srun() -> None:
    """Raise BadInput if this machine has no srun."""
    if shutil.which("srun") is None:
        raise BadInput("Slurm: there is no srun here; load Slurm's commands, or use --launcher local")


def address_of(host: str) -> str:
    """How `host` is reached: by its name where that resolves, else by the address that Slurm knows. Raises BadInput."""
    try:
        socket.getaddrinfo(host, None)
        return host
    except (OSError, UnicodeError):  # the latter for what cannot be a name at all
        pass
    argv = ["scontrol", "show", "node", host, "--oneliner"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    told = dict(word.split("=", 1) for word in done.stdout.split() if "=" in word) if done else {}
    if "NodeAddr" not in told or told["NodeAddr"] == host:
        raise BadInput(f"host {host!r}: its name has no address here; mend DNS or /etc/hosts, ranks must meet there")
    return told["NodeAddr"]
