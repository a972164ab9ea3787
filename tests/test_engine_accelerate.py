"""accelerate trains what one process trains, and is found out where it does not distribute. A real launch."""

import json
import sys
from typing import Any

import numpy as np
import pytest

from assay.device import HostDevice
from assay.errors import BadInput
from assay.world import World
from tests.conftest import torchrun
from tests.ranks_zero import train

STEPS = 20
ALONE = World(0, 1, 0, 1, "none", ("here",), True)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two ranks."""
    result = tmp_path_factory.mktemp("accelerate") / "found.json"
    words = ["accelerate", "accelerate:unproved", "accelerate:bare"]
    done = torchrun(2, "tests/ranks_zero.py", result, STEPS, *words)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr + done.stdout
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def test_it_trains_what_one_process_trains(ranks: dict[str, Any]) -> None:
    expected, found = train("none", STEPS, ALONE, HostDevice()), ranks["accelerate"]
    assert found["weights"] == expected["weights"]
    assert found["proof"] == "accelerate MULTI_CPU, DistributedDataParallel over 2 ranks"
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)  # type: ignore[arg-type] # parsed JSON
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-5)  # type: ignore[arg-type] # parsed JSON


def test_the_proof_leaves_no_trace(ranks: dict[str, Any]) -> None:
    assert ranks["accelerate"]["loss"] == ranks["accelerate:unproved"]["loss"]


def test_a_model_that_is_not_wrapped_is_found_out(ranks: dict[str, Any]) -> None:
    assert "engine accelerate did not engage: the model is LlamaForCausalLM" in ranks["accelerate:bare"]["refused"]
    assert ranks["accelerate:bare"].get("loss") is None


def test_fp16_on_a_cpu_is_bad_input() -> None:
    with pytest.raises(BadInput, match="--precision fp16 on cpu"):
        train("accelerate:fp16", 1, ALONE, HostDevice())


def test_without_accelerate_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(BadInput, match="--engine accelerate: it cannot be imported .*; pip install accelerate"):
        train("accelerate", 1, ALONE, HostDevice())
