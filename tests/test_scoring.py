"""Figures and scores from records whose answer is known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assay.arrival import LONGEST
from assay.estimates import Estimate
from assay.record import Block, Header, RankFile, TagValue
from assay.rundir import Status
from assay.scoring import arrival, ceilings, comms, doubts, training
from assay.scoring.baseline import Baseline, load_baseline, load_profile, record_baseline
from assay.scoring.result import CaseResult, Figure, RunResult
from assay.scoring.score import score_run

PASSED = Status("passed", "run", 0, 1.0)
FAILED = Status("failed", "run", 1, 1.0, "rank 3 died")


def rank_file(rank: int, world: int, blocks: list[Block], clock: str = "boot") -> RankFile:
    header = Header(rank, world, rank, world, "host", 1, clock, "cpu", "CPU", "gloo", "x", 0.0, 0.0)
    return RankFile(Path(f"rank-{rank:05d}.jsonl"), header, blocks, [], False)


def block(metric: str, samples: list[float], first_step: int | None = None, /, **tags: TagValue) -> Block:
    return Block(metric, "s", np.array(samples, dtype=float), tags, first_step)


def seed_run() -> RunResult:
    """A run that measured exactly what the seed's A100 did, at the seed's ten configurations."""
    baseline = load_baseline("a100-80g")
    cases = []
    for item in baseline.figures:
        tags: dict[str, TagValue] = {**item.match, "backend": "nccl"}
        assert item.duration is not None
        calls = 10
        world = int(item.match["world"] or 0)
        measured = [block("batch_time", [item.duration * calls] * 6, **tags, calls=calls)]
        taking_part = 2 if item.match["op"] == "pt2pt" else world
        files = [rank_file(rank, world, measured) for rank in range(taking_part)]
        figures, _ = comms.derive(files, {}, [])
        name = f"{item.match['op']}-{item.match['world']}"
        options = {"ops": (item.match["op"],), "size": item.match["bytes"]}
        cases.append(CaseResult(name, "comms/bench", int(item.match["world"] or 0), options, PASSED, 1, figures))
    return RunResult("run", {}, cases, [], [])


def test_the_seeds_own_measurements_score_1() -> None:
    card = score_run(seed_run(), load_profile("llm-evaluation-0.2.1"), load_baseline("a100-80g"))
    (section, *_) = card.sections
    assert section.score == pytest.approx(1, abs=5e-5)
    assert len(section.rows) == 10
    assert sum(row.weight for row in section.rows) == pytest.approx(1)
    assert [row.weight for row in section.rows[:3]] == [0.25, 0.25, 0.0625]


def test_not_submitted_is_NA_and_counts_0_while_failed_is_0() -> None:
    whole = seed_run()
    profile, baseline = load_profile("llm-evaluation-0.2.1"), load_baseline("a100-80g")
    first, second, *others = whole.cases
    some = replace(whole, cases=[replace(first, status=FAILED), *others])
    (section, *_) = score_run(some, profile, baseline).sections
    assert (section.rows[0].score, section.rows[0].note) == (0.0, f"case {first.name} did not pass")
    assert (section.rows[1].score, section.rows[1].note) == (None, "not submitted")
    assert section.score == pytest.approx(0.5, abs=5e-5)
    crashed = replace(whole, cases=[replace(first, status=FAILED, figures=[]), second, *others])
    assert score_run(crashed, profile, baseline).sections[0].rows[0].score == 0.0
    assert score_run(replace(whole, cases=[]), profile, baseline).sections[0].score is None


def test_twice_the_time_is_half_the_score() -> None:
    def slower(figure: Figure) -> Figure:
        if figure.estimate is None:
            return figure
        return replace(figure, estimate=Estimate(figure.estimate.value / 2, None, None, 1, ""))

    run = seed_run()
    half = replace(run, cases=[replace(case, figures=[slower(f) for f in case.figures]) for case in run.cases])
    (section, *_) = score_run(half, load_profile("llm-evaluation-0.2.1"), load_baseline("a100-80g")).sections
    assert section.score == pytest.approx(0.5, abs=5e-5)


def test_a_variant_is_compared_with_its_like_and_never_with_the_plain_one() -> None:
    def throughput(value: float, **tags: TagValue) -> Figure:
        common: dict[str, TagValue] = {
            "op": "all_reduce",
            "bytes": 1024,
            "dtype": "float32",
            "world": 2,
            "backend": "gloo",
        }
        return Figure("throughput_deepspeed", "bit/s", Estimate(value, None, None, 1, ""), {**common, **tags})

    def run(*figures: Figure) -> RunResult:
        return RunResult("run", {}, [CaseResult("c", "comms/bench", 2, {}, PASSED, 1, list(figures))], [], [])

    plain, grouped = throughput(100.0), throughput(300.0, coalesced=4, means="one group call")
    out, int32 = throughput(50.0, placement="out"), throughput(80.0, dtype="int32")
    twice = throughput(999.0, backend="mpi4py")  # the second transport of a comparison
    everything = run(grouped, plain, out, int32, twice)
    baseline = Baseline.model_validate(record_baseline(everything, "own"))
    (section, *_) = score_run(everything, load_profile("local"), baseline).sections
    assert section.score == pytest.approx(1)
    assert {row.label: row.measured for row in section.rows} == {
        "all_reduce, 2 ranks, 1KiB, coalesced 4": 300.0,
        "all_reduce, 2 ranks, 1KiB": 100.0,
        "all_reduce, 2 ranks, 1KiB, placement out": 50.0,
        "all_reduce, 2 ranks, 1KiB, int32": 80.0,
    }
    (section, *_) = score_run(run(plain), load_profile("local"), baseline).sections
    assert {row.label: row.measured for row in section.rows if row.score is not None} == {
        "all_reduce, 2 ranks, 1KiB": 100.0
    }


def training_files(world: int, seconds: list[list[float]], **scalars: float) -> list[RankFile]:
    tags: dict[str, TagValue] = {"model": "m", "engine": "ddp", "data": "dummy", "dtype": "float32"}
    files = []
    for rank in range(world):
        blocks = [block("step_time", seconds[rank], 2, **tags, phase="measured")]
        blocks.append(block("step_time", [9.0, 9.0], 0, **tags, phase="warmup"))
        if rank == 0:
            steps = len(seconds[0])
            blocks.append(block("tokens", [1024.0] * steps, 2, **tags, phase="measured"))
            blocks.append(block("loss", [8.0 - i for i in range(steps)], 2, **tags, phase="measured"))
            blocks += [block(name, [value], **tags) for name, value in scalars.items()]
        files.append(rank_file(rank, world, blocks))
    return files


def named(figures: list[Figure], metric: str) -> Figure:
    (found,) = [figure for figure in figures if figure.metric == metric]
    return found


def test_tgs_is_all_tokens_over_all_time_of_the_rank_that_took_longest() -> None:
    # 4 steps of 1024 tokens on 2 devices: the slower rank takes 0.5 s, once 2.5 s (a pause counts).
    files = training_files(2, [[0.4] * 4, [0.5, 2.5, 0.5, 0.5]])
    figures, curves = training.derive(files, {"seq_len": 128, "global_batch": 8}, [])
    assert named(figures, "tgs").value == pytest.approx(4 * 1024 / 4.0 / 2)
    assert named(figures, "step_time_p50").value == 0.5
    assert named(figures, "step_time_p95").reason == "4 samples, p95 needs 20"
    assert named(figures, "final_loss").value == pytest.approx(6.5)
    assert named(figures, "ppl").reason == "not recorded"
    loss = next(curve for curve in curves if curve.metric == "loss")
    assert loss.steps is not None
    assert loss.steps.tolist() == [2, 3, 4, 5]


def test_jitter_that_the_next_step_absorbs_is_not_counted_twice() -> None:
    files = training_files(2, [[1.5, 0.5] * 10, [0.5, 1.5] * 10])
    figures, _ = training.derive(files, {}, [])
    assert named(figures, "tgs").value == pytest.approx(20 * 1024 / 20 / 2)


def test_a_missing_rank_never_makes_a_figure_better() -> None:
    whole = training_files(2, [[0.5] * 4, [0.5] * 4])
    figures, _ = training.derive(whole[:1], {}, [])
    assert [(f.metric, f.value, f.reason) for f in figures] == [("tgs", None, "only 1 of 2 ranks recorded their steps")]
    tags: dict[str, TagValue] = {"op": "all_reduce", "bytes": 1024, "dtype": "float32", "backend": "gloo", "world": 2}
    lone = [rank_file(0, 2, [block("batch_time", [1.0] * 6, **tags, calls=2)])]
    assert {figure.value for figure in comms.derive(lone, {}, [])[0]} == {None}


def test_mfu_is_a_share_of_the_ceiling_with_as_many_ranks_loaded() -> None:
    limits = [
        Figure(
            "gemm_rate",
            "FLOP/s",
            Estimate(rate, None, None, 1, ""),
            {"loaded": loaded, "ranks": 2, "dtype": "float32", "device": "cpu"},
        )
        for loaded, rate in (("alone", 9e9), ("together", 4e9))
    ]
    files = training_files(2, [[0.5] * 4, [0.5] * 4], flops_per_token=1e6, eval_loss=math.log(50))
    figures, _ = training.derive(files, {}, limits)
    assert named(figures, "mfu").value == pytest.approx(1024 * 1e6 / 4e9)
    assert named(figures, "ppl").value == pytest.approx(50)
    unknown, _ = training.derive(files, {}, [])
    assert named(unknown, "mfu").value is None
    assert named(unknown, "mfu").reason == "no measured GEMM ceiling in float32"


def test_a_call_lasts_from_the_last_entry_to_the_last_exit_or_as_long_as_in_the_slowest_rank() -> None:
    tags: dict[str, TagValue] = {"op": "all_reduce", "bytes": 1024, "dtype": "float32", "backend": "gloo", "world": 2}
    times = [([0.0, 10.0], [0.025, 10.004]), ([0.020, 10.0], [0.025, 10.003])]
    blocks = [[block("call_entry", enter, **tags), block("call_exit", leave, **tags)] for enter, leave in times]
    one_clock = [rank_file(rank, 2, blocks[rank]) for rank in (0, 1)]
    assert arrival.call_times(one_clock, tags)[0] == pytest.approx([0.005, 0.004])
    two_clocks = [rank_file(rank, 2, blocks[rank], clock=f"boot{rank}") for rank in (0, 1)]
    assert arrival.call_times(two_clocks, tags)[0] == pytest.approx([0.025, 0.004])


def test_a_ceiling_counts_only_time_in_which_all_ranks_worked() -> None:
    def ceiling(loaded: str, begun: float, times: list[float]) -> Block:
        return block("copy_time", times, loaded=loaded, ranks=2, work=100, begun=begun)

    # Rank 1 starts 5 s late and is done at 15 s. Alone, rank 0 was ten times as fast; that is no ceiling for two.
    first = [ceiling("together", 0.0, [0.1] * 50 + [1.0] * 10 + [0.1] * 50), ceiling("alone", 0.0, [0.5] * 4)]
    limits = ceilings.derive([rank_file(0, 2, first), rank_file(1, 2, [ceiling("together", 5.0, [1.0] * 10)])])
    together = ceilings.find(limits, "copy_rate", 2, "cpu")
    assert together is not None
    assert together[0] == pytest.approx(100)
    assert together[1] == "measured copy together, 2 ranks"
    alone = [figure for figure in limits if figure.tags["loaded"] == "alone"]
    assert [figure.value for figure in alone] == [pytest.approx(200)]
    assert ceilings.find(limits, "copy_rate", 8, "cpu") is None
    assert ceilings.find(limits, "copy_rate", 2, "cuda") is None, "another device's ceiling bounds nothing here"


def test_ranks_that_never_worked_together_have_no_ceiling_together() -> None:
    parts = [block("copy_time", [1.0], loaded="together", ranks=2, work=1, begun=begun) for begun in (0.0, 9.0)]
    (limit,) = ceilings.derive([rank_file(rank, 2, [parts[rank]]) for rank in (0, 1)])
    assert (limit.value, limit.reason) == (None, "the ranks were never all at work at once")


def doubted(figures: list[Figure], **about: object) -> list[str]:
    case = CaseResult("c", "comms/bench", 2, {}, PASSED, 1, figures, [], about)
    return [item.kind for item in doubts.of_case(case, [rank_file(rank, 2, []) for rank in (0, 1)], 2)]


def test_what_cannot_be_is_doubted() -> None:
    tags = {"op": "all_reduce", "bytes": 1024}

    def figure(
        metric: str, value: float, low: float | None = None, high: float | None = None, share: float | None = None
    ) -> Figure:
        return Figure(metric, "B/s", Estimate(value, low, high, 10, ""), tags, share=share, share_of="ceiling")

    assert doubted([figure("busbw", 1.0, 0.99, 1.01, share=0.5)]) == []
    assert doubted([figure("busbw", 1.0, 0.99, 1.01, share=1.2)]) == ["above_ceiling"]
    assert doubted([figure("busbw", 1.0)]) == ["no_interval"]
    assert doubted([figure("busbw", 1.0, 0.5, 1.5)]) == ["wide_interval"]
    assert doubted([figure("check_errors", 3.0)]) == ["wrong_data"]
    assert doubted([figure("call_time_p50", 1e-7)]) == ["coarse_clock"]
    assert doubted([figure("batch_call_time", 2.0), figure("call_time_p99", 1.0)]) == ["mean_above_p99"]
    assert doubted([], device="cpu", hosts=1, threads=2, one_clock=True) == ["oversubscribed"]
    apart = Figure("call_time_p50", "s", Estimate(1.0, 0.99, 1.01, 10, f"{LONGEST}; median"), tags)
    assert doubted([apart], device="cuda", hosts=2, threads=2, one_clock=False) == ["no_common_clock"]
    assert set(doubts.ADVICE) >= {"above_ceiling", "garbage_records", "missing_ranks", "busy_machine"}
