"""Options of workloads/pretrain.py."""

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from assay.options.base import nearest
from assay.options.training import TrainingOptions
from assay.presets import MODELS


def _known_model(value: object) -> object:
    if not isinstance(value, str) or value not in MODELS:
        raise ValueError(f"unknown model {value!r}{nearest(str(value), list(MODELS))}")
    return value


class PretrainOptions(TrainingOptions):
    """Which model is trained, on what, how it is spread over the ranks, and for how long."""

    synopsis: ClassVar[str] = "pretraining of a causal language model: loss, TGS, MFU, step times"

    model: Annotated[str, BeforeValidator(_known_model)] = Field(
        "llama-tiny", description=f"one of {', '.join(MODELS)}"
    )
    data: str = Field("text", description="dummy, text (the standard library's own prose), or a folder of .txt/.jsonl")
    seq_len: int = Field(128, ge=2, description="tokens per sequence")
