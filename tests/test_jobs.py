"""A suite as jobs in a queue: Slurm's commands are executables that print prepared answers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from assay import jobs
from assay.launchers.job_state import NoAnswer, ask
from assay.rundir import WATCHER, RunDir, write_document
from tests.slurm_answers import answer
from tests.test_launchers import suite


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the commands; a job that is submitted is number 12."""
    folder = tmp_path / "slurm"
    answer(folder, "sbatch", "12\n")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(jobs, "LONGEST_SECONDS", 0.05)
    return folder


def watched(run: RunDir) -> tuple[bool, list[str]]:
    """Whether all cases passed, and what was said."""
    said: list[str] = []
    return jobs.run_jobs(run, suite(), said.append), said


def test_a_case_that_its_job_could_not_close_is_closed_with_what_slurm_knows(tmp_path: Path, queue: Path) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": ["small", "all"]}, WATCHER)
    answer(queue, "squeue", "12|TIMEOUT|TimeLimit|n[1-4]\n")
    passed, said = watched(run)
    assert not passed
    assert "--dependency=afterany:12" in (queue / "sbatch.argv").read_text().splitlines(), "one behind the other"
    for name in ("small", "all"):
        found = run.case(name).latest()
        assert found is not None
        assert found[1] is not None
        assert (found[1].state, found[1].reason) == (
            "failed",
            "Slurm job 12 ended as timeout on n[1-4] before the case began",
        )
        assert f"{name}: Slurm job 12 is timeout on n[1-4]" in said
        assert json.loads((run.path / f"jobs/{name}.json").read_text())["ended"] == "TIMEOUT"
    # What has ended without passing is submitted again.
    (queue / "sbatch.argv").unlink()
    run.lock(WATCHER)
    assert not watched(run)[0]
    assert (queue / "sbatch.argv").exists()


def test_jobs_wait_for_all_before_them_and_a_cancelled_run_submits_no_more(
    tmp_path: Path, queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": ["small", "all"]}, WATCHER)
    (queue / "sbatch").write_text('#!/bin/sh\necho "$@" >> "$0.all"\nwc -l < "$0.all"\n')
    (queue / "squeue").write_text(
        '#!/bin/sh\ntouch "$MARK"\nfor job in 1 2 3; do echo "$job|CANCELLED|None|n1"; done\n'
    )
    for name in ("sbatch", "squeue"):
        (queue / name).chmod(0o755)
    several = replace(suite(), cases=[replace(suite().cases[0], name=name) for name in ("a", "b", "c")])
    monkeypatch.setenv("MARK", str(run.path / "jobs/cancelled"))
    monkeypatch.setattr(jobs, "MOST_QUEUED", 2)
    jobs.run_jobs(run, several, lambda line: None)
    asked = (queue / "sbatch.all").read_text().splitlines()
    assert len(asked) == 2, "the third was cancelled with the run before it was submitted"
    assert "--dependency" not in asked[0]
    assert "--dependency=afterany:1 " in asked[1]


def test_slurms_own_filters_hide_no_job(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (queue / "squeue").write_text('#!/bin/sh\ntest -z "$SQUEUE_PARTITION" && echo "7|RUNNING|None|n1"\n')
    (queue / "squeue").chmod(0o755)
    monkeypatch.setenv("SQUEUE_PARTITION", "another")
    assert ask(["7"])["7"].running


def test_a_later_watcher_follows_the_job_that_is_under_way(tmp_path: Path, queue: Path) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": ["small", "all"]}, WATCHER)
    for group in jobs.groups(suite(), run.path):
        write_document(group.job.folder / f"{group.job.name}.json", {"job": "7"})
    (queue / "squeue").write_text(
        '#!/bin/sh\necho >> "$0.asked"\ncase $(wc -l < "$0.asked") in\n'
        "1) echo 'slurm_load_jobs error: down' >&2; exit 1;;\n"
        "2|3) echo '7|RUNNING|None|n1';;\n"
        "*) echo '7|CANCELLED|None|n1';;\nesac\n"
    )
    (queue / "squeue").chmod(0o755)
    passed, said = watched(run)
    assert not passed
    assert said == [
        "small: squeue: slurm_load_jobs error: down; asking again",
        "small: is job 7 already",
        "all: is job 7 already",
        "small: Slurm job 7 is cancelled on n1",
        "all: Slurm job 7 is cancelled on n1",
    ]
    assert not (queue / "sbatch.argv").exists(), "nothing was submitted a second time"


def test_the_jobs_of_a_run_are_cancelled(tmp_path: Path, queue: Path) -> None:
    run = RunDir.create(tmp_path / "run", {"cases": ["small", "all"]}, WATCHER)
    write_document(run.path / "jobs/small.json", {"job": "7"})
    write_document(run.path / "jobs/all.json", {"job": "8", "ended": "COMPLETED"})
    answer(queue, "squeue", "7|PENDING|Priority|\n8|RUNNING|None|n1\n")
    answer(queue, "scancel")
    assert jobs.cancel_jobs(run, suite()) == ["7"]
    assert (queue / "scancel.argv").read_text() == "7\n"
    answer(queue, "squeue", err="slurm_load_jobs error: down\n", code=1)
    with pytest.raises(NoAnswer, match="down"):
        jobs.cancel_jobs(run, suite())
