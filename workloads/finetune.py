"""Fine-tune a language model on instructions, by LoRA or as a whole, and record loss, step times and memory.

    python workloads/finetune.py --preset alpaca-lora-tiny
    torchrun --nproc-per-node 8 workloads/finetune.py --preset alpaca-lora --engine ddp --data alpaca.json --weights DIR
    torchrun --nproc-per-node 8 workloads/finetune.py --preset alpaca-full --engine fsdp --data alpaca.json --weights DIR

Records are {"instruction", "input", "output"}, as a JSON list or one a line. Weights, the split into trained and held-out
records and their order depend on --seed alone; with --lora-dropout 0 every engine and every number of ranks gives the
same losses, up to the rounding of sums.
"""

from assay.clock import now
from assay.options import FinetuneOptions, parse_command_line
from assay.ranks import session
from assay.training.course import finish, memory_told, set_up, training_tags
from assay.training.finetuning import FinetuneTask, open_instructions, record_base, record_records
from assay.training.journal import Journal
from assay.training.loop import train_step


def main() -> None:
    """Train as the command line says."""
    options = parse_command_line(FinetuneOptions, __doc__)
    kind = {"method": options.method, "int8": str(options.int8).lower()}
    tags = training_tags(options, model=options.model, data=options.data, **kind)
    with session(options, "workloads/finetune") as here, memory_told(options, here):
        data = open_instructions(options, here.world)
        options = options.with_steps(len(data.trained))
        record_records(data, here, tags)
        job = set_up(options, here, FinetuneTask(options, data), tags)
        record_base(job, here, tags)
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
