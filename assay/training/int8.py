"""Frozen linear layers that keep their weight as int8, with one scale per output channel.

A weight takes 1 byte, and 4 bytes more a row for its scale. Forward and backward multiply by the weight in the type of
the activations, made anew each time and dropped at once, so at any moment one layer's weight exists in that type. There
is no gradient of the weight: it is for bases under adapters.

Why not bitsandbytes: its layers quantise while a whole matrix moves to a device, so they can neither be made on meta nor
sharded by FSDP2, and they exist for some vendors only. Both columns of a report are to be measured alike everywhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from assay.errors import RunFailed
from assay.training.weights import CHUNK, Part, Work, canonical_name, in_threads, own_part

LARGEST = 127  # ±127: symmetric, so that 0 is exact and no weight needs -128

Rows = Callable[[str, int, int, int], torch.Tensor]
"""(name of the weight in the model as published, first row, last row, columns) → those rows, float32, on the host."""


def quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [R, C] and float32 scales [R]: row ≈ int8 · scale, no element further off than scale / 2. rows: [R, C].

    Scale: largest magnitude of the row / 127, absmax quantisation as in LLM.int8() (Dettmers et al. 2022), by rows.
    """
    largest = rows.abs().amax(dim=1)
    scales = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    return (rows / scales[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scales


def dequantise(weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The matrix in `dtype`. weight: int8 [R, C]; scales: float32 [R]."""
    return weight.to(dtype).mul_(scales.to(dtype)[:, None])


class _Product(torch.autograd.Function):
    """x · weightᵀ. Kept for backward are the int8 numbers themselves, never the matrix that they stand for."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scales)
        return x @ dequantise(weight, scales, x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,), (weight, scales) = gradients, ctx.saved_tensors
        return gradient @ dequantise(weight, scales, gradient.dtype), None, None


class Int8Linear(nn.Linear):
    """A linear layer on meta whose weight [out, in] is int8 and frozen. `fill_int8` gives it its numbers.

    Weight and scales are parameters, so that FSDP2 shards them. The scales' float32 bits are stored as int32 because
    engines with mixed precision cast every parameter of a floating-point type, and scales must not be rounded.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias, device="meta")
        self.weight = _frozen(out_features, in_features, dtype=torch.int8)
        self.scale_bits = _frozen(out_features, dtype=torch.int32)
        if bias:
            self.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] → [..., out], in autocast's type where that is on, else in x's."""
        if (self.weight.dtype, self.scale_bits.dtype) != (torch.int8, torch.int32):
            raise RunFailed(
                f"int8 weights arrive as {self.weight.dtype}: this torch casts whole numbers too; use --precision fp32"
            )
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        scales = self.scale_bits.view(torch.float32)
        product: torch.Tensor = _Product.apply(x.to(dtype), self.weight, scales)  # type: ignore[no-untyped-call] # untyped in torch
        return product if self.bias is None else product + self.bias.to(dtype)


def _frozen(*size: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(*size, dtype=dtype, device="meta"), requires_grad=False)


def to_int8(model: nn.Module, keep: tuple[str, ...] = ("lm_head",)) -> None:
    """Put an Int8Linear in the place of every frozen linear layer of a model on meta, but for those named in `keep`."""
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and not layer.weight.requires_grad and name not in keep:
            owner, _, own_name = name.rpartition(".")
            made = Int8Linear(layer.in_features, layer.out_features, layer.bias is not None)
            setattr(model.get_submodule(owner), own_name, made)


def int8_layers(model: nn.Module) -> Iterator[tuple[str, Int8Linear]]:
    """All of them, with their names."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, Int8Linear))


def fill_int8(model: nn.Module, rows: Rows) -> None:
    """Quantise what `rows` gives into every Int8Linear, some rows at a time: no float matrix is ever whole in memory.

    Of a sharded layer this rank's part only. As many threads as torch uses.
    """
    in_threads(work for name, layer in int8_layers(model) for work in _fills(f"{name}.weight", layer, rows))


def _fills(name: str, layer: Int8Linear, rows: Rows) -> Iterator[Work]:
    parts = ((own_part(name, layer.weight), layer.in_features), (own_part(name, layer.scale_bits), 1))
    # Where pieces are no whole rows (ZeRO-3), the rows of the weight's piece and of the scales' piece are not the same.
    first = min(part.start // width for part, width in parts)
    last = max(-(-(part.start + part.values.numel()) // width) for part, width in parts)
    step = max(1, CHUNK // layer.in_features)
    for start in range(first, last, step):
        yield _Fill(canonical_name(name), rows, start, min(start + step, last), layer.in_features, parts)


@dataclass(frozen=True)
class _Fill:
    name: str
    rows: Rows
    first: int
    last: int
    columns: int
    parts: tuple[tuple[Part, int], ...]  # of weight and scales, with the elements that a row has

    def __call__(self) -> None:
        weight, scales = quantise(self.rows(self.name, self.first, self.last, self.columns))
        for (part, width), values in zip(self.parts, (weight, scales.view(torch.int32)), strict=True):
            _write(part, self.first * width, values.view(-1))


def _write(part: Part, start: int, values: torch.Tensor) -> None:
    """Into what this rank holds, as much as it holds of elements start … start + len(values) − 1."""
    first = max(start, part.start)
    last = min(start + values.numel(), part.start + part.values.numel())
    if first < last:
        with torch.no_grad():  # a mode of this thread alone
            part.values[first - part.start : last - part.start].copy_(values[first - start : last - start])
