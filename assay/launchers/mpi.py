"""The MPI launcher: Open MPI's mpirun starts every rank, on this host, on the hosts of a hostfile, or in a Slurm job.

`render` is pure.
"""

import platform
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from assay import machine
from assay.errors import BadInput
from assay.launchers.attended import Attended
from assay.launchers.gathering import gather
from assay.launchers.local import rank_environment
from assay.launchers.ports import check_port, free_port, port_text
from assay.launchers.protocol import Command, Job
from assay.placement import tells_of_a_rank

_ANSWER_SECONDS = 20.0
# What a rank on another host must be told besides what mpirun tells it: names that change what is measured.
_PASSED_ON = ("NCCL_", "RCCL_", "GLOO_", "UCX_", "UCC_", "HCCL_", "TORCH_", "PYTORCH_", "MKL_", "OMP_", "ASSAY_", "PYTHON", "CUDA_", "HIP_", "LD_LIBRARY_PATH", "XDG_CACHE_HOME")  # fmt: skip


class MpiLauncher:
    """See protocol.Launcher. hosts: of the hostfile or of the allocation, in order; none: this host alone."""

    def __init__(self, hosts: Sequence[str], hostfile: Path | None) -> None:
        self.hosts = tuple(hosts)
        self.address = self.hosts[0] if self.hosts else "127.0.0.1"
        self._hostfile = hostfile

    def render(self, job: Job, port: int | None, env: Mapping[str, str]) -> Command:
        """mpirun, with as many ranks on every host as the layout says."""
        layout = job.layout
        given = rank_environment(job, env, machine.usable_cores())
        given |= {"MASTER_ADDR": self.address if layout.nodes > 1 else "127.0.0.1", "MASTER_PORT": port_text(port)}
        argv = self._mpirun(layout.nodes, layout.per_node, {*given, *_passed_on(env)})
        return Command([*argv, machine.node_python(env), *job.program], given, afar=True)

    def on_each_host(
        self, nodes: int, argv: Sequence[str], given: Mapping[str, str], env: Mapping[str, str]
    ) -> Command:
        """mpirun with one process a host."""
        return Command([*self._mpirun(nodes, 1, {*given, *_passed_on(env)}), *argv], dict(given), afar=True)

    def _mpirun(self, nodes: int, per_node: int, passed_on: set[str]) -> list[str]:
        argv = ["mpirun", "-n", str(nodes * per_node), "--map-by", f"ppr:{per_node}:node", "--oversubscribe"]
        # Its own choice would bind a rank to one core. What ranks share of a host's cores is OMP_NUM_THREADS' business.
        argv += ["--bind-to", "none"]
        if self._hostfile is not None:
            argv += ["--hostfile", str(self._hostfile)]
        if nodes < len(self.hosts):  # all of them it knows itself, and thousands would not fit into an argument
            argv += ["--host", ",".join(f"{host}:{per_node}" for host in self.hosts[:nodes])]
        return [
            *argv,
            *(
                word
                for name in sorted(passed_on)
                if not tells_of_a_rank(name) or name.startswith("MASTER_")
                for word in ("-x", name)
            ),
        ]

    def meeting_port(self, asked: int | None) -> int | None:
        """For what runs over torch.distributed beside MPI: the port that was asked for, or a free one of this host."""
        check_port(asked)
        return asked or free_port()

    def submit(self, command: Command, job: Job, keep_fd: int | None, on_line: Callable[[str], None]) -> Attended:
        """Start it; mpirun is attended."""
        return Attended(command, job.folder, keep_fd, on_line)

    def collect(self, job: Job) -> Sequence[str]:
        """What is missing here comes from the hosts that should hold it, through mpirun."""
        return gather(job, self.hosts, self._on_host) if self.hosts else ()

    def _on_host(self, host: str, argv: Sequence[str]) -> list[str]:
        file = ["--hostfile", str(self._hostfile)] if self._hostfile else []
        return ["mpirun", "-n", "1", *file, "--host", host, *argv]


def _passed_on(env: Mapping[str, str]) -> set[str]:
    return {name for name in env if name.startswith(_PASSED_ON)}


def read_hostfile(path: Path) -> list[str]:
    """The hosts of an Open MPI hostfile in order: the first word of every line that is no comment. Raises BadInput."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "is not UTF-8 text"
        raise BadInput(f"hostfile {path}: {why}; give a file with one host a line") from None
    hosts = [line.split("#")[0].split()[0] for line in lines if line.split("#")[0].split()]
    if not hosts:
        raise BadInput(f"hostfile {path}: names no host; expected one a line, such as: node1 slots=8")
    twice = [host for host, count in Counter(hosts).items() if count > 1]
    if twice:
        raise BadInput(f"hostfile {path}: {twice[0]} is there twice; give each host one line, with slots=N")
    return hosts


def own_first(hosts: Sequence[str]) -> list[str]:
    """The hosts in the order in which Open MPI fills them: the one that mpirun runs on, if it is among them, is first."""
    mine = platform.node().partition(".")[0]
    return sorted(hosts, key=lambda host: host.partition(".")[0] != mine)


def check_mpirun() -> None:
    """Raise BadInput if this machine has no mpirun, or one of another family."""
    if shutil.which("mpirun") is None:
        raise BadInput("MPI: there is no mpirun here; install Open MPI (openmpi-bin), or load its module")
    try:
        done = subprocess.run(
            ["mpirun", "--version"], capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS
        )
        said = (done.stdout + done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if "Open MPI" not in said and "OpenRTE" not in said:
        told = said.splitlines()[0] if said else "nothing"
        raise BadInput(f"MPI: mpirun here is not Open MPI's (it says: {told}); start the script with it by hand")
