"""Fine-tuning on instructions, as a task: LoRA or the whole model, over sequences of unlike length."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from assay.errors import BadInput, RunFailed
from assay.options import FinetuneOptions
from assay.presets import MODELS
from assay.ranks import Session
from assay.training.adapters import add_adapters, count_adapted
from assay.training.agreement import same_everywhere
from assay.training.data import epoch_order
from assay.training.flops import adapted_flops_per_token, flops_per_token
from assay.training.instructions import Sequences, encode, read_records, read_template
from assay.training.int8 import fill_int8, int8_layers, to_int8
from assay.training.loop import Job
from assay.training.model import build_model, count_parameters, decoder_layers
from assay.training.pretrained import load, open_folder
from assay.training.task import Batch
from assay.training.tokenizer import text_digest
from assay.training.vocabulary import check_vocabulary, tokenizer_for
from assay.training.weights import draw, initialise, initialise_adapters, raw_bits
from assay.world import World

MEGA = 50  # global batches that are sorted by length together
WIDTH = 8  # a batch's width is a multiple of it: kernels like it, and there are fewer different shapes
_IGNORED = -100  # the target that cross_entropy leaves out


class Instructions:
    """Token sequences, split into trained and held-out ones, in an order that depends on the seed alone.

    digest: stands for the text; left_out: records of whose answer nothing was left within the cutoff.
    """

    def __init__(self, sequences: Sequences, options: FinetuneOptions, digest: str = "") -> None:
        self.sequences = sequences
        self.digest = digest
        lengths, answers = sequences.lengths, sequences.answers
        # A token is learnt from those before it, so the first is never learnt.
        first_learnt = np.ones_like(answers) if options.train_on_inputs else np.maximum(answers, 1)
        self.learnt = np.maximum(lengths - first_learnt, 0)
        usable = np.flatnonzero(self.learnt)
        self.left_out = len(sequences) - len(usable)
        if len(usable) <= options.val_set_size:
            raise BadInput(
                f"--data {options.data}: {len(usable)} records can be learnt from, and --val-set-size holds "
                f"{options.val_set_size} out; give more records or hold fewer out"
            )
        mixed = usable[np.argsort(raw_bits(options.seed, "held-out records", 0, len(usable)), kind="stable")]
        # As indices grow: what is held out must not change the order in which the others come.
        self.held_out = np.sort(mixed[: options.val_set_size])
        self.trained = np.sort(mixed[options.val_set_size :])
        self._options = options
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def at(self, position: int) -> int:
        """The sequence at `position` of the order of all epochs."""
        epoch, place = divmod(position, len(self.trained))
        if epoch != self._epoch:
            order = self.trained[epoch_order(self._options.seed, epoch, len(self.trained))]
            if self._options.group_by_length:
                order = by_length(order, self.sequences.lengths, MEGA * self._options.global_batch)
            self._epoch, self._order = epoch, order
        return int(self._order[place])

    def mean_length(self) -> float:
        """Tokens that a token of the trained sequences shares its sequence with, on average: Σ T² / Σ T.

        Attention's work is quadratic in a sequence's length T, so this is what stands for T in the work per token.
        """
        inputs = self.sequences.lengths[self.trained].astype(np.float64) - 1
        return float((inputs**2).sum() / inputs.sum())


def by_length(order: NDArray[np.int64], lengths: NDArray[np.int64], group: int) -> NDArray[np.int64]:
    """The same sequences, in each run of `group` of them the longest first; the longest of all comes first of all.

    So neighbours need little padding, the order still differs by epoch, and what does not fit into memory fails at once.
    """
    runs = [order[first : first + group] for first in range(0, len(order), group)]
    grouped = np.concatenate([run[np.argsort(-lengths[run], kind="stable")] for run in runs])
    longest = int(np.argmax(lengths[grouped]))
    grouped[[0, longest]] = grouped[[longest, 0]]
    return grouped


def open_instructions(options: FinetuneOptions, world: World) -> Instructions:
    """The records that `options.data` names, as tokens. All ranks call it together. Raises BadInput on bad input.

    The tokenizer comes with the weights; without them it is trained on the prompts and answers themselves.
    """
    records, template = read_records(options.data), read_template(options.template)
    texts = [template.prompt(record) + record.output for record in records]
    digest, vocab = text_digest(texts), MODELS[options.model].vocab
    same_everywhere(f"--data {options.data}", digest, world)
    tokenizer, end = tokenizer_for(options, texts, vocab, world)
    sequences = encode(records, template, tokenizer, end, options.cutoff)
    check_vocabulary(sequences.tokens, options, vocab)
    return Instructions(sequences, options, digest)


class FinetuneTask:
    """Next-token prediction over instructions and answers of unlike length.

    Padding comes after the tokens of a sequence, and attention is causal: no token ever sees it. So no mask is given
    (attention kernels are at their fastest without one), and what is computed at padding is left out of the loss.
    """

    def __init__(self, options: FinetuneOptions, data: Instructions) -> None:
        self._options = options
        self._shape = MODELS[options.model]
        self._data = data

    @property
    def held_out(self) -> int:
        """Records kept for evaluation."""
        return len(self._data.held_out)

    def build(self) -> nn.Module:
        """The preset's shape, float32 on meta; with LoRA its adapters, and with --int8 its frozen layers as int8."""
        options = self._options
        model = build_model(self._shape, options.cutoff)
        if options.method == "lora":
            targets = options.lora_targets
            add_adapters(model, options.lora_rank, options.lora_alpha, options.lora_dropout, targets)
        if options.int8:
            to_int8(model)
        return model

    def initialise(self, model: nn.Module) -> None:
        """The folder's weights, or generated ones; adapters' always generated. int8 layers are quantised from the same."""
        seed, folder = self._options.seed, self._options.weights
        if folder is None:
            initialise(model, seed)
            fill_int8(model, lambda name, first, last, columns: _drawn(seed, name, first, last, columns))
        else:
            load(model, folder)
            initialise_adapters(model, seed)
            with open_folder(folder) as source:
                fill_int8(model, source.rows)

    def layers(self, model: nn.Module) -> list[nn.Module]:
        """The decoder layers."""
        return decoder_layers(model)

    def flops_per_token(self, model: nn.Module) -> float:
        """See flops.py; T is the mean of `Instructions.mean_length`."""
        length = round(self._data.mean_length())
        if self._options.method == "full":
            return flops_per_token(self._shape, count_parameters(model), length)
        frozen, trained = count_adapted(model)
        return adapted_flops_per_token(self._shape, frozen, trained, length, self._options.lora_targets)

    def batch(self, positions: Sequence[int]) -> Batch:
        """`inputs` and `targets`, int64 [B, longest of them up to a multiple of 8]."""
        return self._batch([self._data.at(position) for position in positions])

    def held_out_batch(self, indices: Sequence[int]) -> Batch:
        """As `batch`, of held-out records."""
        return self._batch([int(self._data.held_out[index]) for index in indices])

    def _batch(self, indices: Sequence[int]) -> Batch:
        rows = [self._data.sequences.row(index) for index in indices]
        width = -(-(max(map(len, rows)) - 1) // WIDTH) * WIDTH
        inputs = np.zeros((len(rows), width), dtype=np.int64)
        targets = np.full((len(rows), width), _IGNORED, dtype=np.int64)
        for place, (index, row) in enumerate(zip(indices, rows, strict=True)):
            count, learnt = len(row) - 1, int(self._data.learnt[index])
            inputs[place, :count] = row[:-1]
            targets[place, count - learnt : count] = row[len(row) - learnt :]
        return {"inputs": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}

    def sizes(self, positions: Sequence[int]) -> Mapping[str, int]:
        """`tokens` go through the model, without padding; `loss` is a mean over those that are learnt."""
        indices = [self._data.at(position) for position in positions]
        tokens = int(self._data.sequences.lengths[indices].sum()) - len(indices)
        return {"tokens": tokens, "loss": int(self._data.learnt[indices].sum())}

    def loss_sums(self, module: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        """`loss`: cross-entropy in nats, summed over the tokens that are learnt."""
        logits, targets = _predict(module, batch)
        return {"loss": cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")}

    def scores(self, module: nn.Module, batch: Batch) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """`eval_loss`: cross-entropy per record, over its tokens that are learnt."""
        logits, targets = _predict(module, batch)
        losses = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        return {"eval_loss": (losses.sum(dim=1), (targets != _IGNORED).sum(dim=1).float())}


def _predict(module: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, T, vocabulary] of the next tokens, and those tokens [B, T]."""
    logits: torch.Tensor = module(input_ids=batch["inputs"], use_cache=False).logits
    return logits, batch["targets"]


def _drawn(seed: int, name: str, first: int, last: int, columns: int) -> torch.Tensor:
    values = draw(seed, name, first * columns, (last - first) * columns)
    return torch.from_numpy(values).view(-1, columns)


def record_records(data: Instructions, here: Session, tags: Mapping[str, str]) -> None:
    """Write down how many records there are to learn from, and what they were. The first rank does."""
    if not here.world.is_first:
        return
    counts = {"held_out": str(len(data.held_out)), "left_out": str(data.left_out)}
    here.recorder.block("records", "1", [len(data.trained)], {**tags, **counts, "text": data.digest})
    here.recorder.block("mean_length", "tokens", [data.mean_length()], tags)


def record_base(job: Job, here: Session, tags: Mapping[str, str]) -> None:
    """Write down the bytes of frozen weights that this rank holds, as they are stored. Every rank does.

    Raises RunFailed where int8 was asked for and a layer of the model is not held so.
    """
    module, expected = job.engine.module, dict(int8_layers(job.task.build()))
    held = [layer for _, layer in int8_layers(module) if layer.weight.dtype == torch.int8]
    if len(held) != len(expected):
        raise RunFailed(f"{len(held)} of {len(expected)} layers hold their weight as int8; --int8 did not engage")
    frozen = [_own(parameter) for parameter in module.parameters() if not parameter.requires_grad]
    if frozen:
        size = sum(own.numel() * own.element_size() for own in frozen)
        here.recorder.block("base_weight_bytes", "B", [size], {**tags, "int8_layers": str(len(held))})


def _own(parameter: torch.Tensor) -> torch.Tensor:
    if isinstance(parameter, DTensor):
        local: torch.Tensor = parameter.to_local()
        return local
    piece: torch.Tensor = getattr(
        parameter, "ds_tensor", parameter
    )  # ZeRO-3 keeps this rank's piece beside the parameter
    return piece
