"""The pre-flight of real processes, each on a host of its own in the namespaces of a lab, with real faults."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from assay.preflight.devices import ask_torch
from assay.preflight.facts import (
    Arrival,
    Devices,
)
from assay.preflight.start import argv
from assay.preflight.wire import Link
from tests.cluster.hosts import Entered, Host
from tests.cluster.network import lab as network_lab
from tests.conftest import ROOT, environment, free_port

TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105 # of tests


class Started:
    """Processes of one pre-flight and what they print."""

    def __init__(self) -> None:
        self._running: list[tuple[Entered, Any, Any]] = []
        self._files = contextlib.ExitStack()

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *_: object) -> None:
        for process, _, _ in self._running:
            process.kill()
            process.wait()
        self._files.close()

    def start(self, words: Sequence[str | Path], **env: str) -> Entered:
        # Files and not pipes: no process must wait for somebody to read what it prints.
        out, err = (self._files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))  # noqa: SIM115
        variables = environment(**{"ASSAY_PREFLIGHT_TOKEN": TOKEN, **env})
        process = Entered([*map(str, words)], env=variables, stdout=out, stderr=err, text=True, cwd=ROOT)
        self._running.append((process, out, err))
        return process

    def ends(self, seconds: float = 60) -> list[tuple[int, str, str]]:
        """Exit code, output and errors of each, in the order of their starts."""
        deadline = time.monotonic() + seconds
        done = []
        for process, out, err in self._running:
            process.wait(max(0.1, deadline - time.monotonic()))
            out.seek(0)
            err.seek(0)
            done.append((process.returncode, out.read(), err.read()))
        return done


def command(hosts: Sequence[str], meet: str, folder: Path, **options: Any) -> list[str]:
    return argv(meet, hosts, folder=folder, python=sys.executable, **options)


@pytest.fixture(scope="module")
def five() -> Iterator[list[Host]]:
    with network_lab(5) as found:
        yield found


@pytest.fixture
def hosts(five: list[Host]) -> list[Host]:
    """Four of them."""
    return five[:4]


def checks_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The checks that were written, by name and state."""
    document = json.loads((folder / "found.json").read_text())
    assert document["schema"] == "assay-preflight/1"
    return {(check["name"], check["state"]): check for check in document["checks"]}


def on_all(
    started: Started, hosts: Sequence[Host], folder: Path,
    env: Mapping[int, Mapping[str, str]] = {}, without: Sequence[int] = (), **options: Any,
) -> None:  # fmt: skip
    """Start it on every host but some. env: more variables of a host."""
    meet = f"{hosts[0].address}:29600"
    words = command([host.name for host in hosts], meet, folder, json=folder / "found.json", **options)
    for index, host in enumerate(hosts):
        if index not in without:
            place = {"RANK": str(index), "WORLD_SIZE": str(len(hosts)), **env.get(index, {})}
            started.start(host.inside(words, cwd=folder), **place)


def test_four_hosts_without_faults_are_ready(hosts: list[Host], tmp_path: Path) -> None:
    with Started() as started:
        on_all(started, hosts, tmp_path, free=1, env={n: {"CUDA_VISIBLE_DEVICES": ""} for n in range(4)}, devices=0)
        first, *others = started.ends()
    assert first[0] == 0, first
    assert first[1].splitlines()[-1].startswith("Ready (4 hosts, ")
    assert others == [(0, "", "")] * 3
    checks = checks_of(tmp_path)
    assert {state for _, state in checks} == {"ok"}
    assert checks["network", "ok"]["found"] == "12 of 12 directions tried, all answered"
    assert checks["sharing", "ok"]["found"] == "the run folder is one for all hosts"
    assert list(tmp_path.iterdir()) == [tmp_path / "found.json"]


ANOTHER_CLOCK = """
import asyncio, dataclasses, os, sys, time
from assay.preflight.command import read
from assay.preflight.guest import join

setting = read(sys.argv[1:], os.environ).setting
asyncio.run(join(dataclasses.replace(setting, clock=lambda: time.time() + 5)))
"""


@contextlib.contextmanager
def blackhole(host: Host, address: str) -> Iterator[None]:
    """Nothing goes from the host to that address, so its answers do not either."""
    route = ["blackhole", address]
    subprocess.run(host.inside(["ip", "route", "add", *route]), check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(host.inside(["ip", "route", "del", *route]), check=True, capture_output=True)


def test_every_fault_is_named_with_its_host(hosts: list[Host], tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    # Another version of a package, by its metadata; another code, by a copy with one more line; an almost full disk.
    (other / "psutil-0.0.1.dist-info").mkdir(parents=True)
    (other / "psutil-0.0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: psutil\nVersion: 0.0.1\n")
    changed = tmp_path / "changed"
    shutil.copytree(ROOT / "assay", changed / "assay", ignore=shutil.ignore_patterns("__pycache__"))
    with (changed / "assay" / "units.py").open("a") as file:
        file.write("# changed\n")
    small = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(folder)]
    words = command([host.name for host in hosts], f"{hosts[0].address}:29600", folder, devices=4, free=2 << 20)
    places = [{"RANK": str(n), "WORLD_SIZE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"} for n in range(4)]
    places[1]["PYTHONPATH"] = str(other)
    places[2]["PYTHONPATH"] = str(changed)
    places[2]["CUDA_VISIBLE_DEVICES"] = "0,1,2"
    places[3]["GLOO_SOCKET_IFNAME"] = "ib0"
    clock = [sys.executable, "-c", ANOTHER_CLOCK, *words[3:]]
    started_by = [[*words, "--json", str(folder / "found.json")], [*small, *words], words, clock]
    with Started() as started, blackhole(hosts[1], hosts[2].address):
        for host, line, place in zip(hosts, started_by, places, strict=True):
            started.start(host.inside(line, cwd=tmp_path), **place)
        done = started.ends()
    assert [code for code, _, _ in done] == [1, 0, 0, 0], done
    checks = checks_of(folder)
    failed = {name: check["hosts"] for (name, state), check in checks.items() if state == "failed"}
    assert failed == {
        "software": ["host1"], "code": ["host2"], "clocks": ["host3"], "devices": ["host2"], "disk": ["host1"],
        "interface": ["host3"], "network": ["host1", "host2"],
    }  # fmt: skip
    assert "psutil 0.0.1 on host1" in checks["software", "failed"]["found"]
    assert "host1 → host2 (EINVAL: invalid argument)" in checks["network", "failed"]["found"]
    assert "host2 → host1 (no connection within 2 s, tried 2 times)" in checks["network", "failed"]["found"]
    assert checks["sharing", "warning"]["hosts"] == ["host1"]
    assert all(check["fix"] for (_, state), check in checks.items() if state == "failed")
    assert "Not ready: mend first: " in done[0][1]


def test_hosts_that_are_missing_double_or_strangers_are_named_and_the_rest_is_judged(
    five: list[Host], tmp_path: Path
) -> None:
    with Started() as started:
        # Of five hosts the third comes as the second, the fourth has another token, the last does not come at all.
        faults = {2: {"RANK": "1"}, 3: {"ASSAY_PREFLIGHT_TOKEN": TOKEN[::-1]}}
        on_all(started, five, tmp_path, env=faults, without=[4], free=1, wait=6)
        first, *twins, stranger = started.ends()
    assert first[0] == 1, first
    assert sorted(code for code, _, _ in twins) == [0, 1]
    assert any("another process has come under this index" in err for _, _, err in twins)
    assert stranger[0] == 2
    assert "does not share this host's ASSAY_PREFLIGHT_TOKEN" in stranger[2]
    found = json.loads((tmp_path / "found.json").read_text())["checks"]
    missing, double = [check for check in found if check["name"] == "hosts" and check["state"] == "failed"]
    assert missing["hosts"] == ["host3", "host4"]
    assert "scontrol show node" in missing["fix"]
    assert double["found"].startswith("two processes came as index 1: on host")
    checks = checks_of(tmp_path)
    assert five[3].address in checks["hosts", "warning"]["found"]
    assert checks["network", "ok"]["found"] == "2 of 2 directions tried, all answered"
    assert checks["software", "ok"]


async def guest(port: int) -> Link:
    """The second of two hosts, which has come and said who it is."""
    for _ in range(400):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except OSError:
            await asyncio.sleep(0.05)
    link = Link(reader, writer, TOKEN, served=False)
    await link.greet()
    await link.send({"what": "hello", "arrival": asdict(Arrival(1, "two", "clock", "127.0.0.1", free_port()))})
    return link


def test_a_host_that_goes_away_is_named(tmp_path: Path) -> None:
    port = free_port()
    words = command(["one", "two"], f"127.0.0.1:{port}", tmp_path, json=tmp_path / "found.json", free=1)

    async def come_and_go() -> None:
        link = await guest(port)
        assert (await link.receive())["what"] == "go"
        link.close()

    with Started() as started:
        started.start(words, RANK="0", WORLD_SIZE="2")
        asyncio.run(come_and_go())
        ((exit_code, _, _),) = started.ends()
    assert exit_code == 1
    checks = checks_of(tmp_path)
    assert checks["hosts", "failed"]["found"] == "two answered, but went away before it had reported"
    assert "two (ECONNREFUSED: connection refused)" in checks["network", "failed"]["found"]


def test_a_first_host_that_is_not_there_and_a_stale_port_are_one_sentence_each(tmp_path: Path) -> None:
    with socket.socket() as stale, Started() as started:
        stale.bind(("127.0.0.1", 0))
        stale.listen()
        taken, absent = stale.getsockname()[1], free_port()
        for port, rank in ((taken, "0"), (absent, "1")):
            started.start(command(["one", "two"], f"127.0.0.1:{port}", tmp_path, wait=1), RANK=rank, WORLD_SIZE="2")
        first, guest = started.ends()
    assert first[:2] == (2, "")
    assert f"--meet 127.0.0.1:{taken}: cannot listen there (address already in use); give a free port" in first[2]
    assert guest[:2] == (1, "")
    assert "the first host, one, cannot be reached within 1 s" in guest[2]
    assert "(connection refused)" in guest[2]
    assert len(first[2].splitlines()) == len(guest[2].splitlines()) == 1


def test_the_probe_file_goes_when_the_job_is_ended(tmp_path: Path) -> None:
    port = free_port()
    with Started() as started:
        process = started.start(command(["one", "two"], f"127.0.0.1:{port}", tmp_path), RANK="0", WORLD_SIZE="2")

        async def come_and_end_it() -> None:
            link = await guest(port)
            probe = (await link.receive())["probe"]
            assert Path(probe["path"]).read_text() == probe["content"]
            os.kill(process.pid, signal.SIGTERM)
            while process.poll() is None:  # it waits for this host's report
                await asyncio.sleep(0.02)
            link.close()

        asyncio.run(come_and_end_it())
        ((exit_code, _, err),) = started.ends()
    assert exit_code == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def without_hidden_devices() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}


def test_a_torch_that_does_not_work_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no such library')\n")
    found = ask_torch(sys.executable, {**without_hidden_devices(), "PYTHONPATH": str(tmp_path)})
    assert found == Devices(None, "torch did not answer: ImportError: no such library")


@pytest.mark.prove  # importing torch takes seconds
def test_torch_counts_devices_where_it_is_asked(tmp_path: Path) -> None:
    found = ask_torch(sys.executable, without_hidden_devices())
    assert (found.source, found.count is not None) == ("torch", True)
