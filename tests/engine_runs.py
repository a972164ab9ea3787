"""What test_engine_zero.py and test_engine_accelerate.py look at: one launch for both, because starting it takes longest."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from assay.device import HostDevice
from assay.world import World
from tests.conftest import torchrun
from tests.ranks_zero import train

STEPS = 20
ALONE = World(0, 1, 0, 1, "none", ("here",), True)
PROVED = ["zero1", "zero2:offload", "zero3", "zero3:offload:untied"]
UNPROVED = ["zero2:offload:unproved:short", "zero3:unproved:short", "accelerate:unproved:short"]
OTHERS = ["zero1:bf16:short", "zero1:deaf", "zero1:compiling", "accelerate", "accelerate:bare"]


@functools.cache
def alone(model: str) -> Any:
    """What one process makes of the model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would fight over so little work
    try:
        return train(f"none:{model}", STEPS, ALONE, HostDevice())
    finally:
        torch.set_num_threads(threads)


@functools.cache
def on_two_ranks() -> Any:
    """What two ranks make of it with every engine, where no compiler can be started."""
    with tempfile.TemporaryDirectory() as name:
        result, extensions = Path(name) / "found.json", Path(name) / "extensions"
        words = ["tests/ranks_zero.py", str(result), str(STEPS), *PROVED, *UNPROVED, *OTHERS]
        done = torchrun(2, *words, CXX="/bin/false", TORCH_EXTENSIONS_DIR=str(extensions))
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr + done.stdout
        assert not extensions.exists()
        return json.loads(result.read_text())
