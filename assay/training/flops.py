"""Model FLOPs of a decoder-only transformer, counted analytically. Recomputation is never counted: that is HFU."""

from assay.presets import ModelShape


def flops_per_token(shape: ModelShape, parameters: int, seq_len: int) -> int:
    """Model FLOPs of forward and backward per token: 6·(N − input embedding) + 12·L·H·Q·T.

    parameters: N, all parameters of the model, a tied matrix once. L layers, H heads, Q head dimension, T = seq_len.
    Source: PaLM (Chowdhery et al. 2022), appendix B, but without the input embedding, which is a look-up. A tied
    matrix is the head's matmul too, so it stays. Attention counts all T² pairs, masked or not, as PaLM does.
    """
    looked_up = 0 if shape.tied else shape.vocab * shape.hidden
    return 6 * (parameters - looked_up) + 12 * shape.layers * shape.heads * shape.head_dim * seq_len
