"""DeepSpeed's own loop with ZeRO 1, as its documentation teaches it: backward and step of its engine."""

import torch

from assay.ranks import session
from assay.training.engines.deepspeed_ops import open_deepspeed
from assay.training.optimizer import BETA1, parameter_groups
from benchmarks.rivals.bout import Bout, open_task, usual_inputs, usual_model
from benchmarks.rivals.turns import Turns


def run(bout: Bout, compiled: bool) -> None:
    """Train until there is no turn any more."""
    options = bout.training_options("zero1")
    # The process group is ours: DeepSpeed's own way would compile an operation that training never calls.
    with session(options, "benchmarks/rivals") as here:
        deepspeed = open_deepspeed("zero1", here.world, here.device)
        task = open_task(options, here.world)
        model = usual_model(task)
        optimizer = torch.optim.AdamW(
            parameter_groups(model, options.weight_decay), lr=options.lr, betas=(BETA1, options.beta2)
        )
        config = {
            "train_micro_batch_size_per_gpu": options.micro_batch,
            "gradient_accumulation_steps": options.accumulation(here.world.size),
            "gradient_clipping": options.clip,
            "zero_optimization": {"stage": 1},
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**62,
        }
        engine = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
        if compiled:
            engine.compile()
        turns = Turns(bout.steps, here.world.rank)
        turns.wait()
        losses: list[torch.Tensor] = []
        passes = options.accumulation(here.world.size)
        for number in range(bout.total * passes):
            first = (number * here.world.size + here.world.rank) * options.micro_batch
            inputs = usual_inputs(task, range(first, first + options.micro_batch))
            inputs = {name: tensor.to(engine.device) for name, tensor in inputs.items()}
            loss = engine(**inputs).loss
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
            if len(losses) == passes:
                turns.end_of_step(torch.stack(losses).mean())
                losses.clear()
