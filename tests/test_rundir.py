import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from assay.errors import BadInput, RunFailed
from assay.rundir import RUNNER, WATCHER, RunDir, Status, write_document
from assay.runner import owner_is_gone
from tests.slurm_answers import answer

PASSED = Status("passed", "run", 0, 1.0)
FAILED = Status("failed", "run", 1, 1.0, "a reason", "some advice")


def test_documents_are_whole_or_absent(tmp_path: Path) -> None:
    write_document(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_document(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with pytest.raises(RunFailed, match=r"(not a directory|file exists)"):
        write_document(tmp_path / "a.json" / "b.json", {})


def test_attempts_are_never_overwritten_and_the_passed_one_speaks(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": ["a"]})
    case = run.case("a")
    assert case.latest() is None
    first, second = case.new_attempt(), case.new_attempt()
    assert [path.name for path in case.attempts()] == ["attempt-1", "attempt-2"]
    assert case.latest() == (second, None), "an attempt without a status has not ended"
    run.write_status(first, PASSED)
    run.write_status(second, FAILED)
    assert case.latest() == (first, PASSED)
    assert case.new_attempt().name == "attempt-3"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file or directory; is this a run folder of assay?"),
        ("{", "is no valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"schema": "assay-run/7"}', "key 'schema' is 'assay-run/7', this assay reads 'assay-run/1'"),
    ],
)
def test_what_is_no_run_folder_of_ours_is_refused(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(BadInput, match=said.replace("?", r"\?").replace("[", r"\[")):
        RunDir.open(tmp_path)
    with pytest.raises(BadInput, match="is no folder"):
        RunDir.open(tmp_path / "absent")


def test_a_folder_has_one_runner_and_a_dead_one_is_followed(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": []})
    code = "import sys; from pathlib import Path; from assay.rundir import RunDir; RunDir(Path(sys.argv[1])).lock()"
    other = subprocess.run([sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False)
    assert f"another runner owns this folder (pid {os.getpid()} on" in other.stderr
    run.unlock()
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)
    run.lock()  # the process above has ended without unlocking
    run.unlock()


def test_a_runner_on_another_host_is_believed_to_live(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": []})
    run.unlock()
    (run.path / "runner.lock").write_text('{"pid": 1, "start_time": 5.0, "host": "elsewhere"}')
    with pytest.raises(BadInput, match="a runner on another host owns this folder"):
        run.lock()


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="exists already"):
        RunDir.create(tmp_path, {})


ELSEWHERE = '{"pid": 1, "start_time": 5.0, "host": "elsewhere", "slurm_job": "77", "slurm_restarts": null}'


def left_behind(folder: Path, owner: str = ELSEWHERE) -> RunDir:
    """A run whose runner on another host has left its name in the lock."""
    run = RunDir.create(folder, {"cases": []})
    run.unlock()
    (run.path / "runner.lock").write_text(owner)
    return run


def test_a_requeued_job_takes_over_what_it_left_on_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = left_behind(tmp_path / "run")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(BadInput, match="a runner on another host owns this folder"):
        run.lock(is_gone=owner_is_gone)  # the same life of the job: it runs this on several hosts at once
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run.lock(is_gone=owner_is_gone)
    owner = json.loads((run.path / "runner.lock").read_text())
    assert (owner["pid"], owner["slurm_job"], owner["slurm_restarts"]) == (os.getpid(), "77", "1")
    run.unlock()


@pytest.mark.parametrize(
    ("squeue", "gone"),
    [
        ({"out": "77|COMPLETED|None|n1\n"}, True),
        ({"err": "slurm_load_jobs error: Invalid job id specified\n", "code": 1}, True),
        ({"out": "77|RUNNING|None|n1\n"}, False),
        ({"out": "77|PENDING|BeginTime|\n"}, False),
        ({"err": "slurm_load_jobs error: Unable to contact slurm controller\n", "code": 1}, False),
    ],
    ids=["over", "forgotten", "running", "requeued", "not known"],
)
def test_the_runner_of_another_job_is_gone_when_slurm_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeue: dict[str, Any], gone: bool
) -> None:
    answer(tmp_path / "slurm", "squeue", **squeue)
    monkeypatch.setenv("PATH", f"{tmp_path}/slurm:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    run = left_behind(tmp_path / "run")
    if gone:
        run.lock(is_gone=owner_is_gone)
        run.unlock()
    else:
        with pytest.raises(BadInput, match="a runner on another host owns this folder"):
            run.lock(is_gone=owner_is_gone)


@pytest.mark.parametrize("job", ["null", '"x"', "77"])
def test_a_runner_that_was_in_no_job_is_believed_to_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = left_behind(tmp_path / "run", ELSEWHERE.replace('"77"', job))
    with pytest.raises(BadInput, match="a runner on another host owns this folder"):
        run.lock(is_gone=owner_is_gone)


def test_a_watcher_and_a_runner_have_locks_of_their_own(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": []}, WATCHER)
    code = "import sys; from pathlib import Path; from assay.rundir import RunDir; RunDir(Path(sys.argv[1])).lock(sys.argv[2])"
    argv = [sys.executable, "-c", code, str(run.path)]
    subprocess.run([*argv, RUNNER], check=True)
    second = subprocess.run([*argv, WATCHER], capture_output=True, text=True, check=False)
    assert f"another runner owns this folder (pid {os.getpid()} on" in second.stderr
    run.unlock()
    subprocess.run([*argv, WATCHER], check=True)


def test_a_named_folder_may_hold_what_a_killed_beginning_left_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "runner.lock").write_text("")
    (folder / ".run.json.7.tmp").write_text("{")
    with pytest.raises(BadInput, match="exists already"):
        RunDir.create(folder, {"cases": []})
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="exists already"):
        RunDir.create(folder, {"cases": []}, is_gone=lambda owner: False)
    (folder / "notes.txt").unlink()
    RunDir.create(folder, {"suite": {}, "cases": ["a"]}, is_gone=lambda owner: False).unlock()
    assert RunDir.open(folder).document()["cases"] == ["a"]
    with pytest.raises(BadInput, match="exists already"):
        RunDir.create(folder, {"cases": []}, is_gone=lambda owner: False)
