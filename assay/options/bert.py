"""Options of workloads/bert.py."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from assay.options.base import one_of
from assay.options.training import TrainingOptions
from assay.presets import ENCODERS


class BertOptions(TrainingOptions):
    """Which BERT is pretrained, on what pairs of sentences, how it is spread over the ranks, and for how long."""

    synopsis: ClassVar[str] = "pretraining of BERT: masked tokens and next sentences, TGS, MFU, step times"

    model: Annotated[str, one_of("model", ENCODERS)] = Field("bert-tiny", description=f"one of {', '.join(ENCODERS)}")
    data: str = Field("text", description="dummy, text (the standard library's own prose), or a folder of .txt/.jsonl")
    seq_len: int = Field(128, ge=5, description="tokens of a sequence: [CLS] A [SEP] B [SEP], and padding")
    mask_share: float = Field(0.15, gt=0, lt=1, description="tokens to predict, as a share of a sequence's")
    max_predictions: int | None = Field(
        None, ge=1, description="most tokens to predict in one sequence [what --mask-share is of --seq-len]"
    )
    short_share: float = Field(0.1, ge=0, le=1, description="sequences cut to a random length, as a share of all")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="of hidden states and attention (BERT: 0.1); above 0 engines give other losses"
    )

    @property
    def predictions(self) -> int:
        """Places of a sequence that go through the masked-token head: the most that are ever masked."""
        return self.masked(self.seq_len)

    def masked(self, length: int) -> int:
        """Tokens that are masked in a sequence of `length`, [CLS] and both [SEP] counted: at least 1, none of those 3."""
        asked = max(1, int(length * self.mask_share + 0.5))
        return min(asked, length - 3, self.max_predictions or asked)

    @model_validator(mode="after")
    def _fits_the_positions(self) -> "BertOptions":
        positions = ENCODERS[self.model].positions
        if self.seq_len > positions:
            raise ValueError(
                f"--seq-len {self.seq_len} is longer than the {positions} positions of {self.model}; "
                f"use {positions} or less"
            )
        return self
