import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from assay.errors import BadInput
from assay.estimates import Estimate
from assay.options import SpecsOptions
from assay.record import Block, Header, RankFile, TagValue, read_rank_file
from assay.report.specifications import specification_chapter
from assay.results import evaluate
from assay.scoring import specifications
from assay.scoring.baseline import Baseline, load_baseline
from assay.scoring.result import CaseResult, Figure, RunResult
from assay.scoring.sensors import SensorFile, SensorSeries
from assay.scoring.specifications import PARAMETERS, measured, parameter_rows
from tests.conftest import assay, torchrun

SMALL = ["--seconds", "0.06", "--sustain", "0.5", "--idle", "0.1", "--copy-bytes", "1MiB"]
SMALL += ["--disk-bytes", "16MiB", "--disk-passes", "2", "--dtypes", "float32,tf32,int8", "--device", "cpu"]


def by_key(figures: list[Figure]) -> dict[str, Figure | None]:
    return {parameter.key: measured(parameter, figures) for parameter in PARAMETERS}


def test_all_that_has_a_meaning_on_a_cpu_has_a_number_and_the_rest_its_reason(tmp_path: Path) -> None:
    done = torchrun(1, "specs/bench.py", *SMALL, "--sustain", "2.1", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    figures, curves = specifications.derive([read_rank_file(tmp_path / "rank-00000.jsonl")], {}, [])
    found = by_key(figures)
    for key in ("fp32", "int8", "memory", "bandwidth", "d2d", "disk_write"):
        figure = found[key]
        assert figure, key
        assert figure.value, (key, figure.reason)
    for key, why in (("tf32", "TF32 is a mode"), ("h2d", "the host itself"), ("link", "the host itself")):
        figure = found[key]
        assert figure, key
        assert figure.value is None
        assert figure.reason
        assert why in figure.reason
    assert {(curve.metric, curve.over) for curve in curves} == {("sustained_rate", "s")}
    assert {figure.unit for figure in figures if figure.metric == "sustained_rate"} == {"FLOP/s", "OP/s"}


def test_ranks_measure_at_once_and_none_waits_for_ever(tmp_path: Path) -> None:
    done = torchrun(2, "specs/bench.py", *SMALL, "--parts", "products,memory,links,disk", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    files = [read_rank_file(tmp_path / f"rank-0000{number}.jsonl") for number in (0, 1)]
    figures, _ = specifications.derive(files, {}, [])
    both = [figure for figure in figures if figure.metric in ("gemm_rate", "copy_rate", "triad_rate") and figure.value]
    assert {figure.tags["loaded"] for figure in both} == {"together"}
    assert all(figure.estimate and figure.estimate.method.startswith("2 ranks at work") for figure in both)
    assert len([block for block in files[1].blocks if block.metric == "disk_time"]) == 0, "one rank a host"


def test_only_the_parts_asked_for_are_measured(tmp_path: Path) -> None:
    done = torchrun(1, "specs/bench.py", *SMALL, "--parts", "memory", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = {block.metric for block in read_rank_file(tmp_path / "rank-00000.jsonl").blocks}
    assert metrics == {"memory_total", "copy_time", "triad_time"}
    assert SpecsOptions.model_validate({"parts": "disk,host"}).parts == ("disk", "host")
    twice = torchrun(1, "specs/bench.py", "--parts", "disk,disk")
    assert twice.returncode != 0
    assert "'disk' is there twice; keep one" in twice.stderr
    nowhere = torchrun(1, "specs/bench.py", *SMALL, "--parts", "disk", "--disk", tmp_path / "absent")
    assert f"--disk {tmp_path / 'absent'}: is no folder" in nowhere.stderr


def rank(number: int, blocks: list[Block]) -> RankFile:
    header = Header(number, 2, number, 2, f"n{number}", 1, f"c{number}", "cuda", "X", "nccl", "specs/bench", 0.0, 0.0)
    return RankFile(Path("rank"), header, blocks, [], False)


def block(metric: str, samples: list[float], tags: dict[str, TagValue], reason: str | None = None) -> Block:
    return Block(metric, "s", np.asarray(samples, dtype=np.float64), tags, reason=reason)


def test_a_job_waits_for_the_slowest_device_so_that_one_counts() -> None:
    tags: dict[str, TagValue] = {"dtype": "int8", "work": 100, "ranks": 2, "loaded": "together"}
    files = [
        rank(0, [block("sustained_time", [1.0] * 8, tags)]),
        rank(1, [block("sustained_time", [2.0] * 8, tags)]),
    ]
    figures, curves = specifications.derive(files, {}, [])
    (figure,) = figures
    assert (figure.metric, figure.value, figure.unit) == ("sustained_rate", 50.0, "OP/s")
    assert list(curves[0].samples) == [100.0] * 8
    disk: dict[str, TagValue] = {"way": "write_fsync", "bytes": 100, "folder": "/a"}
    disks = [rank(0, [block("disk_time", [1.0] * 7, disk)]), rank(1, [block("disk_time", [4.0] * 7, disk)])]
    (figure,) = specifications.derive(disks, {}, [])[0]
    assert figure.value == 25.0
    refused = [rank(0, [block("disk_time", [math.nan], disk, "no O_DIRECT")])]
    (figure,) = specifications.derive(refused, {}, [])[0]
    assert (figure.value, figure.reason) == (None, "no O_DIRECT")


def test_the_reports_table_is_the_baseline() -> None:
    # Table 4 of the evaluation report 0.2.1, in its own units and order.
    printed = {
        "fp16": (312, 1e12), "fp32": (19.5, 1e12), "fp32_tensor": (156, 1e12), "int8": (624, 1e12),
        "int16": (312, 1e12), "bf16": (312, 1e12), "tf32": (156, 1e12), "memory": (80, 1e9), "bandwidth": (2039, 1e9),
        "h2d": (22.3, 1e9), "d2h": (15.0, 1e9), "link": (600, 1e9), "d2d": (1587.6, 1e9),
        "flops_per_watt": (0.557, 1e12), "ops_per_watt": (1.116, 1e12),
    }  # fmt: skip
    baseline = load_baseline("a100-80g").specifications
    assert baseline == pytest.approx({key: number * unit for key, (number, unit) in printed.items()})


def test_a_baseline_with_an_unknown_parameter_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    document = {"schema": "assay-baseline/1", "name": "b", "title": "t", "source": "s", "figures": []}
    path.write_text(yaml.safe_dump({**document, "specifications": {"fp23": 1.0}}))
    with pytest.raises(BadInput, match=r"unknown parameter 'fp23'; did you mean 'fp32'\?"):
        load_baseline(str(path))
    path.write_text(yaml.safe_dump({**document, "specifications": {"fp32": -1.0}}))
    with pytest.raises(BadInput, match="expected a number above 0"):
        load_baseline(str(path))


def test_a_run_of_them_is_a_table_and_makes_a_baseline_of_its_own(tmp_path: Path) -> None:
    options = "{" + ", ".join(
        f"{key}: {value}"
        for key, value in {
            "seconds": 0.06, "sustain": 0.3, "idle": 0.1, "copy_bytes": "1MiB", "disk_bytes": "16MiB",
            "disk_passes": 1, "dtypes": "float32", "device": "cpu",
        }.items()
    ) + "}"  # fmt: skip
    suite = tmp_path / "s.yaml"
    suite.write_text(
        f"assay: 1\nname: s\nlimits: false\ndoctor: false\ncases:\n - {{name: specs, script: specs/bench, options: {options}}}\n"
    )
    done = assay("run", suite, "--out", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    told = assay("baseline", "record", run, "--out", tmp_path / "own.yaml", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    own = Baseline.model_validate(yaml.safe_load((tmp_path / "own.yaml").read_text()))
    assert {"fp32", "bandwidth", "d2d", "memory"} <= set(own.specifications)
    result = evaluate(run, None, str(tmp_path / "own.yaml"))
    rows = {row.parameter.key: row for row in result.parameters}
    assert rows["fp32"].figure
    assert rows["fp32"].baseline == rows["fp32"].figure.value
    (part,) = specification_chapter(result).parts
    shown = {row[0].text: [cell.text for cell in row] for row in part.tables[0].rows}
    assert shown["FP32 rate, full precision"][3] == "100.0 %"
    assert shown["TF32 rate"][1] == "NA"


def test_a_run_without_them_has_no_table() -> None:
    assert parameter_rows([], {"fp32": 1.0}, {}) == []


def test_power_and_rate_per_watt_come_from_the_time_under_load_alone() -> None:
    times = np.arange(0.0, 41.0)
    watts = np.where(times < 10.5, 50.0, 300.0)  # 10 s of rest, then work
    header = rank(0, []).header
    series = SensorSeries(
        "gpu0", "power", "W", {"source": "nvml", "index": 0, "driver": "nvml"}, times, watts, "c0", "n0"
    )
    heat = SensorSeries("gpu0", "temperature", "degC", {"source": "nvml"}, times, times + 30, "c0", "n0")
    sensors = [SensorFile(Path("s"), header, [series, heat], [], None, [])]
    tags: dict[str, TagValue] = {"dtype": "float16", "work": 9e12, "ranks": 1, "loaded": "alone", "begun": 15.0}
    assert header
    alone = RankFile(
        Path("r"),
        replace(header, world=1, local_world=1),
        [block("rest_time", [8.0], {"begun": 1.0}), block("sustained_time", [1.0] * 20, tags)],
        [],
        False,
    )
    figures = specifications.efficiency([alone], sensors)
    found = {parameter.key: measured(parameter, figures) for parameter in PARAMETERS}
    assert {key: figure.value for key, figure in found.items() if figure} == {
        "power_idle": pytest.approx(50.0),
        "power_loaded": pytest.approx(300.0),
        "flops_per_watt": pytest.approx(9e12 / 300),
    }
    assert [(figure.value, figure.tags["during"]) for figure in figures if figure.metric == "temperature_max"] == [
        (65.0, "float16")
    ]
    unknown = specifications.efficiency([alone], [])
    assert {figure.value for figure in unknown} == {None}
    assert {figure.reason for figure in unknown} == {"n0: no sensors were recorded"}


def test_a_vendors_own_datasheet_stands_beside_what_was_measured(tmp_path: Path, tiny_run: Path) -> None:
    (tmp_path / "own.yaml").write_text("schema: assay-datasheets/1\nproducts: 3\n")
    done = assay("report", tiny_run, "--out", tmp_path, "--datasheets", tmp_path / "own.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("assay: error: ")) == (2, 1)
    assert "own.yaml:2: products:" in done.stderr
    figure = Figure("gemm_rate", "FLOP/s", Estimate(6e13, None, None, 6, ""), {"dtype": "tf32"})
    case = CaseResult("specs", "specs/bench", 1, {}, None, 1, [figure])
    rows = {row.parameter.key: row for row in parameter_rows([case], {}, {"tf32": 1.2e14, "fp32": 1e13})}
    assert (rows["tf32"].datasheet, rows["fp32"].datasheet, rows["fp8"].datasheet) == (1.2e14, 1e13, None)
    result = RunResult("r", {}, [case], [], [], parameters=list(rows.values()), datasheet="Own: its sheet, 2026.")
    chapter = specification_chapter(result)
    assert "Datasheet: Own: its sheet, 2026." in chapter.lead
    shown = {row[0].text: [cell.text for cell in row] for row in chapter.parts[0].tables[0].rows}
    assert shown["TF32 rate"] == ["TF32 rate", "60.0 TFLOP/s", "120 TFLOP/s", "50.0 %"]
