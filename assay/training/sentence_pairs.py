"""Pairs of sentences for BERT, made on the fly: which pair comes when, and what of it is masked, depends on the seed alone.

As Devlin et al. 2018, appendix A.2, and the authors' own preparation of data: [CLS] A [SEP] B [SEP]; A and B are runs of
whole sentences that fill the sequence together, some sequences short; B follows A in its document, or, half the time, is
out of another one; what is too long loses tokens of the longer segment at either end; of the chosen tokens 80 % become
[MASK], 10 % another token, 10 % stay. Not as there: pairs, cuts and masks are drawn anew in each epoch, a short sequence
has just the length that was drawn for it, and sentences of more than half a sequence are cut, so that each run has two.
"""

import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from assay.errors import BadInput
from assay.options import BertOptions
from assay.presets import ENCODERS
from assay.training.agreement import same_everywhere
from assay.training.data import DOCUMENTS_AT_ONCE, HELD_OUT_SHARE, epoch_order
from assay.training.task import TOKENS, Batch
from assay.training.text import read_documents
from assay.training.tokenizer import shared_tokenizer, text_digest
from assay.training.vocabulary import load_tokenizer
from assay.training.weights import raw_bits
from assay.world import World

MLM, NSP = "mlm_loss", "nsp_loss"
IGNORED = -100  # the label of a place that is not predicted
HELD_OUT_DRAWS = 8  # pairs made of each held-out run of sentences: a small text has few of them
_DRAWS = 8  # random numbers that a pair takes, besides its masks

# A pair: its two segments as stretches of the corpus, whether B follows A, and how many of its tokens are masked.
_PAIR = np.dtype([(name, np.int64) for name in ("a", "a_length", "b", "b_length", "follows", "masked")])
Pairs = NDArray[np.void]
Bits = NDArray[np.uint64]
Indices = NDArray[np.int64]

_BOUNDARY = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n\s*\n")  # a sentence ends, or a paragraph
PAD, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
# Of dummy data. Documents of thousands of tokens, so that few sequences are the short rest of one; the length is the longest.
_MADE_DOCUMENTS, _MADE_SENTENCES, _MADE_LENGTH = 256, 512, 32


@dataclass(frozen=True)
class Vocabulary:
    """Identifiers of the special tokens, and of all others: they take the places of some masked ones."""

    special: Mapping[str, int]
    words: Indices


@dataclass(frozen=True)
class Corpus:
    """Tokens of all documents; the first token of each sentence, and the first sentence of each document, and the ends."""

    tokens: NDArray[np.int32]
    sentences: Indices
    documents: Indices
    digest: str = ""


def split_sentences(document: str) -> list[str]:
    """Sentences of a text, in one line each. A full stop with space behind it, or an empty line, ends one."""
    return [" ".join(part.split()) for part in _BOUNDARY.split(document) if part.strip()]


def encode(documents: Sequence[Sequence[str]], tokenizer: Tokenizer, longest: int, digest: str = "") -> Corpus:
    """Sentences as tokens, those of more than `longest` cut; documents of fewer than two pieces are left out."""
    tokens, pieces, counts = array("i"), array("i"), []
    for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
        group = documents[start : start + DOCUMENTS_AT_ONCE]
        # A space before it, as within a text: byte-level tokens know a word with it from one without.
        flat = [" " + sentence for document in group for sentence in document]
        encoded = iter(tokenizer.encode_batch(flat, add_special_tokens=False))
        for document in group:
            found = [encoding.ids for encoding in islice(encoded, len(document))]
            cut = [min(longest, len(ids) - at) for ids in found for at in range(0, len(ids), longest)]
            if len(cut) > 1:
                tokens.extend(one for ids in found for one in ids)
                pieces.extend(cut)
                counts.append(len(cut))
    return Corpus(np.array(tokens, dtype=np.int32), _starts(pieces), _starts(counts), digest)


def make_corpus(seed: int, words: int, longest: int) -> Corpus:
    """Made-up documents of uniform random tokens below `words`, a function of the seed."""
    sentences = _MADE_DOCUMENTS * _MADE_SENTENCES
    pieces = 1 + _below(raw_bits(seed, "dummy sentences", 0, sentences), min(_MADE_LENGTH, longest))
    tokens = _below(raw_bits(seed, "dummy tokens", 0, int(pieces.sum())), words)
    return Corpus(tokens.astype(np.int32), _starts(pieces), _starts([_MADE_SENTENCES] * _MADE_DOCUMENTS))


def _starts(counts: Sequence[int] | Indices) -> Indices:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))])


def open_pairs(options: BertOptions, world: World) -> "SentencePairs":
    """The pairs of the text that `options.data` names. All ranks call it together. Raises BadInput if it cannot be used."""
    vocab, longest = ENCODERS[options.model].vocab, (options.seq_len - 3) // 2
    words = vocab - len(SPECIALS)  # without a tokenizer of theirs, the special tokens come behind all others
    vocabulary = Vocabulary(dict(zip(SPECIALS, range(words, vocab), strict=True)), np.arange(words))
    if options.data == "dummy":
        return SentencePairs(make_corpus(options.seed, words, longest), vocabulary, options)
    documents = [split_sentences(document) for document in read_documents(options.data)]
    texts = [" ".join(document) for document in documents]
    digest = text_digest(texts)
    same_everywhere(f"--data {options.data}", digest, world)
    if options.weights:
        tokenizer, vocabulary = read_vocabulary(options.weights, vocab)
    else:
        tokenizer = shared_tokenizer(texts, words, options.tokenizer_cache, world)
    return SentencePairs(encode(documents, tokenizer, longest, digest), vocabulary, options)


def read_vocabulary(folder: Path, size: int) -> tuple[Tokenizer, Vocabulary]:
    """The tokenizer beside pretrained weights. Raises BadInput if there is none, or not one for a BERT of `size` tokens."""
    tokenizer = load_tokenizer(folder)
    special = {name: number for name in SPECIALS if (number := tokenizer.token_to_id(name)) is not None}
    if len(special) < len(SPECIALS) or tokenizer.get_vocab_size() > size:
        raise BadInput(
            f"--weights {folder}: its tokenizer has {tokenizer.get_vocab_size()} tokens, {len(special)} of "
            f"{', '.join(SPECIALS)} among them; expected all of these and at most {size} tokens: it is another model's"
        )
    return tokenizer, Vocabulary(special, np.setdiff1d(np.arange(size), list(special.values())))


@dataclass(frozen=True)
class Runs:
    """Documents `first` to `last` of a corpus, and the runs of sentences, [N, 3], that pairs are made of.

    A run is its document, its first sentence and the one behind its last; it has two sentences or more, and enough
    tokens to fill a sequence unless its document ends before.
    """

    corpus: Corpus
    first: int
    last: int
    spans: Indices


def cut_runs(corpus: Corpus, first: int, last: int, room: int) -> Runs:
    """The documents' sentences in runs of at least `room` tokens each, in their order."""
    starts = corpus.sentences
    behind = np.searchsorted(starts, starts[:-1] + room).tolist()
    spans = []
    for document in range(first, last):
        begin, end = corpus.documents[document : document + 2].tolist()
        while begin < end:
            stop = max(behind[begin], begin + 2)
            stop = stop if end - stop >= 2 else end
            spans.append((document, begin, stop))
            begin = stop
    return Runs(corpus, first, last, np.array(spans, dtype=np.int64).reshape(-1, 3))


class SentencePairs:
    """Sequences by their position in the endless training order, and held-out ones by their index.

    epoch_length: sequences of an epoch; epoch(number): its pairs, in the order of training. The last documents are held
    out: two, or as many as have up to 5 % of the tokens.
    """

    def __init__(self, corpus: Corpus, vocabulary: Vocabulary, options: BertOptions) -> None:
        documents = len(corpus.documents) - 1
        if documents < 4:
            raise BadInput(
                f"--data {options.data}: {documents} documents have two sentences or more, and 4 are needed: a false next "
                "sentence is out of another document, and two are held out; give more .txt files or lines of .jsonl"
            )
        self.corpus = corpus
        self.vocabulary = vocabulary
        self._options = options
        self._masked = np.array([options.masked(max(length, 4)) for length in range(options.seq_len + 1)])
        room, tokens = options.seq_len - 3, corpus.sentences[corpus.documents]
        border = min(max(int(np.searchsorted(tokens, (1 - HELD_OUT_SHARE) * tokens[-1])), 2), documents - 2)
        self._trained, self._held_out = cut_runs(corpus, 0, border, room), cut_runs(corpus, border, documents, room)
        self.held_out = len(self._held_out.spans) * HELD_OUT_DRAWS
        self.epoch_length = len(self._trained.spans)
        self.epoch = lru_cache(maxsize=2)(self._plan_epoch)  # a step may end one epoch and begin the next
        self._held_out_pairs = self._plan(
            self._held_out, np.tile(np.arange(len(self._held_out.spans)), HELD_OUT_DRAWS), "held-out pairs"
        )

    def _plan_epoch(self, epoch: int) -> Pairs:
        order = epoch_order(self._options.seed, epoch, self.epoch_length)
        return self._plan(self._trained, order, f"pairs of epoch {epoch}")

    def _plan(self, runs: Runs, chosen: Indices, stream: str) -> Pairs:
        bits = raw_bits(self._options.seed, stream, 0, len(chosen) * _DRAWS).reshape(-1, _DRAWS)
        return plan_pairs(runs, chosen, bits, self._options, self._masked)

    def sizes(self, positions: Sequence[int]) -> dict[str, int]:
        """Tokens that are no padding, masked tokens, and pairs, of the sequences at `positions` together."""
        pairs = np.concatenate([self.epoch(epoch)[a:b] for epoch, a, b in _stretches(positions, self.epoch_length)])
        return {TOKENS: int(lengths(pairs).sum()), MLM: int(pairs["masked"].sum()), NSP: len(pairs)}

    def batch(self, positions: Sequence[int]) -> Batch:
        """The sequences at `positions`: see `_sequences`."""
        return self._make(positions, self.epoch_length, self.epoch, "masks of epoch")

    def held_out_batch(self, indices: Sequence[int]) -> Batch:
        """Sequences of text that is never trained on."""
        return self._make(indices, self.held_out, lambda _: self._held_out_pairs, "held-out masks")

    def _make(self, numbers: Sequence[int], length: int, pairs_of: Callable[[int], Pairs], stream: str) -> Batch:
        width = self._options.seq_len + self._options.predictions
        pairs, bits = [], []
        for epoch, first, last in _stretches(numbers, length):
            pairs.append(pairs_of(epoch)[first:last])
            count = (last - first) * width
            bits.append(raw_bits(self._options.seed, f"{stream} {epoch}", first * width, count).reshape(-1, width))
        return self._sequences(np.concatenate(pairs), np.concatenate(bits))

    def _sequences(self, pairs: Pairs, bits: Bits) -> Batch:
        """Tensors of B pairs of T places with P masked ones at most. bits: [B, T + P].

        input_ids, token_type_ids: int64 [B, T]; places, labels: int64 [B, P], unused ones at place 0 with the label
        IGNORED; next_sentence_label: int64 [B], 0 where B follows A; attention_mask: bool [B, T], only where there is
        padding.
        """
        place, token = np.arange(self._options.seq_len), self.vocabulary.special
        a, length = pairs["a_length"][:, None], lengths(pairs)[:, None]
        in_a = (place > 0) & (place <= a)
        text = in_a | (place > a + 1) & (place < length - 1)
        source = np.where(in_a, pairs["a"][:, None] + place - 1, pairs["b"][:, None] + place - a - 2)
        ids = np.where(text, self.corpus.tokens[np.where(text, source, 0)], token[SEP]).astype(np.int64)
        ids[:, 0] = token[CLS]
        ids[place >= length] = token[PAD]

        luck = np.where(text, bits[:, : len(place)], ~np.uint64(0))
        places = np.argsort(luck, axis=1, kind="stable")[:, : self._options.predictions]
        used = np.arange(places.shape[1]) < pairs["masked"][:, None]
        places = np.where(used, places, 0)
        labels = np.take_along_axis(ids, places, axis=1)
        shown = self._disguised(labels, bits[:, len(place) :])
        np.put_along_axis(ids, places, np.where(used, shown, token[CLS]), axis=1)
        arrays = {
            "input_ids": ids,
            "token_type_ids": ((place > a + 1) & (place < length)).astype(np.int64),
            "places": places,
            "labels": np.where(used, labels, IGNORED),
            "next_sentence_label": 1 - pairs["follows"],
        }
        if (length < len(place)).any():
            arrays["attention_mask"] = place < length
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _disguised(self, tokens: Indices, bits: Bits) -> Indices:
        """What the model sees in place of masked tokens: 80 % [MASK], 10 % any token, 10 % the token itself."""
        words = self.vocabulary.words
        fate, other = bits % np.uint64(10), words[(bits // np.uint64(10) % np.uint64(len(words))).astype(np.int64)]
        return np.where(fate < 8, self.vocabulary.special[MASK], np.where(fate == 8, other, tokens))


def lengths(pairs: Pairs) -> Indices:
    """Tokens of each sequence, padding not counted."""
    total: Indices = pairs["a_length"] + pairs["b_length"] + 3
    return total


def plan_pairs(runs: Runs, chosen: Indices, bits: Bits, options: BertOptions, masked: Indices) -> Pairs:
    """One pair out of each of the `chosen` runs. bits: [N, _DRAWS]; masked: tokens to mask, by the sequence's length.

    A false B is as long as the true one would have been, as far as its document goes, so that lengths betray nothing.
    """
    starts, documents = runs.corpus.sentences, runs.corpus.documents
    document, first, last = runs.spans[chosen].T
    # How many tokens A and B are to have: what fits, what is there, or for a short sequence any number from 2 on.
    short = (bits[:, 0] >> np.uint64(11)) * 2.0**-53 < options.short_share
    drawn = 2 + _below(bits[:, 1], options.seq_len - 4)
    aim = np.minimum(np.where(short, drawn, options.seq_len - 3), starts[last] - starts[first])
    behind = np.clip(np.searchsorted(starts, starts[first] + aim), first + 2, last)
    middle = first + 1 + _below(bits[:, 2], behind - first - 1)
    a = starts[middle] - starts[first]

    follows = bits[:, 3] >> np.uint64(63) == 0
    count = runs.last - runs.first
    other = runs.first + (document - runs.first + 1 + _below(bits[:, 4], count - 1)) % count
    wanted = np.maximum(aim - a, 1)
    # Any sentence with enough text behind it, or the document from its start.
    latest = np.searchsorted(starts, starts[documents[other + 1]] - wanted, side="right") - 1
    begin = documents[other] + _below(bits[:, 5], np.maximum(latest - documents[other], 0) + 1)
    end = np.clip(np.searchsorted(starts, starts[begin] + wanted), begin + 1, documents[other + 1])
    begin, end = np.where(follows, middle, begin), np.where(follows, behind, end)
    b = starts[end] - starts[begin]

    # The longer one gives up tokens, one by one, until both fit: B where they are equally long.
    a_length = np.minimum(a, np.maximum(aim - b, (aim + 1) // 2))
    b_length = np.minimum(b, np.maximum(aim - a, aim // 2))
    pairs = np.empty(len(chosen), dtype=_PAIR)
    pairs["a"], pairs["a_length"] = starts[first] + _below(bits[:, 6], a - a_length + 1), a_length
    pairs["b"], pairs["b_length"] = starts[begin] + _below(bits[:, 7], b - b_length + 1), b_length
    pairs["follows"] = follows
    pairs["masked"] = masked[lengths(pairs)]
    return pairs


def _below(bits: Bits, limits: Indices | int) -> Indices:
    """Random numbers from 0 to below `limits`."""
    return (bits % np.asarray(limits).astype(np.uint64)).astype(np.int64)


def _stretches(numbers: Sequence[int], length: int) -> Iterator[tuple[int, int, int]]:
    """Numbers of the endless order as (epoch, first, last): neighbours of one epoch together, in their order."""
    epochs, places = np.divmod(np.asarray(numbers, dtype=np.int64), length)
    breaks = np.flatnonzero((np.diff(places) != 1) | (np.diff(epochs) != 0)) + 1
    for part_epochs, part in zip(np.split(epochs, breaks), np.split(places, breaks), strict=True):
        yield int(part_epochs[0]), int(part[0]), int(part[-1]) + 1
