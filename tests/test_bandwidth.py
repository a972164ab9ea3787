"""Formulas against the figures that the seed report prints, and against nccl-tests' definitions."""

from importlib import resources

import pytest
import yaml

from assay.bandwidth import COLLECTIVES, algbw, busbw, deepspeed_busbw, deepspeed_throughput, round_down
from assay.collectives.operations import OPERATIONS

# op, devices, elements of 4 bytes, ms, Gbps: table 2.2 (2) of the evaluation report 0.2.1, A100 column.
SEED = [
    ("all_reduce", 8, 4259924984, 126.905, 2148.338),
    ("all_reduce", 32, 4259924984, 373.565, 729.815),
    ("all_gather", 8, 134217728, 16.915, 2031.292),
    ("all_gather", 32, 33554432, 47.117, 729.249),
    ("all_to_all", 8, 1073741824, 17.54, 1958.977),
    ("all_to_all", 32, 1073741824, 314.13, 109.38),
    ("broadcast", 8, 4259924984, 72.62, 1877.133),
    ("broadcast", 32, 4259924984, 196.439, 693.939),
    ("pt2pt", 8, 4259924984, 66.02, 2064.778),
    ("pt2pt", 32, 4259924984, 762.939, 178.673),
]


@pytest.mark.parametrize(("op", "n", "count", "ms", "gbps"), SEED)
def test_the_seeds_throughputs_follow_from_its_sizes_and_durations(
    op: str, n: int, count: int, ms: float, gbps: float
) -> None:
    size = count * 4 * (n if op == "all_gather" else 1)
    assert deepspeed_throughput(op, size, ms / 1e3, n) / 1e9 == pytest.approx(gbps, rel=5e-5)
    assert COLLECTIVES[op].deepspeed_size(size, n) == count * 4


def test_the_shipped_baseline_is_the_seeds_table() -> None:
    data = yaml.safe_load(resources.files("assay.scoring.baselines").joinpath("a100-80g.yaml").read_text())
    rows = [
        (f["match"]["op"], f["match"]["world"], f["printed_count"], f["duration"] * 1e3, f["value"] / 1e9)
        for f in data["figures"]
    ]
    assert [tuple(pytest.approx(x) if isinstance(x, float) else x for x in row) for row in rows] == SEED


@pytest.mark.parametrize(
    ("op", "factor"),
    [("all_reduce", 14 / 8), ("all_gather", 7 / 8), ("reduce_scatter", 7 / 8), ("all_to_all", 7 / 8), ("broadcast", 1), ("pt2pt", 1)],
)  # fmt: skip
def test_bus_bandwidth_factors_are_nccl_tests(op: str, factor: float) -> None:
    assert algbw(1000, 0.5) == 2000
    assert busbw(op, 1000, 0.5, 8) == pytest.approx(2000 * factor)
    assert deepspeed_busbw(op, 1000, 0.5, 8) == pytest.approx(16000 * factor)


def test_every_collective_can_be_run_and_calculated() -> None:
    assert COLLECTIVES.keys() == OPERATIONS.keys()


def test_sizes_are_rounded_down_to_whole_elements_per_rank() -> None:
    assert round_down(1000, "all_gather", 3, 4) == 996
    assert round_down(1000, "all_reduce", 3, 4) == 1000
    assert round_down(11, "all_to_all", 3, 4) == 0
