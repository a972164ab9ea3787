"""The same mathematics in fewer passes over memory, for LLaMA layers in float32 on a CPU.

transformers writes RMSNorm and the rotary embedding as chains of elementwise products, each of which reads and writes
all activations; on a CPU they cost as much as a tenth of the matrix products. And torch's attention kernel for CPUs is
written for long sequences: short ones are faster as a few batched products of the vendor's library.

`speed_up` changes what layers compute by rounding only. Parameters keep their names and places. Where a layer is called
otherwise (another device or type, autocast, a mask, a cache) it does what it did. Under torch.compile, which fuses norms
and rotations by itself, only attention is another.
"""

import math
from types import MethodType
from typing import Any, cast

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, apply_rotary_pos_emb

# Tokens per sequence for which blocks beat torch's kernel (docs/performance.md), and into how many they are cut.
BLOCKED_LENGTHS = range(192, 769)
BLOCKS = 4


def speed_up(model: nn.Module) -> int:
    """Give a model's norms and attentions their faster forward, in place, on meta or not; how many were changed."""
    changed = 0
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = MethodType(_normalise, module)
            changed += 1
        elif isinstance(module, LlamaAttention) and _is_plain(module):
            module.forward = MethodType(_attend, module)
            changed += 1
    return changed


def _is_plain(attention: Any) -> bool:
    """Causal attention by torch's kernel, as many key as query heads, nothing dropped."""
    alike = attention.num_key_value_groups == 1 and attention.attention_dropout == 0
    return bool(alike and attention.config._attn_implementation == "sdpa")


def _applies(hidden: torch.Tensor) -> bool:
    plain = hidden.dtype is torch.float32 and hidden.device.type == "cpu"
    return plain and not torch.is_autocast_enabled("cpu")


def _normalise(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    # The compiler makes one pass of it by itself.
    if torch.compiler.is_compiling() or not _applies(hidden_states):
        return cast(torch.Tensor, type(self).forward(self, hidden_states))
    return cast(torch.Tensor, _Normalised.apply(hidden_states, self.weight, self.variance_epsilon))  # type: ignore[no-untyped-call] # untyped in torch


def _attend(
    self: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    attention_mask: torch.Tensor | None = None,
    past_key_values: object = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if not _applies(hidden_states) or attention_mask is not None or past_key_values is not None:
        told = (hidden_states, position_embeddings, attention_mask, past_key_values)
        return cast(tuple[torch.Tensor, torch.Tensor | None], type(self).forward(self, *told, **others))
    assert position_embeddings is not None
    apart = (*hidden_states.shape[:-1], -1, self.head_dim)
    query, key, value = (
        projection(hidden_states).view(apart).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
    )
    if torch.compiler.is_compiling():
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    else:
        cosine, sine = (one.unsqueeze(1) for one in position_embeddings)
        query, key = _Rotated.apply(query, cosine, sine), _Rotated.apply(key, cosine, sine)  # type: ignore[no-untyped-call] # untyped in torch
    if hidden_states.shape[1] in BLOCKED_LENGTHS:
        seen = _BlockedAttention.apply(query, key, value, self.scaling)  # type: ignore[no-untyped-call] # untyped in torch
    else:
        seen = scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scaling)
    return self.o_proj(seen.transpose(1, 2).flatten(2)), None


class _Normalised(Function):
    """y = w · x / √(mean(x²) + ε) over the last dimension (Zhang & Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        size = x.shape[-1]
        length: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse: torch.Tensor = length.square_().div_(size).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        # With r = 1/√(mean(x²) + ε): dx = r·w·g − x·r³/n·Σ(g·w·x), dw = Σ over rows of g·x·r. Both sums are products
        # of g·x with a vector.
        x, weight, inverse = ctx.saved_tensors
        size = x.shape[-1]
        rows, gradients, inverses = x.reshape(-1, size), gradient.reshape(-1, size), inverse.reshape(-1, 1)
        both = gradients * rows
        # Beside adapters it is frozen.
        to_weight = torch.mv(both.t(), inverses.view(-1)) if ctx.needs_input_grad[1] else None
        along = torch.mv(both, weight).view(-1, 1) * inverses**3 / size
        to_x = torch.mul(gradients, weight, out=both).mul_(inverses).addcmul_(rows, along, value=-1)
        return to_x.view_as(x), to_weight, None


class _Rotated(Function):
    """Pairs (first half, second half) turned by the angle of their place (Su et al. 2021); backward turns them back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(gradient, cosine, sine, -1), None, None


def _turned(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, way: int) -> torch.Tensor:
    # Angles of both halves are alike, so one half of cosines and sines would do; the model makes both.
    half = x.shape[-1] // 2
    turned = x * cosine
    turned[..., :half].addcmul_(x[..., half:], sine[..., :half], value=-way)
    turned[..., half:].addcmul_(x[..., :half], sine[..., half:], value=way)
    return turned


class _BlockedAttention(Function):
    """softmax(q·kᵀ·scale)·v, causal. Queries in blocks, each against the keys up to its end: 5/8 of all products with 4.

    Probabilities are kept for backward: 2.5 · heads · T² bytes a sequence.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        shape = query.shape
        length, width = shape[-2:]
        query, key, value = (one.reshape(-1, length, width) for one in (query, key, value))
        block = math.ceil(length / BLOCKS)
        later = query.new_full((block, block), -math.inf).triu_(1)
        result, kept = torch.empty_like(query), []
        for first in range(0, length, block):
            end = min(length, first + block)
            scores = torch.bmm(query[:, first:end] * scale, key[:, :end].transpose(1, 2))
            scores[:, :, first:].add_(later[: end - first, : end - first])
            kept.append(torch.softmax(scores, -1))
            result[:, first:end] = torch.bmm(kept[-1], value[:, :end])
        ctx.save_for_backward(query, key, value, *kept)
        ctx.shape, ctx.scale, ctx.block = shape, scale, block
        return result.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        query, key, value, *kept = ctx.saved_tensors
        shape, scale, block = ctx.shape, ctx.scale, ctx.block
        length = shape[-2]
        gradient = gradient.reshape(query.shape)
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for first, probabilities in zip(range(0, length, block), kept, strict=True):
            end = min(length, first + block)
            own = gradient[:, first:end]
            to_value[:, :end].baddbmm_(probabilities.transpose(1, 2), own)
            to_scores = torch.bmm(own, value[:, :end].transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_scores, probabilities, -1, torch.float32)
            to_query[:, first:end] = torch.bmm(to_scores, key[:, :end]).mul_(scale)
            to_key[:, :end].baddbmm_(to_scores.transpose(1, 2), query[:, first:end], alpha=scale)
        return to_query.view(shape), to_key.view(shape), to_value.view(shape), None
