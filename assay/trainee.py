"""What a training's options train: every tensor of the model, which of them learn, and the shape of one forward pass.

No torch: suites are planned with it. Its counts are those of the built models, tensor by tensor (tests hold them against
each other).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from assay.activations import Adapters, Kind, Pass
from assay.options.training import TrainingOptions
from assay.presets import ENCODERS, MODELS, EncoderShape, ModelShape

FLOAT = 4  # B of weights, gradients and optimizer states that are float32
ELEMENT = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}  # B of a product's operands
Tensor = tuple[int, int]
"""Rows of a parameter, by which FSDP shards it, and elements of a row; of a vector, 1."""


def elements(tensors: tuple[Tensor, ...], shards: int = 1) -> int:
    """Elements that the first of `shards` ranks holds of these tensors: of each its rows, rounded up."""
    return sum(-(-rows // shards) * width for rows, width in tensors)


@dataclass(frozen=True)
class Tensors:
    """Parameters of a model. layer: of each of `layers` layers; ends: outside of them, a shared matrix once.

    looked_up: those of `ends` that no product takes.
    """

    layers: int
    layer: tuple[Tensor, ...]
    ends: tuple[Tensor, ...] = ()
    looked_up: tuple[Tensor, ...] = ()

    def elements(self, shards: int = 1) -> int:
        """Of all of them, on the first of `shards` ranks."""
        return self.layers * elements(self.layer, shards) + elements(self.ends, shards)


def tensors_of(shape: ModelShape | EncoderShape, seq_len: int) -> Tensors:
    """Every parameter of the built model. seq_len: a GPT's table of positions is at least so long."""
    h, i = shape.hidden, shape.intermediate
    table, norm = (shape.vocab, h), ((h, 1), (h, 1))
    layer: tuple[Tensor, ...]
    if isinstance(shape, EncoderShape):
        dense = ((h, h), (h, 1))
        layer = (*dense * 4, *norm, (i, h), (i, 1), (h, i), (h, 1), *norm)
        tables = ((shape.positions, h), (shape.types, h))
        heads = (*dense, *dense, *norm, (shape.vocab, 1), (2, h), (2, 1))
        return Tensors(shape.layers, layer, (table, *tables, *norm, *heads), tables)
    head = () if shape.tied else (table,)
    if shape.family == "gpt":
        # transformers writes GPT-2's matrices the other way round: a row for each input.
        layer = (*norm, (h, 3 * h), (3 * h, 1), (h, h), (h, 1), *norm, (h, i), (i, 1), (i, h), (h, 1))
        positions = (max(shape.positions, seq_len), h)
        return Tensors(shape.layers, layer, (table, positions, *norm, *head), (positions, *head))
    products = products_of(shape)
    biases = [(products[name][0][0], 1) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    layer = (*(tensor for found in products.values() for tensor in found), *norm)
    return Tensors(
        shape.layers, (*layer, *biases) if shape.family == "internlm" else layer, (table, *head, (h, 1)), head
    )


def products_of(shape: ModelShape) -> dict[str, tuple[Tensor, ...]]:
    """Outputs and inputs of a layer's products, by the names that LoRA's targets have. GPT-2 calls two of them c_proj."""
    h, i, keys = shape.hidden, shape.intermediate, shape.kv_heads * shape.head_dim
    if shape.family == "gpt":
        return {"c_attn": ((3 * h, h),), "c_proj": ((h, h), (h, i)), "c_fc": ((i, h),)}
    attention = {"q_proj": ((h, h),), "k_proj": ((keys, h),), "v_proj": ((keys, h),), "o_proj": ((h, h),)}
    return {**attention, "gate_proj": ((i, h),), "up_proj": ((i, h),), "down_proj": ((h, i),)}


@dataclass(frozen=True)
class Trainee:
    """The model of the options, and how it is trained. The training scripts have their own names for some options.

    Raises KeyError, when asked, for a model that is not among the presets.
    """

    options: TrainingOptions

    @cached_property
    def shape(self) -> ModelShape | EncoderShape:
        """Of the preset."""
        name = str(self._own("model"))
        return ENCODERS[name] if name in ENCODERS else MODELS[name]

    @property
    def length(self) -> int:
        """Tokens of a sequence, at most."""
        return int(self._own("seq_len") or self._own("cutoff"))

    @property
    def predicted(self) -> int:
        """Positions of a sequence that go through the head."""
        return int(self._own("predictions", self.length))

    @property
    def adapted(self) -> bool:
        """Whether LoRA's adapters learn, and nothing else."""
        return bool(self._own("method", "full") == "lora")

    @property
    def element(self) -> int:
        """B of a product's operands."""
        return ELEMENT[self.options.precision]

    @property
    def kind(self) -> Kind:
        """How products come to their element type."""
        if self.element == FLOAT:
            return "plain"
        return "cast" if self.options.engine == "fsdp" or self.options.engine.startswith("zero") else "autocast"

    @cached_property
    def model(self) -> Tensors:
        """The model without adapters."""
        return tensors_of(self.shape, self.length)

    @cached_property
    def learning(self) -> Tensors:
        """What is trained: the model, or the two narrow matrices that LoRA adds to each target."""
        if not self.adapted:
            return self.model
        rank = int(self._own("lora_rank"))
        pairs = (((rank, inputs), (outputs, rank)) for outputs, inputs in self._targets())
        return Tensors(self.model.layers, tuple(tensor for pair in pairs for tensor in pair))

    @property
    def parameters(self) -> int:
        """Elements of the model, adapters included."""
        return self.model.elements() + (self.learning.elements() if self.adapted else 0)

    def frozen_bytes(self, shards: int = 1) -> int:
        """B of what is not trained: float32, or int8 with a float32 scale for each row of a layer's matrices."""
        if not self.adapted:
            return 0
        whole = FLOAT * self.model.elements(shards)
        if not self.int8:
            return whole
        products = [tensor for found in products_of(self._decoder).values() for tensor in found]
        saved = sum(rows * width * (FLOAT - 1) - rows * FLOAT for rows, width in products)
        return whole - self.model.layers * saved // shards

    def cast_weights(self, layers: int) -> int:
        """B of the copies that products under autocast make of the matrices of so many layers and of the ends."""
        if self.kind != "autocast":
            return 0
        ends = _matrices(self.model.ends) - _matrices(self.model.looked_up)
        return self.element * (ends + (0 if self.int8 else layers * _matrices(self.model.layer)))

    @property
    def dequantised(self) -> int:
        """B of the largest int8 matrix in the type of the products: made for each product, and dropped at once."""
        products = [tensor for found in products_of(self._decoder).values() for tensor in found] if self.int8 else []
        return self.element * max((rows * width for rows, width in products), default=0)

    @property
    def int8(self) -> bool:
        """Whether the frozen matrices of the layers are int8."""
        return bool(self._own("int8", False))

    def forward(self) -> Pass:
        """One forward pass of a rank, its sequences as long as they may be."""
        inputs = tuple(inputs for _, inputs in self._targets()) if self.adapted else ()
        adapters = Adapters(int(self._own("lora_rank")), inputs, float(self._own("lora_dropout"))) if inputs else None
        padded = isinstance(self.shape, EncoderShape)  # what decoders are given behind their sequences needs no mask
        batch, dropout = self.options.micro_batch, float(self._own("dropout", 0.0))
        return Pass(self.shape, batch, self.length, self.predicted, self.kind, self.element, padded, dropout, adapters)

    @property
    def _decoder(self) -> ModelShape:
        assert isinstance(self.shape, ModelShape)  # FinetuneOptions knows no others
        return self.shape

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the products that LoRA adapts."""
        return tuple(self._own("lora_targets", ())) if self.adapted else ()

    def _targets(self) -> Iterator[Tensor]:
        products = products_of(self._decoder)
        for name in self.targets:
            yield from products[name]

    def _own(self, name: str, otherwise: Any = None) -> Any:
        return getattr(self.options, name, otherwise)


def _matrices(tensors: tuple[Tensor, ...]) -> int:
    return elements(tuple(tensor for tensor in tensors if tensor[1] > 1))
