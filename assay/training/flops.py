"""Work of a decoder-only transformer's step, analytically: model FLOPs, and the fewest bytes that it can move.

Recomputation is never counted: that is HFU.
"""

import math

from assay.presets import ModelShape
from assay.roofline import StepWork


def flops_per_token(shape: ModelShape, parameters: int, seq_len: int) -> int:
    """Model FLOPs of forward and backward per token: 6·(N − input embedding) + 12·L·H·Q·T.

    parameters: N, all parameters of the model, a tied matrix once. L layers, H heads, Q head dimension, T = seq_len.
    Source: PaLM (Chowdhery et al. 2022), appendix B, but without the input embedding, which is a look-up. A tied
    matrix is the head's matmul too, so it stays. Attention counts all T² pairs, masked or not, as PaLM does.
    """
    return 6 * (parameters - _looked_up(shape)) + 12 * shape.layers * shape.heads * shape.head_dim * seq_len


def least_work(
    shape: ModelShape, parameters: int, seq_len: int, element: int, passes: int = 1, shards: int = 1
) -> StepWork:
    """One rank's optimizer step as a function of its samples: model FLOPs, and a lower bound of the bytes. Ours:

    fixed = e · (2·P·(N − input embedding) + (2·P − 1)·N + 8·N/D): in each of P passes the weights are read in forward
    and in backward, and the gradients written, after the first pass read too; then the norm reads the gradients, and
    AdamW reads parameters, gradients and two states and writes parameters and states, all over D shards.

    per sample = 2·e · T · (L·(4·h + (2·H + 2·K)·Q + 2·I) + 2·h): what backward needs of forward is written once and read
    once. Per layer and token: input and output of both norms, q and attention output, k and v, gate and up (hidden h,
    K key-value heads, I intermediate); at the end, input and output of the last norm.

    parameters: N; element: e, B of weights, gradients, states and activations alike; passes: P; shards: D. Neither
    logits, scores nor gradients of activations are counted, as if kernels fused them all away, so less can only be
    moved where a cache holds what one pass leaves for the next.
    """
    weights = parameters - _looked_up(shape)
    fixed = 2 * passes * weights + (2 * passes - 1) * parameters + math.ceil(8 * parameters / shards)
    layer = 4 * shape.hidden + 2 * (shape.heads + shape.kv_heads) * shape.head_dim + 2 * shape.intermediate
    kept = seq_len * (shape.layers * layer + 2 * shape.hidden)
    return StepWork(flops_per_token(shape, parameters, seq_len) * seq_len, element * fixed, 2 * element * kept)


def _looked_up(shape: ModelShape) -> int:
    """Parameters that no matmul uses: an input embedding that is not the head too."""
    return 0 if shape.tied else shape.vocab * shape.hidden
