"""What every training script does before and after its steps: the set-up with its proof, and the end with its summary."""

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch

from assay.clock import now
from assay.errors import RunFailed
from assay.estimates import percentile
from assay.memory_estimate import out_of_memory_sentence
from assay.options import TrainingOptions
from assay.ranks import Session
from assay.training.adapters import count_adapted
from assay.training.agreement import same_everywhere
from assay.training.engines import ENGINES, Setting
from assay.training.journal import Journal
from assay.training.loop import Job, evaluate, prove_engine
from assay.training.phases import sample_phases
from assay.training.precision import set_matmul_precision
from assay.training.pretrained import weights_source
from assay.training.task import Task
from assay.units import format_si


def training_tags(options: TrainingOptions, **more: str) -> dict[str, str]:
    """The tags of every record of a training."""
    start = {"weights": "generated" if options.weights is None else "pretrained"}
    return {"engine": options.engine, "dtype": options.dtype, "precision": options.precision, **start, **more}


def set_up(options: TrainingOptions, here: Session, task: Task, tags: Mapping[str, str]) -> Job:
    """Model and optimizer on the engine, with the proof that it engaged. Records what they are. All ranks call it."""
    world, device, recorder = here.world, here.device, here.recorder
    set_matmul_precision(options, device)
    torch.manual_seed(options.seed + world.rank)  # dropout alone draws from it, on each rank for sequences of its own
    device.reset_peak_memory()
    world.barrier()  # all ranks begin the set-up together, whatever the first one had to do before
    source = weights_source(options.weights) if options.weights else {}
    same_everywhere(f"--weights {options.weights}", str(source.get("weights_digest")), world)
    begin = now()
    engine = ENGINES[options.engine](Setting(options, task, world, device))
    device.synchronize()
    recorder.block("setup_time", "s", [now() - begin], tags)

    job = Job(options, engine, task, world, device)
    proof = prove_engine(job)
    torch.manual_seed(options.seed + world.rank)  # as if there had been no proof
    if world.is_first:
        model = task.build()  # on meta: shapes only, whatever the engine made of them
        frozen, trained = count_adapted(model)
        parameters = frozen + trained
        recorder.block("parameters", "1", [parameters], tags)
        recorder.block("trained_parameters", "1", [trained], tags)
        recorder.block("flops_per_token", "FLOP", [task.flops_per_token(model)], tags)
        recorder.block("engine_engaged", "1", [1], {**tags, "proof": proof})
        if options.weights is not None:
            recorder.block("weights_loaded", "1", [1], {**tags, **source})
        print(f"{tags.get('model', 'model')}: {parameters:,} parameters, {proof}", flush=True)
    return job


def finish(job: Job, here: Session, journal: Journal, tags: Mapping[str, str]) -> None:
    """Evaluate, take some steps apart, record what is known only at the end, and print the summary."""
    peak = here.device.peak_memory()
    scores = evaluate(job)
    reason = f"{here.device.type} counts no peak" if peak is None else None
    here.recorder.block("peak_memory", "B", [peak], {**tags, "how": here.device.memory_method}, reason=reason)
    rate = journal.tgs()
    sample_phases(job, here, tags)
    _expect_numbers(scores)
    if not here.world.is_first:
        return
    if job.options.precision == "fp16":
        here.recorder.block("skipped_steps", "1", [journal.skipped], tags)
    for metric, value in scores.items():
        here.recorder.block(metric, "1", [value], tags)
    if not scores:
        why = (
            "no evaluation was asked for (--eval-batches 0)" if job.options.eval_batches == 0 else "nothing is held out"
        )
        here.recorder.block("eval_loss", "1", [None], tags, reason=why)
    print(
        f"final loss {journal.final_loss:.4f}, held-out {_told(scores)}\n"
        f"TGS {rate:,.1f} tokens/s per device over {len(journal.step_times)} steps, "
        f"step p50 of rank 0 {percentile(journal.step_times, 50) * 1e3:,.1f} ms, "
        f"peak memory {format_si(peak, 'B')} ({here.device.memory_method})"
        + (f"\n{journal.skipped} steps changed nothing: fp16 gradients overflowed" if journal.skipped else ""),
        flush=True,
    )


def _expect_numbers(scores: Mapping[str, float]) -> None:
    wrong = next((name for name, value in scores.items() if not math.isfinite(value)), None)
    if wrong is not None:
        raise RunFailed(f"{wrong} is {scores[wrong]} after the last step: training diverged in it; lower --lr")


def _told(scores: Mapping[str, float]) -> str:
    if "eval_loss" not in scores:
        return "PPL not evaluated"
    # exp overflows above 709 nats; such a model has learnt nothing anyway.
    ppl = f"PPL {math.exp(min(scores['eval_loss'], 700)):,.2f} (loss {scores['eval_loss']:.4f})"
    return ", ".join([ppl, *(f"{name} {value:.4f}" for name, value in scores.items() if name != "eval_loss")])


@contextlib.contextmanager
def memory_told(options: TrainingOptions, here: Session) -> Iterator[None]:
    """Turn "out of memory" into what to change. Raises RunFailed."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RunFailed(_lacking(options, here)) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU's allocator has no exception of its own
            raise
        raise RunFailed(_lacking(options, here)) from error


def _lacking(options: TrainingOptions, here: Session) -> str:
    return out_of_memory_sentence(options, here.world.size, here.device.memory().total)
