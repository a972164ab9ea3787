"""Where step time goes, outliers and slow ranks, with planted causes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from assay.scoring.reading import read_run
from assay.scoring.result import StepStudy
from assay.scoring.steps import study, threshold
from tests.planted_training import WARMUP, Planted, even, plant, rank_files


def studied(folder: Path, case: Planted) -> StepStudy:
    found = study(rank_files(folder, case))
    assert found is not None
    return found


def noisy(world: int, steps: int, share: float = 0.02, seed: int = 1) -> list[list[float]]:
    together = np.random.default_rng(seed).normal(1, share, steps)
    return [together.tolist() for _ in range(world)]


def test_quiet_steps_have_no_outliers(tmp_path: Path) -> None:
    found = studied(tmp_path, Planted("a", noisy(4, 300, 0.1)))
    assert len(found.outliers) == 0
    assert found.usual == pytest.approx(1, abs=0.03)
    assert found.limit > found.usual
    assert not found.corrected


def test_a_rank_held_up_behind_the_gradients_is_named_once(tmp_path: Path) -> None:
    # Rank 2 ends step 20 late by itself; the others wait for it in step 21, which it enters late.
    seconds = noisy(4, 60)
    seconds[2][20] += 1.5
    for rank in (0, 1, 3):
        seconds[rank][21] += 1.5
    (one,) = studied(tmp_path, Planted("a", seconds)).outliers
    assert (one.step, one.ranks, one.hosts) == (WARMUP + 20, (2,), ("right",))
    assert one.seconds == pytest.approx(seconds[2][20])


def test_where_all_ranks_wait_in_the_same_step_nobody_is_blamed(tmp_path: Path) -> None:
    seconds = noisy(4, 60)
    for rank in range(4):
        seconds[rank][30] += 1.0
    (one,) = studied(tmp_path, Planted("a", seconds)).outliers
    assert (one.step, one.ranks) == (WARMUP + 30, ())
    assert one.why == "cannot be told: all ranks were held up in the same step"


def test_those_who_wait_for_a_late_majority_are_not_blamed(tmp_path: Path) -> None:
    seconds = noisy(4, 60)
    for rank in (1, 2, 3):
        seconds[rank][10] += 1.0
    seconds[0][11] += 1.0
    (one,) = studied(tmp_path, Planted("a", seconds)).outliers
    assert (one.step, one.ranks) == (WARMUP + 10, (1, 2, 3))


def test_a_single_rank_holds_nobody_up(tmp_path: Path) -> None:
    seconds = noisy(1, 60)
    seconds[0][5] = 4.0
    (one,) = studied(tmp_path, Planted("a", seconds)).outliers
    assert (one.ranks, one.why) == ((), "")


def test_long_batches_are_no_outliers(tmp_path: Path) -> None:
    tokens = np.where(np.arange(60) % 15 == 14, 4096.0, 1024.0)
    seconds = (tokens / 1024 * np.random.default_rng(2).normal(1, 0.01, 60)).tolist()
    files = rank_files(tmp_path, Planted("a", [seconds]))
    for one in files[0].of("tokens"):
        one.samples[:] = tokens
    found = study(files)
    assert found is not None
    assert len(found.outliers) == 0
    assert found.usual == float(np.median(seconds)), "the usual step is as measured, whatever its tokens"
    assert found.corrected


def test_false_alarms_are_as_rare_as_stated() -> None:
    random = np.random.default_rng(0)
    steps = np.exp(random.normal(0, 0.1, (500, 200)))
    alarms = sum(int((row > threshold(row)[1]).sum()) for row in steps)
    assert alarms == 0


def sampled(world: int, extra: float, steps: int = 4, seed: int = 5, noise: float = 0.03) -> Planted:
    """Ranks that work 1 s in forward, rank 1 `extra` s longer; all others wait for it."""
    random = np.random.default_rng(seed)
    work = random.normal(1, noise, (world, steps))
    work[1] += extra
    waits = work.max(axis=0) - work
    return Planted("a", noisy(world, 20), phases=even(work.tolist(), waits.tolist()))


def test_a_slow_rank_is_named_with_its_phase_and_doubted(tmp_path: Path) -> None:
    found = studied(tmp_path, sampled(4, 0.5))
    assert found.slow is not None
    assert (found.slow.rank, found.slow.host, found.slow.phase, found.slow.steps) == (1, "left", "forward", 4)
    assert found.slow.excess == pytest.approx(0.5, abs=0.06)
    result = read_run(plant(tmp_path / "run", sampled(4, 0.5)))
    assert [doubt.subject for doubt in result.doubts if doubt.kind == "slow_training_rank"] == ["rank 1"]


@pytest.mark.parametrize("world", [2, 4, 8])
def test_noise_names_nobody(tmp_path: Path, world: int) -> None:
    named = [studied(tmp_path, sampled(world, 0.0, seed=seed, noise=0.05)).slow for seed in range(12)]
    assert [one for one in named if one] == []


def test_waiting_is_not_taken_for_work(tmp_path: Path) -> None:
    # Of the sums of phases the slow rank's is no longer than the others': they wait in backward.
    found = studied(tmp_path, sampled(2, 0.5))
    totals = [sum(phases.values()) for phases in found.by_rank.values()]
    assert totals[0] == pytest.approx(totals[1], rel=0.05)
    assert found.slow is not None
    assert found.slow.rank == 1
    assert found.exposed is not None
    assert found.total is not None
    assert found.total.value == pytest.approx(1.62, rel=0.1)


def without_waits(case: Planted, engine: str) -> Planted:
    phases: list[dict[str, Sequence[float | None]]] = [
        {**one, "exposed_communication": [None] * len(one["forward"])} for one in case.phases
    ]
    return Planted(case.name, case.seconds, phases=phases, tags={"engine": engine})


def test_where_waiting_is_unknown_only_local_phases_count(tmp_path: Path) -> None:
    ddp = studied(tmp_path, without_waits(sampled(4, 0.5), "ddp"))
    assert ddp.slow is not None
    assert ddp.slow.rank == 1
    assert (ddp.exposed, ddp.exposed_why) == (None, "not measured here")
    fsdp = studied(tmp_path, without_waits(sampled(4, 0.5), "fsdp"))
    assert (fsdp.slow, fsdp.slow_why) == (None, "waiting cannot be told from work with this engine and backend")


def test_two_sampled_steps_are_too_few_to_blame(tmp_path: Path) -> None:
    found = studied(tmp_path, sampled(4, 0.5, steps=2))
    assert (found.slow, found.slow_why) == (None, "2 sampled steps, 3 are needed (--phase-steps)")


def test_without_sampled_steps_outliers_are_still_found(tmp_path: Path) -> None:
    seconds = noisy(1, 60)
    seconds[0][5] = 4.0
    found = studied(tmp_path, Planted("a", seconds))
    assert (dict(found.phases), found.total, len(found.outliers)) == ({}, None, 1)
