"""Faster layers compute what the model's own do, and step aside wherever they were not made for."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from assay.device import HostDevice
from assay.presets import ModelShape
from assay.training.fast_ops import BLOCKED_LENGTHS, speed_up
from assay.training.model import build_model, decoder_layers, materialise
from assay.training.weights import initialise

SHAPE = ModelShape("pair", "llama", 64, 48, 2, 4, 4, 96)
GROUPED = ModelShape("grouped", "llama", 64, 48, 2, 4, 2, 96)
SHORT, BLOCKED, ODD = 24, 256, 203


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(shape: ModelShape = SHAPE, *, fast: bool = False) -> nn.Module:
    model = build_model(shape, 512)
    if fast:
        speed_up(model)
    materialise(model, HostDevice())
    initialise(model, 3)
    with torch.no_grad():  # norms of all ones would hide a forgotten weight
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))), alpha=0.1
                )
    return model


def tokens(length: int) -> torch.Tensor:
    return torch.randint(0, SHAPE.vocab, (2, length), generator=torch.Generator().manual_seed(length))


def loss_and_gradients(model: nn.Module, length: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    rows = tokens(length + 1)
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("length", [SHORT, BLOCKED, ODD])
def test_losses_and_all_gradients_are_those_of_the_models_own_layers(length: int) -> None:
    own_loss, own = loss_and_gradients(made(), length)
    fast_loss, fast = loss_and_gradients(made(fast=True), length)
    torch.testing.assert_close(fast_loss, own_loss, rtol=1e-6, atol=0)
    assert fast.keys() == own.keys()
    for name, gradient in own.items():
        assert (fast[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_a_token_never_sees_a_later_one() -> None:
    assert BLOCKED in BLOCKED_LENGTHS
    model, rows = made(fast=True), tokens(BLOCKED)
    changed = rows.clone()
    changed[:, 100:] = (changed[:, 100:] + 1) % SHAPE.vocab
    with torch.no_grad():
        before, after = model(input_ids=rows).logits, model(input_ids=changed).logits
    torch.testing.assert_close(before[:, :100], after[:, :100], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 100:], after[:, 100:])


def test_names_and_order_of_parameters_stay() -> None:
    names = [name for name, _ in made().named_parameters()]
    assert [name for name, _ in made(fast=True).named_parameters()] == names


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")  # renamed in transformers 5.23
def test_recomputed_layers_give_the_same_gradients() -> None:
    _, kept = loss_and_gradients(made(fast=True), BLOCKED)
    model = made(fast=True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    _, again = loss_and_gradients(model.train(), BLOCKED)
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=0)


def test_what_they_were_not_made_for_is_left_to_the_model() -> None:
    own, fast, rows = made(), made(fast=True), tokens(SHORT)
    mask = torch.ones_like(rows)
    mask[0, :7] = 0
    with torch.no_grad():
        masked = [model(input_ids=rows, attention_mask=mask).logits[0, 7:] for model in (own, fast)]
        torch.testing.assert_close(masked[1], masked[0], rtol=1e-5, atol=1e-6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = [model(input_ids=rows, use_cache=False).logits for model in (own, fast)]
        assert torch.equal(mixed[0], mixed[1])
        doubled = [model.double()(input_ids=rows, use_cache=False).logits for model in (own, fast)]
        assert torch.equal(doubled[0], doubled[1])


def test_attention_with_shared_keys_stays_as_it_is() -> None:
    model = build_model(GROUPED, 64)
    assert speed_up(model) == 2 * GROUPED.layers + 1  # the norms alone
    assert speed_up(build_model(SHAPE, 64)) == 3 * SHAPE.layers + 1


@pytest.mark.prove
@pytest.mark.filterwarnings("ignore")  # the compiler looks at gradients that are none, and warns itself
def test_compiled_layers_give_the_same_gradients() -> None:
    _, own = loss_and_gradients(made(), BLOCKED)
    model = made(fast=True)
    for layer in decoder_layers(model):
        layer.compile(fullgraph=True)
    _, compiled = loss_and_gradients(model, BLOCKED)
    for name, gradient in own.items():
        assert (compiled[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
