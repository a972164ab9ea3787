"""What both sides of a comparison train: task, initial weights, batches in the form that transformers' models take, and steps."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from assay.device import HostDevice
from assay.options import PretrainOptions, TrainingOptions
from assay.options.base import validate
from assay.options.bert import BertOptions
from assay.options.finetune import FinetuneOptions
from assay.presets import MODELS
from assay.training.causal import CausalTask
from assay.training.data import open_data
from assay.training.encoder import BertTask
from assay.training.finetuning import FinetuneTask, open_instructions
from assay.training.model import materialise
from assay.training.sentence_pairs import IGNORED, open_pairs
from assay.training.task import Batch, Task
from assay.world import World

# Alike on both sides: a constant rate, and nothing that draws random numbers.
_SHARED = {"min_lr_ratio": 1.0, "lr_warmup_steps": 0, "warmup_steps": 0, "eval_batches": 0, "phase_steps": 0}
_DEFAULTS: dict[str, dict[str, object]] = {
    "pretrain": {"data": "dummy"},
    "bert": {"data": "dummy", "short_share": 0.0},
    "finetune": {"lora_dropout": 0.0, "cutoff": 128, "val_set_size": 0},
}
_ALONE = World(0, 1, 0, 1, "none", ("here",), True)


@dataclass(frozen=True)
class Bout:
    """workload: pretrain, bert or finetune. steps: of a turn. turns: of each side. options: of the workload's script."""

    workload: str
    world: int
    steps: int
    turns: int
    options: dict[str, object] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Steps of each side."""
        return self.steps * self.turns

    def as_text(self) -> str:
        """For the command line of a side."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> "Bout":
        """The other way."""
        return Bout(**json.loads(text))

    def training_options(self, engine: str = "none") -> Any:
        """What the workload's script would be told. Raises BadInput for options that it does not know."""
        kinds: dict[str, type[TrainingOptions]] = {
            "pretrain": PretrainOptions, "bert": BertOptions, "finetune": FinetuneOptions
        }  # fmt: skip
        batch = {"micro_batch": 4, "global_batch": 4 * self.world}
        values = {**_SHARED, **batch, **_DEFAULTS[self.workload], **self.options}
        return validate(kinds[self.workload], {**values, "steps": self.total, "engine": engine})


def open_task(options: Any, world: World = _ALONE) -> Task:
    """The workload with its data. world: of ranks that can talk; without it this process reads for itself."""
    if isinstance(options, BertOptions):
        return BertTask(options, open_pairs(options, world))
    if isinstance(options, FinetuneOptions):
        return FinetuneTask(options, open_instructions(options, world))
    return CausalTask(options, open_data(options, MODELS[options.model].vocab, world))


def usual_model(task: Task) -> nn.Module:
    """The same weights in the class that a user of transformers would take, on the host."""
    model = task.build()
    materialise(model, HostDevice())
    task.initialise(model)
    if not isinstance(task, BertTask):
        return model
    from transformers import BertForPreTraining

    usual: nn.Module = BertForPreTraining(model.config)
    usual.load_state_dict(model.state_dict())
    return usual


class Positions(Dataset[int]):
    """The order of training, as a data set: item p is position p, and `usual_inputs` makes the sequences."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        """Sequences of the whole training."""
        return self._count

    def __getitem__(self, position: int) -> int:
        """The position itself."""
        return position


def usual_inputs(task: Task, positions: Sequence[int]) -> dict[str, torch.Tensor]:
    """The sequences at these positions, as keyword arguments of `usual_model`'s forward, labels included."""
    batch = task.batch(positions)
    if isinstance(task, BertTask):
        return _masked_tokens(batch)
    if "rows" in batch:
        inputs, targets = batch["rows"][:, :-1], batch["rows"][:, 1:].contiguous()
    else:
        inputs, targets = batch["inputs"], batch["targets"]
    return {"input_ids": inputs, "labels": targets, "shift_labels": targets}


def _masked_tokens(batch: Batch) -> dict[str, torch.Tensor]:
    inputs = dict(batch)
    places, tokens = inputs.pop("places"), inputs.pop("labels")
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    row, column = (tokens != IGNORED).nonzero(as_tuple=True)
    labels[row, places[row, column]] = tokens[row, column]
    return {**inputs, "labels": labels}
