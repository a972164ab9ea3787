"""Weights from Hugging Face folders: transformers itself says what they are, and what the model computes with them."""

import contextlib
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, BertForPreTraining

from assay.device import HostDevice
from assay.errors import BadInput
from assay.options import PretrainOptions
from assay.options.base import validate
from assay.presets import EncoderShape, ModelShape
from assay.training.data import TextData, open_data
from assay.training.encoder import build_encoder
from assay.training.model import build_model, materialise
from assay.training.pretrained import load, open_folder, weights_source
from assay.training.vocabulary import load_tokenizer
from assay.training.weights import initialise, is_adapter
from assay.world import World
from tests.conftest import torchrun
from tests.ranks_pretrained import SHAPE, digest

LLAMA = ModelShape("llama", "llama", 200, 48, 2, 6, 2, 127)
TIED = replace(LLAMA, tied=True)
INTERNLM = ModelShape("internlm", "internlm", 200, 48, 2, 6, 6, 128)
GPT = ModelShape("gpt", "gpt", 200, 48, 2, 6, 6, 192, tied=True, positions=32)
BERT = EncoderShape("bert", 200, 48, 2, 6, 96, positions=32)
ROWS = torch.arange(32).view(2, 16)


def build(shape: ModelShape | EncoderShape, dtype: torch.dtype = torch.float32) -> nn.Module:
    """On the host, holding what no folder holds."""
    model = build_encoder(shape) if isinstance(shape, EncoderShape) else build_model(shape, 16, dtype)
    materialise(model, HostDevice())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    return model


def save(folder: Path, shape: ModelShape | EncoderShape, seed: int = 3, **kept: Any) -> Path:
    """A folder as transformers writes it, in which no two rows, norms or biases are alike."""
    model = build(shape)
    initialise(model, seed)
    mixed = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=mixed), alpha=0.02)
    model.save_pretrained(folder, **kept)  # type: ignore[operator] # transformers' method
    return folder


def change(folder: Path, more: Mapping[str, torch.Tensor | None], name: Callable[[str], str] = str) -> None:
    """Rename all tensors of a one-file folder, and add, replace or (with None) drop some, by their new names."""
    tensors = {name(old): tensor for old, tensor in load_file(folder / "model.safetensors").items()}
    kept = {key: tensor for key, tensor in {**tensors, **more}.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **more: object) -> None:
    """Change keys of config.json; None drops one."""
    found = {**json.loads((folder / "config.json").read_text()), **more}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def parameters(model: nn.Module) -> Mapping[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def complaint(model: nn.Module, folder: Path) -> str:
    """The one sentence. Nothing may have been written into the model when it is said."""
    with pytest.raises(BadInput) as caught:
        load(model, folder)
    assert all(bool(parameter.isnan().all()) for parameter in model.parameters())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shape", [LLAMA, TIED, INTERNLM, GPT], ids=lambda shape: f"{shape.family} {shape.tied}")
@pytest.mark.parametrize("shard", ["100GB", "20KB"])
def test_a_loaded_decoder_computes_what_transformers_computes(tmp_path: Path, shape: ModelShape, shard: str) -> None:
    folder = save(tmp_path, shape, max_shard_size=shard)
    assert len(list(folder.glob("*.safetensors"))) > 1 or shard == "100GB"
    if shape.family != "gpt":
        configure(folder, rms_norm_eps=1e-3)  # far from the class's own, so that it shows
    model = build(shape)
    load(model, folder)
    oracle = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert same(parameters(model), parameters(oracle))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ROWS).logits, oracle(input_ids=ROWS).logits)


def test_a_loaded_encoder_has_both_heads_of_its_folder(tmp_path: Path) -> None:
    folder = save(tmp_path, BERT)
    model = build(BERT)
    load(model, folder)
    assert same(parameters(model), parameters(BertForPreTraining.from_pretrained(folder)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_folders_type_becomes_the_models(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save(tmp_path, LLAMA)
    change(folder, {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()})
    model = build(LLAMA)
    load(model, folder)
    wanted = load_file(folder / "model.safetensors")
    assert same(parameters(model), {name: wanted[name].float() for name in parameters(model)})
    narrow = build(LLAMA, torch.bfloat16)
    load(narrow, folder)
    assert same(parameters(narrow), {name: wanted[name].bfloat16() for name in parameters(model)})


def old_bert(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


BUFFERS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    "h.0.attn.bias": torch.ones(1, 1, 32, 32),
    "h.1.attn.masked_bias": torch.tensor(-1e4),
    "bert.embeddings.position_ids": torch.arange(32)[None],
}


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        (LLAMA, lambda name: name.removeprefix("model.")),
        (LLAMA, lambda name: f"module.{name}"),
        (GPT, lambda name: name.removeprefix("transformer.")),
        (BERT, old_bert),
        (BERT, lambda name: name.removeprefix("bert.")),
    ],
    ids=["llama body", "saved from DDP", "gpt2 of the hub", "bert of the hub", "bert body"],
)
def test_older_names_and_stored_buffers_are_understood(
    tmp_path: Path, shape: ModelShape | EncoderShape, name: Callable[[str], str]
) -> None:
    folder = save(tmp_path, shape)
    plain = build(shape)
    load(plain, folder)
    change(folder, BUFFERS, name)
    model = build(shape)
    load(model, folder)
    assert same(parameters(model), parameters(plain))


def test_internlm_of_the_hub_is_llama_with_biases(tmp_path: Path) -> None:
    folder = save(tmp_path, INTERNLM)
    # What configuration_internlm.py writes; num_key_value_heads and attention_bias are not known to it.
    more: dict[str, object] = {"model_type": "internlm", "architectures": ["InternLMForCausalLM"], "bias": True}
    configure(folder, **more, num_key_value_heads=None, attention_bias=None, rope_parameters=None, head_dim=None)
    model = build(INTERNLM)
    load(model, folder)
    assert bool(model.get_parameter("model.layers.1.self_attn.o_proj.bias").any())
    assert same(parameters(model), {n: load_file(folder / "model.safetensors")[n] for n in parameters(model)})


@pytest.mark.parametrize("stored", [("model.embed_tokens.weight", "lm_head.weight"), ("lm_head.weight",)])
def test_a_tied_matrix_may_be_stored_under_each_of_its_names(tmp_path: Path, stored: tuple[str, ...]) -> None:
    folder = save(tmp_path, TIED)
    matrix = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change(folder, {"model.embed_tokens.weight": None, **{name: matrix.clone() for name in stored}})
    model = build(TIED)
    load(model, folder)
    assert torch.equal(model.get_parameter("lm_head.weight"), matrix)
    assert model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")


def test_adapters_and_a_quantised_base_are_left_to_others(tmp_path: Path) -> None:
    folder = save(tmp_path, LLAMA)
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), build(LLAMA))
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    layer.register_parameter("weight", nn.Parameter(torch.ones(127, 48, dtype=torch.int8), requires_grad=False))
    layer.register_parameter("scale_bits", nn.Parameter(torch.ones(127, dtype=torch.int32), requires_grad=False))
    before = {name: value.clone() for name, value in parameters(model).items()}
    load(model, folder)
    wanted = load_file(folder / "model.safetensors")
    for name, value in parameters(model).items():
        left = is_adapter(name) or name.startswith("model.layers.0.mlp.up_proj")
        assert torch.equal(value, before[name] if left else wanted[name.replace(".base_layer", "")]), name
    with open_folder(folder) as source:
        rows = source.rows("model.layers.0.mlp.up_proj.weight", 5, 60, 48)
        assert torch.equal(rows, wanted["model.layers.0.mlp.up_proj.weight"][5:60])
        with pytest.raises(BadInput, match="up_proj"):
            source.rows("model.layers.0.mlp.up_proj.weight", 0, 128, 48)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (replace(LLAMA, hidden=96), r"config\.json: hidden size 48, the model's is 96"),
        (replace(LLAMA, layers=3), r"config\.json: layers 2, the model's is 3"),
        (replace(LLAMA, heads=4), r"config\.json: attention heads 6, the model's is 4"),
        (replace(LLAMA, kv_heads=3), r"config\.json: key-value heads 2, the model's is 3"),
        (replace(LLAMA, intermediate=128), r"config\.json: feed-forward size 127, the model's is 128"),
        (replace(LLAMA, vocab=201), r"config\.json: vocabulary 200, the model's is 201"),
        (replace(LLAMA, tied=True), r"config\.json: tied embeddings False, the model's is True"),
        (replace(LLAMA, family="internlm"), r"layers\.0\.self_attn\.q_proj\.bias is missing, the model's has shape \(48,\)"),
        (GPT, r"config\.json: model_type llama, the model's is gpt2"),
        (BERT, r"config\.json: model_type llama, the model's is bert"),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.name,
)  # fmt: skip
def test_weights_of_another_shape_are_named(tmp_path: Path, shape: ModelShape | EncoderShape, said: str) -> None:
    sentence = complaint(build(shape), save(tmp_path, LLAMA))
    assert re.search(said, sentence), sentence
    assert "--model" in sentence


Damage = Callable[[Path], object]
ONE = "model.safetensors"
NORM = "model.norm.weight"


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def to_bin(folder: Path) -> None:
    (folder / ONE).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")


def rope(folder: Path) -> None:
    configure(folder, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config\.json: a JSON object was expected"),
        (lambda f: (f / ONE).unlink(), r"neither model\.safetensors nor model\.safetensors\.index\.json"),
        (to_bin, r"only safetensors are read.*save_pretrained"),
        (lambda f: cut(f / ONE, (f / ONE).stat().st_size - 1), r"model\.safetensors: torn: \d+ bytes, \d+ expected"),
        (lambda f: cut(f / ONE, 5), r"torn one: 5 bytes"),
        (lambda f: cut(f / ONE, 100), r"torn one: 100 bytes"),
        (lambda f: (f / ONE).write_bytes(b"\x02" + bytes(7) + b"xx"), r"damaged one"),
        (lambda f: change(f, {NORM: None}), r"model\.norm\.weight is missing, the model's has shape \(48,\)"),
        (lambda f: change(f, {NORM: torch.ones(47)}), r"norm\.weight has shape \(47,\), the model's has shape \(48,\)"),
        (lambda f: change(f, {"extra.weight": torch.ones(3)}), r"extra\.weight of shape \(3,\) is not in the model"),
        (lambda f: change(f, {"norm.weight": torch.ones(48)}), r"are one parameter"),
        (lambda f: change(f, {NORM: torch.ones(48, dtype=torch.int8)}), r"norm\.weight is stored as I8"),
        (rope, "rotary base and kind 500000 default, the model's is 10000 default"),
        (lambda f: configure(f, hidden_act="gelu"), "activation gelu, the model's is silu"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, damage: Damage, said: str) -> None:
    folder = save(tmp_path / "folder", LLAMA)
    damage(folder)
    sentence = complaint(build(LLAMA), folder)
    assert re.search(said, sentence), sentence


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {"a": "../model.safetensors"}}, "no weight_map"),
        ({"weight_map": {"a": "model-1-of-2.safetensors"}}, r"model-1-of-2\.safetensors: cannot be read"),
    ],
)
def test_a_broken_index_is_named(tmp_path: Path, index: object, said: str) -> None:
    folder = save(tmp_path, LLAMA)
    (folder / ONE).unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert re.search(said, complaint(build(LLAMA), folder))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_header_ends_in_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    numbers = st.integers(-9, 99) | st.floats() | st.text(max_size=3) | st.none()
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "F8_E4M3", "BOOL", "x"]) | numbers,
            "shape": st.lists(numbers, max_size=3) | numbers,
            "data_offsets": st.lists(numbers, max_size=3) | numbers,
        },
    )
    header = json.dumps(data.draw(st.dictionaries(st.text(max_size=3), entry | numbers, max_size=3) | numbers)).encode()
    mixed = data.draw(st.sampled_from([header, header[:-1], b"\xff" + header]))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ONE).write_bytes(len(mixed).to_bytes(8, "little") + mixed + bytes(data.draw(st.integers(0, 400))))
    with contextlib.suppress(BadInput), open_folder(tmp_path) as source:
        assert all(tensor.start >= 8 + len(mixed) for tensor in source.tensors.values())


def test_the_digest_tells_folders_apart(tmp_path: Path) -> None:
    folder = save(tmp_path / "one", LLAMA)
    copied = Path(shutil.copytree(folder, tmp_path / "two"))
    other = save(tmp_path / "three", LLAMA, seed=4)
    one, two, three = map(weights_source, (folder, copied, other))
    assert (one["weights_folder"], two["weights_folder"]) == ("one", "two")
    assert one["weights_digest"] == two["weights_digest"] != three["weights_digest"]
    assert one["weights_bytes"] == 4 * sum(p.numel() for p in build(LLAMA).parameters())
    configure(copied, rms_norm_eps=1e-3)
    assert weights_source(copied)["weights_digest"] != one["weights_digest"]


def test_the_folders_tokenizer_is_read(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0, "b": 1})).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).token_to_id("b") == 1


def test_text_is_cut_by_the_folders_tokenizer_and_by_nothing_that_it_was_saved_with(tmp_path: Path) -> None:
    folder, text = save(tmp_path / "model", LLAMA), tmp_path / "text"
    tokenizer = Tokenizer(models.WordLevel({"a": 7, "b": 9}))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    text.mkdir()
    (text / "a.txt").write_text("a b b " * 20)
    options = validate(PretrainOptions, {"weights": folder, "data": str(text), "seq_len": 8})
    alone = World(0, 1, 0, 1, "gloo", ("host",), True)
    data = open_data(options, LLAMA.vocab, alone)
    assert isinstance(data, TextData)
    assert data.tokens.tolist() == [7, 9, 9] * 20 + [2], "config.json says that 2 ends a text"
    with pytest.raises(BadInput, match="gives token 9, and llama-tiny knows 8"):
        open_data(options, 8, alone)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("tokenizer.json", r"tokenizer\.json: no tokenizer \(.*\); copy it again"),
        ("tokenizer.model", r"tokenizer\.model: (pip install sentencepiece|no tokenizer)"),
        ("other", r"neither tokenizer\.json nor tokenizer\.model"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / file).write_bytes(b"nothing of the kind")
    with pytest.raises(BadInput, match=said):
        load_tokenizer(tmp_path)


ENGINES = ["ddp", "accelerate", "fsdp", "fsdp:2", "zero2", "zero3"]


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, str], int]:
    """What engines on 4 ranks made of a folder; what it holds; the bytes of its headers."""
    folder = save(tmp_path_factory.mktemp("weights"), SHAPE, max_shard_size="1MB")
    result = folder / "result.json"
    done = torchrun(4, "tests/ranks_pretrained.py", folder, result, *ENGINES, PYTHONPATH=str(Path(__file__).parents[1]))
    assert done.returncode == 0, done.stderr
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: digest(tensor) for file in files for name, tensor in load_file(file).items()}
    return json.loads(result.read_text()), tensors, sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_has_the_folders_weights(spread: tuple[dict[str, Any], dict[str, str], int], engine: str) -> None:
    found, wanted, _ = spread
    assert found[engine]["weights"] == wanted


@pytest.mark.parametrize("engine", ENGINES)
def test_each_rank_reads_only_what_it_holds(spread: tuple[dict[str, Any], dict[str, str], int], engine: str) -> None:
    found, _, size = spread
    parts = {"fsdp": 4, "fsdp:2": 2, "zero3": 4}.get(engine, 1)
    for read, held in found[engine]["ranks"]:
        assert held < 1.1 * size / parts
        # Headers, the index, config.json.
        assert held <= read < held + 100_000
