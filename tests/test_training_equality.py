"""One process, DDP and FSDP train the same model: equal weights to the bit, equal losses to rounding. Real launches."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from assay.device import HostDevice
from assay.errors import RUN_FAILED_EXIT, SENTENCE_MARK
from assay.ranks import Session
from assay.record import Block, RankFile, read_rank_file
from assay.recorder import Recorder
from assay.world import World
from tests.ranks_weights import SHAPES, describe, job_of

ROOT = Path(__file__).parent.parent
PRETRAIN = ROOT / "workloads" / "pretrain.py"
STEPS = 20
SETTINGS = ["--global-batch", "8", "--micro-batch", "2", "--seq-len", "64", "--device", "cpu"]
SETTINGS += ["--steps", "18", "--warmup-steps", "2", "--lr-warmup-steps", "2"]


def launch(ranks: int, script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return subprocess.run(
        [sys.executable, *torchrun, str(script), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


# How the same training is spread: ranks, and the words that say so.
WAYS: dict[str, tuple[int, list[str]]] = {
    "none": (1, ["--engine", "none"]),
    "ddp": (2, ["--engine", "ddp"]),
    "fsdp": (2, ["--engine", "fsdp"]),
    "hsdp": (4, ["--engine", "fsdp", "--shard-ranks", "2"]),
}
SPREAD = [way for way in WAYS if way != "none"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[RankFile], str]]:
    """Records of every rank and the printed text, by way."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for way, (ranks, words) in WAYS.items():
        out = folder / way
        done = launch(ranks, PRETRAIN, *words, *SETTINGS, "--out", str(out), "--tokenizer-cache", str(folder / "cache"))
        assert done.returncode == 0, done.stderr
        found[way] = ([read_rank_file(out / f"rank-{rank:05d}.jsonl") for rank in range(ranks)], done.stdout)
    return found


def blocks(file: RankFile, metric: str) -> list[Block]:
    return [block for block in file.blocks if block.metric == metric]


def by_step(file: RankFile, metric: str) -> NDArray[np.float64]:
    """Samples of a metric in the order of steps, warm-up first."""
    found = sorted(blocks(file, metric), key=lambda block: block.first_step or 0)
    steps = [(block.first_step or 0) + i for block in found for i in range(len(block.samples))]
    assert steps == list(range(STEPS)), f"{metric}: steps {steps}"
    phases = [str(block.tags["phase"]) for block in found]  # a slow machine writes several blocks of one
    assert phases == sorted(phases, reverse=True)
    assert set(phases) == {"warmup", "measured"}
    return np.concatenate([block.samples for block in found])


@pytest.mark.parametrize("engine", SPREAD)
@pytest.mark.parametrize("metric", ["loss", "grad_norm"])
def test_engines_train_the_same_model(runs: dict[str, tuple[list[RankFile], str]], engine: str, metric: str) -> None:
    alone, spread = (by_step(runs[name][0][0], metric) for name in ("none", engine))
    np.testing.assert_allclose(spread, alone, rtol=1e-5)
    assert metric != "loss" or alone[-1] < alone[0]


@pytest.mark.parametrize("engine", SPREAD)
def test_engines_agree_on_held_out_text(runs: dict[str, tuple[list[RankFile], str]], engine: str) -> None:
    alone, spread = (blocks(runs[name][0][0], "eval_loss")[0].samples for name in ("none", engine))
    np.testing.assert_allclose(spread, alone, rtol=1e-5)


@pytest.mark.parametrize("engine", list(WAYS))
def test_every_rank_keeps_the_records_that_reports_read(
    runs: dict[str, tuple[list[RankFile], str]], engine: str
) -> None:
    files, text = runs[engine]
    phases = {"data_time", "forward_time", "backward_time", "optimizer_time", "exposed_communication_time"}
    first = {"loss", "grad_norm", "learning_rate", "tokens", "parameters", "flops_per_token", "eval_loss"}
    for rank, file in enumerate(files):
        metrics = {block.metric for block in file.blocks}
        assert {"step_time", "peak_memory", "setup_time", *phases} <= metrics
        taken_apart = [blocks(file, metric)[0] for metric in sorted(phases)]
        assert all(block.first_step == STEPS and len(block.samples) == 3 for block in taken_apart)
        (waited,) = blocks(file, "exposed_communication_time")
        assert (waited.samples > 0).all() == (len(files) > 1), "ranks that exchange nothing wait for nothing"
        assert first <= metrics if rank == 0 else not first & metrics
        assert (by_step(file, "step_time") > 0).all()
        assert not file.garbage
        common = {"model": "llama-tiny", "engine": WAYS[engine][1][1], "data": "text", "dtype": "float32"}
        assert all(common.items() <= block.tags.items() for block in file.blocks)
    assert blocks(files[0], "engine_engaged")[0].samples.tolist() == [1.0]
    assert (by_step(files[0], "tokens") == 8 * 64).all()
    assert f"assay: progress {STEPS}/{STEPS} " in text
    assert "TGS " in text


def test_weights_are_bit_equal_whatever_the_engine(tmp_path: Path) -> None:
    result = tmp_path / "weights.json"
    done = launch(2, ROOT / "tests" / "ranks_weights.py", str(result))
    assert done.returncode == 0, done.stderr
    found = json.loads(result.read_text())
    here = Session(World(0, 1, 0, 1, "gloo", ("host",), True), HostDevice(), cast(Recorder, None))
    for shape in SHAPES:
        job = job_of("none", shape, here)
        alone = describe(job.engine.module, job.task)
        for engine in ("ddp", "fsdp"):
            assert found[f"{engine} {shape.name}"]["weights"] == alone["weights"]
            assert found[f"{engine} {shape.name}"]["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        names = alone["weights"]
        assert isinstance(names, dict)
        assert ("lm_head.weight" in names) is not shape.tied
    # The same launch: engines whose ranks exchanged nothing must say so.
    assert "gradients differ between ranks" in found["ddp unsynchronised"]
    assert "not a DTensor in rows" in found["fsdp unsynchronised"]
    assert "1 of 2 ranks got no gradient of the last one's data" in found["deaf"]
    assert found["overflow"].startswith("DistributedDataParallel over 2 ranks")
    assert found["other data"].startswith("--data x: rank 1 on ")
    assert found["nan"].startswith("loss is nan at step 0 of 100, from 1 of 2 ranks, first rank 1: look at its data")


def sentences(stderr: str) -> Sequence[str]:
    return [line for line in stderr.splitlines() if line.startswith(SENTENCE_MARK)]


def test_a_loss_that_is_no_number_ends_the_run_and_is_recorded(tmp_path: Path) -> None:
    words = ["--data", "dummy", "--lr", "1e20", "--clip", "1e20", "--weight-decay", "0", "--seq-len", "16"]
    done = launch(1, PRETRAIN, *words, "--device", "cpu", "--out", str(tmp_path))
    assert done.returncode == RUN_FAILED_EXIT
    (sentence,) = sentences(done.stderr)
    assert "rank 0: loss is nan at step" in sentence
    assert "--lr" in sentence
    file = read_rank_file(tmp_path / "rank-00000.jsonl")
    losses = np.concatenate([block.samples for block in blocks(file, "loss")])
    assert not np.isfinite(losses[-1])
    assert np.isfinite(losses[:-1]).all()
    assert f"at step {len(losses) - 1} " in sentence
