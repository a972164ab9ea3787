"""The chapters Training and Fine-tuning, from planted run folders to cells."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from assay.report.cells import Chapter
from assay.report.charts import LineChart
from assay.report.html import render_html
from assay.report.markdown import render_markdown
from assay.report.phases import StackedBars, phases_part
from assay.report.tables import chapters
from assay.results import evaluate
from assay.scoring.baseline import record_baseline
from assay.scoring.reading import read_run
from assay.scoring.result import RunResult
from tests.planted_training import Planted, even, plant

RECORDS = 42 * 128 / 3  # of which 42 steps of 128 are three epochs
PROFILE = "llm-evaluation-0.2.1"


def lora(**changes: Any) -> Planted:
    seconds = np.random.default_rng(4).normal(1, 0.01, 40).tolist()
    options = {"model": "llama-7b", "method": "lora", "int8": True, "weights": "/models/llama-7b"}
    tags = {"method": "lora", "weights": "pretrained"}
    losses = np.linspace(3.0, 0.9, 42).tolist()
    given: dict[str, Any] = {"options": options, "tags": tags, "losses": losses, "scalars": {"records": RECORDS}}
    given["phases"] = even([[1.0] * 3] * 8, [[0.0] * 3] * 8)
    return Planted("lora", [seconds] * 8, "workloads/finetune", **{**given, **changes})


def evaluated(folder: Path, *cases: Planted, against: Path | None = None) -> RunResult:
    return evaluate(plant(folder, *cases), PROFILE, str(against) if against else None)


def baseline(folder: Path, *cases: Planted) -> Path:
    path = folder / "baseline.yaml"
    path.write_text(yaml.safe_dump(record_baseline(read_run(plant(folder / "base", *cases)), "own")))
    return path


def chapter(result: RunResult, anchor: str) -> Chapter | None:
    return next((one for one in chapters(result) if one.anchor == anchor), None)


def table(result: RunResult, anchor: str, title: str) -> list[dict[str, str]]:
    found = chapter(result, anchor)
    assert found is not None
    part = next(part for part in found.parts if part.title == title)
    (only,) = part.tables
    names = [column.title for column in only.columns]
    return [dict(zip(names, [f"{cell.text}|{cell.note}" for cell in row], strict=True)) for row in only.rows]


def test_fine_tuning_is_told_as_in_the_evaluation_report(tmp_path: Path) -> None:
    against = baseline(tmp_path, lora())
    result = evaluated(tmp_path / "run", lora(), against=against)
    function = table(result, "finetuning", "Fine-tuning, function")
    assert [row["Model"].partition("|")[0] for row in function] == ["Alpaca-LoRA", "InternLM-7B / LLaMA1-7B"]
    alpaca = function[0]
    assert alpaca["Loss, target"] == "≤ 0.950|"
    assert alpaca["Loss, measured"].startswith("1.13|mean of the last 10 of 42 steps")
    assert alpaca["Loss variance, target"] == "0|the baseline against itself"
    assert alpaca["Loss variance, measured"] == "0|over 42 steps that both have"
    assert alpaca["PPL, measured"] == "NA|not recorded"
    assert alpaca["Score"].startswith("0|loss 1.13")
    performance = table(result, "finetuning", "Fine-tuning, performance")
    assert [(row["Devices"], row["Weight"]) for row in performance] == [("8|", "25.0 %|"), ("32|", "25.0 %|")] * 2
    assert performance[0]["int8 on, measured"].startswith("128 tokens/s/device|")
    assert performance[0]["int8 off, baseline"] == "NA|"
    assert performance[0]["Score"] == "1.000|"
    assert "Fine-tuning, performance" in render_markdown(result)


def test_chapters_without_a_training_stay_out(tmp_path: Path) -> None:
    result = evaluated(tmp_path / "run", lora())
    assert chapter(result, "training") is None
    pretrained = evaluated(tmp_path / "other", Planted("p", [[1.0] * 10]))
    assert chapter(pretrained, "finetuning") is None
    hidden = table(pretrained, "training", "Training, function")
    assert [row["Weight"] for row in hidden] == ["15.0 %|", "40.0 %|", "30.0 %|", "15.0 %|"]
    assert all(row["Score"].startswith("NA|the report's copy hides") for row in hidden)


def test_scores_are_in_one_chapter_only(tmp_path: Path) -> None:
    result = evaluated(tmp_path / "run", lora())
    scores = chapter(result, "scores")
    assert scores is not None
    parts = {part.title: part for part in scores.parts}
    assert parts["Fine-tuning, function"].tables == ()
    assert parts["Fine-tuning, function"].lead == "Score 0: see chapter Fine-tuning."
    assert parts["Training, function"].tables, "no case was pretrained, so there is no chapter that could show it"


def test_generated_weights_are_said_beside_the_case(tmp_path: Path) -> None:
    options = {"model": "llama-7b", "method": "lora", "int8": True, "weights": None}
    result = evaluated(tmp_path / "run", lora(options=options, tags={"method": "lora", "weights": "generated"}))
    found = chapter(result, "finetuning")
    assert found is not None
    assert any("loss targets that hold for pretrained weights do not apply" in part.lead for part in found.parts)
    score = table(result, "finetuning", "Fine-tuning, function")[0]["Score"]
    assert score == "NA|weights were generated; the target holds for pretrained weights"


def test_the_loss_is_drawn_with_the_baselines_curve(tmp_path: Path) -> None:
    result = evaluated(tmp_path / "run", lora(), against=baseline(tmp_path, lora()))
    found = chapter(result, "finetuning")
    assert found is not None
    part = next(part for part in found.parts if part.title == "lora")
    loss = next(chart for chart in part.charts if isinstance(chart, LineChart))
    assert [series.label for series in loss.series] == ["warmup", "measured", "baseline"]
    assert [row[1].text for row in part.tables[0].rows if row[0].text.startswith("variance of the loss")] == ["0"]
    alone = chapter(evaluated(tmp_path / "alone", lora()), "finetuning")
    assert alone is not None
    part = next(part for part in alone.parts if part.title == "lora")
    assert [series.label for chart in part.charts if isinstance(chart, LineChart) for series in chart.series][
        -1
    ] == "measured"


def test_where_the_time_goes_is_a_bar_and_a_table(tmp_path: Path) -> None:
    seconds = [np.random.default_rng(4).normal(1, 0.01, 40).tolist() for _ in range(2)]
    seconds[1][7] += 3
    seconds[0][8] += 3
    waits = [[0.5] * 3, [0.0] * 3]
    case = Planted("p", seconds, phases=even([[1.0] * 3, [1.5] * 3], waits))
    result = evaluated(tmp_path / "run", case)
    found = chapter(result, "training")
    assert found is not None
    part = next(part for part in found.parts if part.title == "p: where the time goes")
    (bars,) = part.charts
    assert isinstance(bars, StackedBars)
    assert list(bars.bars) == ["all", "rank 0", "rank 1"]
    assert bars.bars["rank 1"]["forward"] == 1.5
    phases, outliers = part.tables
    cells = {row[0].text: [f"{cell.text} {cell.note}".strip() for cell in row[1:]] for row in phases.rows}
    assert cells["forward"][0].startswith("1.25 s")
    assert cells["forward"][2] == "rank 1 1.50 s"
    assert list(cells) == ["data", "forward", "backward", "optimizer", "exposed communication"]
    assert "The phases sum to 1.62 s in a sampled step" in part.lead
    assert "Rank 1 on right works" in part.lead
    ((step, _, who),) = outliers.rows
    assert (step.text, who.text, who.note) == ("9", "rank 1", "on right")
    page = render_html(result)
    assert "currentColor" in page
    assert "held up" in page.lower()


def test_a_single_rank_holds_nobody_up_and_the_limit_says_of_which_times_it_is(tmp_path: Path) -> None:
    seconds = np.random.default_rng(4).normal(1, 0.01, 40).tolist()
    seconds[7] += 3
    (case,) = read_run(plant(tmp_path / "run", Planted("p", [seconds]))).cases
    part = phases_part("p", case.steps)
    assert part is not None
    ((_, _, who),) = part.tables[0].rows
    assert (who.text, who.note) == ("–", "")
    assert "of times from which" not in part.lead
    assert case.steps is not None
    corrected = phases_part("p", replace(case.steps, corrected=True))
    assert corrected is not None
    assert "of the median, of times from which is taken what their tokens explain" in corrected.lead


def test_na_says_that_it_counts_0_only_where_it_does(tmp_path: Path) -> None:
    passed = lora(losses=np.linspace(3.0, 0.1, 42).tolist())
    whole = table(evaluated(tmp_path / "whole", passed), "finetuning", "Fine-tuning, function")
    assert whole[0]["Model"] == "Alpaca-LoRA|case lora, data own.json"
    assert [row["Score"] for row in whole] == ["1.000|every target met after 42 steps", "NA|not submitted, counts 0"]
    apart = lora(options={"model": "gpt3-13b", "method": "lora"}, tags={"model": "gpt3-13b"})
    none = table(evaluated(tmp_path / "none", apart), "finetuning", "Fine-tuning, function")
    assert [row["Score"] for row in none] == ["NA|not submitted"] * 2


def test_the_method_is_printed_where_the_row_leaves_it_open(tmp_path: Path) -> None:
    case = lora(
        options={"model": "internlm-7b", "method": "full", "int8": False},
        tags={"model": "internlm-7b", "method": "full"},
    )
    found = table(evaluated(tmp_path / "run", case), "finetuning", "Fine-tuning, performance")
    assert "no baseline; method full" in found[2]["int8 off, measured"]
    assert found[2]["Score"] == "NA|no baseline"


@pytest.mark.parametrize("value", [0.0, float("nan"), 1e-9])
def test_a_bar_of_nothing_can_be_drawn(value: float) -> None:
    from assay.report.axes import Axis

    drawn = StackedBars("t", Axis("time", "s", zero=True), ["a", "b"], {"<x>": {"a": value, "b": 0.0}}).draw("c")
    assert drawn.startswith("<svg")
    assert "<x>" not in drawn
    assert "nan" not in drawn
