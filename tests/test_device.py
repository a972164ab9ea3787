import math
import re
from pathlib import Path

import pytest
import torch

from assay.device import HostDevice, default_backend, open_device
from assay.errors import BadInput
from assay.machine import environment, software
from assay.record import RankFile, read_rank_file
from assay.units import parse_size
from tests.conftest import torchrun

gpu = pytest.mark.skipif(not torch.accelerator.is_available(), reason="torch offers no accelerator here")


def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    device = open_device("cpu", 0)
    assert isinstance(device, HostDevice)
    assert default_backend(device) == "gloo"
    assert device.name
    before = device.peak_memory()
    hold = torch.ones(parse_size("64MiB") // 4)
    assert (device.peak_memory() or 0) >= (before or 0)
    assert hold.numel()


@pytest.mark.parametrize("name", ["npu", "tpu", "nonsense"])
def test_a_device_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(BadInput, match=re.escape(f"--device {name} is not there: torch {torch.__version__} offers ")):
        open_device(name, 0)


def test_only_what_matters_of_the_environment_is_kept_and_no_secret() -> None:
    kept = environment(
        {"NCCL_DEBUG": "INFO", "HOME": "/h", "SLURM_JOB_ID": "1", "ASSAY_TOKEN": "s3cret", "OMP_NUM_THREADS": "1"}
    )
    assert kept == {"ASSAY_TOKEN": "(withheld)", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "1"}


def test_what_is_not_installed_is_null() -> None:
    versions = software()
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert all(version is None or version for version in versions.values())


def losses(folder: Path, device: str) -> list[float]:
    args = (
        "--device",
        device,
        "--steps",
        "10",
        "--warmup-steps",
        "0",
        "--data",
        "dummy",
        "--seq-len",
        "32",
        "--out",
        folder,
    )
    done = torchrun(1, "workloads/pretrain.py", *args)
    assert done.returncode == 0, done.stderr
    read: RankFile = read_rank_file(folder / "rank-00000.jsonl")
    assert read.header
    assert read.header.device == device
    return [float(value) for block in read.blocks if block.metric == "loss" for value in block.samples]


@pytest.mark.gpu
@gpu
def test_the_accelerator_gives_the_cpus_losses(tmp_path: Path) -> None:
    accelerator = torch.accelerator.current_accelerator()
    assert accelerator is not None
    pairs = zip(losses(tmp_path / "a", accelerator.type), losses(tmp_path / "c", "cpu"), strict=True)
    assert all(math.isclose(a, c, rel_tol=1e-4) for a, c in pairs)


@pytest.mark.gpu
@gpu
def test_the_accelerators_ceilings_are_measured(tmp_path: Path) -> None:
    done = torchrun(1, "specs/limits.py", "--seconds", "0.2", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {block.metric for block in read_rank_file(tmp_path / "rank-00000.jsonl").blocks} == {
        "gemm_time",
        "copy_time",
    }
