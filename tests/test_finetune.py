"""Fine-tuning: recipes, the order of records, padding, pretrained bases, and equal losses on every engine."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from assay.device import HostDevice
from assay.errors import BadInput
from assay.options.base import command_line, parse_command_line, validate
from assay.options.finetune import PRESETS, FinetuneOptions
from assay.presets import MODELS
from assay.training.engines import ENGINES, Setting
from assay.training.finetuning import FinetuneTask, Instructions, by_length, open_instructions
from assay.training.instructions import OWN_RECORDS, Sequences
from assay.training.int8 import dequantise, int8_layers
from assay.training.loop import Job, evaluate, train_step
from assay.training.model import build_model, materialise
from assay.training.tokenizer import END_OF_TEXT, shared_tokenizer
from assay.training.vocabulary import token_that_ends
from assay.training.weights import initialise
from assay.world import World
from tests.conftest import rank_files, torchrun

ALONE = World(0, 1, 0, 1, "gloo", ("host",), True)
SETTINGS = {"global_batch": 8, "micro_batch": 2, "cutoff": 96, "lora_dropout": 0.0, "lr": 1e-2, "lr_warmup_steps": 1}
SETTINGS |= {"steps": 3, "warmup_steps": 1, "phase_steps": 0, "eval_batches": 1}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


def options(**given: object) -> FinetuneOptions:
    return validate(FinetuneOptions, {**SETTINGS, **given})


def make_job(chosen: FinetuneOptions) -> Job:
    task = FinetuneTask(chosen, open_instructions(chosen, ALONE))
    engine = ENGINES["none"](Setting(chosen, task, ALONE, HostDevice()))
    return Job(chosen, engine, task, ALONE, HostDevice())


def sequences(lengths: list[int], answers: list[int] | None = None) -> Sequences:
    """Token i of sequence k is 100·k + i."""
    rows = [np.arange(length, dtype=np.int32) + 100 * index for index, length in enumerate(lengths)]
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    return Sequences(np.concatenate(rows), starts, np.asarray(answers or [1] * len(lengths), dtype=np.int64))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_recipe_gives_defaults_and_what_is_given_wins(preset: str) -> None:
    recipe = validate(FinetuneOptions, {"preset": preset})
    for name, value in PRESETS[preset].items():
        assert getattr(recipe, name) == value
    changed = validate(FinetuneOptions, {"preset": preset, "global_batch": "8", "lr": "0.5", "model": "llama2-tiny"})
    assert (changed.global_batch, changed.lr, changed.model) == (8, 0.5, "llama2-tiny")
    assert changed.cutoff == recipe.cutoff
    # What a suite keeps and shows of a case must give the same case again.
    assert parse_command_line(FinetuneOptions, None, command_line(changed)) == changed


def test_the_public_recipe() -> None:
    recipe = validate(FinetuneOptions, {"preset": "alpaca-lora"})
    assert (recipe.global_batch, recipe.micro_batch, recipe.epochs, recipe.lr, recipe.cutoff) == (128, 4, 3, 1e-4, 512)
    assert (recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout) == (8, 16, 0.05)
    assert recipe.lora_targets == ("q_proj", "v_proj")
    assert recipe.group_by_length
    # 3 epochs of 49,760 records of a batch of 128, whatever the world.
    assert recipe.with_steps(49_760).steps + recipe.warmup_steps == 1167


@given(epochs=st.floats(0.01, 10), records=st.integers(1, 100_000), batch=st.integers(1, 512))
def test_epochs_are_whole_steps_that_see_each_record_often_enough(epochs: float, records: int, batch: int) -> None:
    chosen = options(epochs=epochs, global_batch=batch, micro_batch=1, warmup_steps=0, steps=7)
    total = chosen.with_steps(records).steps
    assert total * batch >= epochs * records * (1 - 1e-12)
    assert (total - 1) * batch < epochs * records


def test_epochs_override_steps_and_steps_override_a_recipe() -> None:
    assert options(epochs=2, steps=99, warmup_steps=5).with_steps(80).steps == 20 - 5
    assert options(steps=9).with_steps(80).steps == 9
    assert validate(FinetuneOptions, {"preset": "alpaca-lora-tiny", "steps": 9}).with_steps(10_000).steps == 9
    with pytest.raises(
        BadInput, match="--epochs 1 of 16 records are 2 steps, of which --warmup-steps 2 are not measured"
    ):
        options(epochs=1, warmup_steps=2).with_steps(16)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"preset": "alpaca"}, "--preset: unknown preset 'alpaca'; did you mean 'alpaca-"),
        ({"model": "lama-7b"}, "--model: unknown model 'lama-7b'; did you mean 'llama-7b'?"),
        ({"int8": True, "method": "full"}, "--int8 weights are frozen and cannot be trained; use --method lora"),
        ({"int8": True, "model": "gpt3-tiny", "lora_targets": "c_attn"}, "leave --int8 out"),
        ({"model": "gpt3-tiny"}, "--lora-targets: gpt3-tiny has no layer 'q_proj'; choose from c_attn, c_proj, c_fc"),
        ({"lora_targets": "q_proj,q_proj"}, "'q_proj' is there twice"),
        ({"cutoff": 4096}, "--cutoff 4096 is longer than the 2048 positions of llama-tiny; use 2048 or less"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput) as refused:
        options(**given)
    assert sentence in str(refused.value)


@given(lengths=st.lists(st.integers(2, 60), min_size=6, max_size=60), seed=st.integers(0, 99), grouped=st.booleans())
def test_an_epoch_has_every_trained_record_once_and_no_held_out_one(
    lengths: list[int], seed: int, grouped: bool
) -> None:
    chosen = options(seed=seed, val_set_size=4, group_by_length=grouped, global_batch=2)
    data = Instructions(sequences(lengths), chosen)
    count = len(lengths) - 4
    for epoch in range(2):
        seen = [data.at(epoch * count + place) for place in range(count)]
        assert sorted(seen) == data.trained.tolist()
    assert sorted([*data.trained.tolist(), *data.held_out.tolist()]) == list(range(len(lengths)))
    assert not grouped or lengths[data.at(0)] == max(lengths[index] for index in data.trained)


def test_grouping_by_length_saves_padding() -> None:
    lengths = np.random.default_rng(1).integers(2, 500, 3000)
    order = np.random.default_rng(2).permutation(3000)

    def padding(order: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> int:
        batches = lengths[order].reshape(-1, 4)
        return int((batches.max(axis=1, keepdims=True) - batches).sum())

    grouped = by_length(order, lengths, 50 * 16)
    assert sorted(grouped) == list(range(3000))
    assert padding(grouped) < padding(order) / 10


def test_a_batch_holds_each_sequence_and_pads_behind_it() -> None:
    data = Instructions(sequences([5, 12, 3], [2, 11, 1]), options(val_set_size=0, group_by_length=False))
    task = FinetuneTask(options(), data)
    place = {data.at(position): position for position in range(3)}
    batch = task.batch([place[0], place[1]])
    assert batch["inputs"].shape == (2, 16)  # 11 inputs, up to a multiple of 8
    assert batch["inputs"][0].tolist() == [0, 1, 2, 3] + 12 * [0]
    assert batch["targets"][0].tolist() == [1, 2, 3, 4] + 12 * [-100]
    assert batch["targets"][1, :11].tolist() == list(range(101, 112))
    assert task.sizes([place[0], place[1]]) == {"tokens": 4 + 11, "loss": 4 + 11}

    chosen = options(val_set_size=0, group_by_length=False, train_on_inputs=False)
    task = FinetuneTask(chosen, Instructions(sequences([5, 12, 3], [2, 11, 1]), chosen))
    batch = task.batch([place[0], place[1]])
    assert batch["targets"][0].tolist() == [-100, 2, 3, 4] + 12 * [-100], "the prompt's second token is not learnt"
    assert batch["targets"][1].tolist() == 10 * [-100] + [111] + 5 * [-100]
    assert task.sizes([place[0], place[1]]) == {"tokens": 4 + 11, "loss": 3 + 1}


def test_records_whose_answer_is_cut_off_are_left_out_and_counted() -> None:
    chosen = options(val_set_size=1, train_on_inputs=False)
    data = Instructions(sequences([8, 8, 8, 8], [3, 8, 4, 5]), chosen)
    assert data.left_out == 1
    assert 1 not in {*data.trained.tolist(), *data.held_out.tolist()}
    with pytest.raises(BadInput, match="3 records can be learnt from, and --val-set-size holds 3 out"):
        Instructions(sequences([8, 8, 8, 8], [3, 8, 4, 5]), options(val_set_size=3, train_on_inputs=False))


def test_padding_changes_no_loss(cache: Path) -> None:
    job = make_job(options(tokenizer_cache=cache))
    module, task = job.engine.module, job.task
    positions = [0, 5, 400, 700]
    with torch.no_grad():
        together = float(task.loss_sums(module, task.batch(positions))["loss"])
        alone = [float(task.loss_sums(module, task.batch([position]))["loss"]) for position in positions]
    assert len({tuple(task.batch([position])["inputs"].shape) for position in positions}) > 1, "all of one length"
    assert together == pytest.approx(sum(alone), rel=1e-5)


def test_lora_learns_our_own_records(cache: Path) -> None:
    job = make_job(options(tokenizer_cache=cache, steps=12, lr=3e-2))
    before = evaluate(job)["eval_loss"]
    losses = [float(train_step(job, step).loss) for step in range(13)]
    assert before == pytest.approx(np.log(2048), rel=0.03), "an untrained model knows nothing"
    assert losses[-1] < losses[0] - 0.5
    assert evaluate(job)["eval_loss"] < before - 0.5
    trained = [name for name, parameter in job.engine.module.named_parameters() if parameter.grad is not None]
    assert all("lora" in name for name in trained)


def test_an_evaluation_is_the_mean_over_tokens(cache: Path) -> None:
    job = make_job(options(tokenizer_cache=cache))
    sums = [job.task.scores(job.engine.module, job.task.held_out_batch([index]))["eval_loss"] for index in range(8)]
    loss, tokens = (sum(float(part[side].detach()) for part in sums) for side in (0, 1))
    assert evaluate(job)["eval_loss"] == pytest.approx(loss / tokens, rel=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Weights and tokenizer of a llama-tiny, as transformers saves them."""
    path = tmp_path_factory.mktemp("llama")
    model = build_model(MODELS["llama-tiny"], 128)
    materialise(model, HostDevice())
    initialise(model, 77)
    assert isinstance(model, LlamaForCausalLM)
    model.save_pretrained(path)
    shared_tokenizer(["some text of another kind"], 2048, cache, ALONE).save(str(path / "tokenizer.json"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "eos_token_id": 0}))
    return path


def test_weights_of_a_folder_are_the_base_also_as_int8(folder: Path) -> None:
    plain, quantised = (make_job(options(weights=folder, int8=int8)).engine.module for int8 in (False, True))
    saved = LlamaForCausalLM.from_pretrained(folder).state_dict()
    name = "model.layers.2.self_attn.q_proj"
    assert torch.equal(plain.get_parameter(f"{name}.base_layer.weight"), saved[f"{name}.weight"])
    found = dict(int8_layers(quantised))
    assert len(found) == 4 * 7
    for name, layer in found.items():
        exact = saved[f"{name.replace('.base_layer', '')}.weight"]
        scales = layer.scale_bits.view(torch.float32)
        error = (dequantise(layer.weight, scales, torch.float32) - exact).abs()
        assert (error <= scales[:, None] / 2 * 1.001).all()


def test_the_token_that_ends_a_text(folder: Path, cache: Path) -> None:
    tokenizer = shared_tokenizer(["a"], 300, cache, ALONE)
    assert token_that_ends(tokenizer, 7, "x") == 7
    assert token_that_ends(tokenizer, [9, 8], "x") == 9
    assert token_that_ends(tokenizer, None, "x") == tokenizer.token_to_id(END_OF_TEXT)
    job = make_job(options(weights=folder))
    whole = [job.task.held_out_batch([index])["targets"] for index in range(3)]
    assert all(int(targets[targets != -100][-1]) == 0 or targets.shape[1] == 96 for targets in whole)


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        ("ddp", {"method": "lora"}),
        ("fsdp", {"method": "lora", "int8": True}),
        ("ddp", {"method": "full", "train_on_inputs": False}),
    ],
    ids=["ddp lora", "fsdp int8", "ddp full"],
)
def test_two_ranks_train_as_one_does(engine: str, kind: dict[str, object], cache: Path, tmp_path: Path) -> None:
    chosen = options(**kind, tokenizer_cache=cache)
    job = make_job(chosen)
    alone = [train_step(job, step) for step in range(4)]
    words = command_line(chosen.model_copy(update={"engine": engine, "out": tmp_path, "device": "cpu"}))
    done = torchrun(2, "workloads/finetune.py", *words)
    assert done.returncode == 0, done.stderr
    first, second = rank_files(tmp_path)
    blocks = {(block.metric, block.tags.get("phase")): block for block in first.blocks}
    for metric, expected in (("loss", [s.loss for s in alone]), ("grad_norm", [s.norm for s in alone])):
        found = np.concatenate([blocks[metric, "warmup"].samples, blocks[metric, "measured"].samples])
        np.testing.assert_allclose(found, [float(value) for value in expected], rtol=1e-5)
    assert blocks["tokens", "measured"].samples.tolist() == [step.tokens for step in alone[1:]]
    assert blocks["eval_loss", None].samples[0] == pytest.approx(evaluate(job)["eval_loss"], rel=1e-5)
    assert blocks["records", None].samples.tolist() == [OWN_RECORDS - 64]
    tags = blocks["loss", "measured"].tags
    assert (tags["method"], tags["int8"]) == (kind["method"], str(chosen.int8).lower())
    frozen = [
        block.samples[0] for file in (first, second) for block in file.blocks if block.metric == "base_weight_bytes"
    ]
    parameters = blocks["parameters", None].samples[0]
    if chosen.int8:
        assert sum(frozen) < 0.5 * 4 * parameters, "int8 weights of the layers are not stored as bytes"
    else:
        trained = blocks["trained_parameters", None].samples[0]
        assert frozen == ([4 * (parameters - trained)] * 2 if chosen.method == "lora" else [])
