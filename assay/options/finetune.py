"""Options of workloads/finetune.py, and the public recipes that it knows by name."""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from assay.errors import BadInput
from assay.options.base import PathText, one_of, split_list, without_twins
from assay.options.training import TrainingOptions
from assay.presets import MODELS

# What the public recipes say, as options. They name batch, schedule and adapters; engine and int8 are the user's choice.
# alpaca-lora: the command for its official weights in the README of tloen/alpaca-lora, and what its finetune.py fixes:
# warm-up, fp16. Its rate then falls in a line, ours in a cosine, both to 0.
# alpaca-full: the command in the README of tatsu-lab/stanford_alpaca; train.py learns answers only. Its warm-up is 3 %
# of 3 epochs of 52,002 records: 37 steps.
_SHARED = {
    "global_batch": 128,
    "micro_batch": 4,
    "cutoff": 512,
    "min_lr_ratio": 0.0,
    "weight_decay": 0.0,
    "beta2": 0.999,
}
_ADAPTERS = {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_targets": ("q_proj", "v_proj")}
_LORA = {
    "method": "lora",
    "lr": 1e-4,
    "schedule": "linear",
    "group_by_length": True,
    "train_on_inputs": True,
    **_ADAPTERS,
}
_FULL = {"method": "full", "lr": 2e-5, "group_by_length": False, "train_on_inputs": False}
_BIG = {"model": "llama-7b", "epochs": 3.0, **_SHARED}
_TINY = {"model": "llama-tiny", "epochs": 1.0, **_SHARED, "global_batch": 16, "micro_batch": 4, "cutoff": 128}
PRESETS: dict[str, dict[str, object]] = {
    "alpaca-lora": {
        **_BIG, **_LORA, "precision": "fp16", "lr_warmup_steps": 100, "val_set_size": 2000, "eval_batches": 16
    },
    "alpaca-full": {**_BIG, **_FULL, "precision": "bf16", "lr_warmup_steps": 37, "val_set_size": 0, "eval_batches": 0},
    # Twins for machines without an accelerator: higher rates, because generated weights have everything to learn.
    "alpaca-lora-tiny": {**_TINY, **_LORA, "lr": 1e-2},
    "alpaca-full-tiny": {**_TINY, **_FULL, "lr": 1e-3},
}  # fmt: skip

# Linear layers of each family that can be adapted, by the names that transformers gives them.
_LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTABLE: dict[str, tuple[str, ...]] = {
    "llama": _LLAMA_LAYERS,
    "internlm": _LLAMA_LAYERS,
    "gpt": ("c_attn", "c_proj", "c_fc"),
}


class FinetuneOptions(TrainingOptions):
    """Which model learns which instructions, how much of it is trained, and how the records are cut and batched.

    A preset is shorthand: the options that it stands for are filled in, and `preset` itself is empty afterwards, so
    that what is kept and shown of a run says everything.
    """

    synopsis: ClassVar[str] = "fine-tuning on instructions, LoRA or full, int8 base weights: loss, TGS, step times"

    preset: Annotated[str | None, one_of("preset", PRESETS)] = Field(
        None, description=f"defaults of a recipe: {', '.join(PRESETS)}; options that are given win over it"
    )
    model: Annotated[str, one_of("model", MODELS)] = Field("llama-tiny", description=f"one of {', '.join(MODELS)}")
    data: str = Field(
        "own", description="own (small tasks that assay writes), or a .json/.jsonl file of instruction, input, output"
    )
    template: PathText | None = Field(
        None, description="YAML or JSON with the texts with_input and without_input around {instruction} and {input}"
    )
    cutoff: int = Field(512, ge=8, description="most tokens of a sequence; the rest is cut off")
    train_on_inputs: bool = Field(True, description="the loss counts the prompt's tokens too, not the answer's alone")
    group_by_length: bool = Field(True, description="sequences of like length into one batch: less padding")
    val_set_size: int = Field(64, ge=0, description="records that are held out for evaluation")
    epochs: float | None = Field(
        None, gt=0, description="passes over the records, steps before the measured ones included; overrides --steps"
    )
    method: Literal["lora", "full"] = Field("lora", description="train LoRA adapters (peft), or the whole model")
    int8: bool = Field(False, description="lora: keep the frozen matrices of the layers as int8, a scale per row")
    lora_rank: int = Field(8, ge=1, description="columns of an adapter's narrow matrix")
    lora_alpha: int = Field(16, ge=1, description="adapters' output is multiplied by alpha / rank")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="share of an adapter's input that is dropped in training")
    lora_targets: Annotated[tuple[str, ...], BeforeValidator(split_list)] = Field(
        ("q_proj", "v_proj"), min_length=1, description="layers that get an adapter"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        # An unknown one is left for the field's own check, which names it.
        if not isinstance(values, dict) or not isinstance(values.get("preset"), str) or values["preset"] not in PRESETS:
            return values
        given = {name: value for name, value in values.items() if name != "preset"}
        preset = dict(PRESETS[values["preset"]])
        if "steps" in given:
            del preset["epochs"]  # steps that someone asked for are not overridden by a recipe's default
        return {**preset, **given}

    @model_validator(mode="after")
    def _method_fits(self) -> "FinetuneOptions":
        if self.int8 and self.method == "full":
            raise ValueError("--int8 weights are frozen and cannot be trained; use --method lora, or leave --int8 out")
        shape = MODELS[self.model]
        family = shape.family
        if self.cutoff > shape.positions:
            raise ValueError(
                f"--cutoff {self.cutoff} is longer than the {shape.positions} positions of {self.model}; "
                f"use {shape.positions} or less"
            )
        if self.int8 and family == "gpt":
            raise ValueError(f"--int8 knows the layers of LLaMA and InternLM, not of {self.model}; leave --int8 out")
        without_twins(self.lora_targets)
        unknown = [target for target in self.lora_targets if target not in ADAPTABLE[family]]
        if unknown and self.method == "lora":
            raise ValueError(
                f"--lora-targets: {self.model} has no layer {unknown[0]!r}; choose from {', '.join(ADAPTABLE[family])}"
            )
        return self

    def with_steps(self, records: int) -> "FinetuneOptions":
        """These options with the steps that --epochs passes over `records` take; as they are without --epochs.

        ceil(epochs · records / global batch), whatever the world, less the steps before the measured ones. Raises
        BadInput if nothing is left to measure.
        """
        if self.epochs is None:
            return self
        total = math.ceil(self.epochs * records / self.global_batch)
        if total <= self.warmup_steps:
            raise BadInput(
                f"--epochs {self.epochs:g} of {records} records are {total} steps, of which --warmup-steps "
                f"{self.warmup_steps} are not measured; give more epochs or records, or fewer warm-up steps"
            )
        return self.model_copy(update={"steps": total - self.warmup_steps})
