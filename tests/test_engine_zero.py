"""DeepSpeed's ZeRO 1, 2 and 3 train what one process trains, start from the same weights, and compile nothing. A real launch."""

import json
import sys
from typing import Any

import numpy as np
import pytest

from assay.device import HostDevice
from assay.errors import BadInput
from assay.training.engines.deepspeed_ops import open_deepspeed
from assay.world import World
from tests.conftest import torchrun
from tests.ranks_zero import train

STEPS = 20
ALONE = World(0, 1, 0, 1, "none", ("here",), True)
PROVED = ["zero1", "zero2", "zero3", "zero1:offload", "zero3:offload:untied"]
UNPROVED = ["zero1:offload:unproved", "zero3:unproved"]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """One process."""
    return {model: train(f"none:{model}", STEPS, ALONE, HostDevice()) for model in ("tied", "untied")}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two ranks, where a compiler cannot be started."""
    folder = tmp_path_factory.mktemp("zero")
    broken = {"CXX": "/bin/false", "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}
    words = [*PROVED, *UNPROVED, "zero1:bf16", "zero2:deaf"]
    done = torchrun(2, "tests/ranks_zero.py", folder / "found.json", STEPS, *words, **broken)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr + done.stdout
    assert not (folder / "extensions").exists()
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("engine", PROVED)
def test_every_stage_trains_what_one_process_trains(alone: dict[str, Any], ranks: dict[str, Any], engine: str) -> None:
    expected, found = alone["untied" if "untied" in engine else "tied"], ranks[engine]
    assert found["weights"] == expected["weights"]
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-5)
    assert min(expected["loss"]) < expected["loss"][0] - 0.05


@pytest.mark.parametrize("engine", PROVED)
def test_the_proof_names_stage_share_and_place(ranks: dict[str, Any], engine: str) -> None:
    total = "84,528" if "untied" in engine else "63,552"
    half = "42,264" if "untied" in engine else "31,776"
    place = "AdamW on the host" if "offload" in engine else "AdamW on cpu"
    proof = f"DeepSpeedEngine, ZeRO {engine[4]} over 2 ranks, {half} of {total} parameters here, {place}"
    assert ranks[engine]["proof"] == proof


@pytest.mark.parametrize("engine", UNPROVED)
def test_the_proof_leaves_no_trace(ranks: dict[str, Any], engine: str) -> None:
    proved, unproved = ranks[engine.removesuffix(":unproved")], ranks[engine]
    assert proved["loss"] == unproved["loss"]
    assert proved["grad_norm"] == unproved["grad_norm"]


def test_bf16_trains_close_to_float32(alone: dict[str, Any], ranks: dict[str, Any]) -> None:
    found = ranks["zero1:bf16"]["loss"]
    np.testing.assert_allclose(found, alone["tied"]["loss"], rtol=1e-2)
    assert found != alone["tied"]["loss"]


def test_ranks_that_exchange_nothing_are_found_out(ranks: dict[str, Any]) -> None:
    assert "engine zero2 did not engage: 2 of 2 ranks got no gradient" in ranks["zero2:deaf"]["refused"]


@pytest.fixture
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")  # so that it is put back


@pytest.mark.usefixtures("_own_environment")
def test_without_deepspeed_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(BadInput, match="--engine zero2: deepspeed cannot be used on cpu .*DS_BUILD_OPS=0 pip install"):
        open_deepspeed("zero2", ALONE, HostDevice())
