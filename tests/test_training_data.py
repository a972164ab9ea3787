"""Training data: the same global batch for every world, nothing held out is trained on, and sentences for bad text."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.device import HostDevice
from assay.errors import BadInput
from assay.options import PretrainOptions
from assay.options.base import validate
from assay.training.causal import CausalTask
from assay.training.data import Data, DummyData, TextData, open_data
from assay.training.engines import Engine
from assay.training.loop import Job
from assay.world import World

VOCAB = 300
PROSE = "In the beginning the ranks were without form, and void; and rank 0 said: let there be a barrier. " * 40


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank, size, rank, size, "gloo", ("host",) * size, True)


def options(**given: object) -> PretrainOptions:
    return validate(PretrainOptions, given)


def global_batch(data: Data, chosen: PretrainOptions, step: int, size: int) -> list[tuple[int, ...]]:
    task = CausalTask(chosen, data)
    jobs = [Job(chosen, cast(Engine, None), task, world(rank, size), HostDevice()) for rank in range(size)]
    shares = [job.share(step, micro) for job in jobs for micro in range(job.passes)]
    assert sorted(position for share in shares for position in share) == list(jobs[0].positions(step))
    batches = [task.batch(share)["rows"] for share in shares]
    assert all(batch.shape == (chosen.micro_batch, chosen.seq_len + 1) for batch in batches)
    return sorted(tuple(row) for batch in batches for row in batch.tolist())


@given(
    size=st.sampled_from([2, 3, 4, 6, 12]), micro=st.sampled_from([1, 2]), step=st.integers(0, 40), text=st.booleans()
)
def test_every_world_sees_the_same_global_batch(size: int, micro: int, step: int, text: bool) -> None:
    chosen = options(global_batch=24, micro_batch=micro, seq_len=8)
    data = TextData(np.arange(1000, dtype=np.int32), 8, seed=1) if text else DummyData(1, VOCAB, 8)
    assert global_batch(data, chosen, step, size) == global_batch(data, chosen, step, 1)


@given(windows=st.integers(2, 200), seed=st.integers(0, 2**32), epoch=st.integers(0, 3))
def test_each_epoch_trains_on_every_window_once_and_on_none_held_out(windows: int, seed: int, epoch: int) -> None:
    data = TextData(np.arange(4 * windows + 1, dtype=np.int32), 4, seed)
    trained = windows - data.held_out
    seen = [int(data.train_row(epoch * trained + place)[0]) // 4 for place in range(trained)]
    held = [int(data.held_out_row(index)[0]) // 4 for index in range(data.held_out)]
    assert sorted(seen) == list(range(trained))
    assert held == list(range(trained, windows))
    assert data.held_out == max(1, int(windows * 0.05))


def test_epochs_and_seeds_shuffle_anew() -> None:
    tokens = np.arange(401, dtype=np.int32)
    orders = [
        [int(TextData(tokens, 4, seed).train_row(95 * epoch + i)[0]) for i in range(95)]
        for seed, epoch in ((1, 0), (1, 1), (2, 0))
    ]
    assert len({tuple(order) for order in orders}) == 3


def test_dummy_tokens_stay_in_the_vocabulary_and_evaluation_is_apart() -> None:
    data = DummyData(1, VOCAB, 64)
    rows = np.stack([data.train_row(position) for position in range(50)])
    assert rows.min() >= 0
    assert rows.max() < VOCAB
    assert len({row.tobytes() for row in rows} | {data.held_out_row(0).tobytes()}) == 51


def prose_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "prose"
    folder.mkdir()
    (folder / "a.txt").write_text(PROSE)
    (folder / "b.jsonl").write_text('{"text": "one line \\u2028 of text"}\n\n{"text": "another", "id": 2}\n')
    return folder


def open_text(folder: Path, cache: Path, seq_len: int = 16) -> TextData:
    chosen = options(data=str(folder), tokenizer_cache=cache, seq_len=seq_len)
    data = open_data(chosen, VOCAB, world())
    assert isinstance(data, TextData)
    return data


def test_a_folder_becomes_tokens_and_its_tokenizer_is_kept(tmp_path: Path) -> None:
    folder, cache = prose_folder(tmp_path), tmp_path / "cache"
    first = open_text(folder, cache)
    (kept,) = cache.iterdir()
    stamp = kept.stat().st_mtime_ns
    second = open_text(folder, cache)
    assert first.tokens.tolist() == second.tokens.tolist()
    assert first.tokens.max() < VOCAB
    assert kept.stat().st_mtime_ns == stamp, "the kept tokenizer was not used"
    (folder / "a.txt").write_text(PROSE + "More.")
    assert open_text(folder, cache).digest != first.digest
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_trained_again(tmp_path: Path, damage: bytes) -> None:
    folder, cache = prose_folder(tmp_path), tmp_path / "cache"
    first = open_text(folder, cache)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage)
    assert open_text(folder, cache).tokens.tolist() == first.tokens.tolist()
    assert kept.read_bytes() == whole
    assert list(cache.iterdir()) == [kept]


def test_the_standard_library_has_enough_text(tmp_path: Path) -> None:
    data = open_data(options(tokenizer_cache=tmp_path), 2048, world())
    assert isinstance(data, TextData)
    assert len(data.tokens) > 50_000
    assert data.held_out >= 4


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"cannot be kept in .*file.*--tokenizer-cache"):
        open_text(prose_folder(tmp_path), tmp_path / "file" / "cache")


def test_text_that_is_too_short_says_how_much_is_needed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--seq-len 4096 needs at least 8193"):
        open_text(prose_folder(tmp_path), tmp_path / "cache", seq_len=4096)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("c.jsonl", b'{"text": "good"}\n{"text": "torn', r"c\.jsonl, line 2: not valid JSON"),
        ("c.jsonl", b'{"text": "good"}\n\n{"prompt": "x"}\n', r'c\.jsonl, line 3: no text under the key "text"'),
        ("c.jsonl", b'{"text": 5}\n', r"c\.jsonl, line 1: no text"),
        ("c.jsonl", b'["text"]\n', r"c\.jsonl, line 1: no text"),
        ("c.jsonl", b'{"text": "\xff"}\n', r"c\.jsonl, line 1: not valid JSON"),
        ("c.txt", b"good\nbad \xff\n", r"c\.txt, line 2: not UTF-8"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=sentence):
        open_text(tmp_path, tmp_path / "cache")


def test_folders_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        open_text(tmp_path / "nowhere", tmp_path)
    with pytest.raises(BadInput, match=r"no \.txt or \.jsonl file"):
        open_text(tmp_path, tmp_path)
    (tmp_path / "a.txt").write_text(PROSE)
    with pytest.raises(BadInput, match="is a file, not a folder"):
        open_text(tmp_path / "a.txt", tmp_path)


def test_a_vocabulary_without_room_for_every_byte_is_refused(tmp_path: Path) -> None:
    chosen = options(data=str(prose_folder(tmp_path)), tokenizer_cache=tmp_path / "cache")
    with pytest.raises(BadInput, match="cannot hold every byte"):
        open_data(chosen, 100, world())
