"""`assay plan`: what trainings are going to need, without torch; what cannot fit is refused with the number."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from assay import ceiling_cache, machine
from assay.errors import BadInput
from assay.memory_estimate import estimate_memory
from assay.options import LimitsOptions
from assay.options.training import TrainingOptions
from assay.planning import flops_per_token, misfits, plan_lines, plan_training, refuse_what_cannot_run
from assay.record import Header, TagValue, encode_block, encode_header
from assay.suite import Case, Suite, parse_suite
from tests.conftest import ROOT, assay

SUITE = """
assay: 1
name: s
{more}
limits: false
cases:
  - name: train
    script: workloads/pretrain
    world: {world}
    options: {{model: {model}, engine: {engine}, global_batch: 256, micro_batch: 2, seq_len: 2048, device: {device}}}
"""


def suite(model: str, engine: str = "none", world: int = 1, more: str = "", device: str = "cpu") -> Suite:
    return parse_suite(SUITE.format(model=model, engine=engine, world=world, more=more, device=device), "s.yaml")


def written(folder: Path, **values: Any) -> Path:
    file = folder / "s.yaml"
    file.write_text(SUITE.format(**{"more": "", "device": "cpu", "engine": "none", "world": 1, **values}))
    return file


def test_the_plan_tells_what_a_training_needs(tmp_path: Path) -> None:
    planned = assay("plan", written(tmp_path, model="llama-tiny"), cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert planned.returncode == 0, planned.stderr
    (case,) = suite("llama-tiny").cases
    assert isinstance(case.options, TrainingOptions)
    assert f"parameters: {estimate_memory(case.options, 1).parameters:,}\n" in planned.stdout
    assert "memory of a rank, estimated: " in planned.stdout
    assert "work of a rank and step: " in planned.stdout
    assert "step: not predicted: no ceilings measured on this machine" in planned.stdout


def test_what_does_not_fit_is_refused_with_the_number_and_what_helps(tmp_path: Path) -> None:
    file = written(tmp_path, model="llama-7b", engine="ddp", world=8)
    refused = assay("plan", file, "--device-memory", "80GB", cwd=tmp_path)
    assert refused.returncode == 2
    assert "torchrun" in refused.stdout or "torch.distributed.run" in refused.stdout, (
        "the plan itself is printed all the same"
    )
    (sentence,) = refused.stderr.splitlines()
    (case,) = suite("llama-7b", "ddp", 8).cases
    assert isinstance(case.options, TrainingOptions)
    need = f"{estimate_memory(case.options, 8).peak / 1e9:.0f} GB"
    assert f"case 'train': a rank needs {need} by the estimate (" in sentence
    assert "and a device has 80.0 GB; what helps: " in sentence
    assert "checkpointing (" in sentence
    assert ", fits)" in sentence
    assert misfits(suite("llama-7b", "ddp", 8), 900 * 10**9) == []
    wrong = assay("plan", file, "--device-memory", "much", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "--device-memory: expected a number of bytes such as" in wrong.stderr


def test_without_a_size_only_this_hosts_memory_is_known() -> None:
    assert machine.memory_left()[1] < 10**15
    assert "this host has for each rank" in misfits(suite("gpt3-175b"), None)[0]
    assert misfits(suite("llama-tiny"), None) == []
    # What devices another host or a named accelerator has is not known here.
    elsewhere = suite("gpt3-175b", "fsdp", 2, "launcher: slurm\nnodes: 2\nper_node: 1")
    assert misfits(elsewhere, None) == misfits(suite("gpt3-175b", device="cuda"), None) == []
    assert misfits(elsewhere, 10**9) != []


def test_a_run_is_refused_only_where_no_estimate_could_be_so_far_off() -> None:
    refuse_what_cannot_run(suite("llama-tiny"))
    with pytest.raises(BadInput, match=r"case 'train': a rank needs \d.* TB by the estimate"):
        refuse_what_cannot_run(suite("gpt3-175b"))
    refuse_what_cannot_run(suite("gpt3-175b", device="cuda"))


def test_the_largest_models_are_planned_without_torch(tmp_path: Path) -> None:
    file = written(tmp_path, model="gpt3-175b", engine="fsdp", world=64)
    code = (
        "import sys\nfrom assay.cli import app\n"
        f"app(['plan', {str(file)!r}, '--device-memory', '9TB'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def keep_ceilings(folder: Path, env: Mapping[str, str], world: int = 1, **rates: float) -> None:
    """Ceilings as a run keeps them: products in float32 and copies, in FLOP/s and B/s of each rank."""
    attempt = folder / "attempt"
    attempt.mkdir()
    for rank in range(world):
        header = Header(rank, world, rank, world, "host", 1, "clock", "cpu", "", "gloo", "specs/limits", 0.0, 0.0)
        lines = [encode_header(header)]
        for metric, rate in rates.items():
            tags: dict[str, TagValue] = {"loaded": "together" if world > 1 else "alone", "ranks": world, "begun": 0.0}
            tags |= {"work": rate, "turn": 0} | ({"dtype": "float32"} if metric == "gemm_time" else {})
            lines.append(encode_block(metric, "s", [1.0] * 8, tags=tags, first_step=None, t_first=0, t_last=8))
        (attempt / f"rank-{rank:05d}.jsonl").write_text("".join(lines))
    case = Case("limits", "specs/limits", world, 60.0, LimitsOptions(device="cpu"), 3600.0)
    assert ceiling_cache.keep(case, ceiling_cache.identity(case, env, None), attempt, env, None) is None


def test_a_step_is_predicted_from_the_ceilings_kept_of_this_machine(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    (case,) = suite("llama-tiny").cases
    keep_ceilings(tmp_path, env, gemm_time=1e11, copy_time=1e10)
    plan = plan_training(case, env)
    assert plan
    assert isinstance(case.options, TrainingOptions)
    seconds = flops_per_token(case.options) * 2048 * 256 / 1e11
    assert not isinstance(plan.prediction, str)
    assert plan.prediction.parts["products"] == pytest.approx(seconds)
    (line,) = [line for line in plan_lines(plan) if line.startswith("step: ")]
    assert "predicted, not measured" in line
    assert "measured gemm alone, 1 rank 100 GFLOP/s" in line
    (other,) = suite("llama-tiny", "ddp", 2).cases
    alone = plan_training(other, env)
    assert alone
    assert alone.prediction == "no ceilings measured on this machine"


def test_ceilings_of_another_machine_are_none_of_ours(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    keep_ceilings(tmp_path, env, gemm_time=1e11, copy_time=1e10)
    (case,) = suite("llama-tiny").cases
    (entry,) = (tmp_path / "cache").rglob(ceiling_cache.ENTRY)
    entry.write_text(entry.read_text().replace(machine.cpu_model(), "another processor"))
    plan = plan_training(case, env)
    assert plan
    assert isinstance(plan.prediction, str)
    entry.write_text("{")
    assert plan_training(case, env) is not None


def test_what_trains_nothing_has_no_plan() -> None:
    case = Case("limits", "specs/limits", 1, 60.0, LimitsOptions())
    assert plan_training(case, {}) is None
