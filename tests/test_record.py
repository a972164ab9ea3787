import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assay.errors import RunFailed
from assay.record import Header, encode_block, encode_header, read_header, read_rank_file
from assay.recorder import FLUSH_SAMPLES, Recorder

HEADER = Header(
    rank=3, world=8, local_rank=3, local_world=8, host="n1", pid=42, clock_id="boot", device="cpu",
    device_name="CPU", backend="gloo", script="comms/bench", monotonic=1.0, wall=2.0,
)  # fmt: skip


def block(samples: list[float | None], **more: object) -> str:
    about: dict[str, object] = {"tags": {"op": "x"}, "first_step": None, "t_first": 0.0, "t_last": 1.0, **more}
    return encode_block("loss", "1", samples, **about)  # type: ignore[arg-type] # keywords are given by each test


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30))
def test_samples_survive_to_the_last_bit(tmp_path: Path, samples: list[float]) -> None:
    path = tmp_path / "rank.jsonl"
    line = block(list(samples))
    path.write_text(encode_header(HEADER) + line)
    json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    (read,) = read_rank_file(path).blocks
    np.testing.assert_array_equal(read.samples, np.array(samples, dtype=float))


def test_unknown_is_null_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "rank.jsonl"
    path.write_text(encode_header(HEADER) + block([None], reason="no sensor"))
    (read,) = read_rank_file(path).blocks
    assert math.isnan(read.samples[0])
    assert read.reason == "no sensor"
    assert '"samples":[null]' in path.read_text()


def test_a_torn_last_line_is_tolerated_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "rank.jsonl"
    whole = encode_header(HEADER) + block([1.0]) + block([2.0])
    for cut in range(1, len(block([2.0]))):
        path.write_text(whole[:-cut])
        read = read_rank_file(path)
        assert read.header == HEADER
        assert read.garbage == []
        assert [b.samples[0] for b in read.blocks][:1] == [1.0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b"") + b"\n"), max_size=5))
def test_garbage_between_records_never_hides_them(tmp_path: Path, noise: list[bytes]) -> None:
    path = tmp_path / "rank.jsonl"
    path.write_bytes(encode_header(HEADER).encode() + b"".join(noise) + block([5.0]).encode())
    read = read_rank_file(path)
    assert read.header == HEADER
    assert [list(b.samples) for b in read.blocks] == [[5.0]]


@pytest.mark.parametrize(
    "line",
    ['{"kind":"block"}', '{"kind":"block","metric":1,"unit":"s","samples":[1],"t":[0,0],"tags":{}}', "[1,2]", "null",
     '{"kind":"block","metric":"m","unit":"s","samples":["x"],"t":[0,0],"tags":{}}', "warning: hello"],
)  # fmt: skip
def test_lines_that_are_no_records_are_named_with_their_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rank.jsonl"
    path.write_text(encode_header(HEADER) + line + "\n" + block([1.0]))
    read = read_rank_file(path)
    assert len(read.blocks) == 1
    assert read.garbage[0].startswith("line 2: ")


def test_records_of_another_schema_are_not_taken_for_ours(tmp_path: Path) -> None:
    path = tmp_path / "rank.jsonl"
    path.write_text(encode_header(HEADER).replace("assay-record/1", "assay-record/9") + block([1.0]))
    read = read_rank_file(path)
    assert read.header is None
    assert read.blocks == []
    assert "assay-record/9" in read.garbage[0]
    assert read_header(path) is None


def test_a_series_numbers_its_steps_over_blocks(tmp_path: Path) -> None:
    path = tmp_path / "out" / "rank.jsonl"
    recorder = Recorder(path, HEADER)
    series = recorder.series("step_time", "s", {"phase": "measured"}, first_step=10)
    count = FLUSH_SAMPLES + 5
    for value in range(count):
        series.add(float(value))
    on_disk = read_rank_file(path)
    assert [b.first_step for b in on_disk.blocks] == [10], "a full block is on disk before the file is closed"
    recorder.close()
    first, second = read_rank_file(path).blocks
    assert second.first_step == 10 + FLUSH_SAMPLES
    assert len(first.samples) + len(second.samples) == count
    assert second.t_first >= first.t_first


def test_a_full_disk_is_one_sentence_and_what_was_written_stays(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"/dev/full: the disk is full, \d+ bytes could not be written"):
        Recorder(Path("/dev/full"), HEADER)


def test_without_a_path_nothing_is_kept_and_nothing_fails(tmp_path: Path) -> None:
    recorder = Recorder(None, HEADER)
    recorder.series("a", "s").add(1.0)
    recorder.block("b", "s", [1.0])
    recorder.close()
    assert list(tmp_path.iterdir()) == []
