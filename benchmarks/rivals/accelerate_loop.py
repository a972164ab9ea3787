"""A bare loop with Hugging Face's accelerate, as its documentation teaches it."""

from functools import partial

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from assay.training.optimizer import BETA1, parameter_groups
from benchmarks.rivals.bout import Bout, Positions, open_task, usual_inputs, usual_model
from benchmarks.rivals.turns import Turns


def run(bout: Bout, compiled: bool) -> None:
    """Train until there is no turn any more."""
    options = bout.training_options()
    task = open_task(options)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), gradient_accumulation_steps=options.accumulation(bout.world)
    )
    model = usual_model(task)
    if compiled:
        model = torch.compile(model)  # type: ignore[assignment] # a module too
    groups = parameter_groups(model, options.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(BETA1, options.beta2))
    loader = DataLoader(
        Positions(bout.total * options.global_batch),
        batch_size=options.micro_batch,
        collate_fn=partial(usual_inputs, task),
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    turns = Turns(bout.steps, accelerator.process_index)
    turns.wait()
    model.train()
    losses: list[torch.Tensor] = []
    for inputs in loader:
        with accelerator.accumulate(model):
            loss = model(**inputs).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        if accelerator.sync_gradients:
            turns.end_of_step(torch.stack(losses).mean())
            losses.clear()
