"""Options of workloads/pretrain.py."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from assay.options.base import PathText, ScriptOptions, nearest
from assay.presets import MODELS


def _known_model(value: object) -> object:
    if not isinstance(value, str) or value not in MODELS:
        raise ValueError(f"unknown model {value!r}{nearest(str(value), list(MODELS))}")
    return value


class PretrainOptions(ScriptOptions):
    """Which model is trained, on what, how it is spread over the ranks, and for how long."""

    synopsis: ClassVar[str] = "pretraining of a causal language model: loss, TGS, MFU, step times"

    model: Annotated[str, BeforeValidator(_known_model)] = Field(
        "llama-tiny", description=f"one of {', '.join(MODELS)}"
    )
    engine: Literal["none", "ddp", "fsdp"] = Field(
        "none", description="none (1 rank), ddp, or fsdp (FSDP2 fully_shard)"
    )
    data: str = Field("text", description="dummy, text (the standard library's own prose), or a folder of .txt/.jsonl")
    steps: int = Field(100, ge=1, description="measured steps")
    warmup_steps: int = Field(
        5, ge=0, lt=50, description="steps before the measured ones; recorded, not counted in TGS"
    )
    seq_len: int = Field(128, ge=2, description="tokens per sequence")
    global_batch: int = Field(8, ge=1, description="sequences per step over all ranks")
    micro_batch: int = Field(4, ge=1, description="sequences per forward pass of one rank")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="final learning rate as a share of the peak")
    lr_warmup_steps: int = Field(10, ge=0, description="steps of linear learning-rate warm-up before the cosine")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    eval_batches: int = Field(4, ge=0, description="held-out batches after training, for PPL; 0 leaves PPL unknown")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="element type of weights and activations")
    tokenizer_cache: PathText | None = Field(None, description="where trained tokenizers are kept [~/.cache/assay]")
    seed: int = Field(1, ge=0, lt=2**63, description="seed of weights and data")

    @model_validator(mode="after")
    def _batch_divides(self) -> "PretrainOptions":
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"--global-batch {self.global_batch} is no multiple of --micro-batch {self.micro_batch}; "
                "change either, so that every step is a whole number of forward passes"
            )
        return self

    def check_world(self, world: int) -> None:
        """Raise ValueError unless the engine spreads over `world` ranks and the batch divides by them."""
        if self.engine == "none" and world != 1:
            raise ValueError(f"engine none trains on 1 rank, got {world}; use --engine ddp or fsdp")
        if self.engine != "none" and world < 2:
            raise ValueError(
                f"engine {self.engine} spreads over ranks and got only {world}; use 2 ranks or more, or none"
            )
        if self.global_batch % (self.micro_batch * world):
            raise ValueError(
                f"--global-batch {self.global_batch} does not divide by {world} ranks × --micro-batch {self.micro_batch}; "
                f"use a multiple of {self.micro_batch * world}"
            )

    def accumulation(self, world: int) -> int:
        """Forward passes per rank and step: global batch / (micro batch × ranks)."""
        return self.global_batch // (self.micro_batch * world)
