"""Work of a transformer's step, analytically: model FLOPs, and the fewest bytes that it can move.

A weight costs 2 FLOP a token in each matrix multiplication: one in forward, and in backward one for the gradient of its
input and one for its own. Recomputation is never counted: that is HFU. docs/models.md has a worked example of each.
"""

import math

from assay.presets import EncoderShape, ModelShape, parameters_of
from assay.roofline import StepWork

FLOAT32 = 4  # B: weights, gradients and optimizer states, whatever the precision


def flops_per_token(shape: ModelShape, parameters: int, seq_len: int) -> int:
    """Model FLOPs of forward and backward per token: 6·M + 12·L·H·Q·T, where M = N − embeddings − norms − biases.

    parameters: N, all parameters of the model, a tied matrix once. L layers, H heads, Q head dimension, T = seq_len.
    Source: PaLM (Chowdhery et al. 2022), appendix B, but with M, the weights of matrix multiplications, for N: input and
    position embedding are look-ups, norms and biases are added. A tied matrix is the head's multiplication too, so it
    stays. Attention counts all T² pairs, masked or not, as PaLM does.
    """
    return 6 * (parameters - _not_multiplied(shape, seq_len)) + 12 * shape.layers * shape.hidden * seq_len


def encoder_flops_per_token(shape: EncoderShape, seq_len: int, predicted: float) -> float:
    """Model FLOPs of BERT's forward and backward per token: 6·L·(4·h² + 2·h·I) + 12·L·h·T + 6·head/T.

    head = (h² + V·h)·predicted + h² + 2·h: the transform and the token table for each predicted token, pooler and
    next-sentence head once a sequence. seq_len: T, tokens per sequence as they go through the encoder; predicted: tokens
    per sequence that go through the head, on average. L layers, hidden h, intermediate I, vocabulary V. Source: as
    `flops_per_token`; BERT (Devlin et al. 2019), section 3.1, for the heads.
    """
    h = shape.hidden
    layers = 6 * shape.layers * (4 * h * h + 2 * h * shape.intermediate) + 12 * shape.layers * h * seq_len
    head = (h * h + shape.vocab * h) * predicted + h * h + 2 * h
    return layers + 6 * head / seq_len


def adapted_flops_per_token(
    shape: ModelShape, frozen: int, adapter: int, seq_len: int, targets: tuple[str, ...] = ("q_proj", "v_proj")
) -> int:
    """Model FLOPs of forward and backward per token with LoRA: 4·M + 6·adapter + 12·L·H·Q·T − what backward never reaches.

    A frozen weight needs no gradient of its own, so it costs 4 instead of 6. frozen: parameters that are not trained,
    of which M are in matrix multiplications; adapter: those of the adapters; targets: the matrices that have one. Below
    the first adapter of the first layer nothing is trained, so backward stops there. Source: LoRA (Hu et al. 2021),
    section 4, for which matrices are trained; the count is ours. Raises ValueError if the shape has none of the targets.
    """
    whole = 4 * (frozen - _not_multiplied(shape, seq_len)) + 6 * adapter + 12 * shape.layers * shape.hidden * seq_len
    return whole - _never_reached(shape, adapter, seq_len, targets)


def _never_reached(shape: ModelShape, adapter: int, seq_len: int, targets: tuple[str, ...]) -> int:
    """FLOP per token of the first layer's backward that no adapter needs."""
    groups = _matrices(shape)
    adapted = [[matrix for matrix in group if matrix[0] in targets] for group in groups]
    first = next((i for i, group in enumerate(adapted) if group), None)
    if first is None:
        raise ValueError(f"{shape.name} has none of the matrices {', '.join(targets)}")
    rank = adapter // (shape.layers * sum(rows + columns for group in adapted for _, rows, columns in group))
    inputs = sum(rows * columns for group in groups[: first + 1] for _, rows, columns in group)
    inputs += sum(rank * rows for _, rows, _ in adapted[first])
    # Backward through attention is four products: of scores and of values, of queries and of keys.
    needed = 0
    if first == 0 and shape.family == "gpt":  # one matrix makes queries, keys and values
        needed = 4
    elif first == 0:
        query, key, value = (name in targets for name in ("q_proj", "k_proj", "v_proj"))
        needed = (query or key) + query + key + value
    return 2 * inputs + 2 * (4 - needed) * shape.hidden * seq_len


def _matrices(shape: ModelShape) -> list[list[tuple[str, int, int]]]:
    """Name, rows and columns of a layer's matrices; those of one group have the same input, and groups follow each other."""
    h, i, keys = shape.hidden, shape.intermediate, shape.kv_heads * shape.head_dim
    if shape.family == "gpt":
        return [[("c_attn", h, 3 * h)], [("c_proj", h, h)], [("c_fc", h, i)], [("c_proj", i, h)]]
    projections = [("q_proj", h, h), ("k_proj", h, keys), ("v_proj", h, keys)]
    return [projections, [("o_proj", h, h)], [("gate_proj", h, i), ("up_proj", h, i)], [("down_proj", i, h)]]


def least_work(
    shape: ModelShape, parameters: int, seq_len: int, element: int, passes: int = 1, shards: int = 1
) -> StepWork:
    """One rank's optimizer step as a function of its samples: model FLOPs, and a lower bound of the bytes. Ours:

    fixed = e · 2·P·(N − embeddings) + 4 · ((2·P − 1)·N + 8·N/D): in each of P passes the weights are read in forward
    and in backward, in the type of the products, and the float32 gradients written, after the first pass read too; then
    the norm reads the gradients, and AdamW reads parameters, gradients and two states and writes parameters and states,
    all in float32 and over D shards.

    per sample = 2·e · T · (L·(4·h + (2·H + 2·K)·Q + F·I) + 2·h): what backward needs of forward is written once and read
    once. Per layer and token: input and output of both norms, q and attention output, k and v, gate and up (F = 2) or
    what goes into GELU (F = 1; hidden h, K key-value heads, I intermediate); at the end, input and output of the last
    norm.

    parameters: N; element: e, B of an activation; passes: P; shards: D. Neither logits, scores nor gradients of
    activations are counted, as if kernels fused them all away, so less can only be moved where a cache holds what one
    pass leaves for the next.
    """
    weights = parameters - _looked_up(shape, seq_len)
    fixed = element * 2 * passes * weights + FLOAT32 * (
        (2 * passes - 1) * parameters + math.ceil(8 * parameters / shards)
    )
    inner = (1 if shape.family == "gpt" else 2) * shape.intermediate
    layer = 4 * shape.hidden + 2 * (shape.heads + shape.kv_heads) * shape.head_dim + inner
    kept = seq_len * (shape.layers * layer + 2 * shape.hidden)
    return StepWork(flops_per_token(shape, parameters, seq_len) * seq_len, fixed, 2 * element * kept)


def _not_multiplied(shape: ModelShape, seq_len: int) -> int:
    """Parameters that are in no matrix multiplication: embeddings that are looked up, norms, biases."""
    layer = sum(rows * columns for group in _matrices(shape) for _, rows, columns in group)
    return parameters_of(shape, seq_len) - shape.layers * layer - shape.vocab * shape.hidden


def _looked_up(shape: ModelShape, seq_len: int) -> int:
    """Parameters of tables of which only rows are read: a position table, and an input embedding that is not the head too."""
    positions = max(shape.positions, seq_len) if shape.family == "gpt" else 0
    return ((0 if shape.tied else shape.vocab) + positions) * shape.hidden
