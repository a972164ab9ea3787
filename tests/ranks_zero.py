"""Run by torchrun: engines train a tiny model one after the other; losses, norms, weights and proofs go to a JSON file.

python -m torch.distributed.run --nproc-per-node 2 tests/ranks_zero.py RESULT.json STEPS zero1 zero2:offload …

Words behind an engine: offload, bf16, fp16, checkpointing; untied: another model; unproved: without the proof; short: the
first 5 steps only; deaf, bare: the engine is broken before its proof, by exchanging nothing or by training the model
under its wrapper; compiling: DeepSpeed is made to want its own Adam.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from assay.device import Device
from assay.errors import AssayError
from assay.options.base import ScriptOptions, validate
from assay.options.training import TrainingOptions
from assay.presets import ModelShape
from assay.ranks import session
from assay.training.engines import ENGINES, Setting
from assay.training.loop import Job, prove_engine, train_step
from assay.training.model import build_model, decoder_layers
from assay.training.task import Batch
from assay.training.weights import canonical_name, initialise
from assay.world import World

SEQ = 16
TIED = ModelShape("tied", "llama", 301, 48, 1, 6, 2, 127, tied=True)  # odd sizes: ranks get unequal parts
UNTIED = ModelShape("untied", "internlm", 301, 48, 1, 6, 6, 127)


class ToyTask:
    """Sequences that follow from their position alone."""

    held_out = 0

    def __init__(self, shape: ModelShape) -> None:
        self._shape = shape

    def build(self) -> nn.Module:
        return build_model(self._shape, SEQ)

    def initialise(self, model: nn.Module) -> None:
        initialise(model, 7)

    def layers(self, model: nn.Module) -> list[nn.Module]:
        return decoder_layers(model)

    def flops_per_token(self, model: nn.Module) -> float:
        return 0.0

    def batch(self, positions: Sequence[int]) -> Batch:
        rows = []
        for position in positions:
            # A dozen sequences come again and again, so that there is something to learn.
            generator = torch.Generator().manual_seed(position % 12)
            rows.append(torch.randint(0, 301, (SEQ + 1,), generator=generator))
        return {"rows": torch.stack(rows)}

    def held_out_batch(self, indices: Sequence[int]) -> Batch:
        return self.batch(indices)

    def sizes(self, positions: Sequence[int]) -> Mapping[str, int]:
        return {"tokens": len(positions) * SEQ, "loss": len(positions) * SEQ}

    def loss_sums(self, module: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        rows = batch["rows"]
        logits = module(input_ids=rows[:, :-1], use_cache=False).logits
        return {"loss": cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")}

    def scores(self, module: nn.Module, batch: Batch) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        return {}


def hashes(module: nn.Module) -> dict[str, str]:
    """Of each whole parameter, under its canonical name."""
    found = {}
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().clone()
        else:
            whole = parameter.detach()
        found[canonical_name(name)] = hashlib.sha256(whole.float().contiguous().numpy().tobytes()).hexdigest()
    return found


def train(words: str, steps: int, world: World, device: Device) -> dict[str, object]:
    engine, *more = words.split(":")
    options = validate(
        TrainingOptions,
        {
            "engine": engine,
            "device": "cpu",
            "steps": steps,
            "warmup_steps": 0,
            "lr_warmup_steps": 4,
            "lr": 3e-3,
            "global_batch": 8,
            "micro_batch": 2,
            "offload": "offload" in more,
            "checkpointing": "checkpointing" in more,
            "precision": next((word for word in more if word in ("bf16", "fp16")), "fp32"),
        },
    )
    task = ToyTask(UNTIED if "untied" in more else TIED)
    made: Any = ENGINES[engine](Setting(options, task, world, device))
    if "deaf" in more:
        made.module.enable_backward_allreduce = False
    if "bare" in more:
        made.module = made.module.module
    if "compiling" in more:
        from deepspeed.ops.op_builder import CPUAdamBuilder

        CPUAdamBuilder().load()
    job = Job(options, made, task, world, device)
    result: dict[str, object] = {"weights": hashes(made.module)}
    if "unproved" not in more:
        result["proof"] = prove_engine(job)
    taken = [train_step(job, step) for step in range(5 if "short" in more else steps)]
    return {**result, "loss": [float(step.loss) for step in taken], "grad_norm": [float(step.norm) for step in taken]}


def main() -> None:
    result, steps, *engines = sys.argv[1:]
    found: dict[str, object] = {}
    with session(validate(ScriptOptions, {"device": "cpu"}), "tests/ranks_zero") as here:
        for words in engines:
            try:
                found[words] = train(words, int(steps), here.world, here.device)
            except AssayError as error:
                found[words] = {"refused": str(error)}
        if here.world.is_first:
            Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
