"""A/A noise: its formula, the script that measures it, and everything that can go wrong with that run."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.device import Accelerator
from assay.doctor.noise import (
    DRIFT_WARN,
    METRIC,
    PAIRS,
    PRODUCTS,
    STEPS,
    WHOLE,
    Noise,
    confidence,
    drift_finding,
    noise_finding,
    noise_of,
    whole_case,
)
from assay.doctor.trial import run_trial
from assay.errors import BadInput, RunFailed
from assay.options.noise import NoiseOptions
from assay.ranks import Session
from assay.record import Block, Header, read_rank_file
from assay.recorder import Recorder
from assay.world import World
from tests.conftest import ROOT, environment

SECONDS = st.floats(1e-3, 1e3)
PAIR_LISTS = st.lists(st.tuples(SECONDS, SECONDS), min_size=PAIRS, max_size=PAIRS).map(tuple)


def of_ratios(*ratios: float) -> list[Noise]:
    part = Noise(PRODUCTS, tuple((0.1, 0.1 * ratio) for ratio in ratios))
    return [part, whole_case([part])]


@given(PAIR_LISTS, st.floats(1e-3, 1e3))
def test_a_faster_machine_is_no_quieter(pairs: tuple[tuple[float, float], ...], scale: float) -> None:
    scaled = Noise("x", tuple((a * scale, b * scale) for a, b in pairs))
    assert scaled.value == pytest.approx(Noise("x", pairs).value)


@given(PAIR_LISTS)
def test_the_arms_can_be_swapped(pairs: tuple[tuple[float, float], ...]) -> None:
    one, other = Noise("x", pairs), Noise("x", tuple((b, a) for a, b in pairs))
    assert other.value == pytest.approx(one.value)
    opposite = {"slower": "faster", "faster": "slower", None: None}
    assert other.drift == opposite[one.drift]


@given(PAIR_LISTS)
def test_no_pair_differs_by_more_than_the_noise(pairs: tuple[tuple[float, float], ...]) -> None:
    noise = Noise("x", pairs)
    assert noise.value >= 0
    assert all(max(a, b) / min(a, b) - 1 <= noise.value * (1 + 1e-12) for a, b in pairs)


def test_equal_times_have_no_noise() -> None:
    assert Noise("x", ((0.2, 0.2),) * PAIRS).value == 0


def test_the_confidence_is_that_of_simulated_medians() -> None:
    """The smallest and largest of five ratios hold the true median as often as the formula says."""
    assert confidence(5) == 0.9375
    draws = np.random.default_rng(7).lognormal(0.0, 0.3, (20_000, 5))  # median 1, far from symmetric
    held = np.mean((draws.min(axis=1) <= 1) & (draws.max(axis=1) >= 1))
    assert held == pytest.approx(confidence(5), abs=0.01)


def test_the_whole_case_is_the_sum_of_its_work() -> None:
    first = Noise(PRODUCTS, ((1.0, 2.0), (3.0, 3.0)))
    second = Noise(STEPS, ((2.0, 1.0), (1.0, 2.0)))
    assert whole_case([first, second]) == Noise(WHOLE, ((3.0, 3.0), (4.0, 5.0)))


@pytest.mark.parametrize(
    ("ratios", "state"),
    [((1.0, 1.01, 0.99, 1.02, 1.0), "good"), ((1.0, 1.1, 1.0, 1.0, 1.0), "warn"), ((1.0, 0.5, 1.0, 1.0, 1.0), "bad")],
)
def test_the_worst_pair_decides(ratios: tuple[float, ...], state: str) -> None:
    finding = noise_finding(of_ratios(*ratios))
    assert finding.state == state
    assert bool(finding.advice) == (state != "good")


@pytest.mark.parametrize(
    ("ratios", "state", "word"),
    [
        ((1.05, 0.99, 1.05, 1.05, 1.05), "good", "none"),
        ((1.03, 1.04, 1.05, 1.06, 1.07), "warn", "slower, by 5.0 %"),
        ((0.97, 0.96, 0.95, 0.94, 0.93), "warn", "faster, by 5.0 %"),
        ((1 + DRIFT_WARN / 4,) * 5, "good", "slower"),
    ],
)
def test_a_machine_that_drifts(ratios: tuple[float, ...], state: str, word: str) -> None:
    finding = drift_finding(of_ratios(*ratios))
    assert (finding.state, word in finding.found) == (state, True), finding


def records() -> list[Block]:
    return [
        Block(METRIC, "s", np.array([0.1]), {"work": work, "arm": arm, "pair": pair})
        for pair in range(1, PAIRS + 1)
        for arm in "AB"
        for work in (PRODUCTS, STEPS)
    ]


def test_records_become_pairs_in_order() -> None:
    blocks = records()
    blocks[1] = Block(METRIC, "s", np.array([0.4]), blocks[1].tags)  # small kernels, arm A, pair 1
    _, small, whole = noise_of([*blocks, Block("other", "s", np.array([9.0]))])
    assert small.pairs[0] == (0.4, 0.1)
    assert whole.pairs[0] == (0.5, 0.2)
    assert small.value == pytest.approx(3.0)


@pytest.mark.parametrize("seconds", [[], [0.1, 0.1], [float("nan")], [0.0], [-1.0]])
def test_records_that_are_no_times_are_refused(seconds: list[float]) -> None:
    blocks = records()
    blocks[3] = Block(METRIC, "s", np.array(seconds), blocks[3].tags)
    with pytest.raises(RunFailed, match="run it again"):
        noise_of(blocks)
    with pytest.raises(RunFailed, match="run it again"):
        noise_of([*records(), records()[0]])
    with pytest.raises(RunFailed, match="pair 5"):
        noise_of(records()[:-1])


def test_several_ranks_would_measure_each_other() -> None:
    NoiseOptions().check_world(1)
    with pytest.raises(ValueError, match="one rank alone, not by 2"):
        NoiseOptions().check_world(2)


def test_the_script_prints_and_records_the_same_pairs(tmp_path: Path) -> None:
    argv = [
        sys.executable,
        str(ROOT / "specs/noise.py"),
        "--device",
        "cpu",
        "--seconds",
        "0.01",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    file = read_rank_file(tmp_path / "rank-00000.jsonl")
    assert file.garbage == []
    times = [block for block in file.blocks if block.metric == METRIC]
    assert [block.tags["arm"] for block in times] == ["A", "A", "B", "B"] * PAIRS
    for work in (PRODUCTS, STEPS):
        assert len({block.tags["times"] for block in times if block.tags["work"] == work}) == 1, "a fixed number"
    for noise in noise_of(file.blocks):
        assert f"{noise.work:<16} noise" in done.stdout
        assert " ".join(f"{ratio:.3f}" for ratio in noise.ratios) in done.stdout
    assert "93.75%" in done.stdout


def fake_python(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_noise_run_that_hangs_is_ended_and_found(tmp_path: Path) -> None:
    trial = run_trial("cpu", fake_python(tmp_path, "sleep 2718.2818"), limit=0.5)
    assert trial.noises == ()
    assert trial.finding is not None
    assert (trial.finding.state, trial.finding.found) == ("bad", "the noise run did not end within 0.5 s")
    left = [process for process in psutil.process_iter(["cmdline"]) if "2718.2818" in (process.info["cmdline"] or [])]
    assert left == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("echo first >&2; echo 'ImportError: libcudart.so.12: no such file' >&2; exit 1", "failed: ImportError: libcudart"),
        ("echo 'assay: error: rank 0: the device is lost' >&2; echo later >&2; exit 1", "failed: rank 0: the device is lost"),
        ("echo 'assay: error: rank 0: --out x: cannot be written' >&2; exit 2", "failed: rank 0: --out x"),
        ("exit 3", "exit code 3 without a word"),
        ("kill -9 $$", "exit code 137"),
        ("exit 0", "no such file"),  # ended well, but left no records
    ],
)  # fmt: skip
def test_a_noise_run_that_fails_is_a_sentence(tmp_path: Path, text: str, word: str) -> None:
    finding = run_trial("cpu", fake_python(tmp_path, text)).finding
    assert finding is not None
    assert finding.state == "bad"
    assert word in finding.found.lower() if word == "no such file" else word in finding.found
    assert "\n" not in finding.found
    assert finding.advice


def test_a_device_that_torch_does_not_offer_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"^--device nosuch is not there: torch \S+ offers "):
        run_trial("nosuch")


def test_the_noise_run_has_no_sensors_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSAY_SENSORS", "on")
    run_trial("cpu", fake_python(tmp_path, f"env > {tmp_path}/env; exit 3"))
    assert "ASSAY_SENSORS=off" in (tmp_path / "env").read_text().splitlines()


@pytest.mark.parametrize("told", [True, False])
def test_an_accelerators_memory_that_its_driver_does_not_tell_is_null_with_a_reason(tmp_path: Path, told: bool) -> None:
    def ask(index: int) -> tuple[int, int]:
        if told:
            return 60 << 30, 80 << 30
        raise RuntimeError("the driver of this device does not tell its free memory")

    device = Accelerator.__new__(Accelerator)  # without the device, which nobody has here
    device.type, device.index, device._module = "xpu", 0, SimpleNamespace(mem_get_info=ask)
    alone = World(0, 1, 0, 1, "none", ("n1",), True)
    recorder = Recorder(tmp_path / "rank.jsonl", Header(0, 1, 0, 1, "n1", 1, "b", "xpu", "", "none", "s", 0.0, 0.0))
    script = runpy.run_path(str(ROOT / "specs/noise.py"))
    script["held_memory"](Session(alone, device, recorder))
    recorder.close()
    blocks = {block.metric: block for block in read_rank_file(tmp_path / "rank.jsonl").blocks}
    free, total = blocks["device_memory_free"], blocks["device_memory_total"]
    if told:
        assert (free.samples[0], total.samples[0], free.reason) == (60 << 30, 80 << 30, None)
    else:
        assert np.isnan([free.samples[0], total.samples[0]]).all()
        assert free.reason == total.reason == "neither the driver nor torch tells it"


def test_an_interpreter_that_is_not_there_is_a_finding(tmp_path: Path) -> None:
    finding = run_trial("cpu", str(tmp_path / "no-such-python")).finding
    assert finding is not None
    assert finding.state == "bad"


def test_a_broken_torch_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: undefined symbol: _ZN2at')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    finding = run_trial("cpu").finding
    assert finding is not None
    assert finding.found == "the noise run failed: ImportError: libtorch_cpu.so: undefined symbol: _ZN2at"
