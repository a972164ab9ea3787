"""Figures of trainings from planted records, and their TGS against baselines under profiles with columns."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from assay.record import TagValue
from assay.scoring import energy, training
from assay.scoring.baseline import Baseline, load_profile, record_baseline
from assay.scoring.profile_format import Profile
from assay.scoring.reading import read_run
from assay.scoring.result import Configuration, Figure, RunResult, Section
from assay.scoring.score import score_run
from tests.planted_training import Planted, plant, rank_files

FINETUNE = "workloads/finetune"


def named(figures: list[Figure]) -> dict[str, Figure]:
    return {figure.metric: figure for figure in figures}


def part(result: RunResult, key: str, profile: Profile | str, baseline: Baseline | None) -> Section:
    chosen = load_profile(profile) if isinstance(profile, str) else profile
    return next(one for one in score_run(result, chosen, baseline).sections if one.key == key)


def own(result: RunResult) -> Baseline:
    return Baseline.model_validate(yaml.safe_load(yaml.safe_dump(record_baseline(result, "own"))))


def lora(name: str, seconds: float, int8: bool, world: int = 8, **changes: Any) -> Planted:
    given = dict(changes)
    options = {"model": "llama-7b", "method": "lora", "int8": int8, **given.pop("options", {})}
    tags = {"method": options["method"], "model": options["model"], **given.pop("tags", {})}
    return Planted(name, [[seconds] * 10] * world, FINETUNE, options, tags, **given)


def one_row(tmp_path: Path, base: Planted, *run: Planted, row: int = 0, column: int = 1) -> Configuration:
    """The part of the report's table of fine-tuning, int8 off where `column` is 1."""
    before = own(read_run(plant(tmp_path / "before", base)))
    after = read_run(plant(tmp_path / "after", *run))
    rows = part(after, "finetuning_performance", "llm-evaluation-0.2.1", before).rows
    return rows[row].configurations[column]


def test_what_only_some_workloads_record_is_a_figure_where_it_is(tmp_path: Path) -> None:
    scalars = {"nsp_accuracy": 0.75, "nsp_loss": 0.5, "eval_loss": math.log(12), "trained_parameters": 10.0}
    case = Planted("bert", [[0.5] * 10], "workloads/bert", scalars={**scalars, "base_weight_bytes": 4096.0})
    found = named(training.derive(rank_files(tmp_path, case), case.options, [])[0])
    assert found["nsp_accuracy"].value == 0.75
    assert found["nsp_accuracy"].better == "higher"
    assert found["nsp_loss"].value == 0.5
    assert found["ppl"].value == pytest.approx(12), "a masked model's PPL is of its masked tokens, not of both losses"
    assert found["ppl"].estimate is not None
    assert found["ppl"].estimate.method == "exp of the mean loss per masked token on held-out data"
    assert (found["base_weight_bytes"].value, found["base_weight_bytes"].unit) == (4096, "B")
    assert found["trained_parameters"].value == 10
    assert found["tokens"].value == 10 * 1024
    plain = Planted("llama", [[0.5] * 10], scalars={"eval_loss": math.log(50)})
    others = named(training.derive(rank_files(tmp_path, plain), plain.options, [])[0])
    assert not {"nsp_accuracy", "nsp_loss", "base_weight_bytes", "epochs"} & set(others)
    assert others["ppl"].value == pytest.approx(50)
    assert others["ppl"].estimate is not None
    assert others["ppl"].estimate.method == "exp of the mean loss per token on held-out data"


def test_batches_of_unequal_length_do_not_widen_the_interval_of_tgs(tmp_path: Path) -> None:
    tokens = [512.0 if step % 3 else 2048.0 for step in range(60)]
    seconds = [count / 1000 * (1.01 if step % 2 else 0.99) for step, count in enumerate(tokens)]
    case = Planted("lora", [seconds])
    files = rank_files(tmp_path, case)
    for file in files:
        for one in file.of("tokens"):
            one.samples[:] = tokens
    estimate = named(training.derive(files, {}, [])[0])["tgs"].estimate
    assert estimate is not None
    assert estimate.value == pytest.approx(sum(tokens) / sum(seconds))
    assert estimate.half_width is not None
    assert estimate.half_width < 0.01


def test_the_method_and_int8_come_from_the_options(tmp_path: Path) -> None:
    case = lora("lora", 1.0, True, world=1)
    tags = named(training.derive(rank_files(tmp_path, case), case.options, [])[0])["tgs"].tags
    assert (tags["method"], tags["int8"]) == ("lora", True)


def test_epochs_are_steps_times_batch_over_records(tmp_path: Path) -> None:
    case = Planted("lora", [[1.0] * 10], scalars={"records": 512.0})
    files = rank_files(tmp_path, case)
    assert named(training.derive(files, {"global_batch": 128}, [])[0])["epochs"].value == 12 * 128 / 512
    assert "epochs" not in named(training.derive(files, {}, [])[0])


def test_mfu_has_the_printed_peak_as_its_second_denominator(tmp_path: Path) -> None:
    (case,) = read_run(plant(tmp_path / "run", Planted("a", [[0.5] * 10], scalars={"flops_per_token": 1e9}))).cases
    assert training.with_printed_peaks([case]) == [case], "a device without a datasheet has one denominator"
    about = {**case.about, "device_name": "NVIDIA A100-SXM4-80GB"}
    (known,) = training.with_printed_peaks([type(case)(**{**vars(case), "about": about})])
    figure = known.figures[-1]
    assert figure.metric == "mfu_datasheet"
    assert figure.value == pytest.approx(2048 * 1e9 / 312e12)
    assert figure.share_of is not None
    assert "datasheet" in figure.share_of


def test_a_run_scores_1_against_the_baseline_recorded_from_it(tmp_path: Path) -> None:
    result = read_run(
        plant(tmp_path / "run", Planted("a", [[0.5] * 10] * 2), lora("b", 1.0, True), lora("c", 2.0, False))
    )
    for key in ("training_performance", "finetuning_performance"):
        assert part(result, key, "local", own(result)).score == pytest.approx(1)


def test_pretraining_and_fine_tuning_of_one_model_are_two_measurements(tmp_path: Path) -> None:
    before = read_run(plant(tmp_path / "a", Planted("p", [[1.0] * 10] * 8)))
    after = read_run(plant(tmp_path / "b", lora("f", 0.5, False)))
    assert part(after, "training_performance", "local", own(before)).rows[0].note == "not submitted"
    assert part(after, "finetuning_performance", "local", own(before)).rows == []


def test_the_seeds_table_of_fine_tuning_is_rows_of_a_quarter_with_two_columns(tmp_path: Path) -> None:
    base = read_run(
        plant(tmp_path / "base", lora("on", 1.0, True), lora("off", 1.0, False), lora("far", 1.0, True, 32))
    )
    faster = lora("on", 0.5, True)  # twice the baseline
    slower = lora("off", 2.0, False)  # half of it
    found = part(
        read_run(plant(tmp_path / "new", faster, slower)), "finetuning_performance", "llm-evaluation-0.2.1", own(base)
    )
    assert list(found.columns) == ["int8 on", "int8 off"]
    assert [(row.label, row.world, row.weight) for row in found.rows] == [
        ("Alpaca-LoRA", 8, 0.25),
        ("Alpaca-LoRA", 32, 0.25),
        ("InternLM-7B", 8, 0.25),
        ("InternLM-7B", 32, 0.25),
    ]
    alpaca = found.rows[0]
    assert [(one.title, one.score) for one in alpaca.configurations] == [("int8 on", 2.0), ("int8 off", 0.5)]
    assert alpaca.score == pytest.approx(1.25), "the mean over its configurations"
    assert [one.note for one in found.rows[1].configurations] == ["not submitted", "not submitted"]
    assert found.rows[1].score is None
    assert found.score == pytest.approx(0.25 * 1.25), "what was not submitted counts 0"


def test_what_was_not_submitted_counts_0_in_the_mean_and_what_has_no_baseline_does_not_count(tmp_path: Path) -> None:
    both = own(read_run(plant(tmp_path / "both", lora("on", 1.0, True), lora("off", 1.0, False))))
    one = own(read_run(plant(tmp_path / "one", lora("on", 1.0, True))))
    half = read_run(plant(tmp_path / "half", lora("on", 1.0, True)))
    whole = read_run(plant(tmp_path / "whole", lora("on", 1.0, True), lora("off", 1.0, False)))
    key, profile = "finetuning_performance", "llm-evaluation-0.2.1"
    assert part(half, key, profile, both).rows[0].score == pytest.approx(0.5)
    assert part(whole, key, profile, one).rows[0].score == pytest.approx(1)
    assert part(whole, key, profile, one).rows[0].configurations[1].note == "no baseline"


def test_without_a_baseline_a_row_is_NA_and_shows_the_share_of_the_ceiling(tmp_path: Path) -> None:
    result = read_run(plant(tmp_path / "run", lora("on", 1.0, True)))
    row = part(result, "finetuning_performance", "llm-evaluation-0.2.1", None).rows[0]
    assert row.score is None
    on = row.configurations[0]
    assert (on.measured, on.note) == (1024 / 8, "no baseline")
    mfu = Figure("mfu", "1", None, {}, share=0.4, share_of="measured gemm")
    (case,) = result.cases
    beside = [mfu if one.metric == "mfu" else one for one in case.figures]
    beside = [type(mfu)(**{**vars(mfu), "tags": case.figures[0].tags}) if one is mfu else one for one in beside]
    shown = type(result)(**{**vars(result), "cases": [type(case)(**{**vars(case), "figures": beside})]})
    on = part(shown, "finetuning_performance", "llm-evaluation-0.2.1", None).rows[0].configurations[0]
    assert (on.share, on.share_of) == (0.4, "measured gemm")


def test_a_failed_configuration_is_0(tmp_path: Path) -> None:
    base = own(read_run(plant(tmp_path / "base", lora("on", 1.0, True), lora("off", 1.0, False))))
    result = read_run(plant(tmp_path / "run", lora("on", 1.0, True), lora("off", 1.0, False, state="failed")))
    row = part(result, "finetuning_performance", "llm-evaluation-0.2.1", base).rows[0]
    assert [(one.score, one.note) for one in row.configurations] == [(1.0, ""), (0.0, "case off did not pass")]
    assert row.score == pytest.approx(0.5)


def test_a_label_puts_a_case_into_the_second_column(tmp_path: Path) -> None:
    slow = Planted("slow", [[2.0] * 10] * 8, labels={"network": "second"})
    quick = Planted("quick", [[1.0] * 10] * 8)
    base = read_run(plant(tmp_path / "run", slow, quick))
    found = part(base, "training_performance", "llm-evaluation-0.2.1", own(base))
    (row,) = found.rows
    assert [(one.title, one.measured) for one in row.configurations] == [
        ("first network", 128.0),
        ("second network", 64.0),
    ]
    assert found.score == pytest.approx(1)
    # A labelled case is no stand-in for the plain one.
    alone = read_run(plant(tmp_path / "alone", slow))
    (row,) = part(alone, "training_performance", "llm-evaluation-0.2.1", own(base)).rows
    assert [one.note for one in row.configurations] == ["not submitted", ""]
    assert row.score == pytest.approx(0.5)


def test_a_loss_that_is_no_number_gives_no_baseline_curve(tmp_path: Path) -> None:
    losses = [5.0, 4.0, float("nan"), *[3.0] * 9]
    result = read_run(plant(tmp_path / "run", Planted("a", [[1.0] * 10], losses=losses)))
    assert record_baseline(result, "own")["curves"] == []


RECIPE = {
    "cutoff": 512,
    "lora_rank": 8,
    "lora_targets": ["q_proj", "v_proj"],
    "lora_dropout": 0.05,
    "train_on_inputs": True,
    "group_by_length": True,
    "micro_batch": 4,
}


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"cutoff": 64}, "cutoff 512, not 64"),
        ({"lora_rank": 1}, "lora_rank 8, not 1"),
        ({"lora_targets": ["v_proj"]}, "lora_targets q_proj,v_proj, not v_proj"),
        ({"lora_dropout": 0.0}, "lora_dropout 0.05, not 0.0"),
        ({"train_on_inputs": False}, "train_on_inputs true, not false"),
        ({"group_by_length": False}, "group_by_length true, not false"),
        ({"global_batch": 1024}, "global_batch 128, not 1024"),
        ({"cutoff": None}, "cutoff 512, not an unknown one"),
        ({"cutoff": 64, "lora_rank": 1, "lora_dropout": 0.0}, "cutoff 512, not 64, lora_rank 8, not 1 and 1 more"),
    ],
)
def test_a_cheaper_training_is_not_held_against_a_dearer_one(tmp_path: Path, change: dict[str, Any], note: str) -> None:
    found = one_row(
        tmp_path, lora("a", 1.0, False, options=RECIPE), lora("a", 0.5, False, options={**RECIPE, **change})
    )
    assert (found.measured, found.score, found.note) == (256.0, None, f"the baseline was measured with {note}")


def test_other_data_and_precision_are_another_measurement(tmp_path: Path) -> None:
    base = lora("a", 1.0, False)
    tags = {"dtype": "float16", "data": "short.json"}
    found = one_row(tmp_path, base, lora("a", 0.5, False, tags=tags))
    assert found.score is None
    assert found.note == "the baseline was measured with dtype bfloat16, not float16, data own.json, not short.json"


def test_a_baseline_that_does_not_say_how_it_was_measured_is_none(tmp_path: Path) -> None:
    found = one_row(tmp_path, lora("a", 1.0, False), lora("a", 0.5, False, options={"cutoff": 64}))
    assert (found.score, found.note) == (None, "the baseline was measured with an unknown cutoff, not 64")


def test_engine_micro_batch_and_folder_are_free(tmp_path: Path) -> None:
    base = lora("a", 1.0, False, options=RECIPE, tags={"data": "/here/alpaca.json"})
    run = lora(
        "a", 0.5, False, options={**RECIPE, "micro_batch": 16}, tags={"engine": "fsdp", "data": "/x/alpaca.json"}
    )
    found = one_row(tmp_path, base, run)
    assert (found.score, found.note, found.how) == (2.0, "", "")


def test_a_recorded_baseline_finds_its_data_in_another_folder(tmp_path: Path) -> None:
    before = own(read_run(plant(tmp_path / "a", lora("a", 1.0, False, tags={"data": "/here/alpaca.json"}))))
    for data, score in (("/there/alpaca.json", 2.0), ("/there/other.json", None)):
        after = read_run(plant(tmp_path / Path(data).stem, lora("a", 0.5, False, tags={"data": data})))
        assert part(after, "finetuning_performance", "local", before).score == score


def test_of_several_cases_the_one_that_the_baseline_has_is_scored(tmp_path: Path) -> None:
    quick = lora("quick", 0.1, False, options={**RECIPE, "cutoff": 64})
    found = one_row(tmp_path, lora("a", 1.0, False, options=RECIPE), quick, lora("b", 0.5, False, options=RECIPE))
    assert (found.score, found.measured) == (2.0, 256.0)


def test_a_row_that_leaves_the_method_open_says_which_it_was_and_compares_like_with_like(tmp_path: Path) -> None:
    def internlm(seconds: float, method: str) -> Planted:
        return lora(method, seconds, False, options={"model": "internlm-7b", "method": method})

    full = one_row(tmp_path / "a", internlm(1.0, "full"), internlm(0.1, "lora"), internlm(0.5, "full"), row=2)
    assert (full.score, full.how) == (2.0, "method full")
    mixed = one_row(tmp_path / "b", internlm(1.0, "full"), internlm(0.1, "lora"), row=2)
    assert (mixed.score, mixed.how) == (None, "method lora")
    assert mixed.note == "the baseline was measured with method full, not lora"


def test_adapters_options_say_nothing_of_a_full_fine_tuning(tmp_path: Path) -> None:
    model = {"model": "internlm-7b", "method": "full"}
    base = lora("a", 1.0, False, options={**RECIPE, **model})
    found = one_row(tmp_path, base, lora("a", 0.5, False, options={**RECIPE, **model, "lora_rank": 64}), row=2)
    assert found.score == 2.0


def test_a_failed_case_with_several_targets_is_0(tmp_path: Path) -> None:
    base = own(read_run(plant(tmp_path / "a", lora("a", 1.0, False, options=RECIPE))))
    failed = read_run(plant(tmp_path / "b", lora("a", 1.0, False, options=RECIPE, state="failed", world=8)))
    cases = [type(case)(**{**vars(case), "figures": []}) for case in failed.cases]  # it died before its first step
    bare = type(failed)(**{**vars(failed), "cases": cases})
    row = part(bare, "finetuning_performance", "local", base).rows[0]
    assert (row.score, row.note) == (0.0, "case a did not pass")


def test_how_memory_was_measured_is_not_what_is_trained(tmp_path: Path) -> None:
    def method(script: str, tags: dict[str, TagValue]) -> str:
        case = Planted("a", [[1.0] * 10], script, tags=tags, scalars={"peak_memory": 5.0})
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        estimate = named(training.derive(rank_files(folder, case), {}, [])[0])["peak_memory"].estimate
        assert estimate is not None
        return estimate.method

    assert method(FINETUNE, {"method": "full", "how": "allocator"}) == "allocator, largest over 1 rank"
    assert method(FINETUNE, {"method": "full"}) == "measured, largest over 1 rank"
    assert method("workloads/pretrain", {"method": "allocator"}) == "allocator, largest over 1 rank"


def test_energy_has_the_tags_of_its_training(tmp_path: Path) -> None:
    case = lora("lora", 1.0, True, world=1, tags={"int8": "true"}, options=RECIPE)
    files = rank_files(tmp_path, case)
    tags = named(training.derive(files, case.options, [])[0])["tgs"].tags
    found = energy.derive(files, [], case.options)
    assert [figure.tags for figure in found] == [tags, tags]
    assert tags["int8"] is True
