"""Sentence pairs: whatever the corpus, sequences are well made, and each is a function of its position alone."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from assay.errors import BadInput
from assay.options import BertOptions
from assay.options.base import validate
from assay.training.sentence_pairs import (
    CLS,
    IGNORED,
    MASK,
    MLM,
    NSP,
    PAD,
    SEP,
    SPECIALS,
    Corpus,
    SentencePairs,
    Vocabulary,
    open_pairs,
    split_sentences,
)
from assay.training.task import TOKENS, Batch
from assay.world import World

ALONE = World(0, 1, 0, 1, "gloo", ("host",), True)
DOCUMENTS = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=12), min_size=4, max_size=12)
CHOICES = st.fixed_dictionaries(
    {
        "seq_len": st.integers(21, 40),
        "seed": st.integers(0, 2**40),
        "short_share": st.sampled_from([0.0, 0.1, 1.0]),
        "mask_share": st.sampled_from([0.05, 0.15, 0.9]),
        "max_predictions": st.sampled_from([None, 1, 3]),
    }
)


def options(**given: object) -> BertOptions:
    return validate(BertOptions, {"data": "dummy", **given})


def traceable(documents: list[list[int]], chosen: BertOptions) -> SentencePairs:
    """Pairs of documents with sentences of these lengths, in which every token is its own place in the corpus."""
    sentences = np.concatenate([[0], np.cumsum([length for document in documents for length in document])])
    borders = np.concatenate([[0], np.cumsum([len(document) for document in documents])])
    total = int(sentences[-1])
    special = {name: total + number for number, name in enumerate(SPECIALS)}
    corpus = Corpus(np.arange(total, dtype=np.int32), sentences, borders)
    return SentencePairs(corpus, Vocabulary(special, np.arange(total)), chosen)


def unmasked(batch: Batch) -> list[list[int]]:
    """The sequences as they were before masking."""
    ids = batch["input_ids"].clone()
    for row, (places, labels) in enumerate(zip(batch["places"], batch["labels"], strict=True)):
        used = labels != IGNORED
        ids[row, places[used]] = labels[used]
    return [[int(one) for one in row] for row in ids]


def padded(batch: Batch, length: int) -> Batch:
    """With the attention mask that a batch without padding leaves out."""
    return {"attention_mask": torch.ones(len(batch["labels"]), length, dtype=torch.bool), **batch}


@settings(max_examples=60)
@given(documents=DOCUMENTS, given=CHOICES, first=st.integers(0, 300))
def test_every_sequence_is_two_stretches_of_text_between_special_tokens(
    documents: list[list[int]], given: dict[str, object], first: int
) -> None:
    chosen = options(**given)
    pairs = traceable(documents, chosen)
    special, borders = pairs.vocabulary.special, pairs.corpus.sentences[pairs.corpus.documents]
    positions = range(first, first + 20)
    batch = padded(pairs.batch(positions), chosen.seq_len)
    tokens = masks = 0
    for row, ids in enumerate(unmasked(batch)):
        seen = batch["attention_mask"][row].tolist()
        length = sum(seen)
        assert seen == [place < length for place in range(chosen.seq_len)]
        assert [one for one in ids if one == special[PAD]] == ids[length:]
        middle = ids.index(special[SEP])
        a, b = ids[1:middle], ids[middle + 1 : length - 1]
        assert ids[:length] == [special[CLS], *a, special[SEP], *b, special[SEP]]
        assert a == list(range(a[0], a[0] + len(a)))
        assert b == list(range(b[0], b[0] + len(b)))
        kinds = batch["token_type_ids"][row].tolist()
        assert kinds == [0] * (middle + 1) + [1] * (len(b) + 1) + [0] * (chosen.seq_len - length)
        one, other, end = (int(np.searchsorted(borders, at, side="right")) for at in (a[0], b[0], b[-1]))
        assert other == end
        assert one == np.searchsorted(borders, a[-1], side="right")
        # 0 is how transformers says that B follows A.
        assert (batch["next_sentence_label"][row] == 0) == (one == other)
        assert one != other or b[0] > a[-1]

        used = batch["labels"][row] != IGNORED
        places = batch["places"][row][used].tolist()
        assert len(set(places)) == len(places) == chosen.masked(length)
        assert 1 <= len(places) <= chosen.predictions == batch["places"].shape[1]
        assert not {0, middle, length - 1} & set(places)
        assert max(places) < length
        assert batch["places"][row][~used].eq(0).all()
        tokens, masks = tokens + length, masks + len(places)
    assert pairs.sizes(positions) == {TOKENS: tokens, MLM: masks, NSP: 20}


@settings(max_examples=30)
@given(documents=DOCUMENTS, given=CHOICES, data=st.data())
def test_a_position_gives_the_same_sequence_in_every_batch(
    documents: list[list[int]], given: dict[str, object], data: st.DataObject
) -> None:
    chosen = options(**given)
    pairs, again = traceable(documents, chosen), traceable(documents, chosen)
    whole = padded(pairs.batch(range(40)), chosen.seq_len)
    positions = data.draw(st.lists(st.integers(0, 39), min_size=1, max_size=12))
    part = padded(again.batch(positions), chosen.seq_len)
    assert all(torch.equal(part[name], whole[name][positions]) for name in whole)
    sizes = [again.sizes([position]) for position in positions]
    assert again.sizes(positions) == {name: sum(size[name] for size in sizes) for name in sizes[0]}


@settings(max_examples=30)
@given(documents=DOCUMENTS, given=CHOICES)
def test_held_out_documents_are_never_trained_on(documents: list[list[int]], given: dict[str, object]) -> None:
    pairs = traceable(documents, options(**given))
    text = len(pairs.corpus.tokens)
    trained = {one for ids in unmasked(pairs.batch(range(4 * pairs.epoch_length))) for one in ids if one < text}
    held_out = {one for ids in unmasked(pairs.held_out_batch(range(pairs.held_out))) for one in ids if one < text}
    assert trained
    assert held_out
    assert max(trained) < min(held_out)


def test_epochs_and_seeds_draw_anew() -> None:
    documents = [[5] * 40] * 10
    first = traceable(documents, options(seq_len=32, seed=1))
    other = traceable(documents, options(seq_len=32, seed=2))
    length = first.epoch_length
    drawn = [first.batch(range(length)), first.batch(range(length, 2 * length)), other.batch(range(length))]
    for name in ("input_ids", "places", "next_sentence_label"):
        assert len({batch[name].numpy().tobytes() for batch in drawn}) == 3, name


def off(count: int, total: int, share: float) -> float:
    """Standard deviations between `count` of `total` and what `share` promises."""
    return abs(count - total * share) / math.sqrt(total * share * (1 - share))


def test_shares_are_what_bert_asks_for() -> None:
    pairs = open_pairs(options(seq_len=64), ALONE)
    total, token = 2 * pairs.epoch_length, pairs.vocabulary.special
    batch = pairs.batch(range(total))
    assert off(int(batch["next_sentence_label"].sum()), total, 0.5) < 4
    used = batch["labels"] != IGNORED
    shown, truth = batch["input_ids"].gather(1, batch["places"])[used], batch["labels"][used]
    masked, same = shown == token[MASK], shown == truth
    assert off(int(masked.sum()), len(truth), 0.8) < 4
    assert off(int(same.sum()), len(truth), 0.1) < 4
    assert not any((shown[~masked] == number).any() for number in token.values())
    assert len(truth) / pairs.sizes(range(total))[TOKENS] == pytest.approx(0.15, abs=0.01)
    # Masked places lie everywhere alike.
    assert float(batch["places"][used].float().mean()) == pytest.approx(31, abs=1.5)


def test_a_tenth_of_the_sequences_is_short() -> None:
    pairs = traceable([[7] * 1000] * 20, options(seq_len=64))  # as good as no ends of documents, which shorten too
    total = pairs.epoch_length
    lengths = pairs.batch(range(total))["attention_mask"].sum(dim=1)
    assert off(int((lengths < 64).sum()), total, 0.1) < 4
    assert float(lengths[lengths < 64].float().mean()) == pytest.approx((5 + 64) / 2, abs=6)


def test_length_does_not_tell_whether_b_follows() -> None:
    pairs = traceable([[7] * 200] * 20, options(seq_len=50, short_share=0.0))
    batch = padded(pairs.batch(range(2 * pairs.epoch_length)), 50)
    whole = batch["attention_mask"].all(dim=1)
    assert whole.float().mean() > 0.95  # only where a document ends is there padding
    second = batch["token_type_ids"].sum(dim=1).float()
    follows = batch["next_sentence_label"] == 0
    error = float(second.std()) * math.sqrt(4 / len(second))
    assert abs(float(second[whole & follows].mean() - second[whole & ~follows].mean())) < 4 * error


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One here. Two!  Three?\nFour", ["One here.", "Two!", "Three?", "Four"]),
        ("A line\nbroken, v3.11 and so on.\n\nA heading\n\n", ["A line broken, v3.11 and so on.", "A heading"]),
        ("第一句。第二句！第三句", ["第一句。", "第二句！", "第三句"]),
        (" \n\n ", []),
    ],
)
def test_text_becomes_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def folder_of(tmp_path: Path, lines: list[str]) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    return folder


STORIES = [
    f"Rank {n} waits for rank {n + 1}. It waits long. It never came to the barrier number {n}." for n in range(9)
]


def test_a_folder_becomes_pairs_that_read_like_its_text(tmp_path: Path) -> None:
    given = {"data": str(folder_of(tmp_path, [*STORIES, "Alone."])), "tokenizer_cache": tmp_path / "cache"}
    pairs = open_pairs(options(**given), ALONE)
    (kept,) = (tmp_path / "cache").iterdir()
    tokenizer, special = Tokenizer.from_file(str(kept)), set(pairs.vocabulary.special.values())
    assert tokenizer.get_vocab_size() <= 2048 - 4
    assert special == {2044, 2045, 2046, 2047}
    assert len(pairs.corpus.documents) - 1 == len(STORIES)  # one sentence alone has no next one
    assert tokenizer.decode(pairs.corpus.tokens.tolist()) == " " + " ".join(STORIES)
    for ids in unmasked(pairs.batch(range(20))):
        words = tokenizer.decode([one for one in ids if one not in special])
        assert any(words.strip()[:20] in story for story in STORIES)


def test_the_standard_library_has_enough_text(tmp_path: Path) -> None:
    pairs = open_pairs(options(data="text", tokenizer_cache=tmp_path), ALONE)
    assert len(pairs.corpus.tokens) > 50_000
    assert pairs.epoch_length > 400
    assert pairs.held_out >= 64


@pytest.mark.parametrize("lines", [[], STORIES[:1], STORIES[:3], ["One sentence only"] * 50])
def test_too_few_documents_are_refused(tmp_path: Path, lines: list[str]) -> None:
    given = {"data": str(folder_of(tmp_path, lines)), "tokenizer_cache": tmp_path / "cache"}
    count = 0 if len(lines) > 3 else len(lines)
    with pytest.raises(BadInput, match=rf"texts: {count} documents .* 4 are needed: .*give more \.txt files or lines"):
        open_pairs(options(**given), ALONE)


def test_a_torn_line_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, STORIES)
    with (folder / "a.jsonl").open("a") as file:
        file.write('{"text": "torn')
    with pytest.raises(BadInput, match=r"a\.jsonl, line 10: not valid JSON"):
        open_pairs(options(data=str(folder), tokenizer_cache=tmp_path / "cache"), ALONE)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_predictions": 0}, "--max-predictions: .*greater than or equal to 1, got 0"),
        ({"seq_len": 4}, "--seq-len: .*greater than or equal to 5, got 4"),
        ({"seq_len": 513}, "--seq-len 513 is longer than the 512 positions of bert-tiny; use 512 or less"),
        ({"mask_share": 0.0}, "--mask-share: .*greater than 0"),
        ({"model": "bert-bass"}, "unknown model 'bert-bass'; did you mean 'bert-base'"),
    ],
)
def test_options_that_cannot_work_are_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        options(**given)


@pytest.mark.parametrize(("given", "places"), [({}, 19), ({"seq_len": 512}, 77), ({"max_predictions": 10}, 10)])
def test_places_to_predict_are_as_many_as_the_longest_sequence_has(given: dict[str, object], places: int) -> None:
    assert options(**given).predictions == places


def test_the_shortest_sequence_works() -> None:
    pairs = open_pairs(options(seq_len=5, mask_share=0.99), ALONE)
    batch = pairs.batch(range(16))
    assert batch["places"].shape == (16, 2)
    assert sorted(batch["places"][0].tolist()) == [1, 3]
