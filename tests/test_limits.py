import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.device import HostDevice
from assay.limits.disk import PIECE, WAYS, NoDisk, Way, cached_share, is_in_memory, time_pass
from assay.limits.memory import BEYOND_CACHE, SHARE_OF_FREE, buffer_bytes, copy, triad
from assay.limits.products import KINDS, Shape, Unsupported, fastest, operands, prove, search
from assay.limits.timing import FEWEST, Timings, take_samples
from assay.machine import last_level_caches, memory_left
from assay.record import read_rank_file
from assay.scoring import ceilings
from tests.conftest import torchrun

CPU = HostDevice()


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16", "float16", "int8", "int16"])
def test_every_product_that_a_cpu_has_is_right_in_its_own_type(name: str) -> None:
    assert prove(KINDS[name], CPU) <= KINDS[name].error[1]
    left, right = operands(KINDS[name], CPU, Shape(3, 5, 7))
    assert (left.shape, right.shape, left.dtype) == ((3, 7), (7, 5), KINDS[name].dtype)


@pytest.mark.parametrize("name", ["tf32", "float8_e4m3fn", "float8_e4m3fnuz"])
def test_what_a_cpu_has_not_is_a_reason_and_no_number(name: str) -> None:
    with pytest.raises(Unsupported, match="CPU"):
        prove(KINDS[name], CPU)


def test_a_type_that_did_not_engage_is_found_out() -> None:
    # TF32 that computes in float32 is too exact to be TF32.
    pretended = replace(KINDS["tf32"], accelerators_only=None)
    with pytest.raises(Unsupported, match="did not engage"):
        prove(pretended, CPU)
    coarse = replace(KINDS["float32"], bind=lambda a, b: lambda: (a.bfloat16() @ b.bfloat16()).float())
    with pytest.raises(Unsupported, match="the product is wrong"):
        prove(coarse, CPU)
    none = replace(KINDS["float32"], bind=lambda a, b: lambda: torch.full((256, 256), float("nan")))
    with pytest.raises(Unsupported, match="the product is wrong"):
        prove(none, CPU)
    missing = replace(KINDS["int8"], bind=lambda a, b: lambda: torch.mm(a, b.bfloat16()))
    with pytest.raises(Unsupported, match="on cpu"):
        prove(missing, CPU)


def test_the_search_takes_the_fastest_shape_and_leaves_out_what_would_take_too_long() -> None:
    tried = search(CPU, KINDS["float64"], [Shape(32, 32, 32), Shape(64, 64, 64), Shape(30_000, 30_000, 30_000)], 0.001)
    assert [shape.m for shape, _ in tried] == [32, 64]
    made = [(Shape(2, 2, 2), Timings(0.0, [1.0, 0.5], 5)), (Shape(4, 4, 4), Timings(0.0, [1.0], 1))]
    assert fastest(made) == (Shape(2, 2, 2), 16 / 0.1)


def test_samples_hold_enough_calls_to_be_timed() -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1

    timings = take_samples(CPU, 0.0, work)
    assert len(timings.times) == FEWEST
    assert timings.calls > 1000, "an empty call takes well below a microsecond"
    assert calls == 2 + FEWEST * timings.calls


@given(st.integers(1, 64))
def test_no_cache_holds_what_is_copied_and_memory_is_left_for_others(ranks: int) -> None:
    count = buffer_bytes(CPU, ranks)
    assert count % 4096 == 0
    free, caches = CPU.memory().free or 0, last_level_caches() or 0
    # What is free changes while this test runs: hence a tenth of play.
    assert count * ranks <= 1.1 * free / SHARE_OF_FREE + 4096 * ranks
    if 0.9 * free / SHARE_OF_FREE > (64 << 20) * ranks + BEYOND_CACHE * caches:
        assert count * ranks >= BEYOND_CACHE * caches - 4096 * ranks


def test_copy_and_triad_move_what_they_say() -> None:
    small = 1 << 20
    copied = copy(CPU, small)
    assert copied.amount == 2 * small
    copied.call()
    work = triad(CPU, small)
    assert work.amount == 3 * small
    result = work.call()
    assert isinstance(result, torch.Tensor)
    assert torch.equal(result, torch.full_like(result, 4.0)), "1 + 3 × 1"


@pytest.mark.parametrize("way", WAYS)
def test_the_disk_is_timed_and_nothing_of_ours_stays(way: Way, tmp_path: Path) -> None:
    with contextlib.suppress(NoDisk):  # a file system without O_DIRECT
        assert time_pass(tmp_path, way, PIECE) > 0
    assert list(tmp_path.iterdir()) == []


def test_memory_is_no_disk() -> None:
    shared = Path("/dev/shm")  # noqa: S108 - a file system without a disk is what is wanted
    assert is_in_memory(shared)
    for way in WAYS:
        with pytest.raises(NoDisk, match="lies in memory"):
            time_pass(shared, way, PIECE)


def test_a_folder_that_is_not_there_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(NoDisk, match="no such file or directory"):
        time_pass(tmp_path / "absent", "write_fsync", PIECE)


def test_pages_in_the_cache_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1 << 20))
    assert cached_share(path) == 1.0
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    assert (cached_share(path) == 1.0) == is_in_memory(tmp_path), "only a file system without a disk keeps its pages"


def test_limits_are_taken_alone_and_together_and_carry_an_interval(tmp_path: Path) -> None:
    args = ("--seconds", "0.9", "--gemm-size", "64", "--copy-bytes", "1MiB", "--dtypes", "float32,bfloat16")
    done = torchrun(2, "specs/limits.py", *args, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    figures = ceilings.derive([read_rank_file(tmp_path / f"rank-0000{rank}.jsonl") for rank in (0, 1)])
    found = {(figure.metric, figure.tags.get("dtype"), figure.tags["loaded"]) for figure in figures}
    assert found == {
        (metric, dtype, loaded)
        for metric, dtype in (("gemm_rate", "float32"), ("gemm_rate", "bfloat16"), ("copy_rate", None))
        for loaded in ("alone", "together")
    }
    for figure in figures:
        assert figure.estimate
        # A turn in which ranks missed each other counts for nothing, and fewer than six carry no interval.
        assert (figure.estimate.low is not None) == ("of each of 6 turns" in figure.estimate.method)
        assert figure.estimate.low is None or figure.estimate.low <= figure.estimate.value
    assert any(figure.estimate and figure.estimate.low is not None for figure in figures)


def test_the_caches_of_all_dies_count_once_each(tmp_path: Path) -> None:
    for cpu, die in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        for index, (level, size, shared) in enumerate((("1", "48K", str(cpu)), ("3", "32M", die))):
            folder = tmp_path / f"cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(text + "\n")
    assert last_level_caches(tmp_path) == 64 << 20
    assert last_level_caches(tmp_path / "absent") is None


@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_a_container_is_that_of_its_group(version: int, tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n" if version == 2 else "4:memory:/job/step\n")
    base = tmp_path / "sys/fs/cgroup" / ("" if version == 2 else "memory")
    (base / "job/step").mkdir(parents=True)
    limit, used = (
        ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    (base / "job/step" / limit).write_text("max" if version == 2 else str(1 << 62))
    (base / "job/step" / used).write_text("5")
    assert memory_left(tmp_path)[1] == memory_left(tmp_path / "absent")[1]
    (base / "job" / limit).write_text("1000")
    (base / "job" / used).write_text("600")
    assert memory_left(tmp_path) == (400, 1000)
