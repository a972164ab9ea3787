"""The test cluster itself: what other tests take for granted of its nodes, their power, cables, rates and folders."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.lab import Lab, cluster, load, start
from tests.cluster.slurm import Shape
from tests.conftest import ROOT, environment, wait_for

SHM = Path("/dev/shm")  # noqa: S108 - is looked at, and used in the hosts only


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("disk")


@pytest.fixture(scope="module")
def lab(disk: Path) -> Iterator[Lab]:
    with cluster(nodes=4, unshared=disk, min_job_age=2) as running:
        yield running


@pytest.fixture(autouse=True)
def _idle(request: pytest.FixtureRequest) -> None:
    if "lab" in request.fixturenames:
        request.getfixturevalue("lab").idle(20)


def submit(lab: Lab, folder: Path, *args: str) -> int:
    done = lab.login(["sbatch", "--parsable", "--output=%j.txt", "--open-mode=append", *args], cwd=folder)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


# --- Slurm


def test_a_job_sees_its_nodes_and_their_devices(lab: Lab, tmp_path: Path) -> None:
    job = submit(
        lab, tmp_path, "-N2", "--gpus-per-node=8", "--wrap", "srun sh -c 'hostname; echo $CUDA_VISIBLE_DEVICES'"
    )
    known = lab.wait_job(job, {"COMPLETED"}, 20)
    assert (known["NumNodes"], known["ExitCode"], known["WorkDir"]) == ("2", "0:0", str(tmp_path))
    assert sorted((tmp_path / f"{job}.txt").read_text().split()) == ["0,1,2,3,4,5,6,7"] * 2 + ["node1", "node2"]
    # The account of what was, for the time when Slurm has forgotten.
    assert lab.login(["sacct", "-c", "-n", "-P", "-o", "jobid,state"], cwd=tmp_path).stdout.split() == [
        f"{job}|COMPLETED"
    ]


def test_what_slurm_refuses_and_what_it_lets_wait(lab: Lab, tmp_path: Path) -> None:
    for asked in ("--gpus-per-node=9", "--partition=fast"):
        assert lab.login(["sbatch", asked, "--wrap", "true"], cwd=tmp_path).returncode != 0
    job = submit(lab, tmp_path, "--partition=half", "-N3", "--wrap", "true")
    wait_for(lambda: lab.job(job)["Reason"] == "PartitionNodeLimit", 5, "the reason why the job waits")
    lab.login(["scancel", str(job)], cwd=tmp_path)
    assert lab.wait_job(job, {"CANCELLED"}, 5)["ExitCode"] == "0:0"


def test_two_jobs_share_a_node(lab: Lab, tmp_path: Path) -> None:
    jobs = [submit(lab, tmp_path, "-w", "node3", "--gpus-per-node=4", "--wrap", "sleep 60") for _ in range(2)]
    assert [lab.wait_job(job, {"RUNNING"}, 10)["NodeList"] for job in jobs] == ["node3"] * 2
    assert lab.login(["scancel", *map(str, jobs)], cwd=tmp_path).returncode == 0
    assert [lab.wait_job(job, {"CANCELLED"}, 10)["JobState"] for job in jobs] == ["CANCELLED"] * 2


def test_a_job_goes_on_elsewhere_when_its_node_loses_power(lab: Lab, tmp_path: Path) -> None:
    short = submit(lab, tmp_path, "-w", "node4", "--wrap", "true")
    # It ends by itself only where it was started again.
    script = 'hostname; test -n "$SLURM_RESTART_COUNT" || sleep 300'
    job = submit(lab, tmp_path, "-x", "node1", "-N2", "--wrap", f"srun sh -c '{script}'")
    wait_for((tmp_path / f"{job}.txt").exists, 10, "the first run")
    assert lab.job(job)["NodeList"] == "node[2-3]"
    lab.limit(3, "50mbit")
    lab.on("node3", ["touch", SHM / "beacon"], cwd=tmp_path)
    before = lab.hosts["node3"]
    lab.fail(3)
    assert not before.on
    with pytest.raises(RuntimeError, match="node3 is off; power it on first"):
        lab.on("node3", ["true"])
    assert lab.login(["sinfo", "-h", "-n", "node3", "-p", "gpu", "-o", "%t"], cwd=tmp_path).stdout.startswith("down")
    wait_for(lambda: lab.job(job)["Restarts"] == "1", 5, "the job to be queued again")
    known = lab.wait_job(job, {"COMPLETED"}, 30)
    assert (known["Restarts"], known["NodeList"]) == ("1", "node[2,4]")
    lab.power_on(3)
    with pytest.raises(RuntimeError, match="node3 is on already"):
        lab.power_on(3)
    # Slurm forgets a job some time after min_job_age.
    wait_for(lambda: lab.job(short) == {}, 20, "Slurm to forget a job that has ended")
    # What was in memory is gone; what is bolted to the port is not.
    assert lab.on("node3", ["ls", SHM]).stdout == ""
    assert "rate 50Mbit" in lab.on("node3", ["tc", "qdisc", "show", "dev", "eth0"]).stdout


# --- Hosts and their network

RECEIVE = """
import socket
with socket.create_server(("", 7000)) as server:
    print("ready", flush=True)
    for _ in range(2):
        with server.accept()[0] as peer:
            while peer.recv(1 << 16):
                pass
            peer.send(b"!")
"""
SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 7000), timeout=20) as peer:
    peer.sendall(bytes(1 << 16))  # the bucket is full at first
    began = time.monotonic()
    peer.sendall(bytes(int(sys.argv[2])))
    peer.shutdown(socket.SHUT_WR)
    peer.recv(1)
    print(time.monotonic() - began)
"""
REACH = """
import socket, sys
with socket.create_connection((sys.argv[1], 22), timeout=0.3):
    pass
"""


@contextlib.contextmanager
def receiver(lab: Lab, node: str) -> Iterator[None]:
    with lab.popen([sys.executable, "-c", RECEIVE], node=node, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.kill()


def reaches(lab: Lab, target: str, source: str = "head") -> bool:
    return lab.on(source, [sys.executable, "-c", REACH, target]).returncode == 0


def test_a_rate_limits_both_ways(lab: Lab) -> None:
    lab.limit(1, "80mbit")
    size = 8_000_000
    for sender, target in (("node1", "node4"), ("node4", "node1")):
        with receiver(lab, target):
            done = lab.on(sender, [sys.executable, "-c", SEND, target, str(size)])
            assert size / float(done.stdout) == pytest.approx(80e6 / 8, rel=0.25), done.stderr


def test_a_pulled_cable_is_silence_both_ways_and_a_plugged_one_works(lab: Lab) -> None:
    assert reaches(lab, "node4")
    lab.pull(4)
    assert (reaches(lab, "node4"), reaches(lab, "head", "node4")) == (False, False)
    assert lab.on("node4", ["cat", "/sys/class/net/eth0/carrier"]).stdout == "0\n"
    lab.plug(4)
    wait_for(lambda: reaches(lab, "node4"), 5, "node4 to answer again")


def test_each_host_has_its_own(lab: Lab, disk: Path, tmp_path: Path) -> None:
    hosts = ["head", *(f"node{n}" for n in range(1, 5))]
    (tmp_path / "shared").touch()
    for host in hosts:
        # Its name, its folders, its processes; and the shared file system is there.
        script = f"test -e shared && touch {disk}/$(hostname) {SHM}/$(hostname) && ls {disk} {SHM} && echo $PPID"
        done = lab.on(host, ["sh", "-c", script], cwd=tmp_path)
        assert done.stdout.split() == [f"{SHM}:", host, f"{disk}:", host, "0"], done.stderr
        assert lab.on(host, ["getent", "hosts", "node1"]).stdout.split() == ["10.77.1.2", "node1"]
        assert lab.on(host, ["ls", "/sys/class/net"]).stdout.split() == ["eth0", "lo"]
    assert list(disk.iterdir()) == []
    assert not any((SHM / host).exists() for host in hosts)


def test_commands_on_other_hosts(lab: Lab, tmp_path: Path) -> None:
    done = lab.login([lab.rsh, "node3", "hostname; exit 7"], cwd=tmp_path, env={"FOREIGN": "1"})
    assert (done.stdout, done.returncode) == ("node3\n", 7)
    assert lab.on("node1", [lab.rsh, "node2", "echo $FOREIGN"], env={"FOREIGN": "1"}).stdout == "\n"
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    agent: list[str | Path] = ["--mca", "plm_rsh_agent", lab.rsh]
    argv: list[str | Path] = ["mpirun", *agent, "--host", "node1:2,node2:2", "-n", "4", "hostname"]
    done = lab.login(argv, cwd=tmp_path, env=allowed)
    assert sorted(done.stdout.split()) == ["node1", "node1", "node2", "node2"], done.stderr
    # In an allocation it asks Slurm for the hosts, and to start its daemons there.
    argv = ["salloc", "--nodelist=node2,node4", "-N2", "--ntasks-per-node=1", "mpirun", "hostname"]
    done = lab.login(argv, cwd=tmp_path, env=allowed)
    assert sorted(done.stdout.split()) == ["node2", "node4"], done.stderr


def test_signals_reach_the_command(lab: Lab) -> None:
    for sig in (signal.SIGKILL, signal.SIGTERM):
        with lab.popen(["sleep", "321"]) as process:
            wait_for(lambda: "321" in lab.login(["ps", "ax"], cwd=ROOT).stdout, 5, "the command")
            process.send_signal(sig)
            assert process.wait(5) == -sig
            assert "321" not in lab.login(["ps", "ax"], cwd=ROOT).stdout
    with pytest.raises(subprocess.TimeoutExpired):
        lab.login(["sleep", "321"], cwd=ROOT, timeout=0.2)
    assert "321" not in lab.login(["ps", "ax"], cwd=ROOT).stdout


# --- Beginning and end


def test_two_labs_at_once_and_nothing_is_left_of_the_second(lab: Lab) -> None:
    ours = {psutil.Process().pid, *(process.pid for process in psutil.Process().children(recursive=True))}
    with cluster(nodes=1, gpus=0) as other:
        assert other.hosts["node1"].address == lab.hosts["node1"].address
        assert other.login(["srun", "hostname"], cwd=ROOT).stdout == "node1\n"
        left = other.popen(["sleep", "321"])
        started = {process.pid for process in psutil.Process().children(recursive=True)} - ours
        inits = [other.switch[0], *(host.init for host in other.hosts.values())]
        assert started > set(inits)
    assert left.wait(5) == -signal.SIGKILL
    assert [pid for pid in started if psutil.pid_exists(pid)] == []
    assert not other.folder.exists()
    lab.idle(5)


def test_a_lab_ends_with_the_process_that_made_it() -> None:
    script = """
from tests.cluster.network import lab
with lab(2) as hosts:
    print(hosts[0].switch, *(host.init for host in hosts), flush=True)
    input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert [psutil.pid_exists(pid) for pid in pids] == [True] * 3
        process.kill()
    wait_for(lambda: not any(map(psutil.pid_exists, pids)), 5, "the hosts to end")


def by_hand(*args: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tests.cluster", *map(str, args)]
    return subprocess.run(argv, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=60)


def test_a_cluster_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    assert by_hand("login", folder, "true").stderr == f"cluster: {folder}: no cluster was started there\n"
    begun = by_hand("start", folder, "--nodes", "2", "--gpus", "2")
    try:
        assert begun.stdout.startswith("2 nodes are idle after "), begun.stderr
        assert "a cluster runs there already; stop it first" in by_hand("start", folder).stderr
        assert sorted(by_hand("login", folder, "srun", "-N2", "hostname").stdout.split()) == ["node1", "node2"]
        assert by_hand("power-off", folder, "2").returncode == 0
        assert by_hand("pull", folder, "2").stderr == "cluster: node2 is off; power it on first\n"
        assert by_hand("power-on", folder, "2").returncode == 0
        assert load(folder).on("node2", ["hostname"]).stdout == "node2\n"
    finally:
        stopped = by_hand("stop", folder)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    with pytest.raises(RuntimeError, match="its cluster has ended; start it again"):
        load(folder).login(["true"], cwd=tmp_path)
    with pytest.raises(RuntimeError, match="node3: no such host; the lab has head, node1, node2"):
        load(folder).on("node3", ["true"])


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(nodes=1, gpus=0, cpus=1, min_job_age=2)
    (tmp_path / "notes.txt").touch()
    for folder, told in ((tmp_path, "not empty"), (tmp_path / "a b", "without spaces")):
        with pytest.raises(RuntimeError, match=told):
            start(folder, shape)
    with pytest.raises(RuntimeError, match="the cluster keeps its files below it"):
        start(tmp_path / "lab", shape, unshared=tmp_path)
    # What could not start leaves nothing in the way of the next try.
    for _ in range(2):
        with pytest.raises(RuntimeError, match='illegal value for "rate": "fast"'):
            start(tmp_path / "lab", shape, rate="fast")
    assert not load(tmp_path / "lab").running
    shutil.rmtree(tmp_path / "lab")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"slurmctld.* not installed; on Debian: apt-get install .*munge.* slurmd"):
        start(tmp_path / "lab", shape)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RuntimeError, match="hosts of their own need root"):
        start(tmp_path / "lab", shape)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
