"""Pretrain a causal language model and record loss, step times and memory.

    python workloads/pretrain.py --steps 20
    torchrun --nproc-per-node 2 workloads/pretrain.py --engine ddp
    torchrun --nproc-per-node 2 workloads/pretrain.py --engine fsdp --data FOLDER --out records

Weights and the order of data depend on --seed alone: at one --global-batch every engine and every number of ranks
gives the same losses, up to the rounding of sums.
"""

from assay.clock import now
from assay.options import PretrainOptions, parse_command_line
from assay.presets import MODELS
from assay.ranks import session
from assay.training.causal import CausalTask
from assay.training.counting import record_work
from assay.training.course import finish, memory_told, set_up, training_tags
from assay.training.data import TextData, open_data
from assay.training.journal import Journal
from assay.training.loop import train_step


def main() -> None:
    """Train as the command line says."""
    options = parse_command_line(PretrainOptions, __doc__)
    tags = training_tags(options, model=options.model, data=options.data)
    with session(options, "workloads/pretrain") as here, memory_told(options, here):
        data = open_data(options, MODELS[options.model].vocab, here.world)
        if here.world.is_first:
            record_work(options, here.world, here.recorder, tags)
            if isinstance(data, TextData):
                here.recorder.block("text_tokens", "tokens", [len(data.tokens)], {**tags, "text": data.digest})
        job = set_up(options, here, CausalTask(options, data), tags)
        journal = Journal(here, options, tags)

        # ---- timed: a step lasts from the end of the one before to its own end, data and records included ----
        last = now()
        for step in range(options.warmup_steps + options.steps):
            taken = train_step(job, step)  # data, forward, backward, clip, AdamW, mean loss over ranks
            here.device.synchronize()
            end = now()
            journal.add(step, end - last, taken)
            last = end
        # ------------------------------------------------------------------------------------------------------

        finish(job, here, journal, tags)


if __name__ == "__main__":
    main()
