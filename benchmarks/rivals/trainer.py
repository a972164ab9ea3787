"""Hugging Face's Trainer, driven from its callbacks."""

import tempfile
from functools import partial
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from assay.training.optimizer import BETA1
from benchmarks.rivals.bout import Bout, Positions, open_task, usual_inputs, usual_model
from benchmarks.rivals.turns import Turns


class _Recorded(Trainer):  # type: ignore[misc] # transformers has no types
    """Keeps the losses of a step's passes; a sum, because the Trainer divides them."""

    losses: list[torch.Tensor]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        self.losses.append(loss)
        return loss


class _TakesTurns(TrainerCallback):  # type: ignore[misc] # transformers has no types
    def __init__(self, trainer: _Recorded, turns: Turns) -> None:
        self._trainer, self._turns = trainer, turns

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._turns.wait()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        loss = torch.stack(self._trainer.losses).sum()
        self._trainer.losses.clear()
        self._turns.end_of_step(loss)


def run(bout: Bout, compiled: bool) -> None:
    """Train until there is no turn any more."""
    options = bout.training_options()
    task = open_task(options)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=bout.total,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.accumulation(bout.world),
            learning_rate=options.lr,
            lr_scheduler_type="constant",
            adam_beta1=BETA1,
            adam_beta2=options.beta2,
            weight_decay=options.weight_decay,
            max_grad_norm=options.clip,
            # BERT's loss is a mean over its own batch, and this switch would multiply it by the number of ranks.
            average_tokens_across_devices=bout.workload != "bert",
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.accelerator.is_available(),
            torch_compile=compiled,
            ddp_find_unused_parameters=False,
        )
        trainer = _Recorded(
            model=usual_model(task),
            args=arguments,
            train_dataset=Positions(bout.total * options.global_batch),
            data_collator=partial(usual_inputs, task),
        )
        trainer.losses = []
        trainer.add_callback(_TakesTurns(trainer, Turns(bout.steps, arguments.process_index)))
        trainer.train()
