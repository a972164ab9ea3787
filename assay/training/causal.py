"""Pretraining of a causal language model, as a task: windows of text, and the cross-entropy of each next token."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from assay.options import PretrainOptions
from assay.presets import MODELS
from assay.training.data import Data
from assay.training.flops import flops_per_token
from assay.training.model import build_model, count_parameters, decoder_layers
from assay.training.pretrained import load
from assay.training.task import Batch
from assay.training.weights import initialise


class CausalTask:
    """Next-token prediction over sequences of one length. data: where the sequences come from."""

    def __init__(self, options: PretrainOptions, data: Data) -> None:
        self._options = options
        self._shape = MODELS[options.model]
        self._data = data

    @property
    def held_out(self) -> int:
        """Sequences kept for evaluation."""
        return self._data.held_out

    def build(self) -> nn.Module:
        """The preset's shape, float32 on meta."""
        return build_model(self._shape, self._options.seq_len)

    def initialise(self, model: nn.Module) -> None:
        """The folder's weights, or generated ones."""
        if self._options.weights:
            load(model, self._options.weights)
        else:
            initialise(model, self._options.seed)

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """The decoder layers."""
        return decoder_layers(model)

    def flops_per_token(self, model: nn.Module) -> float:
        """See flops.py."""
        return flops_per_token(self._shape, count_parameters(model), self._options.seq_len)

    def batch(self, positions: Sequence[int]) -> Batch:
        """`rows`: int64 [B, seq_len + 1]."""
        return _rows([self._data.train_row(position) for position in positions])

    def held_out_batch(self, indices: Sequence[int]) -> Batch:
        """As `batch`, of held-out sequences."""
        return _rows([self._data.held_out_row(index) for index in indices])

    def sizes(self, positions: Sequence[int]) -> Mapping[str, int]:
        """Every token is predicted from those before it, and none is padding."""
        tokens = len(positions) * self._options.seq_len
        return {"tokens": tokens, "loss": tokens}

    def loss_sums(self, module: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        """`loss`: cross-entropy in nats, summed over tokens."""
        logits, targets = _predict(module, batch["rows"])
        return {"loss": cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")}

    def scores(self, module: nn.Module, batch: Batch) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """`eval_loss`: cross-entropy per sequence, over its tokens."""
        logits, targets = _predict(module, batch["rows"])
        losses = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        sums = losses.sum(dim=1)
        return {"eval_loss": (sums, torch.full_like(sums, targets.shape[1]))}


def _rows(sequences: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]) -> Batch:
    return {"rows": torch.from_numpy(np.stack(sequences))}


def _predict(module: nn.Module, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, T, vocabulary] of the next tokens, and those tokens [B, T]. rows: [B, T + 1]."""
    logits: torch.Tensor = module(input_ids=rows[:, :-1], use_cache=False).logits
    return logits, rows[:, 1:]
