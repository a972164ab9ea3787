"""Pretrain a causal language model and record loss, step times and memory.

    python workloads/pretrain.py --steps 20
    torchrun --nproc-per-node 2 workloads/pretrain.py --engine ddp
    torchrun --nproc-per-node 2 workloads/pretrain.py --engine fsdp --data FOLDER --out records

Weights and the order of data depend on --seed alone: at one --global-batch every engine and every number of ranks
gives the same losses, up to the rounding of sums.
"""

import math

from assay.clock import now
from assay.estimates import percentile
from assay.options import PretrainOptions, parse_command_line
from assay.presets import MODELS
from assay.ranks import Session, session
from assay.training.counting import record_work
from assay.training.data import TextData, open_data
from assay.training.engines import ENGINES
from assay.training.flops import flops_per_token
from assay.training.journal import Journal
from assay.training.loop import Job, evaluate, make_optimizer, prove_engine, train_step
from assay.training.model import DTYPES, build_model, count_parameters
from assay.training.weights import initialise
from assay.units import format_si


def main() -> None:
    """Train as the command line says."""
    options = parse_command_line(PretrainOptions, __doc__)
    tags = {"model": options.model, "engine": options.engine, "data": options.data, "dtype": options.dtype}
    with session(options, "workloads/pretrain") as here:
        here.device.reset_peak_memory()
        job = set_up(options, here, tags)
        journal = Journal(here, options, tags)

        # ---- timed: a step lasts from the end of the one before to its own end, data and records included ----
        last = now()
        for step in range(options.warmup_steps + options.steps):
            loss, norm = train_step(job, step)  # data, forward, backward, clip, AdamW, mean loss over ranks
            here.device.synchronize()
            end = now()
            journal.add(step, end - last, float(loss), float(norm))
            last = end
        # ------------------------------------------------------------------------------------------------------

        finish(job, here, journal, tags)


def set_up(options: PretrainOptions, here: Session, tags: dict[str, str]) -> Job:
    """Data, model and optimizer, with the proof that the engine engaged. Records what they are."""
    world, device, recorder = here.world, here.device, here.recorder
    shape = MODELS[options.model]
    data = open_data(options, shape.vocab, world)
    if world.is_first:
        record_work(options, world, recorder, tags)

    world.barrier()  # all ranks begin the set-up together, whatever the first one had to count
    begin = now()
    engine = ENGINES[options.engine]
    model = build_model(shape, options.seq_len, DTYPES[options.dtype])
    parameters = count_parameters(model)
    module = engine.spread(model, lambda made: initialise(made, options.seed), world, device)
    device.synchronize()
    recorder.block("setup_time", "s", [now() - begin], tags)

    job = Job(options, module, engine, make_optimizer(module, options), data, world, device)
    proof = prove_engine(job)
    if world.is_first:
        recorder.block("parameters", "1", [parameters], tags)
        recorder.block("flops_per_token", "FLOP", [flops_per_token(shape, parameters, options.seq_len)], tags)
        recorder.block("engine_engaged", "1", [1], {**tags, "proof": proof})
        if isinstance(data, TextData):
            recorder.block("text_tokens", "tokens", [len(data.tokens)], {**tags, "text": data.digest})
        print(f"{options.model}: {parameters:,} parameters, {proof}", flush=True)
    return job


def finish(job: Job, here: Session, journal: Journal, tags: dict[str, str]) -> None:
    """Evaluate, record what is known only at the end, and print the summary."""
    held_out = evaluate(job)
    peak = here.device.peak_memory()
    reason = f"{here.device.type} counts no peak" if peak is None else None
    rate = journal.tgs()
    here.recorder.block("peak_memory", "B", [peak], {**tags, "method": here.device.memory_method}, reason=reason)
    if not here.world.is_first:
        return
    reason = "no evaluation was asked for (--eval-batches 0)" if held_out is None else None
    here.recorder.block("eval_loss", "1", [held_out], tags, reason=reason)
    # exp overflows above 709 nats; such a model has learnt nothing anyway.
    ppl = "not evaluated" if held_out is None else f"{math.exp(min(held_out, 700)):,.2f} (loss {held_out:.4f})"
    print(
        f"final loss {journal.final_loss:.4f}, held-out PPL {ppl}\n"
        f"TGS {rate:,.1f} tokens/s per device over {len(journal.step_times)} steps, "
        f"step p50 of rank 0 {percentile(journal.step_times, 50) * 1e3:,.1f} ms, "
        f"peak memory {format_si(peak, 'B')} ({here.device.memory_method})",
        flush=True,
    )


if __name__ == "__main__":
    main()
