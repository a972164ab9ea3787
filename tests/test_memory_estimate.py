"""The estimate of a rank's memory against real models: tensors exactly, activations and peaks by what torch allocates."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from assay.device import HostDevice
from assay.memory_estimate import changes, estimate_memory, out_of_memory_sentence
from assay.options import PretrainOptions, TrainingOptions
from assay.options.bert import BertOptions
from assay.options.finetune import FinetuneOptions
from assay.presets import ENCODERS, MODELS, parameters_of
from assay.trainee import Trainee, tensors_of
from assay.training.adapters import add_adapters
from assay.training.encoder import build_encoder
from assay.training.engines.native import recompute
from assay.training.int8 import to_int8
from assay.training.model import build_model, materialise
from assay.training.optimizer import make_optimizer

GB = 10**9
LENGTH, BATCH = 64, 2


def name_of(value: object) -> str | None:
    """Of a case: the model and what is not as usual."""
    if not isinstance(value, TrainingOptions):
        return None
    told = value.model_dump(exclude_defaults=True, exclude={"seq_len", "cutoff", "micro_batch", "global_batch"})
    return "-".join([type(value).__name__.removesuffix("Options"), *map(str, told.values())])


def pretrain(**values: Any) -> PretrainOptions:
    return PretrainOptions(**{"seq_len": LENGTH, "micro_batch": BATCH, "global_batch": 8, **values})


def bert(**values: Any) -> BertOptions:
    return BertOptions(**{"seq_len": LENGTH, "micro_batch": BATCH, "global_batch": 8, **values})


def finetune(**values: Any) -> FinetuneOptions:
    return FinetuneOptions(**{"cutoff": LENGTH, "micro_batch": BATCH, "global_batch": 8, **values})


def build(options: Any) -> nn.Module:
    """The model as its workload builds it, on meta."""
    trainee = Trainee(options)
    if options.model in ENCODERS:
        return build_encoder(ENCODERS[options.model], options.dropout)
    model = build_model(MODELS[options.model], LENGTH)
    if trainee.adapted:
        add_adapters(model, options.lora_rank, options.lora_alpha, options.lora_dropout, options.lora_targets)
    if trainee.int8:
        to_int8(model)
    return model


def ready(options: Any) -> nn.Module:
    """The same with memory and weights, as the engine would have it."""
    model = build(options)
    materialise(model, HostDevice())
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.02)
    if options.checkpointing:
        recompute(model)
    return model.to(torch.bfloat16) if Trainee(options).kind == "cast" else model


def forward(model: nn.Module, options: Any) -> torch.Tensor:
    """The loss of one pass, as the workloads compute it; of BERT without the next sentence."""
    tokens = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=Trainee(options).kind == "autocast"):
        if options.model in ENCODERS:
            places = torch.arange(options.predictions).expand(BATCH, -1)
            mask = (torch.arange(LENGTH) < LENGTH // 2).expand(BATCH, -1)
            logits, _ = model(tokens, torch.zeros_like(tokens), places, mask)
        else:
            logits = model(input_ids=tokens, use_cache=False).logits
    targets = tokens[:, : logits.shape[1]]
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")


def saved_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """B of all that autograd keeps for backward but for the model's own tensors; memory that two share counts once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found: dict[int, int] = {}
    alive = []  # what is freed could give its address to the next

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(found.values())


@pytest.mark.parametrize("name", [*MODELS, *ENCODERS])
def test_tensors_add_up_to_the_models_parameters(name: str) -> None:
    shape = ENCODERS[name] if name in ENCODERS else MODELS[name]
    assert tensors_of(shape, 128).elements() == parameters_of(shape, 128)


@pytest.mark.parametrize(
    "options", [*(pretrain(model=name) for name in ("llama2-tiny", "gpt3-tiny")), bert(), finetune()], ids=name_of
)
def test_weights_gradients_and_states_are_exactly_those_of_the_real_model(options: Any) -> None:
    model = ready(options)
    optimizer = make_optimizer(model, options)
    forward(model, options).backward()  # type: ignore[no-untyped-call]
    # A head that the loss leaves out (BERT's next sentence, its pooler) learns in the workload.
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    estimate = estimate_memory(options, 1)
    assert estimate.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert estimate.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert estimate.gradients == sum(
        parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None
    )
    assert estimate.optimizer == sum(moment.nbytes for moment in moments)


@pytest.mark.parametrize("model", ["llama-tiny", "internlm-tiny"])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("gate_proj", "down_proj", "o_proj")])
def test_int8_weights_are_exactly_those_of_the_real_model(model: str, targets: tuple[str, ...]) -> None:
    options = finetune(model=model, int8=True, lora_targets=targets, lora_rank=4)
    built = build(options)
    assert estimate_memory(options, 1).weights == sum(parameter.nbytes for parameter in built.parameters())
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    assert estimate_memory(options, 1).gradients == sum(parameter.nbytes for parameter in trained)


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("options", [pretrain(model="gpt3-tiny", engine="fsdp"), bert(engine="fsdp")], ids=name_of)
def test_fsdp_holds_of_each_tensor_its_rows_rounded_up(options: Any, ranks: int) -> None:
    # As DTensor's Shard(0) cuts it: like torch.chunk, the first rank holds the most.
    expected = sum(parameter.chunk(ranks)[0].nbytes for parameter in build(options).parameters())
    estimate = estimate_memory(options, ranks)
    assert (estimate.weights, estimate.gradients, estimate.optimizer) == (expected, expected, 2 * expected)
    copies = options.model_copy(update={"shard_ranks": ranks})
    assert estimate_memory(copies, 4 * ranks).weights == expected


# In float32 all that is left out is rotary tables, tokens and a few numbers per sequence. LoRA's dropout keeps a mask of
# one byte on accelerators and of four on a CPU.
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("options", "within"),
    [
        (pretrain(model="internlm-tiny"), 0.01),
        *((pretrain(model=name, precision="bf16"), 0.01) for name in ("llama2-tiny", "gpt3-tiny")),
        *((pretrain(model=name, precision="bf16", engine="fsdp"), 0.01) for name in ("llama2-tiny", "gpt3-tiny")),
        (bert(), 0.02),
        (bert(precision="bf16"), 0.02),
        (bert(precision="bf16", engine="zero2"), 0.02),
        (finetune(lora_dropout=0.0), 0.02),
        (finetune(), 0.06),
        (finetune(model="gpt3-tiny", lora_targets=("c_attn",), lora_dropout=0.0), 0.06),
    ],
    ids=name_of,
)
def test_activations_are_what_autograd_keeps(options: Any, within: float, checkpointing: bool) -> None:
    options = options.model_copy(update={"checkpointing": checkpointing})
    trainee, model = Trainee(options), ready(options)
    logits = 4 * BATCH * trainee.predicted * trainee.shape.vocab  # kept by the loss, which is a part of its own
    copies = trainee.cast_weights(0 if checkpointing else trainee.model.layers)
    kept = saved_bytes(model, lambda: forward(model, options)) - logits - copies
    assert estimate_memory(options, 2).activations == pytest.approx(kept, rel=within)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        pretrain(model="llama2-tiny"),
        pretrain(model="gpt3-tiny"),
        pretrain(model="llama-tiny", checkpointing=True),
        pretrain(model="llama-tiny", precision="bf16"),
        bert(),
        finetune(),
    ],
    ids=name_of,
)
def test_the_peak_is_what_the_allocator_sees(options: Any, passes: int) -> None:
    options = options.model_copy(update={"global_batch": BATCH * passes})
    model = ready(options)
    optimizer = make_optimizer(model, options)

    def step() -> None:
        for _ in range(passes):
            forward(model, options).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()  # the optimizer's states come with the first
    estimate = estimate_memory(options, 1)
    measured = estimate.weights + estimate.optimizer + peak_above(step)
    assert estimate.peak == pytest.approx(measured, rel=0.05)


def peak_above(run: Callable[[], None]) -> int:
    """Most B that torch has allocated at once beyond what there was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results
    events = sorted((event for event in results.events() if event.name() == "[memory]"), key=lambda one: one.start_ns())
    now = most = 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    return most


def test_zero_shares_out_what_its_stage_says() -> None:
    n = parameters_of(MODELS["llama-7b"])
    stages = [
        estimate_memory(pretrain(model="llama-7b", engine=f"zero{stage}", precision="bf16", global_batch=16), 8)
        for stage in (1, 2, 3)
    ]
    assert [one.weights for one in stages] == [2 * n, 2 * n, n // 4]
    assert [one.gradients for one in stages] == [2 * n, n // 4, n // 4]
    assert [one.optimizer for one in stages] == [12 * n // 8] * 3  # masters and two moments
    away = pretrain(model="llama-7b", engine="zero2", precision="bf16", offload=True, global_batch=16)
    assert (estimate_memory(away, 8).optimizer, estimate_memory(away, 8).host) == (0, 12 * n // 8)


@given(
    st.sampled_from(["none", "ddp", "fsdp", "zero1", "zero2", "zero3", "accelerate"]),
    st.sampled_from(["fp32", "tf32", "bf16", "fp16"]),
    st.sampled_from([*MODELS]),
    st.booleans(),
    st.integers(1, 6),
)
def test_more_never_needs_less(engine: str, precision: str, model: str, checkpointing: bool, batch: int) -> None:
    options = pretrain(engine=engine, precision=precision, model=model, checkpointing=checkpointing, global_batch=4)
    world = 1 if engine == "none" else 2
    small = options.model_copy(update={"micro_batch": batch, "global_batch": batch * world})
    large = options.model_copy(update={"micro_batch": batch + 1, "global_batch": (batch + 1) * world})
    few, many = estimate_memory(small, world), estimate_memory(large, world)
    assert 0 < few.least <= few.peak <= many.peak
    again = estimate_memory(small.model_copy(update={"checkpointing": not checkpointing}), world)
    assert (again.activations < few.activations) == (not checkpointing)


def test_advice_helps_by_as_much_as_it_says() -> None:
    options = pretrain(model="llama-7b", engine="ddp", precision="bf16", seq_len=2048, micro_batch=4, global_batch=64)
    found = {change.words: change.estimate for change in changes(options, 16, 80 * GB)}
    assert {"micro_batch 1", "checkpointing", "engine fsdp", "engine zero3"} <= found.keys()
    changed: TrainingOptions = options.model_copy(update={"checkpointing": True})
    assert found["checkpointing"].peak == estimate_memory(changed, 16).peak
    assert all(estimate.peak < estimate_memory(options, 16).peak for estimate in found.values())


def test_fsdp_keeps_only_rows_of_gradients_in_however_many_passes() -> None:
    options = pretrain(model="llama-65b", engine="fsdp", precision="bf16", micro_batch=1, global_batch=64)
    whole = 4 * parameters_of(MODELS["llama-65b"])
    assert estimate_memory(options, 32).parts["gradients"] == pytest.approx(whole / 32, rel=1e-3)


def test_ranks_are_added_until_it_fits() -> None:
    options = pretrain(model="llama-65b", engine="none", precision="bf16", micro_batch=1, global_batch=1)
    *_, last = changes(options, 1, 80 * GB)
    assert last.words.endswith("ranks on engine fsdp")
    assert last.estimate.peak <= 80 * GB


def test_out_of_memory_says_what_to_change() -> None:
    options = pretrain(model="llama-7b", engine="ddp", seq_len=2048, global_batch=16)
    said = out_of_memory_sentence(options, 8, 80 * GB)
    assert said.startswith("out of memory: by the estimate a rank needs ")
    assert " of 80.0 GB (optimizer states 53.9 GB" in said
    assert "checkpointing (" in said
    assert "engine fsdp (" in said
    assert "\n" not in said
    smallest = pretrain(micro_batch=1, global_batch=1, checkpointing=True)
    assert "take a smaller model or more memory" in out_of_memory_sentence(smallest, 1, 10**6)
    assert " of NA" not in out_of_memory_sentence(options, 8, None)
