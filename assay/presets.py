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


# Tiny twins keep the proportions of the family (gated MLP of 8/3 hidden) at a size that a laptop trains in seconds.
MODELS: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("llama-tiny", "llama", 2048, 192, 4, 6, 6, 512),
        ModelShape("internlm-tiny", "internlm", 2048, 192, 4, 6, 6, 512),
    )
}
