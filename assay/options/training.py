"""Options that all training scripts share: engine, precision, batch, schedule."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from assay.options.base import PathText, ScriptOptions

Engine = Literal["none", "ddp", "fsdp", "zero1", "zero2", "zero3", "accelerate"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]

# The element type in which a precision multiplies: the name of the ceiling that bounds it.
DTYPES: dict[Precision, str] = {"fp32": "float32", "tf32": "tf32", "bf16": "bfloat16", "fp16": "float16"}


class TrainingOptions(ScriptOptions):
    """How a model is spread over the ranks, in which precision, and for how long it is trained."""

    smallest_world: ClassVar[dict[str, int]] = {"ddp": 2, "fsdp": 2}

    engine: Engine = Field(
        "none",
        description="none (1 rank), ddp, fsdp (FSDP2 fully_shard), zero1/zero2/zero3 (DeepSpeed), accelerate",
    )
    shard_ranks: int = Field(
        0, ge=0, description="fsdp: ranks that share one copy of the model, copies are averaged (HSDP); 0: all ranks"
    )
    offload: bool = Field(False, description="zero1, zero2, zero3: optimizer states and update on the host")
    precision: Precision = Field(
        "fp32", description="fp32, tf32, bf16 or fp16 (loss scaling); the weights that are updated stay float32"
    )
    checkpointing: bool = Field(
        False, description="keep each layer's input only, and compute the rest again in backward"
    )
    compile: bool = Field(False, description="torch.compile of each layer")
    weights: PathText | None = Field(
        None,
        description="folder of a Hugging Face model (config.json, *.safetensors) to start from [generated weights]",
    )
    steps: int = Field(100, ge=1, description="measured steps")
    warmup_steps: int = Field(
        5, ge=0, lt=50, description="steps before the measured ones; recorded, not counted in TGS"
    )
    phase_steps: int = Field(
        3,
        ge=0,
        description="further steps, not measured, that are taken apart: data, forward, backward, optimizer; 0: none",
    )
    global_batch: int = Field(8, ge=1, description="sequences per step over all ranks")
    micro_batch: int = Field(4, ge=1, description="sequences per forward pass of one rank")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="final learning rate as a share of the peak")
    lr_warmup_steps: int = Field(10, ge=0, description="steps of linear learning-rate warm-up")
    schedule: Literal["cosine", "linear"] = Field("cosine", description="how the rate falls after its warm-up")
    beta2: float = Field(0.95, gt=0, lt=1, description="AdamW: decay of the mean of squared gradients")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    eval_batches: int = Field(4, ge=0, description="held-out batches after training, for PPL; 0 leaves PPL unknown")
    tokenizer_cache: PathText | None = Field(None, description="where trained tokenizers are kept [~/.cache/assay]")
    seed: int = Field(1, ge=0, lt=2**63, description="seed of weights and data")

    @property
    def dtype(self) -> str:
        """The element type of the matrix products, as ceilings name it."""
        return DTYPES[self.precision]

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainingOptions":
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"--global-batch {self.global_batch} is no multiple of --micro-batch {self.micro_batch}; "
                "change either, so that every step is a whole number of forward passes"
            )
        if self.shard_ranks and self.engine != "fsdp":
            raise ValueError(f"--shard-ranks is for --engine fsdp, not {self.engine}; leave it out")
        if self.offload and not self.engine.startswith("zero"):
            raise ValueError(f"--offload is for --engine zero1, zero2 or zero3, not {self.engine}; leave it out")
        return self

    def check_world(self, world: int) -> None:
        """Raise ValueError unless the engine spreads over `world` ranks and the batch divides by them."""
        if self.engine == "none" and world != 1:
            raise ValueError(f"engine none trains on 1 rank, got {world}; use --engine ddp or fsdp")
        if world < self.smallest_world.get(self.engine, 1):
            raise ValueError(
                f"engine {self.engine} spreads over ranks and got only {world}; use 2 ranks or more, or none"
            )
        if self.shard_ranks and (world % self.shard_ranks or not 1 < self.shard_ranks <= world):
            raise ValueError(
                f"--shard-ranks {self.shard_ranks} does not divide {world} ranks into equal groups of 2 or more"
            )
        if self.global_batch % (self.micro_batch * world):
            raise ValueError(
                f"--global-batch {self.global_batch} does not divide by {world} ranks × --micro-batch {self.micro_batch}; "
                f"use a multiple of {self.micro_batch * world}"
            )

    def accumulation(self, world: int) -> int:
        """Forward passes per rank and step: global batch / (micro batch × ranks)."""
        return self.global_batch // (self.micro_batch * world)
