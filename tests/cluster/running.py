"""A running cluster: its login node and nodes, whose power, cables and rates are in the caller's hands."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.cluster import slurm
from tests.cluster.hosts import Entered, Host, end, end_host, limit, reap, set_link, start_host
from tests.cluster.slurm import HEAD, Shape

STATE = "lab.json"
DISKS = "disks"  # what each host sees at the unshared path
_OUTPUT = IO[Any] | int | None


@dataclass
class Lab:
    """A running cluster. folder: its files; unshared: a path of which every host sees a folder of its own.

    Everything that is here but `waiting` stands in lab.json as well, for the next command of a person.
    """

    folder: Path
    shape: Shape
    unshared: Path | None
    switch: tuple[int, int]  # its first process, the number of its process namespace
    hosts: dict[str, Host] = field(default_factory=dict)  # those that have been on
    rates: dict[str, str] = field(default_factory=dict)
    waiting: list[subprocess.Popen[str]] = field(default_factory=list)  # children of this process

    @property
    def rsh(self) -> Path:
        """An executable that runs a command on another host: rsh HOST COMMAND… It is a real ssh with a key."""
        return self.folder / "rsh"

    @property
    def slurm_conf(self) -> Path:
        """What Slurm's commands find their cluster by: SLURM_CONF."""
        return self.folder / "slurm.conf"

    @property
    def running(self) -> bool:
        """Whether its processes live."""
        return any(host.on for host in self.hosts.values())

    def login(
        self, argv: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node. Raises subprocess.TimeoutExpired after `timeout` s."""
        return self.on(HEAD, argv, cwd=cwd, env=env, timeout=timeout)

    def on(
        self,
        node: str,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host (head, node1 …), by hand. Raises subprocess.TimeoutExpired after `timeout` s."""
        pipe = subprocess.PIPE
        with self.popen(argv, node=node, cwd=cwd, env=env, stdout=pipe, stderr=pipe) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        node: str = HEAD,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: _OUTPUT = None,
        stderr: _OUTPUT = None,
    ) -> Entered:
        """Start a command in the background; its signals reach the command itself. The lab's end ends it, too."""
        # Not above: a person's commands would wait for pytest and numpy.
        from tests.conftest import environment

        variables = environment(SLURM_CONF=str(self.slurm_conf), **(env or {}))
        inside = self.inside(node, argv, cwd)
        return Entered(inside, env=variables, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, text=True)

    def inside(self, node: str, argv: Sequence[str | Path], cwd: Path | None = None) -> list[str]:
        """The argv that runs `argv` on a host."""
        return self._host(node).inside(argv, cwd)

    def power_off(self, number: int) -> None:
        """Node `number` loses its power: silence first, then every process of it is gone."""
        end_host(self._host(f"node{number}"))
        self.waiting = [process for process in self.waiting if process.poll() is None]

    def power_on(self, number: int) -> None:
        """Node `number` starts again, plugged in and with its limits; its Slurm daemon reports to the controller."""
        name = f"node{number}"
        if name in self.hosts and self.hosts[name].on:
            raise RuntimeError(f"{name} is on already")
        self.start_host(name)
        self.start_daemon(name, slurm.slurmd(self.folder))
        self.save()

    def fail(self, number: int) -> None:
        """Power node `number` off, and let Slurm know at once; by itself it finds out after half a minute.

        A job of it runs again about 7 s later; 17 s, where this was its first node, whose srun the others try to reach.
        """
        self.power_off(number)
        done = self._ask("scontrol", "update", f"nodename=node{number}", "state=down", "reason=power")
        if done.returncode:
            raise RuntimeError(f"node{number} is off, but Slurm did not take it: {done.stderr.strip()}")

    def pull(self, number: int) -> None:
        """Pull the network cable of node `number`."""
        set_link(self._host(f"node{number}"), up=False)

    def plug(self, number: int) -> None:
        """Plug the network cable of node `number` in again."""
        set_link(self._host(f"node{number}"), up=True)

    def limit(self, number: int, rate: str) -> None:
        """Let node `number` send and receive no faster than `rate`, as tc writes it: 100mbit."""
        name = f"node{number}"
        limit(self._host(name), rate, inwards=True)
        self.rates[name] = rate
        self.save()

    def job(self, job_id: int) -> dict[str, str]:
        """What `scontrol show job` says; empty where Slurm has forgotten the job."""
        done = self._ask("scontrol", "show", "job", "--oneliner", str(job_id))
        if "Invalid job id" in done.stderr:
            return {}
        if done.returncode:
            raise RuntimeError(f"scontrol show job {job_id}: {done.stderr.strip()}")
        return dict(re.findall(r"([A-Za-z:/]+)=(.*?)(?= [A-Za-z:/]+=|\s*$)", done.stdout, re.MULTILINE))

    def wait_job(self, job_id: int, states: set[str], seconds: float) -> dict[str, str]:
        """Wait until the job is in one of `states`; returns what it is then."""
        known: dict[str, str] = {}

        def there() -> bool:
            known.update(self.job(job_id))
            return known.get("JobState") in states

        wait(there, seconds, lambda: f"job {job_id} to be {' or '.join(sorted(states))}; it is {known}")
        return known

    def idle(self, seconds: float) -> None:
        """Wait until every node is idle."""
        seen: list[str] = []

        def there() -> bool:
            done = self._ask("sinfo", "--noheader", "--Node", "--partition=gpu", "--format=%N %T")
            seen[:] = done.stdout.splitlines()
            return len(seen) == self.shape.nodes and all(line.endswith(" idle") for line in seen)

        wait(there, seconds, lambda: f"all nodes to be idle; they are {seen}; their logs lie in {self.folder}/log")

    def save(self) -> None:
        """Write what the next command of a person has to know."""
        hosts = [asdict(host) for host in self.hosts.values()]
        state: dict[str, object] = {"shape": asdict(self.shape), "switch": self.switch, "hosts": hosts}
        state |= {"unshared": self.unshared and str(self.unshared), "rates": self.rates}
        (self.folder / STATE).write_text(json.dumps(state, indent=1))

    def stop(self) -> None:
        """End every process of the lab, and with them its networks and mounts."""
        end(*self.switch)
        reap(self.waiting)

    def start_host(self, name: str) -> None:
        """Start a host, plugged in and with its limits, that takes ssh."""
        binds = [(self.folder / "hosts", Path("/etc/hosts")), (self.folder / "ssh/config", Path("/etc/ssh/ssh_config"))]
        if self.unshared is not None:
            # A folder, not a tmpfs: as a disk in the host, it is still there after a power-off.
            disk = self.folder / DISKS / name
            disk.mkdir(parents=True, exist_ok=True)
            binds.append((disk, self.unshared))
        waiting, self.hosts[name] = start_host(self.switch[0], name, slurm.address(name), binds)
        self.waiting.append(waiting)
        if name in self.rates:
            limit(self.hosts[name], self.rates[name], inwards=True)
        self.start_daemon(name, slurm.sshd(self.folder))

    def start_daemon(self, name: str, argv: Sequence[str]) -> None:
        """Start a daemon on a host; it ends with the host."""
        with (self.folder / f"log/{name}-{Path(argv[0]).name}.out").open("a") as log:
            daemon = self.hosts[name].inside(argv, self.folder)
            process = subprocess.Popen(
                daemon,
                env=self._bare(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.waiting.append(process)

    def controlled(self) -> bool:
        """Whether the controller listens. The kernel's table of the head is asked, so that nothing is sent to it."""
        listening = f":{slurm.PORT:04X} 00000000:0000 0A"
        return listening in Path(f"/proc/{self.hosts[HEAD].init}/net/tcp").read_text()

    def _ask(self, *argv: str) -> subprocess.CompletedProcess[str]:
        inside = self.inside(HEAD, argv, self.folder)
        return subprocess.run(
            inside, env=self._bare(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30
        )

    def _bare(self) -> dict[str, str]:
        """The environment of what a machine starts: nothing of the shell that this was typed into."""
        return {"PATH": f"{os.defpath}:/usr/sbin:/sbin", "SLURM_CONF": str(self.slurm_conf)}

    def _host(self, name: str) -> Host:
        if name not in self.hosts:
            raise RuntimeError(f"{name}: no such host; the lab has {', '.join(self.hosts)}")
        if not self.running:
            raise RuntimeError(f"{self.folder}: its cluster has ended; start it again")
        if not self.hosts[name].on:
            raise RuntimeError(f"{name} is off; power it on first")
        return self.hosts[name]


def load(folder: Path) -> Lab:
    """The lab that runs in `folder`. Raises RuntimeError where none does."""
    folder = folder.resolve()
    try:
        state = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        raise RuntimeError(f"{folder}: no cluster was started there") from None
    unshared = state["unshared"] and Path(state["unshared"])
    lab = Lab(folder, Shape(**state["shape"]), unshared, tuple(state["switch"]), rates=state["rates"])
    lab.hosts = {host["name"]: Host(**host) for host in state["hosts"]}
    return lab


def wait(condition: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
    """Return when `condition` holds. Raises RuntimeError after `seconds`, which tells what was waited for."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds} s for {what()}")
        time.sleep(0.05)
