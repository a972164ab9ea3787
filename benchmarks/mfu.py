"""MFU of our step on a processor: its rate of model FLOPs against matrix products that are measured beside it.

    python benchmarks/mfu.py
    python benchmarks/mfu.py --compile
    python benchmarks/mfu.py --plain --steps 8                 without the faster layers of fast_ops.py
    python benchmarks/mfu.py --profile                         where the time goes, by kind of work

llama-100m in float32, one process, --threads threads: the loop of workloads/pretrain.py. Before every step the ceiling's
product (the shape that assay's own search finds fastest) is timed for a while, so that both see the same machine. MFU is
tokens/s × model FLOPs per token / FLOP/s of the product: of its best sample, and of its median beside each step. It
holds if the first is at least 0.70 and the lower end of the second's interval at least 0.80.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import torch

from assay.clock import now
from assay.device import HostDevice
from assay.estimates import compare_pairs
from assay.limits.products import KINDS, fastest, product, search, shapes_for
from assay.limits.timing import take_samples
from assay.options import PretrainOptions
from assay.options.base import validate
from assay.presets import MODELS
from assay.training.causal import CausalTask
from assay.training.data import open_data
from assay.training.engines import ENGINES, Setting
from assay.training.loop import Job, train_step
from assay.world import World

OF_BEST, OF_MEDIAN = 0.70, 0.80
SEARCH, BESIDE = 0.2, 0.4  # s for each shape that is tried, and of products before each step
WARMUP = 2
CPU = HostDevice()

# By the beginning of the operation's name; only attention multiplies in batches.
KINDS_OF_WORK = (
    ("products of the layers and the head", ("aten::mm", "aten::addmm", "aten::mv", "aten::linear")),
    ("attention", ("aten::_scaled_dot_product", "aten::bmm", "aten::baddbmm", "aten::_softmax", "_BlockedAttention")),
    ("optimizer, clipping included", ("aten::_fused_adam", "aten::linalg_vector_norm", "aten::_foreach", "Optimizer")),
    ("loss and embedding", ("aten::_log_softmax", "aten::nll_loss", "aten::embedding", "aten::index")),
    ("SwiGLU's gate", ("aten::silu",)),
    ("kernels that torch.compile made", ("graph_", "CompiledFunction", "Torch-Compiled")),
    ("zeros", ("aten::fill_", "aten::zero")),
    ("copies", ("aten::copy_", "aten::cat", "aten::clone")),
    ("sums and products, element by element", ("aten::mul", "aten::add", "aten::sub", "aten::neg", "aten::sum")),
)


def main() -> None:
    """Measure and say whether it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16, help="measured steps [16]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences of a step [4]")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--model", default="llama-100m")
    parser.add_argument("--compile", action="store_true", help="torch.compile of each layer")
    parser.add_argument("--plain", action="store_true", help="the model as transformers made it")
    parser.add_argument("--profile", action="store_true", help="profile one step and say what it is made of")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    job, work = make_job(given)
    run = stepper(job)
    for _ in range(WARMUP):
        run()
    if given.profile:
        print(profile(run))
        return

    shape, _ = fastest(search(CPU, KINDS["float32"], shapes_for(CPU), SEARCH))
    ceiling = product(CPU, KINDS["float32"], shape)
    best, beside, reached = 0.0, [], []
    for _ in range(given.steps):
        timings = take_samples(CPU, BESIDE, ceiling.call)
        best = max(best, ceiling.amount / timings.best_call)
        beside.append(ceiling.amount * timings.calls / median(timings.times))
        start = now()
        run()
        reached.append(work / (now() - start))
    of_median = compare_pairs(beside, reached).ratio
    of_best = median(reached) / best
    low, high = of_median.low, of_median.high
    interval = f"[{low:.3f}, {high:.3f}]" if low is not None and high is not None else "(too few steps)"
    kind = "compiled" if given.compile else "plain" if given.plain else "eager"
    print(
        f"{given.model} {kind}, {given.micro_batch} × {given.seq_len} tokens a step, {given.threads} threads, "
        f"{given.steps} steps: {median(reached) / 1e9:.1f} GFLOP/s, "
        f"{median(reached) / work * given.micro_batch * given.seq_len:.0f} tokens/s\n"
        f"product {shape}: best {best / 1e9:.1f}, median {median(beside) / 1e9:.1f} GFLOP/s\n"
        f"MFU of the best {of_best:.3f}, at least {OF_BEST} required: {'holds' if of_best >= OF_BEST else 'fails'}\n"
        f"MFU of the median {of_median.value:.3f} {interval}, at least {OF_MEDIAN} required: {word(low, high)}"
    )


def word(low: float | None, high: float | None) -> str:
    """What an interval says about the requirement."""
    if low is None or high is None:
        return "undecided"
    return "holds" if low >= OF_MEDIAN else "fails" if high < OF_MEDIAN else "undecided"


def make_job(given: argparse.Namespace) -> tuple[Job, float]:
    """What the pretraining script would make of these options, and the model FLOPs of its step."""
    options = validate(
        PretrainOptions,
        {
            "model": given.model, "data": "dummy", "seq_len": given.seq_len, "global_batch": given.micro_batch,
            "micro_batch": given.micro_batch, "compile": given.compile, "steps": given.steps,
        },
    )  # fmt: skip
    world = World(0, 1, 0, 1, "none", (os.uname().nodename,), True)
    task = CausalTask(options, open_data(options, MODELS[given.model].vocab, world))
    if given.plain:
        from assay.training import fast_ops

        fast_ops._applies = lambda hidden: False  # the same loop, every layer as transformers has it
    job = Job(options, ENGINES["none"](Setting(options, task, world, CPU)), task, world, CPU)
    return job, task.flops_per_token(job.engine.module) * given.micro_batch * given.seq_len


def stepper(job: Job) -> Callable[[], None]:
    """One more step with each call."""
    step = 0

    def run() -> None:
        nonlocal step
        float(train_step(job, step).loss)
        step += 1

    return run


def profile(run: Callable[[], None]) -> str:
    """One step by kind of work: its own time in each kind of operation, as a share of all."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        run()
    shares: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        shares[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(shares.values())
    lines = [f"{share / total:6.1%}  {kind}" for kind, share in sorted(shares.items(), key=lambda item: -item[1])]
    return f"one step, {total / 1e6:.2f} s, by the operations' own time:\n" + "\n".join(lines)


def kind_of(operation: str) -> str:
    """The kind of work of an operation that the profiler names."""
    return next((kind for kind, names in KINDS_OF_WORK if operation.startswith(names)), "all else")


if __name__ == "__main__":
    main()
