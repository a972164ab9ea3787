"""accelerate trains what one process trains, and is found out where it does not distribute."""

import sys

import numpy as np
import pytest

from assay.device import HostDevice
from assay.errors import BadInput
from tests.engine_runs import ALONE, alone, on_two_ranks
from tests.ranks_zero import train


def test_it_trains_what_one_process_trains() -> None:
    expected, found = alone("tied"), on_two_ranks()["accelerate"]
    assert found["weights"] == expected["weights"]
    assert found["proof"] == "accelerate MULTI_CPU, DistributedDataParallel over 2 ranks"
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-5)


def test_a_model_that_is_not_wrapped_is_found_out() -> None:
    found = on_two_ranks()["accelerate:bare"]
    assert "engine accelerate did not engage: the model is LlamaForCausalLM" in found["refused"]


def test_without_accelerate_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(BadInput, match=r"--engine accelerate: it cannot be imported .*; pip install accelerate"):
        train("accelerate", 1, ALONE, HostDevice())
