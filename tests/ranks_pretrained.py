"""Run by torchrun from test_pretrained.py: what each engine makes of a folder's weights, and how many bytes ranks read.

python -m torch.distributed.run --nproc-per-node 4 tests/ranks_pretrained.py FOLDER RESULT.json ddp fsdp fsdp:2 …

After the engine may follow the number of ranks that share a copy.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from assay.options.base import ScriptOptions, validate
from assay.options.training import TrainingOptions
from assay.presets import ModelShape
from assay.ranks import Session, session
from assay.training.engines import ENGINES, Setting
from assay.training.pretrained import load
from assay.training.weights import canonical_name
from tests.ranks_zero import ToyTask

# Large enough that a rank's part, its quarter and what reading costs besides (headers) cannot be taken for each other.
SHAPE = ModelShape("odd", "internlm", 5003, 128, 2, 4, 4, 333)


class Loading(ToyTask):
    """Starts from a folder, and keeps what that took: bytes that this process read, and bytes that it then held."""

    def __init__(self, folder: Path) -> None:
        super().__init__(SHAPE)
        self._folder = folder
        self.read = self.held = 0

    def initialise(self, model: nn.Module) -> None:
        before = bytes_read()
        load(model, self._folder)
        self.read = bytes_read() - before
        own = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
        self.held = sum(part.numel() * part.element_size() for part in own)


def bytes_read() -> int:
    """What this process has asked the system for so far, its threads included, from the disk or from the cache."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def whole(parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def spread(words: str, folder: Path, here: Session) -> dict[str, object]:
    engine, _, sharing = words.partition(":")
    given = {"engine": engine, "device": "cpu", "shard_ranks": int(sharing or 0), "global_batch": 8, "micro_batch": 2}
    task = Loading(folder)
    made = ENGINES[engine](Setting(validate(TrainingOptions, given), task, here.world, here.device))
    weights = {canonical_name(name): digest(whole(p)) for name, p in made.module.named_parameters()}
    return {"weights": weights, "ranks": here.world.collect((task.read, task.held))}


def main() -> None:
    with session(validate(ScriptOptions, {"device": "cpu"}), "tests/ranks_pretrained") as here:
        found = {words: spread(words, Path(sys.argv[1]), here) for words in sys.argv[3:]}
        if here.world.is_first:
            Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
