"""Outputs of other tools become runs of ours: same formulas, nothing false, and one sentence for what cannot be read."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.bandwidth import COLLECTIVES, busbw, deepspeed_throughput
from assay.errors import BadInput
from assay.importers import deepspeed, osu
from assay.importers.folder import PARSERS, import_file
from assay.importers.output import Given, Row
from assay.results import evaluate
from tests.golden_files import EVERY, GIVEN, derived, means, one, parsed, text_of, tool_of


@pytest.mark.parametrize("name", ["osu-allreduce-full.txt", "nccl-tests-all_reduce.txt", "deepspeed-raw.txt"])
@pytest.mark.parametrize(
    "mark",
    [
        "[1,0]<stdout>:",  # Open MPI up to 4: --tag-output
        "Sun Nov 22 09:20:47 2026[1,0]<stdout>:",  # with --timestamp-output
        "Sun Nov 22 09:20:47 2026<stdout>:",
        "[1,0]<stdout>: ",  # 5: --output tag, tag-fullname, tag-detailed, rank, and with timestamp
        "[prterun-node1-123@1,0]<stdout>: ",
        "[1,0][node1:4100]<stdout>: ",
        "[0]<stdout>: ",
        "[Sun Nov 22 09:20:47 2026][1,0]<stdout>: ",
        "0: ",  # srun --label
        " 0: ",
        "node-1.cluster: ",  # pdsh
        "[0] ",  # mpiexec -prepend-rank of Hydra
        "[default0]:",  # torchrun --tee
    ],
)
def test_launchers_marks_are_no_part_of_a_line(mark: str, name: str) -> None:
    marked = "".join(f"{mark}{line}\n" for line in text_of(name).splitlines())
    given = GIVEN.get(name, Given(8 if name.startswith("osu") else None))
    assert PARSERS[tool_of(name)](marked, name, given) == parsed(name)


# OSU


@pytest.mark.parametrize(
    ("name", "op", "size", "seconds"),
    [
        ("osu-allreduce-full.txt", "all_reduce", 1 << 20, 702.55e-6),
        ("osu-allgather-short-head.txt", "all_gather", 8 << 20, 702.55e-6),  # one rank's part is printed
        ("osu-alltoall.txt", "all_to_all", 8 << 20, 2210.87e-6),
        ("osu-bcast-tail.txt", "broadcast", 1 << 20, 208.41e-6),
        ("osu-bw.txt", "pt2pt", 1 << 20, (1 << 20) / 24117.25e6),
        ("osu-bibw.txt", "pt2pt_bidirectional", 1 << 20, 2 * (1 << 20) / 41943.04e6),  # both directions are printed
        ("osu-latency.txt", "pt2pt", 1 << 16, 9.87e-6),
    ],
)
def test_sizes_and_times_of_osu_are_ours(name: str, op: str, size: int, seconds: float) -> None:
    last = means(parsed(name))[-1]
    assert (last.op, last.bytes, last.world) == (op, size, 8)
    assert last.seconds[0] == pytest.approx(seconds)


def test_the_busbw_of_osus_bandwidths_is_what_osu_prints(tmp_path: Path) -> None:
    one_way = derived(tmp_path / "a", "osu-bw.txt")
    both = derived(tmp_path / "b", "osu-bibw.txt")
    assert one(one_way, "busbw", bytes=1 << 20).value == pytest.approx(24117.25e6)
    assert one(both, "busbw", bytes=1 << 20).value == pytest.approx(41943.04e6)


def test_osus_means_of_single_calls_are_called_so(tmp_path: Path) -> None:
    figures = derived(tmp_path, "osu-allreduce-full.txt", world=8)
    tags = {"bytes": 1 << 20, "dtype": "float32", "backend": "mpi"}
    assert one(figures, "call_time_mean", **tags).value == pytest.approx(702.55e-6)
    assert one(figures, "fastest_rank_time", **tags).value == pytest.approx(655.31e-6)
    assert one(figures, "slowest_rank_time", **tags).value == pytest.approx(748.90e-6)
    bus = one(figures, "busbw", **tags)
    assert bus.value == pytest.approx((1 << 20) / 702.55e-6 * 14 / 8)
    assert bus.estimate is not None
    assert "mean of 100 calls, each after a barrier" in bus.estimate.method
    assert not [figure for figure in figures if figure.metric == "batch_call_time"]


def test_osus_percentiles_count_where_there_were_calls_enough(tmp_path: Path) -> None:
    figures = derived(tmp_path, "osu-bcast-tail.txt", world=8)
    assert one(figures, "call_time_p50", bytes=8).value == pytest.approx(1.88e-6)
    assert one(figures, "call_time_p99", bytes=8).value == pytest.approx(4.02e-6)
    assert one(figures, "call_time_p99", bytes=1 << 20).reason == "50 samples, p99 needs 100"
    assert [one(figures, "check_errors", bytes=size).value for size in (8, 1 << 20)] == [0, 1]


def test_a_ping_pong_has_a_time_and_no_bandwidth(tmp_path: Path) -> None:
    figures = derived(tmp_path, "osu-latency.txt")
    assert {figure.metric for figure in figures} == {"call_time_mean"}
    assert {figure.tags["world"] for figure in figures} == {2}


def test_device_buffers_are_told_by_osus_title() -> None:
    assert parsed("osu-allgather-short-head.txt").device == "cuda"
    assert parsed("osu-allreduce-full.txt").device is None


def test_libraries_and_devices_in_one_file_of_osu_stay_apart(tmp_path: Path) -> None:
    figures = derived(tmp_path, "osu-host-and-device.txt", world=8)
    times = [figure for figure in figures if figure.metric == "call_time_mean" and figure.tags["bytes"] == 1 << 20]
    found = [(figure.tags["backend"], figure.tags.get("buffers")) for figure in times]
    assert found == [("mpi", None), ("mpi", "cuda"), ("nccl", "cuda")]
    assert [figure.value for figure in times] == pytest.approx([702.55e-6, 151.37e-6, 98.06e-6])
    assert one(figures, "busbw", op="pt2pt").tags["buffers"] == "cuda to host"
    assert parsed("osu-host-and-device.txt").device is None, "not one for the whole file"


@pytest.mark.parametrize(
    ("said", "buffers", "device"),
    [
        ("DEVICE (D) and Receive Buffer on DEVICE (D)", "rocm", "rocm"),
        ("HOST (H) and Receive Buffer on DEVICE (D)", "host to rocm", "rocm"),
        ("HOST (H) and Receive Buffer on HOST (H)", "host", None),
        ("MANAGED (MD) and Receive Buffer on MANAGED (MD)", "rocm managed (MD)", "rocm"),
    ],
)
def test_where_osus_buffers_are(said: str, buffers: str, device: str | None) -> None:
    text = f"# OSU MPI-ROCM Latency Test v7.5\n# Send Buffer on {said}\n# Size  Latency (us)\n8  1.5\n"
    output = osu.parse(text, "x", Given())
    assert [row.settings for row in output.rows] == [{"buffers": buffers}]
    assert output.device == device


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (text_of("osu-alltoall.txt"), "x:2: the file does not tell the number of ranks; give it with --world"),
        ("# OSU MPI Barrier Latency Test v7.5\n", "x:1: OSU's 'Barrier Latency Test' cannot be imported; these can: "),
        ("# OSU MPI Latency Test v7.5\n# Size   Overall(us)\n8 1.0\n", r"x:2: unknown column 'Overall\(us\)'"),
        ("# OSU MPI Latency Test v7.5\n# Size  Latency (us)\n8 1.0 2.0\n", r"x:3: expected 2 columns .*, got 3"),
        ("# OSU MPI Latency Test v7.5\n# Size  Latency (us)\n8 soon\n", "x:3: column Latency.*got 'soon'"),
    ],
)
def test_osu_outputs_that_cannot_be_used(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        osu.parse(text, "x", Given())


# DeepSpeed


def test_deepspeeds_sizes_are_exact_and_ours() -> None:
    rows = parsed("deepspeed-scan.txt").rows
    assert [row.op for row in rows] == ["all_reduce"] * 3 + ["all_gather"] * 3 + ["all_to_all"] * 3 + ["broadcast"] * 3 + ["pt2pt"] * 2  # fmt: skip
    sizes = {row.op: row.bytes for row in rows if row.bytes % 1000}
    assert rows[1].bytes == 20_000_044  # printed as 19.07 MB
    assert rows[4].bytes == 8 * 20_000_044  # one rank's part is printed
    assert sizes["broadcast"] == 1 << 27
    assert [row.seconds[0] for row in rows[:3]] == pytest.approx([38.413e-6, 441.021e-6, 3.921e-3])
    assert {row.world for row in rows[:-2]} == {8}
    assert {row.world for row in rows[-2:]} == {2}
    assert {row.world for row in parsed("deepspeed-scan.txt", world=8).rows} == {8}


def test_deepspeed_raw_in_bytes_a_second(tmp_path: Path) -> None:
    figures = derived(tmp_path, "deepspeed-raw.txt", dtype="float16", backend="nccl")
    assert one(figures, "batch_call_time", bytes=2 << 20, dtype="float16", backend="nccl").value == pytest.approx(
        172.352e-6
    )
    assert one(figures, "busbw", bytes=2 << 20).value == pytest.approx((2 << 20) / 172.352e-6 * 1.5)


def test_the_rows_of_the_a100_table_score_as_they_were_printed(tmp_path: Path) -> None:
    # The baseline's first row, as DeepSpeed's suite would have printed it.
    size, throughput = 17039699936, 2146.0
    seconds = deepspeed_throughput("all_reduce", size, 1.0, 8) / (throughput * 1e9)
    bus = busbw("all_reduce", size, seconds, 8) * 8e-9
    text = (
        "---- Performance of all_reduce on 8 devices ----\n"
        "Size (Bytes)   Description   Duration   Throughput (Gbps)   BusBW (Gbps)\n"
        f"15.87 GB   {size // 4}x4   {seconds * 1e3:.3f} ms   {throughput:.3f}   {bus:.3f}\n"
    )
    (tmp_path / "a.txt").write_text(text)
    run = import_file("deepspeed", tmp_path / "a.txt", tmp_path / "run", dtype="float32")
    card = evaluate(run, profile="llm-evaluation-0.2.1").scorecard
    assert card is not None
    row = card.sections[0].rows[0]
    assert row.measured == pytest.approx(throughput * 1e9, rel=1e-4)
    assert row.measured is not None
    assert row.baseline is not None
    assert row.score == pytest.approx(row.measured / row.baseline)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("on 8 devices", "on 4 devices"), r":\d+: busbw is printed as"),
        (lambda text: text.replace("(Gbps)", "(GBps)"), r":\d+: throughput is printed as"),
        (lambda text: text.replace("19.07 MB", "19.17 MB"), "are not the size before it"),
        (lambda text: text.replace("441.021 us", "441.021"), "expected size, elements x bytes, duration"),
        (lambda text: text.replace("Performance of all_gather", "Performance of all_mixed"), "all_mixed is none of"),
        (lambda text: text.replace("on 8 devices", "on 0 devices"), "expected 1 to 2147483647 ranks, got 0"),
        (lambda text: text.replace("on 8 devices", "on 88888888888 devices"), "2147483647 ranks, got 88888888888"),
    ],
)
def test_deepspeed_outputs_that_do_not_agree(change: Callable[[str], str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        deepspeed.parse(change(text_of("deepspeed-scan.txt")), "x", Given())


def test_an_element_type_must_be_as_wide_as_deepspeed_says() -> None:
    with pytest.raises(BadInput, match="elements of 2 bytes are no float32"):
        parsed("deepspeed-raw.txt", dtype="float32")


@given(
    name=st.sampled_from(EVERY),
    where=st.floats(0, 1),
    length=st.integers(0, 12),
    put=st.text('0123456789.-+eE#xNa:,{}[]" \n\t²', max_size=6),
)
@settings(deadline=None, max_examples=150)
def test_damaged_files_are_read_or_refused_and_nothing_else(name: str, where: float, length: int, put: str) -> None:
    text = text_of(name)
    at = int(where * len(text))
    damaged = text[:at] + put + text[at + length :]
    given = Given(8, "all_reduce") if "unnamed" in name else Given(world=8)
    if tool_of(name) != "osu":
        given = Given(op=given.op)
    rows: list[Row] = []
    with contextlib.suppress(BadInput):
        rows = PARSERS[tool_of(name)](damaged, name, given).rows
    assert all(row.op in COLLECTIVES and row.world >= 1 for row in rows)
    assert all(math.isfinite(seconds) for row in rows if row.counts for seconds in row.seconds)
