"""What pretraining's step loop costs: its throughput against the same training in a bare hand-written loop.

    python benchmarks/step_loop.py
    python benchmarks/step_loop.py --pairs 20 --steps 10

Two copies of one model, equal data and optimizer, in one process. A pair is `steps` steps of each; successive pairs
swap the order (ABBA), so that a drifting machine favours neither. Many short pairs beat few long ones on a machine
that others use too: what disturbs it hits both halves of a pair alike, or few pairs. It holds if the lower end of the
95 % interval of the median ratio ours/bare is at least 0.97.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from assay.clock import now
from assay.estimates import Estimate, compare_pairs
from assay.options import PretrainOptions
from assay.options.base import validate
from assay.presets import MODELS
from assay.ranks import Session, session
from assay.training.data import Data, open_data
from assay.training.engines import ENGINES
from assay.training.journal import Journal
from assay.training.loop import BETAS, Job, make_optimizer, train_step
from assay.training.model import DTYPES, build_model, materialise
from assay.training.weights import initialise

REQUIRED = 0.97
WARMUP_PAIRS = 2


def main() -> None:
    """Time the pairs and print the ratio with its interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=80, help="interleaved pairs [80]")
    parser.add_argument("--steps", type=int, default=3, help="steps of each loop per pair [3]")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        total = (WARMUP_PAIRS + given.pairs) * given.steps
        options = validate(PretrainOptions, {"steps": total, "warmup_steps": 0, "out": Path(folder)})
        with session(options, "benchmarks/step_loop") as here:
            data = open_data(options, MODELS[options.model].vocab, here.world)
            ours, bare = our_loop(options, here, data), bare_loop(options, here, data)
            rates = [
                time_pair(ours, bare, given.steps, swap=pair % 2 == 1) for pair in range(WARMUP_PAIRS + given.pairs)
            ]
    compared = compare_pairs([b for _, b in rates[WARMUP_PAIRS:]], [o for o, _ in rates[WARMUP_PAIRS:]])
    print(
        f"{options.model}, {given.pairs} pairs of {given.steps} steps, global batch {options.global_batch}, "
        f"{torch.get_num_threads()} threads\n{verdict(compared.ratio)}"
    )


def verdict(ratio: Estimate) -> str:
    """One line: the ratio, its interval, and whether the requirement holds."""
    if ratio.low is None or ratio.high is None:
        return f"ours/bare {ratio.value:.4f}: undecided, {ratio.method}"
    word = "holds" if ratio.low >= REQUIRED else "fails" if ratio.high < REQUIRED else "undecided"
    return f"ours/bare {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}], at least {REQUIRED} required: {word}"


def time_pair(ours: Callable[[int], None], bare: Callable[[int], None], steps: int, swap: bool) -> tuple[float, float]:
    """Steps per second of (ours, bare) over `steps` steps each."""
    seconds = {}
    for loop in (bare, ours) if swap else (ours, bare):
        start = now()
        loop(steps)
        seconds[loop] = now() - start
    return steps / seconds[ours], steps / seconds[bare]


def our_loop(options: PretrainOptions, here: Session, data: Data) -> Callable[[int], None]:
    """The loop of workloads/pretrain.py, records and progress lines included, resumable."""
    model = build_model(MODELS[options.model], options.seq_len, DTYPES[options.dtype])
    module = ENGINES["none"].spread(model, lambda made: initialise(made, options.seed), here.world, here.device)
    job = Job(options, module, ENGINES["none"], make_optimizer(module, options), data, here.world, here.device)
    journal = Journal(here, options, {"model": options.model})
    state = {"step": 0}

    def run(steps: int) -> None:
        last = now()
        for step in range(state["step"], state["step"] + steps):
            loss, norm = train_step(job, step)
            here.device.synchronize()
            end = now()
            journal.add(step, end - last, float(loss), float(norm))
            last = end
        state["step"] += steps

    return run


def bare_loop(options: PretrainOptions, here: Session, data: Data) -> Callable[[int], None]:
    """What a person would write with torch and nothing else: no records, no schedule, batches made beforehand."""
    device = here.device.torch_device
    model = build_model(MODELS[options.model], options.seq_len, DTYPES[options.dtype])
    materialise(model, here.device)
    initialise(model, options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=BETAS, weight_decay=options.weight_decay)
    micro, passes = options.micro_batch, options.accumulation(1)
    count = options.steps * options.global_batch
    rows = torch.stack([torch.from_numpy(data.train_row(position)) for position in range(count)]).to(device)
    state = {"row": 0}

    def run(steps: int) -> None:
        for _ in range(steps):
            for _ in range(passes):
                batch = rows[state["row"] : state["row"] + micro]
                state["row"] += micro
                logits = model(input_ids=batch[:, :-1], use_cache=False).logits
                loss = cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten()) / passes
                loss.backward()  # type: ignore[no-untyped-call] # torch leaves Tensor.backward untyped
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        here.device.synchronize()

    return run


if __name__ == "__main__":
    main()
