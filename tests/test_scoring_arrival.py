"""From rank files to aligned times, figures, doubts and the report's table, on records written for the purpose."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from assay.record import Header, RankFile, encode_block, read_rank_file
from assay.recorder import Recorder
from assay.report.arrival import late_part, split_chart
from assay.scoring.arrival import call_times, doubts, figures, late_ranks, read_calls
from assay.scoring.result import Figure

WAIT = 0.02
TRANSFER = 1e-2
CALLS = 30


def tags(op: str, size: int, world: int) -> dict[str, Any]:
    return {"op": op, "bytes": size, "dtype": "float32", "backend": "gloo", "world": world}


def write(
    folder: Path,
    *,
    world: int = 3,
    offsets: tuple[float, ...] = (0, 0, 0),
    error: float | None = 1e-5,
    late: dict[str, int] | None = None,
    ops: tuple[str, ...] = ("all_reduce", "broadcast"),
    sizes: tuple[int, ...] = (1024, 4096, 16384),
) -> list[RankFile]:
    """A run in which rank `late[op]` enters WAIT after the others. offsets: of each rank's clock; equal ones share it.

    error: what each probe says, and how wrong it is; None: clocks were never compared.
    """
    random = np.random.default_rng(1)
    recorders = []
    for rank in range(world):
        header = Header(
            rank=rank, world=world, local_rank=rank, local_world=world, host=f"host{rank}", pid=1,
            clock_id=f"boot{offsets[rank]}", device="cpu", device_name="cpu", backend="gloo", script="comms/bench",
            monotonic=100 + offsets[rank], wall=0.0,
        )  # fmt: skip
        recorders.append(Recorder(folder / f"rank-{rank:05d}.jsonl", header))
        for at in (100.0, 300.0) if error is not None and len(set(offsets)) > 1 else ():
            own = at + offsets[rank]
            line = encode_block(
                "clock_offset", "s", [offsets[rank] + (error or 0) * (rank > 0)],
                tags={"error": (error or 0) * (rank > 0)}, first_step=None, t_first=own, t_last=own,
            )  # fmt: skip
            recorders[-1].write(line)
    for number, (op, size) in enumerate((op, size) for op in ops for size in sizes):
        part = 2 if op == "pt2pt" else world
        entries = 110.0 + number + np.arange(CALLS) * 0.03 + random.exponential(1e-4, (part, CALLS))
        if late and op in late:
            entries[late[op]] += WAIT
        exits = entries.max(axis=0) + TRANSFER * random.uniform(0.9, 1.0, (part, CALLS))
        exits[0] = entries.max(axis=0) + TRANSFER
        for rank in range(part):
            for metric, times in (("call_entry", entries[rank]), ("call_exit", exits[rank])):
                recorders[rank].block(metric, "s", list(times + offsets[rank]), tags(op, size, world))
    for recorder in recorders:
        recorder.close()
    return [read_rank_file(folder / f"rank-{rank:05d}.jsonl") for rank in range(world)]


def every(files: list[RankFile]) -> list[dict[str, Any]]:
    return [dict(block.tags) for block in files[0].blocks if block.metric == "call_entry"]


def figure(found: list[Figure], metric: str) -> Figure:
    (one,) = (item for item in found if item.metric == metric)
    return one


@pytest.mark.parametrize("offsets", [(0, 0, 0), (0, -5000.25, 1e6)])
def test_times_waiting_and_the_late_rank_are_the_same_whatever_the_clocks_say(
    tmp_path: Path, offsets: tuple[float, ...]
) -> None:
    files = write(tmp_path, offsets=offsets, late={"broadcast": 2})
    clean, held = every(files)[0], every(files)[-1]
    times, how, error = call_times(files, clean)
    assert how == "last entry to last exit"
    assert error <= 3e-5
    assert times == pytest.approx(np.full(CALLS, TRANSFER), abs=5e-5)
    split = figures(files, held)
    assert figure(split, "transfer_time").value == pytest.approx(TRANSFER, abs=5e-5)
    assert figure(split, "waiting_time").value == pytest.approx(WAIT * 2 / 3, abs=4e-4)
    assert (figure(figures(files, clean), "waiting_time").value or 1) < 5e-4
    found = late_ranks(files, every(files))
    assert [(item.tags["op"], item.tags["bytes"], item.late.rank, item.host) for item in found] == [
        ("broadcast", size, 2, "host2") for size in (1024, 4096, 16384)
    ]
    for item in found:
        assert item.late.lateness.low is not None
        assert item.late.lateness.high is not None
        assert item.late.lateness.low < WAIT < item.late.lateness.high + 4e-4


def test_clocks_that_were_never_compared_or_are_too_bad_give_the_longest_duration(tmp_path: Path) -> None:
    for name, error, words in (("never", None, "were not compared"), ("bad", 1e-3, "may differ by")):
        files = write(tmp_path / name, offsets=(0, 70, 0), error=error)
        times, how, bound = call_times(files, every(files)[0])
        assert how == "longest over ranks, waiting included"
        assert bound == 0
        calls = read_calls(files, every(files)[0])
        assert calls is not None
        assert list(times) == list((calls.exits - calls.entries).max(axis=0))
        split = figures(files, every(files)[0])
        assert [item.value for item in split] == [None, None]
        assert all(words in (item.reason or "") for item in split)


def test_one_doubt_for_a_rank_that_is_late_everywhere_else_one_for_each_op(tmp_path: Path) -> None:
    same = write(tmp_path / "same", late={"all_reduce": 1, "broadcast": 1})
    ((kind, subject, message),) = doubts(late_ranks(same, every(same)))
    assert (kind, subject) == ("late_rank", "all_reduce, broadcast, rank 1")
    assert message.startswith("rank 1 on host1 enters after all others, by ")
    assert "late in 6 measurements: all_reduce 1KiB–16KiB, broadcast 1KiB–16KiB" in message
    other = write(tmp_path / "other", late={"all_reduce": 1, "broadcast": 2})
    assert [subject for _, subject, _ in doubts(late_ranks(other, every(other)))] == [
        "all_reduce, rank 1",
        "broadcast, rank 2",
    ]
    clean = write(tmp_path / "clean")
    assert doubts(late_ranks(clean, every(clean))) == []


def test_of_pt2pt_only_its_two_ranks_are_looked_at(tmp_path: Path) -> None:
    files = write(tmp_path, ops=("pt2pt",), late={"pt2pt": 1})
    assert {item.late.rank for item in late_ranks(files, every(files))} == {1}
    assert call_times(files, every(files)[0])[0] == pytest.approx(np.full(CALLS, TRANSFER), abs=1e-9)


def test_missing_ranks_and_garbage_are_survived(tmp_path: Path) -> None:
    write(tmp_path, offsets=(0, 50, 70), late={"all_reduce": 1})
    first, second, third = (tmp_path / f"rank-{rank:05d}.jsonl" for rank in range(3))
    key = every([read_rank_file(first)])[0]
    third.write_text("nonsense\n{}\n")
    lines = second.read_text().splitlines(keepends=True)
    extra = '{"kind":"block","metric":"clock_offset","unit":"s","samples":[%s],"t":[1,1],"tags":{"error":%s}}\n'
    worse = [extra % pair for pair in (('"NaN"', "1"), ("1", '"x"'), ("1", "-1"), ("", "1"), ("1", "null"))]
    second.write_text("".join([*lines[:3], *worse, *lines[3:]]))
    files = [read_rank_file(path) for path in (first, second, third)]
    assert [item.late.rank for item in late_ranks(files, [key])] == [1]
    assert call_times(files, key)[0].size == CALLS
    # One call of one rank is unknown: it is left out for all.
    second.write_text(
        second.read_text().replace('"call_entry","unit":"s","samples":[', '"call_entry","unit":"s","samples":[null,')
    )
    files = [read_rank_file(path) for path in (first, second)]
    assert call_times(files, key)[0].size == CALLS - 1
    # Nothing at all.
    assert call_times([read_rank_file(third)], key)[0].size == 0
    assert figures([read_rank_file(third)], key) == []
    assert figures([read_rank_file(first)], key) == [], "a single rank waits for nobody"
    assert late_ranks([read_rank_file(first)], [key]) == []


def test_the_report_says_who_is_late_and_draws_the_split(tmp_path: Path) -> None:
    files = write(tmp_path, late={"all_reduce": 1, "broadcast": 2})
    part = late_part([("comms-3", late_ranks(files, every(files))), ("clean", [])])
    assert part is not None
    rows = [[cell.text for cell in row] for row in part.tables[0].rows]
    assert [row[:2] for row in rows] == [["rank 1", "all_reduce 1KiB–16KiB"], ["rank 2", "broadcast 1KiB–16KiB"]]
    assert all(row[2].endswith(" ms") and row[3] == "100.0 %" for row in rows)
    assert part.tables[0].rows[0][0].note == "on host1, case comms-3"
    assert late_part([("clean", [])]) is None
    points = {
        int(key["bytes"]): {item.metric.replace("transfer_time", "call_time_p50"): item for item in figures(files, key)}
        for key in every(files)
        if key["op"] == "all_reduce"
    }
    chart = split_chart("all_reduce", points)
    assert chart is not None
    assert {series.label: list(series.x) for series in chart.series} == {
        "waiting": [1024, 4096, 16384],
        "transfer": [1024, 4096, 16384],
    }
    assert split_chart("all_reduce", {1024: {}}) is None
