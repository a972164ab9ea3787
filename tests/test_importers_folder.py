"""An imported file becomes a run folder that reports and scores, or nothing at all."""

from pathlib import Path
from typing import Any

import pytest

from assay.errors import BadInput
from assay.importers.folder import import_file
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
        ("osu", "osu-bw.txt", {"world": 0}, "--world 0: expected a number of ranks above 0"),
        ("osu", "osu-bw.txt", {"op": "pt2pt"}, "--op pt2pt: only outputs of older nccl-tests need it"),
        ("osu", "osu-bw.txt", {"dtype": "float32"}, "the elements are char, --dtype says float32"),
        ("osu", "osu-bw.txt", {"backend": "nccl"}, "was measured through mpi, --backend says nccl"),
    ],
)
def test_bad_input_writes_nothing(tool: str, name: str, more: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said):
        import_file(tool, GOLDEN / name, tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(BadInput, match="exists already"):
        import_file("osu", GOLDEN / "osu-bw.txt", tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
