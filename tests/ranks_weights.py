"""Run by torchrun from test_training_equality.py: what each engine makes of the same models, as hashes of whole weights.

python -m torch.distributed.run --nproc-per-node 2 tests/ranks_weights.py RESULT.json
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from assay.errors import RunFailed
from assay.options.base import ScriptOptions, validate
from assay.presets import ModelShape
from assay.ranks import Session, session
from assay.training.engines import ENGINES
from assay.training.loop import next_token_losses
from assay.training.model import build_model
from assay.training.weights import canonical_name, initialise

# Odd sizes, so that ranks get unequal shards; a tied matrix, grouped heads, biases.
SHAPES = (
    ModelShape("odd", "llama", 301, 48, 2, 6, 2, 127),
    ModelShape("tied", "llama", 301, 48, 2, 6, 6, 128, tied=True),
    ModelShape("biased", "internlm", 256, 48, 2, 6, 6, 128),
)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def describe(module: nn.Module) -> dict[str, object]:
    """Hash of each whole parameter under its canonical name, and the loss on fixed tokens."""
    hashes = {
        canonical_name(name): hashlib.sha256(whole(parameter.detach()).contiguous().numpy().tobytes()).hexdigest()
        for name, parameter in module.named_parameters()
    }
    with torch.no_grad():
        loss = next_token_losses(module, torch.arange(2 * 17).view(2, 17) % 256).mean()
    return {"weights": hashes, "loss": float(loss)}


def refusal(engine: str, module: nn.Module, here: Session) -> str:
    """What the engine says when ranks did not exchange gradients on data of their own."""
    rows = torch.arange(17).view(1, 17) + here.world.rank
    with ENGINES[engine].backward(module, last=False):
        next_token_losses(module, rows).mean().backward()  # type: ignore[no-untyped-call] # untyped in torch
    try:
        return ENGINES[engine].assert_engaged(module, here.world)
    except RunFailed as error:
        return str(error)


def main() -> None:
    engines = ("ddp", "fsdp")
    found: dict[str, object] = {}
    with session(validate(ScriptOptions, {"device": "cpu"}), "tests/ranks_weights") as here:
        for engine in engines:
            for shape in SHAPES:
                model = build_model(shape, 16, torch.float32)
                module = ENGINES[engine].spread(model, lambda made: initialise(made, 7), here.world, here.device)
                found[f"{engine} {shape.name}"] = describe(module)
            found[f"{engine} unsynchronised"] = refusal(engine, module, here)
        if here.world.is_first:
            Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
