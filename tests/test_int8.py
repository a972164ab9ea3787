"""int8 layers against float32: forward and backward within the bound of rounding, one byte a weight, any sharding."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from assay.device import HostDevice
from assay.training.adapters import add_adapters
from assay.training.int8 import Int8Linear, dequantise, fill_int8, int8_layers, quantise, to_int8
from assay.training.model import materialise


def int8_of(linear: nn.Linear) -> Int8Linear:
    """The int8 layer that a float layer becomes."""
    outer = nn.Sequential(Int8Linear(linear.in_features, linear.out_features, linear.bias is not None))
    materialise(outer, HostDevice())
    fill_int8(outer, lambda name, first, last, columns: linear.weight.detach()[first:last])
    layer = outer[0]
    assert isinstance(layer, Int8Linear)
    if linear.bias is not None:
        with torch.no_grad():
            layer.bias.copy_(linear.bias)
    return layer


@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), columns=st.integers(1, 40), spread=st.floats(1e-6, 1e6))
def test_no_weight_is_further_off_than_half_a_step(seed: int, rows: int, columns: int, spread: float) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * spread
    numbers, scales = quantise(weight)
    assert numbers.dtype == torch.int8
    assert int(numbers.abs().max()) == 127
    error = (dequantise(numbers, scales, torch.float32) - weight).abs()
    assert (error <= scales[:, None] / 2 * (1 + 1e-4)).all()


def test_rows_of_zeros_stay_zeros() -> None:
    numbers, scales = quantise(torch.zeros(3, 5))
    assert not numbers.any()
    assert torch.isfinite(scales).all()


@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_differ_from_float32_by_rounding_alone(bias: bool) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(96, 80, bias=bias)
    layer = int8_of(linear)
    scales = layer.scale_bits.view(torch.float32)
    x = torch.randn(4, 7, 96, requires_grad=True)
    own = x.detach().clone().requires_grad_()
    given = torch.randn(4, 7, 80)
    exact, rounded = linear(x), layer(own)
    # Each weight is off by half a scale at most, so a sum is off by half a scale times the sum of what it multiplies.
    bound = own.detach().abs().sum(dim=-1, keepdim=True) * scales / 2
    assert ((rounded - exact).abs() <= bound * 1.001 + 1e-5).all()
    assert float((rounded - exact).detach().norm() / exact.detach().norm()) < 0.01
    exact.backward(given)
    rounded.backward(given)
    assert x.grad is not None
    assert own.grad is not None
    bound = (given.abs() * scales).sum(dim=-1, keepdim=True) / 2
    assert ((own.grad - x.grad).abs() <= bound * 1.001 + 1e-5).all()
    assert float((own.grad - x.grad).norm() / x.grad.norm()) < 0.01
    assert layer.weight.grad is None


def test_forward_and_backward_are_those_of_the_dequantised_matrix() -> None:
    torch.manual_seed(2)
    layer = int8_of(nn.Linear(24, 16))
    weight = dequantise(layer.weight, layer.scale_bits.view(torch.float32), torch.float32)
    x = torch.randn(3, 24, requires_grad=True)
    own = x.detach().clone().requires_grad_()
    torch.nn.functional.linear(x, weight, layer.bias).square().sum().backward()  # type: ignore[no-untyped-call]
    layer(own).square().sum().backward()
    assert x.grad is not None
    assert own.grad is not None
    torch.testing.assert_close(own.grad, x.grad)


def test_autocast_decides_the_type_of_the_products() -> None:
    layer = int8_of(nn.Linear(32, 16))
    x = torch.randn(5, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_a_weight_takes_one_byte() -> None:
    layer = int8_of(nn.Linear(512, 256, bias=False))
    stored = {name: one.untyped_storage().nbytes() for name, one in layer.named_parameters()}
    assert stored == {"weight": 512 * 256, "scale_bits": 4 * 256}
    x = torch.randn(2, 512, requires_grad=True)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert {one.data_ptr() for one in kept} == {one.data_ptr() for one in layer.parameters()}, "a copy is kept"


class Pair(nn.Module):
    """Two layers, a head, and something that is no linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(32, 32, bias=False)
        self.o_proj = nn.Linear(32, 32, bias=False)
        self.norm = nn.LayerNorm(32)
        self.lm_head = nn.Linear(32, 11, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.lm_head(x + self.norm(self.o_proj(torch.tanh(self.q_proj(x)))))
        return logits


def adapted_pair(int8: bool) -> Pair:
    """With adapters beside q_proj, and the same numbers whatever `int8` is."""
    with torch.device("meta"):
        model = Pair()
    add_adapters(model, 4, 8, 0.0, ["q_proj"])
    if int8:
        to_int8(model)
    materialise(model, HostDevice())
    drawn = torch.Generator().manual_seed(3)
    numbers = {name: torch.randn(32, 32, generator=drawn) * 0.2 for name in ("q_proj.weight", "o_proj.weight")}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            plain = name.replace("base_layer.", "")
            if parameter.is_floating_point():
                fresh = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(plain))) * 0.2
                parameter.copy_(numbers.get(plain, fresh))
    fill_int8(model, lambda name, first, last, columns: numbers[name][first:last])
    return model


def test_frozen_layers_become_int8_and_adapters_and_head_do_not() -> None:
    model = adapted_pair(int8=True)
    assert [name for name, _ in int8_layers(model)] == ["q_proj.base_layer", "o_proj"]
    assert type(model.lm_head) is nn.Linear
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"}


def test_adapters_learn_beside_int8_what_they_learn_beside_float32() -> None:
    x = torch.randn(6, 32, generator=torch.Generator().manual_seed(4))
    gradients = []
    for int8 in (False, True):
        model = adapted_pair(int8)
        model(x).logsumexp(dim=-1).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    exact, rounded = gradients
    for name, gradient in exact.items():
        assert gradient is not None
        other = rounded[name]
        assert other is not None
        assert float(gradient.norm()) > 0
        assert float((other - gradient).norm() / gradient.norm()) < 0.05, name


def test_a_layer_that_was_cast_is_refused() -> None:
    layer = int8_of(nn.Linear(8, 8))
    cast = copy.deepcopy(layer)
    cast.scale_bits = nn.Parameter(layer.scale_bits.to(torch.bfloat16), requires_grad=False)
    with pytest.raises(Exception, match="this torch casts whole numbers too"):
        cast(torch.randn(1, 8))
