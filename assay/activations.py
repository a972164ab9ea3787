"""What one forward pass of a transformer keeps for its backward, in bytes, out of the model's shape. Pure functions.

Derived here by going through the layers as transformers writes them, one operation after the other: an operation keeps
the inputs (or the output) that its derivative needs, and what two operations keep of one tensor counts once. Attention is
a fused kernel, which keeps queries, keys, values, output and one number per head and token, no T × T scores (Dao et al.
2022, FlashAttention). With `--compile` kernels are fused, and less is kept. h: hidden size, q and k: elements of all
queries and of all keys of a token, i: intermediate size, H: heads.
"""

from dataclasses import dataclass
from typing import Literal

from assay.presets import EncoderShape, ModelShape

Kind = Literal["plain", "autocast", "cast"]
"""How products come to their element type: as the weights are; cast at each product; all weights cast beforehand."""

_FLOAT = 4  # B of what stays float32 whatever the precision
_GELU = 2  # tensors of one kernel: its input, and the output as the input of the next product


@dataclass(frozen=True)
class Adapters:
    """LoRA: rank, and the inputs' sizes (elements per token) of all adapted products of one layer."""

    rank: int
    inputs: tuple[int, ...]
    dropout: float


@dataclass(frozen=True)
class Pass:
    """One forward pass of a rank. sequences × length tokens; predicted: positions of a sequence that the head sees.

    element: B of a product's operands. masked: whether sequences are padded, so that attention gets a mask. dropout: of
    hidden states. adapters: of LoRA, None where all weights are trained.
    """

    shape: ModelShape | EncoderShape
    sequences: int
    length: int
    predicted: int
    kind: Kind
    element: int
    masked: bool = False
    dropout: float = 0.0
    adapters: Adapters | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the pass, padding counted."""
        return self.sequences * self.length


@dataclass(frozen=True)
class Kept:
    """Bytes of a pass. layer: of each layer, its input counted; entry: the input alone; ends: before and after the layers.

    loss: at the moment when the loss is differentiated. working: gradients that live at once inside a layer's backward.
    """

    layer: int
    entry: int
    ends: int
    loss: int
    working: int


def kept(of: Pass) -> Kept:
    """What the pass keeps, part by part."""
    shape, tokens = of.shape, of.tokens
    stream = of.element if of.kind == "cast" else _FLOAT  # B of the residual stream
    spots = of.sequences * of.predicted
    if of.adapters is not None and isinstance(shape, ModelShape):
        layer = _adapted_layer(of, shape, of.adapters)
    elif isinstance(shape, ModelShape) and shape.family != "gpt":
        layer = _llama_layer(of, shape)
    else:
        layer = _layer_norm_layer(of, shape)
    # Log-probabilities, their gradient, and what it is made of, all float32: cross_entropy has the three at once.
    loss = 3 * _FLOAT * spots * shape.vocab
    working = tokens * (max(3 * shape.intermediate, 4 * shape.hidden) * of.element + 2 * shape.hidden * stream)
    return Kept(layer * tokens, stream * shape.hidden * tokens, _ends(of, spots), loss, working)


def _norm(of: Pass, hidden: int, casts: int, layer_norm: bool) -> int:
    """B per token of a norm and of its output, which `casts` products take.

    A LayerNorm keeps its input. An RMSNorm keeps it in float32, and what it multiplies by its weights. The output is kept
    by the products: once, or under autocast a cast copy for each.
    """
    if of.kind == "autocast":
        return _FLOAT * hidden * (1 if layer_norm else 2) + casts * of.element * hidden
    given = of.element if layer_norm else _FLOAT
    return given * hidden + of.element * hidden * (1 if layer_norm else 2)


def _attention(of: Pass, shape: ModelShape | EncoderShape) -> int:
    """B per token of fused attention: queries and output, keys and values, a logarithm of a sum; and the mask's row."""
    keys = (shape.kv_heads if isinstance(shape, ModelShape) else shape.heads) * shape.head_dim
    if of.masked:
        keys = shape.hidden  # with a mask, transformers repeats keys and values for all heads
    mask = of.length * of.element if of.masked else 0
    return of.element * 2 * (shape.hidden + keys) + _FLOAT * shape.heads + mask


def _llama_layer(of: Pass, shape: ModelShape) -> int:
    """RMSNorm to q, k, v; attention; RMSNorm to gate and up; gate, silu(gate), up, and their product: 6h + 2q + 2k + 4i."""
    norms = _norm(of, shape.hidden, 3, False) + _norm(of, shape.hidden, 2, False) + 2 * _FLOAT
    return norms + _attention(of, shape) + 4 * of.element * shape.intermediate


def _layer_norm_layer(of: Pass, shape: ModelShape | EncoderShape) -> int:
    """GPT and BERT. The norms' inputs and outputs, attention, GELU: 8h + 2i.

    GPT has one product for q, k and v, BERT three. Dropout keeps masks of hidden states, and none in fused attention.
    """
    encoder = isinstance(shape, EncoderShape)
    norms = _norm(of, shape.hidden, 3 if encoder else 1, True) + _norm(of, shape.hidden, 1, True) + 4 * _FLOAT
    dropped = 2 * shape.hidden if of.dropout else 0
    return norms + _attention(of, shape) + _GELU * of.element * shape.intermediate + dropped


def _adapted_layer(of: Pass, shape: ModelShape, adapters: Adapters) -> int:
    """LoRA: frozen products keep no input. Norms' inputs, attention, the feed-forward's products; then the adapters.

    An adapter keeps its input, after dropout a copy of its own with the mask, and what its first matrix gives.
    """
    gpt = shape.family == "gpt"
    norms = 2 * (_FLOAT if not gpt or of.kind == "autocast" else of.element) * shape.hidden + (4 if gpt else 2) * _FLOAT
    inner = (_GELU - 1 if gpt else 3) * of.element * shape.intermediate
    copied = adapters.dropout > 0 or of.kind == "autocast"
    taken = sum(adapters.inputs) if copied else max(adapters.inputs)
    masks = sum(adapters.inputs) if adapters.dropout else 0
    own = of.element * (taken + len(adapters.inputs) * adapters.rank) + masks
    return norms + _attention(of, shape) + inner + own


def _ends(of: Pass, spots: int) -> int:
    """B outside the layers: a decoder's last norm; a BERT's first norm, and what the head has of the last layer."""
    shape = of.shape
    stream = of.element if of.kind == "cast" else _FLOAT
    if isinstance(shape, ModelShape):
        gpt = shape.family == "gpt"
        # A frozen norm and a frozen head keep the norm's input only.
        norm = (stream if gpt else _FLOAT) * shape.hidden if of.adapters else _norm(of, shape.hidden, 1, gpt)
        return of.tokens * (norm + (2 if gpt else 1) * _FLOAT)
    # The pooler's view of the first token keeps all of the last layer's output; under autocast it takes a copy.
    inputs = 1 if of.kind == "autocast" else 2
    head = of.element * 2 * shape.hidden + _norm(of, shape.hidden, 1, True)
    return of.tokens * (inputs * stream * shape.hidden + (shape.hidden if of.dropout else 0)) + spots * head
