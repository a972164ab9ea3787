"""Run by torchrun from test_training_equality.py: what each engine makes of the same models, as hashes of whole weights.

python -m torch.distributed.run --nproc-per-node 2 tests/ranks_weights.py RESULT.json
"""

import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from assay.errors import AssayError, RunFailed
from assay.options import PretrainOptions
from assay.options.base import validate
from assay.presets import MODELS, ModelShape
from assay.ranks import Session, session
from assay.training.agreement import same_everywhere
from assay.training.causal import CausalTask
from assay.training.data import DummyData
from assay.training.engines import ENGINES, Engine, Setting
from assay.training.engines.native import Plain
from assay.training.journal import Journal
from assay.training.loop import Job, Step, accumulate_gradients, prove_engine
from assay.training.task import Task
from assay.training.weights import canonical_name

# Odd sizes, so that ranks get unequal shards; a tied matrix, grouped heads, biases.
SHAPES = (
    ModelShape("odd", "llama", 301, 48, 2, 6, 2, 127),
    ModelShape("tied", "llama", 301, 48, 2, 6, 6, 128, tied=True),
    ModelShape("biased", "internlm", 256, 48, 2, 6, 6, 128),
)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def job_of(engine: str, shape: ModelShape, here: Session, **more: object) -> Job:
    MODELS[shape.name] = shape
    given = {"model": shape.name, "engine": engine, "seq_len": 16, "micro_batch": 1, "global_batch": 4, "seed": 7}
    options = validate(PretrainOptions, {**given, "data": "dummy", "device": "cpu", **more})
    task = CausalTask(options, DummyData(7, 256, options.seq_len))
    made = ENGINES[engine](Setting(options, task, here.world, here.device))
    return Job(options, made, task, here.world, here.device)


def describe(module: nn.Module, task: Task) -> dict[str, object]:
    """Hash of each whole parameter under its canonical name, and the loss on fixed tokens."""
    hashes = {
        canonical_name(name): hashlib.sha256(whole(parameter.detach()).contiguous().numpy().tobytes()).hexdigest()
        for name, parameter in module.named_parameters()
    }
    with torch.no_grad():
        loss = task.loss_sums(module, {"rows": torch.arange(2 * 17).view(2, 17) % 256})["loss"] / 32
    return {"weights": hashes, "loss": float(loss)}


def refusal(job: Job) -> str:
    """What the engine says when ranks did not exchange gradients on data of their own."""
    if isinstance(job.engine.module, FSDPModule):
        job.engine.module.set_requires_gradient_sync(False)
    else:
        original = job.engine.accumulating
        job.engine.accumulating = lambda last: original(False)  # type: ignore[method-assign] # the last pass never comes
    accumulate_gradients(job, 0)
    try:
        return job.engine.assert_engaged()
    except RunFailed as error:
        return str(error)


def deaf(here: Session) -> str:
    """What is said of an engine that looks right but exchanges nothing."""
    job = job_of("ddp", SHAPES[0], here)

    class Apart(Plain):
        def assert_engaged(self) -> str:
            return "looks right"

    engine: Engine = Apart(Setting(job.options, job.task, here.world, here.device))
    try:
        return prove_engine(Job(job.options, engine, job.task, here.world, here.device))
    except RunFailed as error:
        return str(error)


def said(run: Callable[[], None]) -> str:
    try:
        run()
    except AssayError as error:
        return str(error)
    return "nothing"


def not_a_number(here: Session) -> None:
    """Rank 1 alone has a loss that is none."""
    own = torch.tensor(math.nan if here.world.rank == 1 else 1.0)
    journal = Journal(here, validate(PretrainOptions, {"warmup_steps": 0}), {})
    journal.add(0, 1.0, Step(torch.tensor(math.nan), torch.tensor(1.0), 8, own))


def main() -> None:
    found: dict[str, object] = {}
    with session(validate(PretrainOptions, {"device": "cpu", "engine": "ddp"}), "tests/ranks_weights") as here:
        for engine in ("ddp", "fsdp"):
            for shape in SHAPES:
                job = job_of(engine, shape, here)
                found[f"{engine} {shape.name}"] = describe(job.engine.module, job.task)
            found[f"{engine} unsynchronised"] = refusal(job)
        found["deaf"] = deaf(here)
        # Two tokens: the first loss scale of fp16 is too much for some gradient, which is no fault of the exchange.
        found["overflow"] = prove_engine(job_of("ddp", SHAPES[0], here, precision="fp16", seq_len=2))
        found["other data"] = said(lambda: same_everywhere("--data x", str(here.world.rank), here.world))
        same_everywhere("--data x", "alike", here.world)
        found["nan"] = said(lambda: not_a_number(here))
        if here.world.is_first:
            Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
