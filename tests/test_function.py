"""Function tests: planted trainings against the targets of profiles, and the variance against a recorded curve."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import BadInput
from assay.scoring.baseline import Baseline, load_baseline, load_profile, record_baseline
from assay.scoring.function import variance
from assay.scoring.profile_format import Profile
from assay.scoring.reading import read_run
from assay.scoring.result import Row, Section
from assay.scoring.score import score_run
from tests.planted_training import WARMUP, Planted, plant

RECORDS = 32 * 128 / 3  # of which 32 steps of 128 are three epochs
LORA = {"model": "llama-7b", "method": "lora"}


def finetuned(loss: float, steps: int = 30, **changes: Any) -> Planted:
    """A training whose loss falls to `loss` and stays there for its last ten steps."""
    losses = [*np.linspace(3.0, loss, WARMUP + steps - 10), *[loss] * 10]
    given: dict[str, Any] = {
        "name": "lora",
        "seconds": [[0.5] * steps],
        "script": "workloads/finetune",
        "options": {**LORA, "weights": "/models/llama-7b", "int8": False},
        "tags": {**LORA, "weights": "pretrained"},
        "losses": losses,
        "scalars": {"records": RECORDS},
    }
    return Planted(**{**given, **changes})


def section(
    tmp_path: Path, *cases: Planted, profile: Profile | None = None, baseline: Baseline | None = None
) -> Section:
    chosen = profile or load_profile("llm-evaluation-0.2.1")
    card = score_run(read_run(plant(tmp_path / "run", *cases)), chosen, baseline)
    return next(section for section in card.sections if section.key == "finetuning_function")


def first_row(tmp_path: Path, *cases: Planted, **more: Any) -> Row:
    return section(tmp_path, *cases, **more).rows[0]


def with_targets(**targets: Any) -> Profile:
    row = {"weight": 1, "match": {"model": "llama-7b", "method": "lora"}, "targets": targets}
    part = {"key": "finetuning_function", "title": "f", "metric": "support", "rows": [row]}
    head = {"schema": "assay-profile/1", "name": "own", "title": "own", "source": "own", "baseline": None}
    return Profile.model_validate({**head, "sections": [part]})


def test_the_printed_targets_of_fine_tuning_are_in_the_profile() -> None:
    sections = {section.key: section for section in load_profile("llm-evaluation-0.2.1").sections}
    rows = sections["finetuning_function"].rows
    assert [(row.title, row.targets.loss, row.targets.weights) for row in rows if row.targets] == [
        ("Alpaca-LoRA", 0.950, "pretrained"),
        ("InternLM-7B / LLaMA1-7B", 1.350, "pretrained"),
    ]
    hidden = sections["training_function"].rows
    assert [(row.weight, row.match) for row in hidden] == [(0.15, None), (0.4, None), (0.3, None), (0.15, None)]
    assert all(row.reason and "hides" in row.reason for row in hidden)


def test_a_target_that_is_met_counts_with_its_weight(tmp_path: Path) -> None:
    found = section(tmp_path, finetuned(0.95))
    assert found.rows[0].score == 1.0
    assert found.rows[0].note == "every target met after 32 steps"
    loss, deviation, ppl = found.rows[0].checks
    assert (loss.target, loss.met) == (0.95, True)
    assert loss.measured == pytest.approx(0.95)
    assert (deviation.measured, deviation.note) == (None, "no loss curve of the like in the baseline")
    assert (ppl.target, ppl.met) == (None, None)
    assert found.rows[1].note == "not submitted"
    assert found.score == pytest.approx(0.5)


def test_a_loss_above_its_target_is_0_and_says_so(tmp_path: Path) -> None:
    row = first_row(tmp_path, finetuned(0.9501))
    assert row.score == 0.0
    assert row.note.startswith("loss 0.95")
    assert row.note.endswith("is above 0.95")


def test_generated_weights_are_never_a_pass(tmp_path: Path) -> None:
    options, tags = {**LORA, "weights": None}, {**LORA, "weights": "generated"}
    row = first_row(tmp_path, finetuned(0.1, options=options, tags=tags))
    assert (row.score, row.note) == (None, "weights were generated; the target holds for pretrained weights")
    assert row.checks[0].measured == pytest.approx(0.1)
    assert row.checks[0].met is None
    unsaid = first_row(tmp_path / "unsaid", finetuned(0.1, options=options, tags=LORA))
    assert unsaid.score is None


@pytest.mark.parametrize(
    ("data", "why"),
    [("own", "the records were made by assay; the target holds for the public data"), ("alpaca.json", "")],
)
def test_our_own_records_are_never_a_pass(tmp_path: Path, data: str, why: str) -> None:
    row = first_row(tmp_path, finetuned(0.1, tags={**LORA, "weights": "pretrained", "data": data}))
    assert (row.score, row.note, row.data) == (None if why else 1.0, why or "every target met after 32 steps", data)


def test_targets_for_our_own_records_can_be_named(tmp_path: Path) -> None:
    profile = with_targets(loss=1.0)
    row = profile.sections[0].rows[0]
    named = row.model_copy(update={"match": {**(row.match or {}), "data": "own"}})
    told = profile.model_copy(update={"sections": [profile.sections[0].model_copy(update={"rows": [named]})]})
    case = finetuned(0.1, tags={**LORA, "weights": "pretrained", "data": "own"})
    assert first_row(tmp_path, case, profile=told).score == 1.0


@pytest.mark.parametrize("steps", range(1, 11))
def test_a_step_less_than_the_epochs_is_too_few(tmp_path: Path, steps: int) -> None:
    def row(name: str, epochs: float) -> Row:
        records = steps * 128 / epochs
        case = finetuned(0.1, losses=[0.1] * steps, scalars={"records": records})
        return first_row(tmp_path / name, case)

    short = row("short", 2.99)
    assert (short.score, short.note) == (0.0, "trained 2.99 of 3 epochs")
    assert row("whole", 3.0).score == 1.0
    assert row("crossed", 3.0 + 2.9 / steps).score == 1.0


def test_a_full_fine_tuning_needs_its_three_epochs_too(tmp_path: Path) -> None:
    full = {"model": "internlm-7b", "method": "full"}
    tags = {**full, "weights": "pretrained"}
    case = finetuned(0.1, options={**full, "weights": "/models"}, tags=tags, scalars={"records": 6 * RECORDS})
    row = section(tmp_path, case).rows[1]
    assert (row.score, row.note) == (0.0, "trained 0.5 of 3 epochs")


def test_random_tokens_are_never_a_pass(tmp_path: Path) -> None:
    row = first_row(tmp_path, finetuned(0.1, tags={**LORA, "weights": "pretrained", "data": "dummy"}))
    assert (row.score, row.note) == (None, "the data were random tokens; the target holds for text")


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"scalars": {"records": 6 * RECORDS}}, "trained 0.5 of 3 epochs"),
        ({"scalars": {}}, "how many epochs were trained was not recorded"),
        ({"state": "failed"}, "case lora did not pass"),
        ({"losses": []}, "case lora recorded no loss"),
    ],
)
def test_too_short_failed_or_without_a_log_is_0(tmp_path: Path, changes: dict[str, Any], note: str) -> None:
    row = first_row(tmp_path, finetuned(0.1, **changes))
    assert (row.score, row.note) == (0.0, note)


def test_training_on_does_not_help_beyond_the_required_steps(tmp_path: Path) -> None:
    losses = [2.0] * 20 + [0.5] * 12
    late = finetuned(0.5, losses=losses)
    assert first_row(tmp_path / "a", late, profile=with_targets(steps=20, loss=1.0)).score == 0.0
    assert first_row(tmp_path / "b", late, profile=with_targets(steps=32, loss=1.0)).score == 1.0
    short = first_row(tmp_path / "c", late, profile=with_targets(steps=33, loss=1.0))
    assert (short.score, short.note) == (0.0, "trained 32 of 33 steps")


def test_of_several_runs_the_one_that_trained_longest_is_judged(tmp_path: Path) -> None:
    quick = finetuned(2.0, steps=12, name="speed", scalars={"records": RECORDS})
    row = first_row(tmp_path, quick, finetuned(0.9))
    assert (row.case, row.score) == ("lora", 1.0)


def test_a_longer_run_to_which_the_target_does_not_apply_is_not_judged(tmp_path: Path) -> None:
    generated = finetuned(0.1, steps=60, name="speed", options=LORA, tags={**LORA, "weights": "generated"})
    row = first_row(tmp_path, generated, finetuned(0.9))
    assert (row.case, row.score) == ("lora", 1.0)


@pytest.mark.parametrize(
    ("change", "weights"),
    [
        ({"seed": 2}, "pretrained"),
        ({"train_on_inputs": False}, "pretrained"),
        ({"lora_rank": 4}, "pretrained"),
        ({"lora_targets": ["q_proj"]}, "pretrained"),
        ({"lr": 1.0}, "pretrained"),
        ({"mask_share": 0.3}, "pretrained"),
        ({"seed": None}, "pretrained"),
        ({}, "generated"),
    ],
)
def test_the_curve_of_another_training_is_no_baseline(tmp_path: Path, change: dict[str, Any], weights: str) -> None:
    known = {"seed": 1, "train_on_inputs": True, "lora_rank": 8, "lora_targets": ["q_proj", "v_proj"], "lr": 1e-4}
    options = {**LORA, "weights": "/models/llama-7b", "int8": False, **known}
    before = read_run(plant(tmp_path / "before", finetuned(0.9, options=options)))
    baseline = Baseline.model_validate(record_baseline(before, "own"))
    profile = with_targets(variance=0.01)
    assert first_row(tmp_path / "same", finetuned(0.9, options=options), profile=profile, baseline=baseline).score == 1
    tags = {**LORA, "weights": weights}
    row = first_row(
        tmp_path / "other", finetuned(0.9, options={**options, **change}, tags=tags), profile=profile, baseline=baseline
    )
    assert row.score is None
    assert row.checks[1].note == "no loss curve of the like in the baseline"


def test_the_variance_is_taken_against_the_recorded_curve(tmp_path: Path) -> None:
    before = read_run(plant(tmp_path / "before", finetuned(0.9)))
    text = yaml.safe_dump(record_baseline(before, "own"))
    (tmp_path / "own.yaml").write_text(text)
    baseline = load_baseline(str(tmp_path / "own.yaml"))
    (curve,) = baseline.curves
    assert (curve.first_step, len(curve.samples)) == (0, 32)
    profile = with_targets(variance=0.01)
    same = first_row(tmp_path / "same", finetuned(0.9), profile=profile, baseline=baseline)
    assert (same.score, same.checks[1].measured) == (1.0, 0.0)
    wobble = [loss + (0.3 if step % 2 else -0.3) for step, loss in enumerate(finetuned(0.9).losses or [])]
    other = finetuned(0.9, losses=wobble, tags={**LORA, "weights": "pretrained", "data": "/elsewhere/own.json"})
    row = first_row(tmp_path / "other", other, profile=profile, baseline=baseline)
    assert row.checks[1].measured == pytest.approx(0.09)
    assert (row.score, row.checks[1].note) == (0.0, "over 32 steps that both have")
    unknown = first_row(tmp_path / "unknown", finetuned(0.9), profile=profile)
    assert unknown.score is None
    assert unknown.note == "variance cannot be judged: no loss curve of the like in the baseline"
    elsewhere = finetuned(0.9, tags={**LORA, "weights": "pretrained", "data": "other.json"})
    assert first_row(tmp_path / "data", elsewhere, profile=profile, baseline=baseline).score is None


def test_ppl_that_was_not_evaluated_meets_no_target(tmp_path: Path) -> None:
    profile = with_targets(ppl=20)
    met = finetuned(0.9, scalars={"records": RECORDS, "eval_loss": float(np.log(19))})
    assert first_row(tmp_path / "a", met, profile=profile).score == 1.0
    missing = first_row(tmp_path / "b", finetuned(0.9), profile=profile)
    assert (missing.score, missing.note) == (0.0, "ppl: not recorded")


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.1, 20), st.floats(0.1, 20)), min_size=2, max_size=50), st.floats(-5, 5))
def test_variance_is_the_formula_and_forgets_a_constant_distance(
    pairs: list[tuple[float, float]], shift: float
) -> None:
    losses, base = np.array(pairs).T
    d = [a - b for a, b in pairs]
    expected = sum((one - sum(d) / len(d)) ** 2 for one in d) / len(d)
    assert variance(losses, base) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert variance(losses + shift, base) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert variance(base, base) == 0


def test_one_step_has_no_variance() -> None:
    with pytest.raises(ValueError, match="two steps or more"):
        variance(np.ones(1), np.ones(1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": {"loss": 1, "steps": 3, "epochs": 2}}, "give steps or epochs, not both"),
        ({"targets": {"steps": 3}}, "give at least one of loss, variance and ppl"),
        ({"targets": {"los": 1}}, r"targets\.los: unknown key 'los'; did you mean 'loss'\?"),
        ({"targets": None}, "row 1 of the function tests has no targets"),
        ({"match": None, "targets": None}, r"\(match: null\) needs a reason"),
    ],
)
def test_a_wrong_profile_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    row = {"weight": 1, "match": {"model": "x"}, "targets": {"loss": 1.0}, **change}
    document = {"schema": "assay-profile/1", "name": "n", "title": "t", "source": "s", "baseline": None}
    document["sections"] = [{"key": "k", "title": "t", "metric": "support", "rows": [row]}]  # type: ignore[assignment]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(BadInput, match=said):
        load_profile(str(tmp_path / "p.yaml"))
