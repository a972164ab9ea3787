"""Shapes of the models that can be trained, as data. No torch: suites are checked and planned with these."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer of the LLaMA family.

    family: "llama" or "internlm" (InternLM 1: LLaMA with biases on the four attention projections).
    head_dim: hidden // heads. tied: input and output embedding share one matrix.
    """

    name: str
    family: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    tied: bool = False
    source: str = "own, for machines without an accelerator"

    @property
    def head_dim(self) -> int:
        """Elements per attention head."""
        return self.hidden // self.heads


_LLAMA = "LLaMA (Touvron et al. 2023), table 2; intermediate: 8/3 of hidden up to a multiple of 256, as its code has it"
_INTERNLM = "config.json and configuration_internlm.py of internlm/internlm-7b"

# Tiny twins keep the proportions of the family (gated MLP of 8/3 hidden) at a size that a laptop trains in seconds.
MODELS: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("llama-tiny", "llama", 2048, 192, 4, 6, 6, 512),
        ModelShape("internlm-tiny", "internlm", 2048, 192, 4, 6, 6, 512),
        ModelShape("llama-7b", "llama", 32000, 4096, 32, 32, 32, 11008, source=_LLAMA),
        ModelShape("internlm-7b", "internlm", 103168, 4096, 32, 32, 32, 11008, source=_INTERNLM),
    )
}
