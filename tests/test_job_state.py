"""What Slurm says of jobs, and what is made of it. Its commands are executables of our own that print prepared answers."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import BadInput, RunFailed
from assay.launchers import following, job_state, sbatch
from assay.launchers.following import Followed, look_at, pause_after
from assay.launchers.job_state import (
    JobState,
    NoAnswer,
    ask,
    ask_books,
    cancel,
    exit_code,
    read_sacct,
    read_squeue,
)
from tests.slurm_answers import answer

DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
FORGOTTEN = "slurm_load_jobs error: Invalid job id specified"
Answers = Callable[..., Path]


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """A function that makes a command of Slurm's answer as given; it returns the file with the words it was called with."""
    folder = tmp_path / "slurm"
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return partial(answer, folder)


# --- Reading


@pytest.mark.parametrize(
    ("line", "state", "sentence"),
    [
        ("12|PENDING|Resources|", "waiting", "Slurm job 12 is pending (Resources)"),
        ("12|PENDING|(Priority)|", "waiting", "Slurm job 12 is pending (Priority)"),
        ("12|PENDING|None|", "waiting", "Slurm job 12 is pending"),
        ("12|PENDING|JobHeldUser|", "waiting", "Slurm job 12 is pending (JobHeldUser): scontrol release 12"),
        ("12|PENDING|PartitionNodeLimit|", "waiting", "Slurm job 12 is pending (PartitionNodeLimit): ask for fewer nodes or another partition; sinfo tells the limits"),
        ("12|PENDING|ReqNodeNotAvail, UnavailableNodes:n3|", "waiting", "Slurm job 12 is pending (ReqNodeNotAvail, UnavailableNodes:n3): a node that it needs is down or drained; sinfo -R tells why"),
        ("12|REQUEUED|None|", "waiting", "Slurm job 12 is requeued"),
        ("12|REQUEUE_HOLD|launch failed requeued held|", "waiting", "Slurm job 12 is requeue_hold (launch failed requeued held): look at the node's log, then scontrol release 12"),
        ("12|RUNNING|None|n[1-2]", "running", "Slurm job 12 is running on n[1-2]"),
        ("12|COMPLETING|None|n1", "running", "Slurm job 12 is completing on n1"),
        ("12|SUSPENDED|None|n1", "running", "Slurm job 12 is suspended on n1"),
        ("12|COMPLETED|None|n1", "ended", "Slurm job 12 is completed on n1"),
        ("12|NODE_FAIL|NodeDown|n1", "ended", "Slurm job 12 is node_fail on n1"),
        ("12|TIMEOUT|TimeLimit|n1", "ended", "Slurm job 12 is timeout on n1"),
        ("12|A_STATE_OF_LATER_SLURM|None|", "ended", "Slurm job 12 is a_state_of_later_slurm"),
    ],
)  # fmt: skip
def test_a_line_of_squeue(line: str, state: str, sentence: str) -> None:
    (found,) = read_squeue(line + "\n").values()
    assert [name for name in ("running", "waiting", "ended") if getattr(found, name)] == [state]
    assert found.sentence == sentence


def test_lines_that_are_none_of_ours_are_left_out() -> None:
    text = "squeue: warning: slow\n\n12_3|RUNNING|None|n1\n7|RUNNING|None|n1|more\n|||\n13|PENDING|Priority|\n"
    assert read_squeue(text) == {"13": JobState("13", "PENDING", "Priority")}
    assert read_sacct("sacct: error\n12.batch|RUNNING|n1\n12||n1\n12|FAILED\n13|FAILED|n2\n") == {
        "13": JobState("13", "FAILED", "", "n2")
    }


def test_the_books_tell_of_every_life_and_the_last_one_counts() -> None:
    lives = "12|NODE_FAIL|n[1-2]\n12|REQUEUED|n[1-2]\n12|COMPLETED|n[3-4]\n"
    assert read_sacct(lives) == {"12": JobState("12", "COMPLETED", "", "n[3-4]")}
    (ended,) = read_sacct("12|CANCELLED by 0|n1\n").values()
    assert (ended.state, ended.reason, ended.ended) == ("CANCELLED", "by 0", True)


@given(st.text(alphabet="0123²|ABC_ \n\x00", max_size=60) | st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    for known in (read_squeue(text), read_sacct(text)):
        for job, state in known.items():
            assert state.job == job
            assert state.sentence.startswith(f"Slurm job {job} is ")
            assert state.running + state.waiting + state.ended == 1


# --- Asking


def test_one_question_for_all_jobs(answers: Answers) -> None:
    argv = answers("squeue", "7|RUNNING|None|n1\n9|PENDING|Priority|\n")
    assert sorted(ask(["7", "8", "9"])) == ["7", "9"]
    words = argv.read_text().splitlines()
    assert "--jobs=7,8,9" in words
    assert "--states=all" in words, "else a job that has just ended is as if it had never been"
    argv.unlink()
    assert ask([]) == {}
    assert not argv.exists()


def test_no_answer_is_no_end(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    answers("squeue", err=DOWN + "\n", code=1)
    with pytest.raises(NoAnswer, match=r"^squeue: slurm_load_jobs error: Unable to contact slurm controller"):
        ask(["7"])
    answers("squeue", err=FORGOTTEN + "\n", code=1)
    assert ask(["7"]) == {}
    monkeypatch.setattr(job_state, "ANSWER_SECONDS", 0.1)
    file = Path(answers("squeue")).with_suffix("")
    file.write_text("#!/bin/sh\nexec sleep 5\n")
    with pytest.raises(NoAnswer, match="timed out"):
        ask(["7"])
    file.unlink()
    monkeypatch.setenv("PATH", str(file.parent))
    with pytest.raises(NoAnswer, match=r"squeue: .*No such file"):
        ask(["7"])


def test_the_books_are_asked_for_the_days_before_today(answers: Answers) -> None:
    argv = answers("sacct", "7|COMPLETED|n1\n")
    assert ask_books("7") == JobState("7", "COMPLETED", "", "n1")
    (start,) = [word for word in argv.read_text().splitlines() if word.startswith("--starttime=")]
    begun = time.mktime(time.strptime(start.removeprefix("--starttime="), "%Y-%m-%d"))
    assert time.time() - begun > 7 * 86400, "a job that waited and ran over midnight is found"
    assert "--duplicates" in argv.read_text().splitlines(), "every life of a requeued job"


def test_where_no_books_are_kept_nothing_is_known(answers: Answers) -> None:
    answers("sacct", err="Slurm accounting storage is disabled\n", code=1)
    assert ask_books("7") is None
    answers("sacct", "")
    assert ask_books("7") is None


def test_the_exit_code_is_the_jobs_own(answers: Answers) -> None:
    assert exit_code("7", JobState("7", "COMPLETED")) == 0
    failed = JobState("7", "FAILED")
    for told, code in (("3:0", 3), ("0:9", 1), ("0:0", 1), ("x", 1)):
        answers("scontrol", f"JobId=7 JobName=a b JobState=FAILED ExitCode={told} DerivedExitCode=0:0 Command=/a\n")
        assert exit_code("7", failed) == code
    answers("scontrol", err="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert exit_code("7", None) == 1


def test_a_job_that_is_over_already_is_cancelled_well(answers: Answers) -> None:
    argv = answers("scancel")
    cancel("7")
    assert argv.read_text().split() == ["7"]
    answers("scancel", err="scancel: error: Kill job error on job id 7: Invalid job id specified\n", code=1)
    cancel("7")
    answers("scancel", err="scancel: error: Kill job error on job id 7: Access/permission denied\n", code=1)
    with pytest.raises(NoAnswer, match=r"^scancel 7: .*permission denied"):
        cancel("7")


# --- Following


class Listener:
    """A job that is followed, and what was said of it."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "a-7.out"
        self.said: list[str] = []
        self.lines: list[str] = []
        self.job = Followed("7", "a", self.output, self.said.append, self.lines.append)

    def look(self, state: str | None, reason: str = "") -> bool:
        return self.job.look(None if state is None else JobState("7", state, reason))

    def over(self) -> bool:
        return self.job.over


@pytest.fixture
def listener(tmp_path: Path) -> Listener:
    return Listener(tmp_path)


def test_a_lost_node_that_puts_the_job_back_into_the_queue_is_no_end(listener: Listener) -> None:
    for state in ("PENDING", "RUNNING", "NODE_FAIL", "PENDING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "RUNNING"):
        listener.look(state)
        assert not listener.over(), state
    listener.look("COMPLETED")
    assert listener.over()
    assert listener.said[2:4] == ["a: Slurm job 7 is node_fail", "a: Slurm job 7 is pending"]


def test_a_lost_node_that_stays_the_last_word_is_the_end(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PASSING_SECONDS", 0.1)
    listener.look("NODE_FAIL")
    assert not listener.over()
    time.sleep(0.15)
    listener.look("NODE_FAIL")
    assert listener.over()
    assert listener.job.state == JobState("7", "NODE_FAIL")


@pytest.mark.parametrize("end", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"])
def test_an_end_is_the_end_at_once(listener: Listener, end: str) -> None:
    listener.look(end)
    assert listener.over()


def test_a_job_that_squeue_has_forgotten_is_looked_up_when_that_lasts(
    listener: Listener, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SETTLE_SECONDS", 0.1)
    answers("sacct", "7|NODE_FAIL|n1\n7|CANCELLED by 0|n2\n")
    listener.look("RUNNING")
    listener.look(None)
    assert not listener.over(), "squeue may forget for a moment, as right after submission"
    listener.look("RUNNING")
    time.sleep(0.15)
    listener.look(None)
    assert not listener.over(), "it was known in between"
    time.sleep(0.15)
    listener.look(None)
    assert listener.over()
    assert listener.job.state == JobState("7", "CANCELLED", "by 0", "n2")


def test_what_a_job_prints_is_passed_on_line_by_line(listener: Listener) -> None:
    listener.look("RUNNING")
    with listener.output.open("ab") as file:
        for text in (b"one\ntw", b"o\nthr", b"ee \xff\nand no end"):
            file.write(text)
            file.flush()
            listener.look("RUNNING")
    assert listener.lines == ["one", "two", "three \ufffd"]
    assert not listener.look("RUNNING"), "nothing has changed"
    listener.look("COMPLETED")
    assert listener.lines[3:] == ["and no end"], "what has no line's end is told when the job is over"
    assert listener.said == ["a: Slurm job 7 is running", "a: Slurm job 7 is completed"]


def test_a_controller_that_is_down_ends_no_job(answers: Answers, tmp_path: Path) -> None:
    first, second = Listener(tmp_path), Listener(tmp_path)
    answers("squeue", "7|RUNNING|None|n1\n")
    assert look_at([first.job, second.job], first.said.append)
    answers("squeue", err=DOWN + "\n", code=1)
    assert not look_at([first.job], first.said.append)
    assert first.said[-1] == f"squeue: {DOWN}; asking again"
    assert not first.over()
    answers("squeue", "7|COMPLETED|None|n1\n")
    assert look_at([first.job], first.said.append)
    assert first.over()


def test_the_longer_nothing_changes_the_seldomer_slurm_is_asked() -> None:
    pauses = [following.SHORTEST_SECONDS]
    for _ in range(40):
        pauses.append(pause_after(False, pauses[-1]))
    assert pauses == sorted(pauses)
    assert pauses[-1] == following.LONGEST_SECONDS
    assert pause_after(True, pauses[-1]) == following.SHORTEST_SECONDS


# --- Submitting


def batch(folder: Path, *options: str) -> sbatch.BatchJob:
    return sbatch.BatchJob("a", 2, 600.0, ("true",), folder, folder / "jobs", options)


def test_a_job_is_submitted_by_its_file(answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_OUTPUT", "elsewhere.txt")
    argv = answers("sbatch", "sbatch: a site's own words\n12;thiscluster\n")
    job = batch(tmp_path)
    assert sbatch.write_and_submit(job) == "12"
    assert argv.read_text().splitlines() == ["--parsable", str(job.file)]
    assert "SBATCH_OUTPUT" not in argv.with_suffix(".env").read_text(), "the output is where the watcher reads it"
    assert job.file.read_text() == sbatch.render(job)
    assert sbatch.submit(job, after=["11"]) == "12"
    assert argv.read_text().splitlines() == ["--parsable", "--dependency=afterany:11", str(job.file)]


def test_a_file_is_checked_before_anything_is_written(answers: Answers, tmp_path: Path) -> None:
    argv = answers("sbatch", err="sbatch: Job 5 to start at 2026-01-01T00:00:00 using 2 processors on nodes n1\n")
    job = batch(tmp_path)
    sbatch.check_sbatch(sbatch.render(job))
    assert argv.read_text().splitlines() == ["--test-only"]
    assert argv.with_suffix(".in").read_text() == sbatch.render(job)
    assert not job.folder.exists()


@pytest.mark.parametrize(
    ("err", "said"),
    [
        ("allocation failure: Invalid partition name specified", "Invalid partition name specified; sinfo lists the partitions; give one with --sbatch=--partition=NAME or SBATCH_PARTITION"),
        ("sbatch: error: invalid partition specified: fast\nsbatch: error: Batch job submission failed: Invalid partition name specified", "invalid partition specified: fast; sinfo lists the partitions; give one with --sbatch=--partition=NAME or SBATCH_PARTITION"),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified", "Invalid account or account/partition combination specified; give one with --sbatch=--account=NAME or SBATCH_ACCOUNT"),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "Requested node configuration is not available; sinfo -R names nodes that are down, sinfo -o '%P %D %c %m %G' tells what nodes have"),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", "Unable to contact slurm controller (connect failure); is slurmctld up? scontrol ping tells"),
        ("", "no reason given; mend it with --sbatch=OPTION"),
    ],
)  # fmt: skip
def test_what_slurm_refuses_is_one_sentence(answers: Answers, tmp_path: Path, err: str, said: str) -> None:
    answers("sbatch", err=err + "\n", code=1)
    job = batch(tmp_path)
    with pytest.raises(BadInput) as early:
        sbatch.check_sbatch(sbatch.render(job))
    assert str(early.value) == f"sbatch says: {said}"
    with pytest.raises(RunFailed) as late:
        sbatch.write_and_submit(job)
    assert str(late.value) == f"{job.file}: sbatch says: {said}"


def test_an_answer_without_a_job_number_is_a_failure(answers: Answers, tmp_path: Path) -> None:
    for told in ("", "accepted\n"):
        answers("sbatch", told)
        with pytest.raises(RunFailed, match=r"instead of a job's number; squeue --me tells"):
            sbatch.write_and_submit(batch(tmp_path))


def test_without_slurm_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="there is no sbatch here"):
        sbatch.check_sbatch("")
