"""Options of workloads/pretrain.py."""

from typing import Annotated, ClassVar

from pydantic import Field

from assay.options.base import one_of
from assay.options.training import TrainingOptions
from assay.presets import MODELS


class PretrainOptions(TrainingOptions):
    """Which model is trained, on what, how it is spread over the ranks, and for how long."""

    synopsis: ClassVar[str] = "pretraining of a causal language model: loss, TGS, MFU, step times"

    model: Annotated[str, one_of("model", MODELS)] = Field("llama-tiny", description=f"one of {', '.join(MODELS)}")
    data: str = Field("text", description="dummy, text (the standard library's own prose), or a folder of .txt/.jsonl")
    seq_len: int = Field(128, ge=2, description="tokens per sequence")
