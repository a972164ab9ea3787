"""The files that make hosts a Slurm cluster: its configuration, its devices, its keys, and ssh between the hosts."""

import os
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COMMANDS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "srun": "slurm-client",
    "munged": "munge",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
HEAD = "head"
FOLDERS = ("run", "log", "state", "dev", "ssh", "spool")  # of a cluster, in its folder
PORT = 6817  # of the controller
MEMORY = 1_000_000  # MB a node claims to have


@dataclass(frozen=True)
class Shape:
    """What the nodes claim to be: cpus and gpus of each; min_job_age: s for which Slurm remembers a job that ended."""

    nodes: int
    gpus: int
    cpus: int
    min_job_age: int


def address(name: str) -> str:
    """The address of a host: head, node1, node2 …"""
    number = 0 if name == HEAD else int(name.removeprefix("node"))
    return f"10.77.{1 + number // 250}.{1 + number % 250}"


def configuration(folder: Path, shape: Shape) -> str:
    """The text of slurm.conf for a cluster that keeps its files in `folder`.

    What is not default is so for a reason: config_overrides lets nodes claim cores and memory that they have not;
    without DefMemPerCPU each job takes all memory and none shares a node; with the default life of a credential a
    requeued job would wait for 120 s; the scheduler looks often, as tests wait for it; those that lost a node try to
    reach it for TCPTimeout several times before their job can be queued again.
    """
    nodes = "\n".join(
        f"NodeName=node{n} NodeAddr={address(f'node{n}')} CPUs={shape.cpus} RealMemory={MEMORY}"
        f"{f' Gres=gpu:{shape.gpus}' if shape.gpus else ''} State=UNKNOWN"
        for n in range(1, shape.nodes + 1)
    )
    return f"""\
ClusterName=lab
SlurmctldHost={HEAD}({address(HEAD)})
SlurmctldPort={PORT}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={MEMORY // shape.cpus}
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge={shape.min_job_age}
SlurmctldTimeout=10
SlurmdTimeout=10
MessageTimeout=10
TCPTimeout=1
CompleteWait=0
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=2,batch_sched_delay=1,sched_min_interval=100000
PriorityType=priority/basic
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.log
{nodes}
PartitionName=gpu Nodes=node[1-{shape.nodes}] Default=YES OverSubscribe=YES MaxTime=24:00:00 DefaultTime=30 State=UP
PartitionName=half Nodes=node[1-{(shape.nodes + 1) // 2}] OverSubscribe=YES MaxTime=24:00:00 DefaultTime=30 State=UP
"""


def write_files(folder: Path, shape: Shape) -> None:
    """Write all that the daemons of a cluster read into `folder`."""
    for name in (*FOLDERS, *(f"spool/node{n}" for n in range(1, shape.nodes + 1))):
        (folder / name).mkdir(parents=True, exist_ok=True)
    hosts = [HEAD, *(f"node{n}" for n in range(1, shape.nodes + 1))]
    (folder / "hosts").write_text("".join(f"{address(n)} {n}\n" for n in hosts) + "127.0.0.1 localhost\n")
    (folder / "slurm.conf").write_text(configuration(folder, shape))
    devices = f"NodeName=node[1-{shape.nodes}] Name=gpu File={folder}/dev/nvidia[0-{shape.gpus - 1}]\n"
    (folder / "gres.conf").write_text(devices if shape.gpus else "")
    # Slurm takes nothing but a character device for a GPU: these are of the kind of /dev/null.
    for number in range(shape.gpus):
        os.mknod(folder / f"dev/nvidia{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (folder / "munge.key").touch(mode=0o600)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    _write_ssh(folder / "ssh", folder / "slurm.conf")
    (folder / "rsh").write_text(f'#!/bin/sh\nexec ssh -F {folder}/ssh/config "$@"\n')
    (folder / "rsh").chmod(0o755)


def _write_ssh(folder: Path, slurm_conf: Path) -> None:
    for name in ("host_key", "key"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(argv, check=True, capture_output=True)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\nStrictModes no\nPermitRootLogin yes\n"
        f"UsePAM no\nPidFile none\nSetEnv SLURM_CONF={slurm_conf}\n"
    )
    (folder / "config").write_text(
        f"Host *\n    User root\n    IdentityFile {folder}/key\n    IdentitiesOnly yes\n    BatchMode yes\n"
        "    StrictHostKeyChecking no\n    UserKnownHostsFile /dev/null\n    LogLevel ERROR\n    ConnectTimeout 5\n"
    )


def munged(folder: Path) -> Sequence[str]:
    """The argv of the one munged. Its socket is a file, which all hosts see."""
    paths = {"key-file": "munge.key", "socket": "run/munge.socket", "pid-file": "run/munged.pid"}
    paths |= {"log-file": "log/munged.log", "seed-file": "munge.seed"}
    return ["munged", "--foreground", "--force", *(f"--{key}={folder / path}" for key, path in paths.items())]


def slurmctld(folder: Path) -> Sequence[str]:
    """The argv of the controller, which forgets what an earlier one knew."""
    return ["slurmctld", "-D", "-c", "-f", str(folder / "slurm.conf")]


def slurmd(folder: Path) -> Sequence[str]:
    """The argv of a node's daemon; the node is the one of the host's name."""
    return ["slurmd", "-D", "-f", str(folder / "slurm.conf")]


def sshd(folder: Path) -> Sequence[str]:
    """The argv of a host's ssh daemon, which wants to be called by its full path."""
    return ["/usr/sbin/sshd", "-D", "-E", str(folder / "log/sshd.log"), "-f", str(folder / "ssh/sshd_config")]
