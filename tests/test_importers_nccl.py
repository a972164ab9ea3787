"""Outputs of nccl-tests, text and JSON: same formulas, nothing false, one sentence for what cannot be read."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.bandwidth import algbw, busbw
from assay.errors import BadInput
from assay.importers import nccl_tests
from assay.importers.folder import import_file
from assay.importers.output import Given
from tests.golden_files import GOLDEN, derived, one, parsed, text_of


def test_a_row_of_nccl_tests_is_both_placements_with_its_own_times() -> None:
    output = parsed("nccl-tests-all_reduce.txt")
    last = output.rows[-2:]
    assert [row.settings for row in last] == [{"placement": "out"}, {"placement": "in"}]
    assert [row.seconds[0] for row in last] == pytest.approx([4318.6e-6, 4305.2e-6])
    assert {(row.op, row.world, row.dtype, row.calls) for row in output.rows} == {("all_reduce", 16, "float32", 20)}
    assert {row.backend for row in output.rows} == {"nccl"}
    assert (output.device, output.hosts) == ("cuda", 2)
    assert output.device_name == "NVIDIA H100 80GB HBM3"
    assert output.versions == {"nccl-tests": "2.17.6", "nccl": "2.28.7"}


def test_figures_are_what_our_formulas_make_of_the_printed_time(tmp_path: Path) -> None:
    figures = derived(tmp_path, "nccl-tests-all_reduce.txt")
    tags = {"bytes": 1 << 30, "placement": "out"}
    bus = one(figures, "busbw", **tags)
    assert bus.value == pytest.approx((1 << 30) / 4318.6e-6 * 30 / 16)
    assert one(figures, "algbw", **tags).value == pytest.approx((1 << 30) / 4318.6e-6)
    assert one(figures, "throughput_deepspeed", **tags).value == pytest.approx(16 * (1 << 30) / 4318.6e-6)
    assert one(figures, "batch_call_time", **tags).value == pytest.approx(4318.6e-6)
    assert one(figures, "check_errors", **tags).value == 0
    assert bus.estimate is not None
    assert (bus.estimate.low, bus.estimate.high) == (None, None)
    assert "mean of 20 calls back to back" in bus.estimate.method
    assert "as nccl-tests printed it" in bus.estimate.method


def test_two_tables_behind_a_launchers_marks_and_rows_of_nothing() -> None:
    output = parsed("nccl-tests-two-tables.txt")
    assert [row.op for row in output.rows] == ["all_gather"] * 6 + ["all_to_all"] * 4
    assert [row.counts for row in output.rows[:4]] == [False, False, True, True]
    # 50 calls, two in each group, in a graph launched three times
    assert {row.calls for row in output.rows} == {300}
    assert output.rows[0].settings == {"placement": "out", "coalesced": 2, "graph": 3}
    assert [row.wrong for row in output.rows[-2:]] == [0, None]  # N/A in place
    assert output.hosts == 1


def test_older_nccl_tests_do_not_name_the_collective(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"unnamed.txt:10: .*give it with --op"):
        parsed("nccl-tests-unnamed.txt", world=2)
    output = parsed("nccl-tests-unnamed.txt")
    assert {row.op for row in output.rows} == {"all_reduce"}
    assert {row.wrong for row in output.rows} == {None}  # its column `error` is a deviation, no count
    with pytest.raises(BadInput, match=r":14: the file says all_reduce, --op says broadcast"):
        nccl_tests.parse(
            "# Collective test starting: all_reduce_perf\n" * 4 + text_of("nccl-tests-unnamed.txt"),
            "x",
            Given(op="broadcast"),
        )


def test_statistics_of_single_calls_stand_beside_the_mean(tmp_path: Path) -> None:
    figures = derived(tmp_path, "nccl-tests-per-iteration.txt")
    tags = {"bytes": 1 << 20, "placement": "in", "redop": "max"}
    assert one(figures, "call_time_min", **tags).value == pytest.approx(38.18e-6)
    assert one(figures, "call_time_max", **tags).value == pytest.approx(49.67e-6)
    p99 = one(figures, "call_time_p99", **tags)
    assert (p99.value, p99.reason) == (None, "20 samples, p99 needs 100")
    # Each call was waited for, so the mean is none of calls back to back.
    assert one(figures, "call_time_mean", **tags).value == pytest.approx(41.05e-6)
    assert one(figures, "busbw", **tags).tags["blocking"] == "barrier timed"
    assert not [figure for figure in figures if figure.metric == "batch_call_time"]


def test_json_gives_every_call_and_the_true_number_of_ranks(tmp_path: Path) -> None:
    output = parsed("nccl-tests-broadcast.json")
    # One of the four ranks of each process is listed.
    assert {row.world for row in output.rows} == {8}
    assert output.hosts == 2
    figures = derived(tmp_path, "nccl-tests-broadcast.json")
    tags = {"bytes": 1 << 20, "placement": "out", "root": "2"}
    p50 = one(figures, "call_time_p50", **tags).estimate
    assert p50 is not None
    assert p50.samples == 110  # without the ten that -K skips
    assert p50.low is not None
    assert p50.high is not None
    assert p50.low <= p50.value <= p50.high
    mean = one(figures, "batch_call_time", **tags).estimate
    assert mean is not None
    assert "longest of the ranks" in mean.method  # -a 3
    assert one(figures, "check_errors", bytes=1 << 26, placement="out").value == 3
    assert not [figure for figure in figures if figure.metric == "check_errors" and figure.tags["placement"] == "in" and figure.tags["bytes"] == 1 << 26]  # fmt: skip


def test_the_environment_of_json_is_kept_without_secrets(tmp_path: Path) -> None:
    run = import_file("nccl-tests", GOLDEN / "nccl-tests-broadcast.json", tmp_path / "run")
    document = json.loads((run / "run.json").read_text())
    assert document["environment"] == {"NCCL_DEBUG": "WARN", "NCCL_IB_HCA": "mlx5"}
    assert document["imported"]["measured"] == "2026-11-20 14:10:02"
    assert document["software"] == {"nccl": "2.29.3"}
    assert document["host"] == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("466.18", "566.18"), r":\d+: busbw is printed as .* do not go together"),
        (lambda text: text.replace("4318.60", "4618.60"), r":\d+: algbw is printed as"),
        (lambda text: text.replace("all_reduce_perf", "broadcast_perf"), "busbw is printed as"),
        (lambda text: re.sub(r"#  Rank .*\n", "", text), "does not tell the number of ranks; give it with --world"),
        (lambda text: text.replace("all_reduce_perf", "hypercube_perf"), "hypercube is none of the collectives"),
        (lambda text: text.replace("all_reduce_perf", "sleep"), "'sleep' is no program of nccl-tests"),
        (lambda text: text[: text.rindex("  4305.2")] + "\n", "expected 13 columns, got 9: the row is not whole"),
        (lambda text: text.replace("   time ", "cputime "), "cputime is what the host took"),
        (lambda text: text.replace("4318.60", "     NA"), "column time should be a number from 0 up, got 'NA'"),
    ],
)
def test_what_does_not_agree_is_refused_with_its_line(change: Callable[[str], str], said: str) -> None:
    text = text_of("nccl-tests-all_reduce.txt")
    changed = change(text)
    assert changed != text
    with pytest.raises(BadInput, match=said) as caught:
        nccl_tests.parse(changed, "all_reduce.txt", Given())
    assert "all_reduce.txt:" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-200], r"x.json:1: is no valid JSON"),
        (lambda text: text.replace('"results"', '"outcome"'), "key 'results' is missing"),
        (lambda text: text.replace('"bus_bw":17', '"bus_bw":27'), r"results\[0\]: busbw is printed as"),
        (lambda text: text.replace('"time":', '"cpu_time":'), r"results\[0\]: cpu_time is what the host took"),
        (lambda text: text.replace('"iterations":120', '"iterations":"many"'), r"config\.iterations: "),
        (lambda text: "{" * 100_000, "no valid JSON|no JSON that can be read"),
    ],
)
def test_json_that_is_not_what_it_should_be_is_refused(change: Callable[[str], str], said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        nccl_tests.parse(change(text_of("nccl-tests-broadcast.json")), "x.json", Given())
    assert "\n" not in str(caught.value)


def cell(value: float, width: int) -> str:
    fixed = (f"{value:{width}.{places}f}" for places in (2, 1, 0))
    return next((text for text in fixed if len(text) <= width), f"{value:{width}.1e}")


PROGRAMS = {"all_reduce": "all_reduce", "all_gather": "all_gather", "reduce_scatter": "reduce_scatter", "all_to_all": "alltoall", "broadcast": "broadcast"}  # fmt: skip


@given(
    op=st.sampled_from(sorted(PROGRAMS)),
    world=st.integers(2, 64),
    part=st.integers(1, 1 << 26),
    micros=st.floats(1.0, 1e8),
)
@settings(deadline=None, max_examples=40)
def test_any_table_in_the_documented_format_is_read_and_agrees(op: str, world: int, part: int, micros: float) -> None:
    size = part * world * 4
    rates = algbw(size, micros * 1e-6) / 1e9, busbw(op, size, micros * 1e-6, world) / 1e9
    block = f"  {cell(micros, 7)}  {cell(rates[0], 6)}  {cell(rates[1], 6)}  {0:6d}"
    ranks = [
        f"#  Rank {i:2d} Group  0 Pid {70 + i:6d} on {'n1':>10} device {i:2d} [0000:1b:00] X" for i in range(world)
    ]
    text = "\n".join(
        [
            f"# Collective test starting: {PROGRAMS[op]}_perf",
            "# nThread 1 nGpus 1 minBytes 8 maxBytes 8 step: 2(factor) warmup iters: 1 iters: 7 agg iters: 1 validation: 1",
            *ranks,
            "#   size  count  type  redop  root  time  algbw  busbw #wrong  time  algbw  busbw #wrong",
            f"{size:12d}  {part:12d}  {'float':>8}  {'sum':>6}  {-1:6d}{block}{block}",
        ]
    )
    rows = nccl_tests.parse(text, "t", Given()).rows
    assert [(row.op, row.bytes, row.world, row.calls) for row in rows] == [(op, size, world, 7)] * 2
    assert rows[0].seconds[0] == pytest.approx(micros * 1e-6, rel=0.06)
    with pytest.raises(BadInput, match="the file tells of"):
        nccl_tests.parse(text, "t", Given(world=world + 1))
