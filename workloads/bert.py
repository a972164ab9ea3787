"""Pretrain BERT on masked tokens and next sentences, and record loss, next-sentence accuracy, step times and memory.

    python workloads/bert.py --steps 20
    torchrun --nproc-per-node 2 workloads/bert.py --engine ddp --model bert-base --global-batch 256 --micro-batch 128
    torchrun --nproc-per-node 2 workloads/bert.py --engine fsdp --data FOLDER --out records

Weights, pairs and masks depend on --seed alone: at one --global-batch every engine and every number of ranks gives the
same losses, up to the rounding of sums. Tokens that are padding do not count in TGS.
"""

from assay.clock import now
from assay.options import BertOptions, parse_command_line
from assay.ranks import session
from assay.training.course import finish, memory_told, set_up, training_tags
from assay.training.encoder import BertTask
from assay.training.journal import Journal
from assay.training.loop import train_step
from assay.training.sentence_pairs import open_pairs


def main() -> None:
    """Train as the command line says."""
    options = parse_command_line(BertOptions, __doc__)
    tags = training_tags(options, model=options.model, data=options.data)
    with session(options, "workloads/bert") as here, memory_told(options, here):
        pairs = open_pairs(options, here.world)
        if here.world.is_first:
            text = {"text": pairs.corpus.digest} if pairs.corpus.digest else {}
            here.recorder.block("text_tokens", "tokens", [len(pairs.corpus.tokens)], {**tags, **text})
        job = set_up(options, here, BertTask(options, pairs), tags)
        journal = Journal(here, options, tags)

        # ---- timed: a step lasts from the end of the one before to its own end, data and records included ----
        last = now()
        for step in range(options.warmup_steps + options.steps):
            taken = train_step(job, step)  # pairs, forward, backward, clip, AdamW, mean loss over ranks
            here.device.synchronize()
            end = now()
            journal.add(step, end - last, taken)
            last = end
        # ------------------------------------------------------------------------------------------------------

        finish(job, here, journal, tags)


if __name__ == "__main__":
    main()
