"""BERT and its pretraining, as a task: masked tokens and next sentences, over pairs that are made on the fly."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForPreTraining

from assay.options import BertOptions
from assay.presets import ENCODERS, EncoderShape
from assay.training.flops import encoder_flops_per_token
from assay.training.model import INITIALIZER_RANGE
from assay.training.pretrained import load
from assay.training.sentence_pairs import IGNORED, MLM, NSP, SentencePairs, lengths
from assay.training.task import Batch
from assay.training.weights import initialise

_LABELS = ("labels", "next_sentence_label")  # of a batch, all else goes into the model


class BertPretraining(BertForPreTraining):  # type: ignore[misc] # transformers has no types
    """transformers' BERT, whose masked-token head sees the masked places only: a seventh of the largest product."""

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        places: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the tokens at `places`, [B, P, vocabulary], and of "B follows A" and "it does not", [B, 2].

        input_ids, token_type_ids: int64 [B, T]; places: int64 [B, P]; attention_mask: bool [B, T], true where there is
        a token; None where nothing is padding.
        """
        # Not through BertModel: it would look into the mask for padding, and the host would wait for the device.
        hidden = self.bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        mask = (
            None if attention_mask is None else attention_mask[:, None, None, :].expand(-1, 1, input_ids.shape[1], -1)
        )
        hidden = self.bert.encoder(hidden, attention_mask=mask).last_hidden_state
        rows = torch.arange(len(places), device=places.device)[:, None] * input_ids.shape[1] + places
        chosen = hidden.flatten(0, 1).index_select(0, rows.flatten()).view(*places.shape, -1)
        follows = self.cls.seq_relationship(self.bert.pooler(hidden))
        return self.cls.predictions(chosen), follows


def build_encoder(shape: EncoderShape, dropout: float = 0.0, attention: str = "sdpa") -> nn.Module:
    """A BERT with both heads on the meta device, float32: shapes and names, no memory yet."""
    config = BertConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.types,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=None,  # padding is masked, so its embedding gets no gradient anyway
        attn_implementation=attention,
    )
    with torch.device("meta"):
        model: nn.Module = BertPretraining(config)
    return model


class BertTask:
    """Masked tokens and next sentences: the loss is the mean over masked tokens plus the mean over pairs."""

    def __init__(self, options: BertOptions, pairs: SentencePairs) -> None:
        self._options = options
        self._shape = ENCODERS[options.model]
        self._pairs = pairs

    @property
    def held_out(self) -> int:
        """Pairs kept for evaluation."""
        return self._pairs.held_out

    def build(self) -> nn.Module:
        """The preset's shape, float32 on meta."""
        return build_encoder(self._shape, self._options.dropout)

    def initialise(self, model: nn.Module) -> None:
        """The folder's weights, or generated ones."""
        if self._options.weights:
            load(model, self._options.weights)
        else:
            initialise(model, self._options.seed)

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """The encoder's layers."""
        return list(model.get_submodule("bert.encoder.layer").children())

    def flops_per_token(self, model: nn.Module) -> float:
        """See flops.py; with the first epoch's lengths and masked tokens, as attention sees and the head predicts them."""
        pairs = self._pairs.epoch(0)
        tokens = lengths(pairs).astype(float)
        seen = round((tokens**2).sum() / tokens.sum())
        return encoder_flops_per_token(self._shape, seen, float(pairs["masked"].sum() / tokens.sum()) * seen)

    def batch(self, positions: Sequence[int]) -> Batch:
        """See SentencePairs."""
        return self._pairs.batch(positions)

    def held_out_batch(self, indices: Sequence[int]) -> Batch:
        """See SentencePairs."""
        return self._pairs.held_out_batch(indices)

    def sizes(self, positions: Sequence[int]) -> Mapping[str, int]:
        """Tokens without padding, masked tokens and pairs."""
        return self._pairs.sizes(positions)

    def loss_sums(self, module: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        """`mlm_loss` over masked tokens and `nsp_loss` over pairs, in nats."""
        tokens, follows = _predict(module, batch)
        return {
            MLM: cross_entropy(tokens.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum"),
            NSP: cross_entropy(follows, batch["next_sentence_label"], reduction="sum"),
        }

    def scores(self, module: nn.Module, batch: Batch) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """`eval_loss`: cross-entropy of masked tokens, over them; `nsp_loss` and `nsp_accuracy`, over pairs.

        So exp(eval_loss) is the perplexity of a token, as it is for every other workload.
        """
        tokens, follows = _predict(module, batch)
        labels, truth = batch["labels"], batch["next_sentence_label"]
        losses = cross_entropy(tokens.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").sum(dim=1)
        ones = torch.ones_like(losses)
        return {
            "eval_loss": (losses, (labels != IGNORED).sum(dim=1)),
            NSP: (cross_entropy(follows, truth, reduction="none"), ones),
            "nsp_accuracy": ((follows.argmax(dim=1) == truth).float(), ones),
        }


def _predict(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of masked tokens [B, P, vocabulary] and of the next sentence [B, 2], float32."""
    tokens, follows = module(**{name: tensor for name, tensor in batch.items() if name not in _LABELS})
    return tokens.float(), follows.float()
