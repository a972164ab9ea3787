"""DeepSpeed's ZeRO 1, 2 and 3 train what one process trains, start from the same weights, and compile nothing."""

import sys

import numpy as np
import pytest

from assay.device import HostDevice
from assay.errors import BadInput
from assay.training.engines.deepspeed_ops import open_deepspeed
from tests.engine_runs import ALONE, PROVED, UNPROVED, alone, on_two_ranks


@pytest.mark.parametrize("engine", PROVED)
def test_every_stage_trains_what_one_process_trains(engine: str) -> None:
    expected, found = alone("untied" if "untied" in engine else "tied"), on_two_ranks()[engine]
    assert found["weights"] == expected["weights"]
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-5)
    assert min(expected["loss"]) < expected["loss"][0] - 1


@pytest.mark.parametrize("engine", PROVED)
def test_the_proof_names_stage_share_and_place(engine: str) -> None:
    share = "28,368 of 56,736" if "untied" in engine else "19,512 of 39,024"
    place = "AdamW on the host" if "offload" in engine else "AdamW on cpu"
    proof = f"DeepSpeedEngine, ZeRO {engine[4]} over 2 ranks, {share} parameters here, {place}"
    assert on_two_ranks()[engine]["proof"] == proof


@pytest.mark.parametrize("engine", UNPROVED)
def test_the_proof_leaves_no_trace(engine: str) -> None:
    found = on_two_ranks()
    proved, unproved = found[engine.removesuffix(":unproved:short")], found[engine]
    assert proved["loss"][:5] == unproved["loss"]
    assert proved["grad_norm"][:5] == unproved["grad_norm"]


def test_bf16_trains_close_to_float32() -> None:
    exact, found = alone("tied")["loss"][:5], on_two_ranks()["zero1:bf16:short"]["loss"]
    np.testing.assert_allclose(found, exact, rtol=1e-2)
    assert found != exact


def test_ranks_that_exchange_nothing_are_found_out() -> None:
    assert "engine zero1 did not engage: 2 of 2 ranks got no gradient" in on_two_ranks()["zero1:deaf"]["refused"]


def test_what_would_be_compiled_while_ranks_run_is_refused() -> None:
    refused = on_two_ranks()["zero1:compiling"]["refused"]
    assert "DeepSpeed wants to compile its operation cpu_adam" in refused
    assert "DS_BUILD_CPU_ADAM=1 pip install" in refused


@pytest.fixture
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "0")  # so that it is put back


@pytest.mark.usefixtures("_own_environment")
def test_without_deepspeed_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(
        BadInput, match=r"--engine zero2: deepspeed cannot be used on cpu .*; pip install 'assay\[deepspeed\]'"
    ):
        open_deepspeed("zero2", ALONE, HostDevice())
