"""Token sequences to train on: which sample is seen when depends on the seed alone, never on the number of ranks."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from assay.errors import BadInput
from assay.options import PretrainOptions
from assay.training.agreement import same_everywhere
from assay.training.text import read_documents
from assay.training.tokenizer import text_digest
from assay.training.vocabulary import check_vocabulary, tokenizer_for
from assay.training.weights import raw_bits
from assay.world import World

HELD_OUT_SHARE = 0.05  # of the windows, the last ones, at least one
DOCUMENTS_AT_ONCE = 64  # tokenized together, on all cores
_HELD_OUT_DUMMIES = 1 << 40  # dummy samples from this index on are for evaluation


class Data(Protocol):
    """Sequences of seq_len + 1 tokens (int64): the model reads all but the last and predicts all but the first."""

    @property
    def held_out(self) -> int:
        """How many sequences are kept for evaluation."""

    def train_row(self, position: int) -> NDArray[np.int64]:
        """The sequence at `position` of the endless training order, [seq_len + 1]."""

    def held_out_row(self, index: int) -> NDArray[np.int64]:
        """One of the `held_out` sequences that are never trained on, [seq_len + 1]."""


@dataclass(frozen=True)
class DummyData:
    """Uniform random tokens, a function of (seed, sample index): a loss near ln(vocab) that cannot fall."""

    seed: int
    vocab: int
    seq_len: int
    held_out: int = 1 << 20

    def train_row(self, position: int) -> NDArray[np.int64]:
        """Sample number `position`."""
        width = self.seq_len + 1
        tokens: NDArray[np.uint64] = raw_bits(self.seed, "dummy tokens", position * width, width) % np.uint64(
            self.vocab
        )
        return tokens.astype(np.int64)

    def held_out_row(self, index: int) -> NDArray[np.int64]:
        """A sample from a range of indices that training never reaches."""
        return self.train_row(_HELD_OUT_DUMMIES + index)


class TextData:
    """Windows over one stream of tokens, in a new order each epoch."""

    def __init__(self, tokens: NDArray[np.int32], seq_len: int, seed: int, digest: str = "") -> None:
        windows = (len(tokens) - 1) // seq_len
        if windows < 2:
            raise BadInput(
                f"the text has {len(tokens)} tokens; --seq-len {seq_len} needs at least {2 * seq_len + 1} "
                "(one sequence to train on and one held out): give more text or a shorter --seq-len"
            )
        self.tokens = tokens
        self.digest = digest
        self.held_out = max(1, int(windows * HELD_OUT_SHARE))
        self._seq_len = seq_len
        self._seed = seed
        self._trained = windows - self.held_out
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def train_row(self, position: int) -> NDArray[np.int64]:
        """The window at `position` of the order of all epochs."""
        epoch, place = divmod(position, self._trained)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, epoch_order(self._seed, epoch, self._trained)
        return self._window(int(self._order[place]))

    def held_out_row(self, index: int) -> NDArray[np.int64]:
        """One of the last windows of the text."""
        return self._window(self._trained + index)

    def _window(self, index: int) -> NDArray[np.int64]:
        start = index * self._seq_len
        return self.tokens[start : start + self._seq_len + 1].astype(np.int64)


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """A permutation of 0 … count−1 from seed and epoch alone. Sorted raw bits: no numpy version can change it."""
    return np.argsort(raw_bits(seed, f"order of epoch {epoch}", 0, count), kind="stable").astype(np.int64)


def open_data(options: PretrainOptions, vocab: int, world: World) -> Data:
    """The data that `options.data` names. All ranks call it together. Raises BadInput if the text cannot be used."""
    if options.data == "dummy":
        return DummyData(options.seed, vocab, options.seq_len)
    documents = read_documents(options.data)
    digest = text_digest(documents)
    same_everywhere(f"--data {options.data}", digest, world)
    tokenizer, end = tokenizer_for(options, documents, vocab, world)
    tokens = _encode(documents, tokenizer, end)
    check_vocabulary(tokens, options, vocab)
    return TextData(tokens, options.seq_len, options.seed, digest)


def _encode(documents: list[str], tokenizer: Tokenizer, end: int) -> NDArray[np.int32]:
    # In groups: as arrays tokens take 4 bytes, as the encoder's own objects tens of times that.
    parts = [
        np.asarray([*encoding.ids, end], dtype=np.int32)
        for start in range(0, len(documents), DOCUMENTS_AT_ONCE)
        for encoding in tokenizer.encode_batch(documents[start : start + DOCUMENTS_AT_ONCE], add_special_tokens=False)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
