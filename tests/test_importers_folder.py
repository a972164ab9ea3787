"""An imported file becomes a run folder that reports and scores, or nothing at all."""

import os
from pathlib import Path
from typing import Any

import pytest

from assay.errors import BadInput
from assay.importers.folder import MOST_BYTES, import_file
from assay.importers.output import Given
from assay.report.markdown import render_markdown
from assay.results import evaluate
from assay.rundir import RunDir
from tests.golden_files import EVERY, GIVEN, GOLDEN, one, text_of, tool_of


@pytest.mark.parametrize("name", EVERY)
def test_every_file_becomes_a_run_that_reports_and_scores(name: str, tmp_path: Path) -> None:
    given = GIVEN.get(name, Given(8 if name.startswith("osu") else None))
    run = import_file(tool_of(name), GOLDEN / name, tmp_path / "run", world=given.world, op=given.op)
    (kept,) = run.glob("cases/*/attempt-1/imported.*")
    assert kept.read_bytes() == (GOLDEN / name).read_bytes()
    result = evaluate(run)
    (case,) = result.cases
    assert case.script == f"import/{tool_of(name)}"
    assert case.status is not None
    assert case.status.state == "passed"
    assert case.figures
    assert all(figure.estimate or figure.reason for figure in case.figures)
    kinds = {doubt.kind for doubt in result.doubts}
    assert not kinds & {"garbage_records", "unreadable_records", "mixed_provenance", "busy_machine", "oversubscribed"}
    assert f"tool {tool_of(name)}" in render_markdown(result)
    again = RunDir.open(run)
    again.lock()  # the importer has given it up
    again.unlock()


def test_repeated_sweeps_give_a_median_and_an_interval(tmp_path: Path) -> None:
    text = text_of("osu-allreduce-full.txt")
    (tmp_path / "osu-many.txt").write_text(
        "".join(text.replace("702.55", f"{700 + i}.55") for i in (3, 0, 5, 1, 6, 2, 4))
    )
    run = import_file("osu", tmp_path / "osu-many.txt", tmp_path / "run", world=4)
    time = one(evaluate(run).cases[0].figures, "call_time_mean", bytes=1 << 20).estimate
    assert time is not None
    assert (time.value, time.low, time.high) == pytest.approx((703.55e-6, 700.55e-6, 706.55e-6))
    bus = one(evaluate(run).cases[0].figures, "busbw", bytes=1 << 20).estimate
    assert bus is not None
    assert bus.low is not None
    assert bus.high is not None
    assert bus.low < bus.value < bus.high


@pytest.mark.parametrize(
    ("tool", "name", "more", "said"),
    [
        (
            "gloo",
            "osu-bw.txt",
            {},
            "gloo: is no tool whose outputs can be imported; give one of nccl-tests, osu, deepspeed",
        ),
        ("osu", "missing.txt", {}, "missing.txt: no such file or directory"),
        ("osu", "deepspeed-raw.txt", {"world": 2}, "holds no result; expected the tables that an OSU micro-benchmark"),
        ("nccl-tests", "osu-bw.txt", {}, "holds no result; expected the table that nccl-tests prints"),
        ("osu", "osu-bw.txt", {"world": 0}, "--world: expected 1 to 2147483647 ranks; give the number"),
        ("osu", "osu-bw.txt", {"world": 2**31}, "--world: expected 1 to 2147483647 ranks; give the number"),
        ("osu", "osu-bw.txt", {"world": 10**320}, "--world: expected 1 to 2147483647 ranks; give the number"),
        ("nccl-tests", "nccl-tests-unnamed.txt", {"op": ""}, "--op: is empty; give a name, or leave --op out"),
        ("osu", "osu-bw.txt", {"dtype": " "}, "--dtype: is empty; give a name, or leave --dtype out"),
        ("osu", "osu-bw.txt", {"backend": ""}, "--backend: is empty; give a name, or leave --backend out"),
        ("osu", "osu-bw.txt", {"op": "pt2pt"}, "--op pt2pt: only outputs of older nccl-tests need it"),
        ("osu", "osu-bw.txt", {"dtype": "float32"}, "the elements are char, --dtype says float32"),
        ("osu", "osu-bw.txt", {"backend": "nccl"}, "osu-bw.txt:5: was measured through mpi, --backend says nccl"),
        ("osu", "osu-host-and-device.txt", {"world": 8, "backend": "mpi"}, "device.txt:17: was measured through nccl"),
    ],
)
def test_bad_input_writes_nothing(tool: str, name: str, more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        import_file(tool, GOLDEN / name, tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


OSU = text_of("osu-allreduce-full.txt")
NCCL = text_of("nccl-tests-all_reduce.txt")
SCAN = "---- Performance of broadcast on 8 devices ----\nSize (Bytes)   Description   Duration   Throughput (Gbps)   BusBW (Gbps)\n"  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "text", "said"),
    [
        ("osu", OSU + OSU.replace("v7.5", "v5.9"), "x:12: is of OSU's suite 5.9, the same measurement at .*x:5 of OSU's suite 7.5"),
        ("nccl-tests", NCCL + NCCL.replace("H100 80GB", "H200"), r"is of 2 hosts, NVIDIA H200 HBM3, .* at .*x:26 of 2 hosts, NVIDIA H100"),
        ("nccl-tests", NCCL + NCCL.replace("node-2", "node-1"), "is of 1 host, .* at .*x:26 of 2 hosts, "),
        ("nccl-tests", NCCL + NCCL.replace("22807", "21803"), r"nccl 2\.18\.3, the same measurement at .* nccl 2\.28\.7"),
        ("deepspeed", SCAN + "4.0 KB  1024x4  8.0 us  4.096  4.096\n4.0 KB  2048x2  8.0 us  4.096  4.096\n", "elements of 2 bytes.* elements of 4"),
    ],
)  # fmt: skip
def test_two_machines_or_libraries_do_not_make_one_figure(tool: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(BadInput, match=f"{said}.*; put them into files of their own and import each"):
        import_file(tool, tmp_path / "x", tmp_path / "run", world=8 if tool == "osu" else None)
    assert not (tmp_path / "run").exists()


def test_versions_of_tables_that_stay_apart_are_all_kept(tmp_path: Path) -> None:
    other = text_of("osu-alltoall.txt")
    (tmp_path / "x").write_text(OSU + other + other)
    run = import_file("osu", tmp_path / "x", tmp_path / "run", world=8)
    assert RunDir.open(run).document()["software"] == {"osu-micro-benchmarks": "7.5, 5.9"}


def test_a_mark_that_is_not_known_is_named(tmp_path: Path) -> None:
    for name in ("osu-allreduce-full.txt", "nccl-tests-all_reduce.txt", "deepspeed-raw.txt"):
        marked = "".join(f"2026-11-22T09:20:47Z {line}\n" for line in text_of(name).splitlines())
        (tmp_path / "x").write_text(marked)
        with pytest.raises(
            BadInput, match=r"x:\d+: a table's title stands behind '2026-11-22T09:20:47Z '; take the marks"
        ):
            import_file(tool_of(name), tmp_path / "x", tmp_path / "run", world=8)


def test_only_regular_files_of_a_sensible_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    for path, said in (
        (tmp_path / "large", "is larger than 256MiB; import only the lines that the tool printed"),
        (tmp_path, "is no regular file; write what the tool printed into one"),
        (tmp_path / "pipe", "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
    ):
        with pytest.raises(BadInput, match=f"{path}: {said}"):
            import_file("osu", path, tmp_path / "run", world=8)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(BadInput, match="exists already"):
        import_file("osu", GOLDEN / "osu-bw.txt", tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
