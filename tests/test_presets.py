"""The shapes of published models are those of the published models."""

import pytest
import torch

from assay.presets import MODELS
from assay.training.model import build_model, count_parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-7b", 6_738_415_616),  # "6.7B" in the paper's table 2
        # "7B" of 103,168 tokens: two embeddings; per layer four projections with biases, three matrices and two norms.
        ("internlm-7b", 2 * 103_168 * 4096 + 32 * (4 * (4096**2 + 4096) + 3 * 4096 * 11_008 + 2 * 4096) + 4096),
    ],
)
def test_published_models_have_their_published_number_of_parameters(name: str, parameters: int) -> None:
    assert count_parameters(build_model(MODELS[name], 2048, torch.bfloat16)) == parameters


def test_published_models_name_their_source_and_tiny_ones_are_our_own() -> None:
    for name, shape in MODELS.items():
        assert shape.name == name
        assert shape.source.startswith("own") == name.endswith("-tiny")
