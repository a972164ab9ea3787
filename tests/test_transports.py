"""Every transport and every variant of a call, in real ranks: the same ops, the same records, the right data."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from assay.bandwidth import COLLECTIVES
from assay.scoring.comms import derive, late_ranks
from assay.scoring.result import Figure
from assay.traffic import digest
from tests.conftest import ROOT, mpirun, rank_files, torchrun

QUICK = ("--size", "12KiB", "--budget", "0.02", "--no-audit")


def figures_of(folder: Path) -> list[Figure]:
    return derive(rank_files(folder), {}, [])[0]


def measured(figures: list[Figure]) -> set[str]:
    """Ops that have a time and not one wrong element."""
    timed = {str(figure.tags["op"]) for figure in figures if figure.metric == "batch_call_time" and figure.value}
    wrong = {str(figure.tags["op"]) for figure in figures if figure.metric == "check_errors" and figure.value}
    return timed - wrong


def test_mpi_itself_runs_every_collective_in_and_out_of_place(tmp_path: Path) -> None:
    done = mpirun(
        3, "comms/bench.py", "--transport", "mpi", "--ops", "all", "--placement", "both", *QUICK, "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    figures = figures_of(tmp_path)
    assert measured(figures) == set(COLLECTIVES)
    assert {figure.tags["backend"] for figure in figures} == {"mpi4py"}
    refused = {figure.reason for figure in figures if figure.metric == "busbw" and figure.value is None}
    assert "mpi4py: MPI has no broadcast out of place" in refused, "what cannot be is NA with the reason"
    twice = [f for f in figures if f.metric == "busbw" and f.tags["op"] == "all_reduce" and f.value]
    assert [f.tags.get("placement") for f in twice] == [None, "out"], (
        "in place is all_reduce's usual way, without a tag"
    )


def test_two_transports_take_turns_and_are_compared(tmp_path: Path) -> None:
    done = mpirun(2, "comms/bench.py", "--transport", "mpi", "--versus", "gloo", *QUICK, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"# gloo / mpi4py at 12288 B: time x [\d.]+", done.stdout)
    (ratio,) = [figure for figure in figures_of(tmp_path) if figure.metric == "time_ratio"]
    assert ratio.tags["versus"] == "mpi4py"
    assert ratio.tags["backend"] == "gloo"
    assert ratio.estimate is not None
    assert ratio.estimate.low is not None
    assert ratio.estimate.low <= ratio.estimate.value


@pytest.mark.parametrize("run", [torchrun, mpirun])
def test_groups_coalesced_and_asynchronous_calls(
    run: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    own = ("--transport", "mpi") if run is mpirun else ()
    variant = ("--split", "mod:2", "--coalesce", "3", "--async", "--ops", "all")
    done = run(
        4, "comms/bench.py", *own, *variant, "--size", "12KiB", "--budget", "0.02", "--no-audit", "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    figures = figures_of(tmp_path)
    assert measured(figures) == set(COLLECTIVES)
    for figure in figures:
        assert (figure.tags["world"], figure.tags["groups"], figure.tags["coalesced"]) == (2, 2, 3)
        assert figure.tags["asynchronous"] is True
        assert figure.tags["means"] == "all begun, then all awaited"


def test_every_element_type_and_reduction_is_measured_or_says_why_not(tmp_path: Path) -> None:
    done = torchrun(
        2,
        "comms/bench.py",
        "--dtype",
        "all",
        "--redop",
        "sum,avg",
        "--ops",
        "all_reduce,broadcast",
        *QUICK,
        "--out",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    bus = [figure for figure in figures_of(tmp_path) if figure.metric == "busbw"]
    assert len(bus) == 7 * 2 + 7, "seven types times two reductions, and one broadcast a type"
    refused = {(figure.tags["redop"], figure.tags["dtype"]) for figure in bus if figure.value is None}
    assert refused == {("avg", "int32"), ("avg", "int64"), ("avg", "uint8")}
    assert all(figure.value or (figure.reason or "").startswith("gloo: ") for figure in bus)


def test_a_reduction_that_mpi_lacks_is_na_with_the_reason_and_the_rest_is_measured(tmp_path: Path) -> None:
    wanted = ("--dtype", "float32,bfloat16", "--redop", "sum,avg")
    done = mpirun(2, "comms/bench.py", "--transport", "mpi", *wanted, *QUICK, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    bus = [figure for figure in figures_of(tmp_path) if figure.metric == "busbw"]
    assert [bool(figure.value) for figure in bus] == [True, False, False, False]
    assert [figure.reason for figure in bus] == [
        None,
        "mpi4py: MPI has no avg",
        "mpi4py: MPI has no reduction of bfloat16",
        "mpi4py: MPI has no reduction of bfloat16",
    ]


def test_traffic_of_a_file(tmp_path: Path) -> None:
    matrix = tmp_path / "traffic.txt"
    matrix.write_text("# expert parallel: rank 1 takes most\n0, 3\n1, 4\n")
    out = tmp_path / "records"
    done = torchrun(2, "comms/bench.py", "--ops", "all_to_all_v", "--matrix", matrix, *QUICK, "--out", out)
    assert done.returncode == 0, done.stderr
    figures = figures_of(out)
    assert measured(figures) == {"all_to_all_v"}
    (told,) = {str(figure.tags["matrix"]) for figure in figures}
    assert f", matrix {told}" in done.stdout, "two traffics are two measurements"
    assert told == digest(np.array([[0, 30], [10, 40]])), "in any unit"


@pytest.mark.parametrize("fault", ["swap_two_chunks", "flip_a_bit", "skip_a_contribution", "return_early"])
def test_every_fault_of_a_transport_is_caught_in_every_collective(fault: str, tmp_path: Path) -> None:
    short = ("--warmup", "1", "--calls", "1", "--batches", "1", "--max-calls", "3", "--no-audit", "--budget", "0.02")
    args = (fault, "--ops", "all", "--size", "2KiB", *short, "--out", tmp_path)
    done = torchrun(2, "tests/ranks_faults.py", *args, PYTHONPATH=".")
    assert done.returncode == 1, done.stderr
    assert "are wrong; trust no figure of this run" in done.stderr
    figures = figures_of(tmp_path)
    caught = {str(f.tags["op"]) for f in figures if f.metric in ("check_errors", "left_early") and f.value}
    # A barrier has no data; that it does not wait is all that can be wrong with it.
    assert caught == set(COLLECTIVES) - (set() if fault == "return_early" else {"barrier"})
    late = {str(f.tags["op"]) for f in figures if f.metric == "late_elements"}
    assert late == (set(COLLECTIVES) - {"barrier"} if fault == "return_early" else set())


def late_trial(folder: Path) -> dict[str, int]:
    """Op → the rank that is named late, in a run in which rank 1 of 3 comes 20 ms late to every call."""
    short = ("--warmup", "1", "--calls", "1", "--batches", "1", "--max-calls", "30", "--no-audit", "--budget", "2")
    args = ("come_late", "--ops", "all", "--size", "12KiB", *short, "--out", folder)
    done = torchrun(3, "tests/ranks_faults.py", *args, PYTHONPATH=".")
    assert done.returncode == 0, done.stderr
    return {str(item.tags["op"]): item.late.rank for item in late_ranks(rank_files(folder))}


def test_the_rank_that_comes_late_is_named_in_every_collective(tmp_path: Path) -> None:
    assert late_trial(tmp_path) == dict.fromkeys(COLLECTIVES, 1)


@pytest.mark.prove
@pytest.mark.parametrize("trial", range(20))
def test_the_late_rank_is_named_in_twenty_of_twenty_trials(tmp_path: Path, trial: int) -> None:
    assert late_trial(tmp_path / str(trial)) == dict.fromkeys(COLLECTIVES, 1)


def error_sentences(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("assay: error: ")]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--backend", "nccl"), "rank 0: --backend nccl is not built into this torch; it has gloo"),
        (("--versus", "gloo"), "rank 0: --versus gloo: is what --transport measures already; name another"),
        (("-e", "512TiB", "-b", "512TiB"), "more than is free; give less"),
        (
            ("--split", "div:2"),
            "--split div:2: 3 ranks fall into groups of 1 and 2; expected groups of one size, 2 or more",
        ),
        (("--transport", "mpi"), "the launcher started 3 ranks, but MPI sees 1; start with mpirun -n 3"),
        (
            ("--ops", "broadcast", "--placement", "out"),
            "rank 0: nothing can be measured: gloo: torch.distributed has no",
        ),
        (("--ops", "all_reduc"), "--ops: unknown collective 'all_reduc'; did you mean 'all_reduce'?"),
    ],
)
def test_bad_input_is_one_sentence_once(args: tuple[str, ...], sentence: str) -> None:
    done = torchrun(3, "comms/bench.py", *args)
    assert done.returncode != 0
    (said,) = error_sentences(done.stderr)
    assert sentence in said
    assert "Traceback (most recent call last)" not in done.stderr.partition("torch/distributed")[0]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--versus", "gloo"), r"--versus: rank 1 on \S+ was given gloo, rank 0 None;"),
        (("--max", "2MiB"), r"--max: rank 1 on \S+ was given 2097152, rank 0 16777216;"),
    ],
)
def test_ranks_that_disagree_are_told_once_and_not_waited_for(args: tuple[str, ...], sentence: str) -> None:
    script = (sys.executable, str(ROOT / "comms/bench.py"), "--transport", "mpi")
    done = mpirun(1, "comms/bench.py", "--transport", "mpi", ":", "-n", "1", *script, *args)
    assert done.returncode == 2
    (said,) = error_sentences(done.stderr)
    assert re.search(sentence + " start every rank with the same", said)
