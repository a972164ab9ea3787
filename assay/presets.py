"""Shapes of the models that can be trained, as data. No torch: suites are checked and planned with these."""

from dataclasses import dataclass
from typing import Literal

Family = Literal["llama", "internlm", "gpt"]


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer. `family` says how it is built:

    - "llama": rotary positions, RMSNorm, gated SiLU feed-forward of three matrices, no biases (LLaMA 1 and 2, and
      InternLM 20B, which dropped the biases of its family).
    - "internlm": the same with biases on the four attention projections (InternLM 7B).
    - "gpt": learned positions, LayerNorm, GELU feed-forward of two matrices, biases everywhere (GPT-2 and GPT-3).

    positions: longest sequence that the published model was trained on, and for "gpt" the rows of its position table.
    tied: input and output embedding share one matrix. Raises ValueError if the heads do not divide what they must or the
    heads' dimension is odd where it must not be.
    """

    name: str
    family: Family
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    tied: bool = False
    source: str = "own, for machines without an accelerator"
    positions: int = 2048

    def __post_init__(self) -> None:
        if self.family not in ("llama", "internlm", "gpt"):
            raise ValueError(f"{self.name}: family {self.family!r} is not one of llama, internlm, gpt")
        _check_sizes(self)
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.name}: {self.heads} heads cannot share {self.kv_heads} key-value heads equally")
        if self.family == "gpt" and self.kv_heads != self.heads:
            raise ValueError(f"{self.name}: a GPT has as many key-value heads as heads, not {self.kv_heads}")
        if self.family != "gpt" and self.head_dim % 2:
            raise ValueError(f"{self.name}: rotary positions need an even head dimension, not {self.head_dim}")

    @property
    def head_dim(self) -> int:
        """Elements per attention head."""
        return self.hidden // self.heads


@dataclass(frozen=True)
class EncoderShape:
    """A BERT: an encoder with a masked-token head, whose matrix is the token table, and a next-sentence head.

    positions: rows of the position table, the longest sequence. types: kinds of segments. Raises ValueError if the
    heads do not divide the hidden size.
    """

    name: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int = 512
    types: int = 2
    source: str = "own, for machines without an accelerator"

    def __post_init__(self) -> None:
        _check_sizes(self)

    @property
    def head_dim(self) -> int:
        """Elements per attention head."""
        return self.hidden // self.heads


def _check_sizes(shape: ModelShape | EncoderShape) -> None:
    for field, value in vars(shape).items():
        if type(value) is int and value < 1:
            raise ValueError(f"{shape.name}: {field} is {value}, expected at least 1")
    if shape.hidden % shape.heads:
        raise ValueError(f"{shape.name}: hidden size {shape.hidden} is not divisible by {shape.heads} heads")


def parameters_of(shape: ModelShape | EncoderShape, seq_len: int = 1) -> int:
    """Elements of all parameters, a tied matrix once, as the built model has them.

    seq_len: tokens per sequence; only a GPT whose position table is shorter grows by it.
    """
    h, i, norm = shape.hidden, shape.intermediate, 2 * shape.hidden  # a LayerNorm has a scale and a shift
    if isinstance(shape, EncoderShape):
        embeddings = (shape.vocab + shape.positions + shape.types) * h + norm
        layer = 4 * (h * h + h) + (h * i + i) + (i * h + h) + 2 * norm
        pooler, transform, next_sentence = h * h + h, h * h + h + norm, 2 * h + 2
        return embeddings + shape.layers * layer + pooler + transform + shape.vocab + next_sentence
    tables = shape.vocab * h * (1 if shape.tied else 2)
    if shape.family == "gpt":
        layer = 4 * (h * h + h) + (h * i + i) + (i * h + h) + 2 * norm
        return tables + max(shape.positions, seq_len) * h + shape.layers * layer + norm
    keys = shape.kv_heads * shape.head_dim
    biases = 2 * (h + keys) if shape.family == "internlm" else 0
    return tables + shape.layers * (2 * h * (h + keys) + biases + 3 * h * i + 2 * h) + h


_LLAMA = "LLaMA (Touvron et al. 2023), table 2; intermediate: 8/3 of hidden up to a multiple of 256, as its code has it"
_LLAMA2 = "Llama 2 (Touvron et al. 2023), table 1 and config.json of meta-llama/Llama-2-{}-hf"
_INTERNLM = "config.json and configuration_internlm.py of internlm/internlm-7b"
_INTERNLM_20B = "config.json of internlm/internlm-20b, whose bias is false"
_INTERNLM_13B = "configs/13B_sft.py of github.com/InternLM/InternLM; biases as InternLM 7B, made by the same code"
_INTERNLM_65B = "no public shape: LLaMA 65B's with InternLM 7B's vocabulary and biases"
_GPT3 = "GPT-3 (Brown et al. 2020), table 2.1{}; attention dense in every layer, vocabulary of GPT-2"
_BERT = "config.json of google-bert/bert-{}-uncased; BERT (Devlin et al. 2019), section 3"

# Tiny twins keep the build of the family and about its proportions at a size that a laptop trains in seconds.
MODELS: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("llama-tiny", "llama", 2048, 192, 4, 6, 6, 512),
        ModelShape("llama2-tiny", "llama", 2048, 192, 4, 6, 2, 672, positions=4096),
        ModelShape("internlm-tiny", "internlm", 2048, 192, 4, 6, 6, 512),
        ModelShape("internlm-20b-tiny", "llama", 2048, 192, 6, 6, 6, 512, positions=4096),
        ModelShape("gpt3-tiny", "gpt", 2048, 192, 4, 6, 6, 768, tied=True),
        ModelShape("llama-100m", "llama", 9728, 768, 12, 12, 12, 2048, source="own, for MFU on a processor"),
        ModelShape("llama-7b", "llama", 32000, 4096, 32, 32, 32, 11008, source=_LLAMA),
        ModelShape("llama-13b", "llama", 32000, 5120, 40, 40, 40, 13824, source=_LLAMA),
        ModelShape("llama-30b", "llama", 32000, 6656, 60, 52, 52, 17920, source=_LLAMA),
        ModelShape("llama-65b", "llama", 32000, 8192, 80, 64, 64, 22016, source=_LLAMA),
        ModelShape("llama2-7b", "llama", 32000, 4096, 32, 32, 32, 11008, False, _LLAMA2.format("7b"), 4096),
        ModelShape("llama2-13b", "llama", 32000, 5120, 40, 40, 40, 13824, False, _LLAMA2.format("13b"), 4096),
        ModelShape("llama2-70b", "llama", 32000, 8192, 80, 64, 8, 28672, False, _LLAMA2.format("70b"), 4096),
        ModelShape("internlm-7b", "internlm", 103168, 4096, 32, 32, 32, 11008, source=_INTERNLM),
        ModelShape("internlm-13b", "internlm", 103168, 5120, 40, 40, 40, 13824, source=_INTERNLM_13B, positions=4096),
        ModelShape("internlm-20b", "llama", 103168, 5120, 60, 40, 40, 13824, source=_INTERNLM_20B, positions=4096),
        ModelShape("internlm-65b", "internlm", 103168, 8192, 80, 64, 64, 22016, source=_INTERNLM_65B),
        # The paper gives the 13B a hidden size of 5140, which its 40 heads of 128 do not fill.
        ModelShape("gpt3-13b", "gpt", 50257, 5120, 40, 40, 40, 20480, True, _GPT3.format(", with hidden 40 · 128")),
        ModelShape("gpt3-175b", "gpt", 50257, 12288, 96, 96, 96, 49152, True, _GPT3.format("")),
    )
}

ENCODERS: dict[str, EncoderShape] = {
    shape.name: shape
    for shape in (
        EncoderShape("bert-tiny", 2048, 192, 4, 6, 768),
        EncoderShape("bert-base", 30522, 768, 12, 12, 3072, source=_BERT.format("base")),
        EncoderShape("bert-large", 30522, 1024, 24, 16, 4096, source=_BERT.format("large")),
    )
}
