"""comms/bench.py on real ranks, and the data check against transports that err."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from assay.bandwidth import busbw
from assay.collectives.operations import OPERATIONS
from assay.collectives.pattern import fill, pattern
from assay.collectives.setting import Buffers, Setting
from assay.record import read_rank_file
from assay.scoring.comms import derive
from tests.conftest import rank_files, torchrun

SMALL = ("-b", "256", "-e", "4KiB", "-f", "16", "--budget", "0.05")


def test_every_collective_gives_the_right_data_and_records(tmp_path: Path) -> None:
    world = 3
    done = torchrun(world, "comms/bench.py", "--ops", "all", *SMALL, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    files = rank_files(tmp_path)
    assert len(files) == world
    figures, _ = derive(files, {}, [])
    ops = {str(figure.tags["op"]) for figure in figures}
    assert ops == set(OPERATIONS)
    for figure in figures:
        if figure.metric == "check_errors":
            assert figure.value == 0
        elif figure.metric in ("alpha", "bandwidth_asymptotic"):
            assert figure.reason, "two sizes are too few for a fit"
        else:
            too_few = figure.metric in ("call_time_p95", "call_time_p99") and "samples, p9" in (figure.reason or "")
            assert too_few or (figure.value or 0) > 0, figure
    # What is printed is what a reader derives from the raw samples, to the printed digits.
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r"\s+\d", line)]
    times = [f for f in figures if f.metric == "batch_call_time"]
    assert [row[5] for row in rows] == [f"{(f.value or 0) * 1e6:.2f}" for f in times]
    assert [row[0] for row in rows] == [str(f.tags["bytes"]) for f in times]
    for figure in (f for f in figures if f.metric == "busbw"):
        (time,) = (f for f in times if f.tags == figure.tags)
        assert figure.value == busbw(str(figure.tags["op"]), int(figure.tags["bytes"]), time.value or 0, world)


def test_pt2pt_is_between_the_pinned_pair_only(tmp_path: Path) -> None:
    done = torchrun(3, "comms/bench.py", "--ops", "pt2pt", *SMALL, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    timed = [
        {block.metric for block in read_rank_file(path).blocks} >= {"batch_time", "call_entry", "call_exit"}
        for path in sorted(tmp_path.glob("rank-*.jsonl"))
    ]
    assert timed == [True, True, False]


def test_deepspeeds_columns_and_definitions() -> None:
    done = torchrun(2, "comms/bench.py", "--ops", "all_reduce,all_gather", "--size", "64KiB", "--style", "deepspeed")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r"\d+\.\d+ KB", line)]
    reduce, gather = rows
    assert reduce[:3] == ["64.0", "KB", "16384x4"]
    assert gather[:3] == ["32.0", "KB", "8192x4"], "DeepSpeed prints one rank's part"
    milliseconds, throughput, bus = float(reduce[3]), float(reduce[5]), float(reduce[6])
    assert throughput == pytest.approx(2 * 65536 * 8 / (milliseconds / 1e3) / 1e9, rel=0.01, abs=0.0006)
    assert bus == pytest.approx(throughput / 2, abs=0.0011)


# --- The data check, without ranks: each fault is put into a buffer that is otherwise right.

WORLD = 4


def setting(rank: int, dtype: torch.dtype = torch.float32, count: int = 4096, redop: str = "sum") -> Setting:
    return Setting(rank, WORLD, (0, 1), dtype, torch.device("cpu"), seed=1, count=count, redop=redop)


def received(op: str, rank: int, count: int, dtype: torch.dtype, redop: str = "sum") -> tuple[Setting, Buffers]:
    """Buffers of `rank` as they are after a faultless call."""
    here = setting(rank, dtype, count, redop)
    operation = OPERATIONS[op]
    buffers = operation.allocate(here)
    fill(here, buffers)
    buffers.received.copy_(operation.expected(here, torch.arange(buffers.received.numel())).to(dtype))
    return here, buffers


def holder(op: str) -> int:
    """A rank that has something to check after the op; the root's partner where there is a choice."""
    return next(rank for rank in (1, 0) if OPERATIONS[op].holds(setting(rank)))


CHECKED = [op for op in OPERATIONS if op != "barrier"]


def swap_halves(data: torch.Tensor) -> None:
    half = data.numel() // 2
    data.copy_(torch.cat([data[half:], data[:half]]))


def flip_one_bit(data: torch.Tensor) -> None:
    data.view(torch.uint8)[data.numel() * data.element_size() // 2] ^= 1


def shift_by_one(data: torch.Tensor) -> None:
    data.copy_(data.roll(1))


def repeat_first_half(data: torch.Tensor) -> None:
    half = data.numel() // 2
    data[half:].copy_(data[:half].clone())


def zero(data: torch.Tensor) -> None:
    data.zero_()


@pytest.mark.parametrize("fault", [swap_halves, flip_one_bit, shift_by_one, repeat_first_half, zero])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.uint8])
@pytest.mark.parametrize("op", CHECKED)
def test_every_fault_in_every_collective_is_seen(
    op: str, dtype: torch.dtype, fault: Callable[[torch.Tensor], None]
) -> None:
    here, buffers = received(op, holder(op), 4096, dtype)
    assert OPERATIONS[op].check(here, buffers).wrong == 0
    fault(buffers.received)
    found = OPERATIONS[op].check(here, buffers)
    assert found.wrong > 0
    assert found.first_wrong is not None


def test_a_rank_that_was_left_out_of_a_sum_is_seen() -> None:
    here, buffers = received("all_reduce", 0, 4096, torch.float32)
    own = OPERATIONS["all_reduce"].allocate(here)
    fill(here, own)
    buffers.received.sub_(own.sent)
    assert OPERATIONS["all_reduce"].check(here, buffers).wrong > 4000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.uint8])
@pytest.mark.parametrize("redop", ["sum", "prod", "min", "max", "avg"])
def test_every_reduction_shows_a_rank_that_was_left_out(redop: str, dtype: torch.dtype) -> None:
    here, buffers = received("all_reduce", 0, 4096, dtype, redop)
    assert OPERATIONS["all_reduce"].check(here, buffers).wrong == 0
    others = [pattern(here, rank, torch.arange(4096)).double() for rank in range(1, WORLD)]
    stack = torch.stack(others)
    found = {
        "sum": stack.sum(0), "avg": stack.sum(0) / WORLD, "prod": stack.prod(0), "min": stack.amin(0),
        "max": stack.amax(0),
    }[redop]  # fmt: skip
    buffers.received.copy_(found.to(dtype))
    assert OPERATIONS["all_reduce"].check(here, buffers).wrong > 500


def test_an_average_may_be_scaled_before_it_is_summed() -> None:
    here, buffers = received("all_reduce", 0, 4096, torch.float32, "avg")
    scaled = sum(pattern(here, rank, torch.arange(4096)).float() * (1 / 3 * 3 / WORLD) for rank in range(WORLD))
    assert isinstance(scaled, torch.Tensor)
    buffers.received.copy_(scaled)
    assert OPERATIONS["all_reduce"].check(here, buffers).wrong == 0
    buffers.received.fill_(float("nan"))
    assert OPERATIONS["all_reduce"].check(here, buffers).wrong == 4096, "what is no number is wrong"


def test_a_call_that_did_nothing_is_seen() -> None:
    for op in ("all_gather", "all_to_all", "reduce_scatter"):
        here = setting(1)
        buffers = OPERATIONS[op].allocate(here)
        fill(here, buffers)
        assert OPERATIONS[op].check(here, buffers).wrong == buffers.received.numel()


def test_large_buffers_are_sampled_and_say_so() -> None:
    here, buffers = received("all_reduce", 0, 3 << 20, torch.float32)
    found = OPERATIONS["all_reduce"].check(here, buffers)
    assert (found.wrong, found.total) == (0, 3 << 20)
    assert found.looked_at < found.total
    swap_halves(buffers.received)
    assert OPERATIONS["all_reduce"].check(here, buffers).wrong > found.looked_at // 2


@pytest.mark.parametrize(("dtype", "world"), [(torch.bfloat16, 512), (torch.float16, 4096), (torch.uint8, 300)])
def test_the_check_stays_exact_where_the_dtype_cannot_count_the_ranks(dtype: torch.dtype, world: int) -> None:
    here = Setting(1, world, (0, 1), dtype, torch.device("cpu"), seed=1, count=512)
    operation = OPERATIONS["all_reduce"]
    buffers = operation.allocate(here)
    total = operation.expected(here, torch.arange(512))
    assert (total.to(dtype).to(torch.int64) == total).all(), "every sum is a number that the dtype holds exactly"
    buffers.received.copy_(total.to(dtype))
    assert operation.check(here, buffers).wrong == 0
    own = pattern(here, 1, torch.arange(512))
    assert own.sum() > 0
    buffers.received.copy_((total - own).to(dtype))
    assert operation.check(here, buffers).wrong > 100, "a rank that was left out is seen"
    buffers.received.zero_()
    assert operation.check(here, buffers).wrong > 400


BYTES_PER_SIZE = 60_000  # that a rank may log, as docs/communication.md says


@pytest.mark.prove
def test_64_ranks_on_few_cores_finish_a_sweep_and_log_little(tmp_path: Path) -> None:
    ops = ("all_reduce", "all_gather", "all_to_all", "broadcast", "pt2pt")
    patient = ("--join-timeout", "900", "--warmup", "1", "--budget", "0.5")
    sweep = ("--ops", ",".join(ops), "-b", "4KiB", "-e", "64KiB", "-f", "16", *patient)
    done = torchrun(64, "comms/bench.py", *sweep, "--out", tmp_path, limit=1800)
    assert done.returncode == 0, done.stderr
    files = sorted(tmp_path.glob("rank-*.jsonl"))
    assert len(files) == 64
    assert max(path.stat().st_size for path in files) < BYTES_PER_SIZE * len(ops) * 2


@pytest.mark.parametrize("world", [3, 64, 512, 4096])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_averages_of_many_ranks_show_every_fault(dtype: torch.dtype, world: int) -> None:
    here = Setting(1, world, (0, 1), dtype, torch.device("cpu"), seed=1, count=8192, redop="avg")
    operation = OPERATIONS["all_reduce"]
    buffers = operation.allocate(here)
    right = operation.expected(here, torch.arange(8192)).to(dtype)
    # As a backend may do it: scaled in the element type before the sum.
    scaled = sum(
        (pattern(here, rank, torch.arange(8192)).to(dtype) * (1 / world)).double() for rank in range(0, world, 1)
    )
    assert isinstance(scaled, torch.Tensor)
    buffers.received.copy_(scaled.to(dtype))
    assert operation.check(here, buffers).wrong == 0
    left_out = right.clone()
    left_out[pattern(here, 1, torch.arange(8192)) > 0] = 0
    for wrong in (left_out, torch.zeros_like(right), right.roll(4096), right * 1.06):
        buffers.received.copy_(wrong)
        assert operation.check(here, buffers).wrong > 0


def test_records_of_two_runs_are_never_mixed(tmp_path: Path) -> None:
    args = ("--ops", "pt2pt", "--size", "1KiB", "--budget", "0.01", "--out", tmp_path)
    assert torchrun(2, "comms/bench.py", *args).returncode == 0
    again = torchrun(2, "comms/bench.py", *args)
    assert again.returncode != 0
    assert f"--out {tmp_path}: holds records of another run already; give a new folder" in again.stderr


def test_a_folder_that_cannot_be_written_is_one_sentence() -> None:
    done = torchrun(2, "comms/bench.py", "--ops", "pt2pt", "--size", "1KiB", "--out", "/proc/nowhere")
    assert done.returncode != 0
    assert "--out /proc/nowhere: cannot be written" in done.stderr
    assert 'File "/' not in done.stderr.partition("--out /proc/nowhere")[0]
