"""The life of what was started: how it is asked to end, and what each host becomes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from assay.launchers import attended
from assay.launchers.attended import Attended
from assay.launchers.protocol import Command
from tests.conftest import environment, wait_for
from tests.conftest import free_port as unused_port


def lifeline(grace: float, script: str) -> tuple["subprocess.Popen[str]", int]:
    """A lifeline with a shell script below it, and the end of the pipe that it hangs on."""
    reading, writing = os.pipe()
    argv = [sys.executable, "-m", "assay.launchers.lifeline", str(reading), str(grace), "sh", "-c", script]
    process = subprocess.Popen(argv, pass_fds=(reading,), env=environment(), stdout=subprocess.PIPE, text=True)
    os.close(reading)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process, writing


ASKED = 'trap "sleep 0.2; echo asked; exit 0" TERM; echo started; while :; do sleep 0.05; done'
DEAF = 'trap "" TERM; echo started; while :; do sleep 0.05; done'


@pytest.mark.parametrize(
    ("grace", "script", "said"),
    [(5.0, ASKED, "asked\n"), (0.0, ASKED, ""), (0.3, DEAF, "")],
    ids=["asked and waited for", "ended at once", "ended in spite of itself"],
)
def test_what_is_afar_is_asked_to_end_before_it_is_made_to(grace: float, script: str, said: str) -> None:
    process, writing = lifeline(grace, script)
    below = psutil.Process(process.pid).children(recursive=True)
    os.close(writing)
    assert process.communicate(timeout=20)[0] == said
    assert process.returncode == 128 + signal.SIGTERM
    assert not any(one.is_running() for one in below)


def test_what_is_afar_has_its_time_even_when_the_lifeline_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attended, "AFAR_SECONDS", 10.0)
    lines: list[str] = []
    running = Attended(Command(["sh", "-c", ASKED], {}, afar=True), tmp_path, None, lines.append)
    wait_for(lambda: lines == ["started"], 20, "the command")
    # Children of other tests may end in this very moment, and then have no command line.
    mine = (one for one in psutil.process_iter(["ppid", "cmdline"]) if one.info["ppid"] == os.getpid())
    (found,) = (one for one in mine if "assay.launchers.lifeline" in (one.info["cmdline"] or []))
    found.kill()
    outcome = running.watch(30)
    assert outcome.exit_code == -signal.SIGKILL
    assert lines == ["started", "asked"]
    assert not outcome.timed_out


TELL = """
import json, os, signal
ignored = signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
names = ("RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
print(json.dumps([ignored, *(os.environ[name] for name in names)]), flush=True)
"""


def test_a_hosts_torchrun_is_the_host_that_slurm_says_and_its_ranks_survive_requests_for_stacks(tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    port = str(unused_port())
    argv = [sys.executable, "-m", "assay.launchers.node", "--nodes", "1", "--per-node", "1"]
    argv += ["--meet", f"127.0.0.1:{port}", "--", str(tmp_path / "tell.py")]
    slurm = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1"}
    done = subprocess.run(argv, env=environment(**slurm), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, "0", "1", "0", "127.0.0.1", port]


@pytest.mark.parametrize(
    ("slurm", "said"),
    [
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2"}, "Slurm started 2 processes of this on one host; start one a host"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, "Slurm started 2 hosts, but the job has 4; start one process a host"),
    ],
)  # fmt: skip
def test_hosts_that_do_not_fit_the_job_are_one_sentence(slurm: dict[str, str], said: str) -> None:
    argv = [sys.executable, "-m", "assay.launchers.node", "--nodes", "4", "--per-node", "1", "--meet", "x:1", "--", "y"]
    done = subprocess.run(argv, env=environment(**slurm), capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (2, f"assay: error: {said}\n")
