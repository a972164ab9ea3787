"""comms/overlap.py on real ranks, and what it makes of transports that do and do not work by themselves."""

import importlib.util
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
import torch

from assay.beacon import open_beacon
from assay.collectives.trial import Trial, Variant
from assay.device import HostDevice
from assay.errors import BadInput, RunFailed
from assay.options.base import parse_command_line, validate
from assay.options.overlap import OverlapOptions
from assay.ranks import Session
from assay.record import Header
from assay.recorder import Recorder
from assay.scoring.overlap import derive
from assay.scoring.result import Figure
from assay.transports import Bound
from assay.world import World
from tests.conftest import ROOT, by_metric, mpirun, rank_files, torchrun, value

TIMES = ("compute_time", "communication_time", "both_time")
SHORT = ("--gemm", "32", "--budget", "0.05", "--warmup", "1")
LASTS = 0.02  # s; of the collective of a made-up transport


# --- On real ranks.


def rows(printed: str) -> list[list[str]]:
    return [line.replace(" x ", "x").split() for line in printed.splitlines() if re.match(r"\s+\d", line)]


def holds_what_was_printed(done: "subprocess.CompletedProcess[str]", folder: Path, backend: str, world: int) -> None:
    """Every size has all of its figures, and the table shows what a reader derives from the raw samples."""
    assert done.returncode == 0, done.stdout + done.stderr
    figures, curves = derive(rank_files(folder), {}, [])
    assert curves == []
    printed = rows(done.stdout)
    assert [row[0] for row in printed] == ["4096", "65536"]
    for row in printed:
        found = by_metric(figures, int(row[0]))
        assert set(found) == {*TIMES, "exposed_communication", "overlap_share", "check_errors"}
        assert found["check_errors"].value == 0
        for figure in found.values():
            assert figure.tags["backend"] == backend
            assert figure.tags["world"] == world
            assert f"{figure.tags['products']}x{figure.tags['gemm']}^3" == row[1]
        shown = [found[metric].value or 0.0 for metric in (*TIMES, "exposed_communication")]
        assert row[2:6] == [f"{value * 1e6:.2f}" for value in shown]
        share = found["overlap_share"].estimate
        assert share is not None
        assert share.samples >= 6
        assert row[6] == f"{share.value:.3f}"
        assert share.low is None or share.high is None or row[7] == f"{(share.high - share.low) / 2:.3f}"


def test_ranks_under_torchrun_measure_check_and_record(tmp_path: Path) -> None:
    done = torchrun(2, "comms/overlap.py", "--size", "4KiB,64KiB", *SHORT, "--out", tmp_path)
    holds_what_was_printed(done, tmp_path, "gloo", 2)
    for file in rank_files(tmp_path):
        checked = {block.tags["checked"]: block for block in file.blocks if block.metric == "check_errors"}
        assert set(checked) == {"data", "products"}
        assert all(block.samples.size >= 4 for block in checked.values()), "at the warm-up and in rounds, of both kinds"
        assert (checked["data"].tags["looked_at"] or 0) == checked["data"].tags["of"]
        lengths = {block.samples.size for block in file.blocks if block.metric in TIMES and block.tags["bytes"] == 4096}
        assert len(lengths) == 1, "rounds are pairs of all three"


def test_ranks_of_mpi_measure_too_and_who_has_no_part_records_no_times(tmp_path: Path) -> None:
    args = ("--transport", "mpi", "--op", "pt2pt", "--size", "4KiB,64KiB", *SHORT)
    done = mpirun(3, "comms/overlap.py", *args, "--out", tmp_path)
    holds_what_was_printed(done, tmp_path, "mpi4py", 3)
    timed = [{block.metric for block in file.blocks} & set(TIMES) for file in rank_files(tmp_path)]
    assert timed == [set(TIMES), set(TIMES), set()]


# --- Made-up transports, in this process.


def spoil(data: torch.Tensor) -> None:
    data[100] += 1


class OwnThread:
    """A transport of one rank whose all_reduce lasts 20 ms by itself, as on a device, and then does `last`."""

    name, rank, size = "own-thread", 0, 1

    def __init__(self, last: Callable[[torch.Tensor], object] = lambda data: None) -> None:
        self.begun = self.awaited = 0
        self.last = last

    def refusal(self, op: str, dtype: torch.dtype, redop: str, in_place: bool) -> str | None:
        return "own threads know no halves" if dtype == torch.float16 else None

    def barrier(self) -> Bound:
        return Bound(lambda: None, lambda: None)

    def work(self, data: torch.Tensor) -> None:
        time.sleep(LASTS)
        self.last(data)

    def start(self, data: torch.Tensor) -> Thread:
        self.begun += 1
        thread = Thread(target=self.work, args=(data,))
        thread.start()
        return thread

    def all_reduce(self, sent: torch.Tensor, received: torch.Tensor, redop: str) -> Bound:
        return Bound(lambda: self.wait(self.start(received)), lambda: self.start(received))

    def wait(self, handle: Thread) -> None:
        handle.join()
        self.awaited += 1


class NoThread(OwnThread):
    """It works only while its own calls run."""

    def start(self, data: torch.Tensor) -> Thread:
        thread = super().start(data)
        thread.join()
        return thread


class TooEarly(OwnThread):
    """Its handle says that all is done when it is not."""

    def start(self, data: torch.Tensor) -> Thread:
        right = data.clone()
        self.last = lambda data: data.copy_(right)
        data.zero_()
        return super().start(data)

    def wait(self, handle: Thread) -> None:
        self.awaited += 1


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("overlap_script", ROOT / "comms/overlap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options_of(**values: Any) -> OverlapOptions:
    return OverlapOptions(**{"size": (4096,), "gemm": 16, "budget": 0.05, "warmup": 1, "max_rounds": 12, **values})


def alone(folder: Path) -> Session:
    header = Header(0, 1, 0, 1, platform.node(), os.getpid(), "clock", "cpu", "a CPU", "own", "tests", 0.0, 0.0)
    world = World(0, 1, 0, 1, "own", (platform.node(),), True)
    return Session(world, HostDevice(), Recorder(folder / "rank-00000.jsonl", header))


def overlap_of(folder: Path, here: Session, module: ModuleType, options: OverlapOptions, transport: OwnThread) -> Any:
    """The script's Overlap of an all_reduce of 4 KiB."""
    variant = Variant("all_reduce", "float32", "sum", "auto")
    trial = Trial(options.collective(4096), here, transport, variant, 4096)  # type: ignore[arg-type] # knows one op
    trial.prepare(options.collective(4096))
    return module.Overlap(options, here, trial, open_beacon(folder, 0, 1))


def figures_of(folder: Path, transport: OwnThread, computing: float | None = None) -> dict[str, Figure]:
    """What a transport comes to. computing: s that stand for the products; None: real ones."""
    module, options, here = script(), options_of(), alone(folder)
    overlap = overlap_of(folder, here, module, options, transport)
    if computing is not None:
        for name in ("compute", "both"):
            part = replace(overlap.parts[name], multiply=lambda: time.sleep(computing), products=range(1))
            overlap.parts[name] = part
        overlap.compute.wrong = lambda: 0
    module.measure(options, here, overlap)
    overlap.record()
    here.recorder.close()
    figures, _ = derive(rank_files(folder), {}, [])
    return by_metric(figures, 4096)


def test_a_collective_that_works_by_itself_is_hidden(tmp_path: Path) -> None:
    found = figures_of(tmp_path, OwnThread(), computing=1.5 * LASTS)
    assert value(found["overlap_share"]) == pytest.approx(1, abs=0.3)
    assert value(found["exposed_communication"]) < LASTS / 2
    assert value(found["check_errors"]) == 0


def test_a_collective_that_works_in_its_own_calls_only_hides_nothing(tmp_path: Path) -> None:
    found = figures_of(tmp_path, NoThread(), computing=1.5 * LASTS)
    assert value(found["overlap_share"]) == pytest.approx(0, abs=0.3)
    assert value(found["exposed_communication"]) > LASTS / 2


def test_the_clock_stops_only_when_the_handle_has_been_awaited(tmp_path: Path) -> None:
    transport = OwnThread()
    found = figures_of(tmp_path, transport, computing=LASTS / 10)
    assert transport.begun == transport.awaited
    (file,) = rank_files(tmp_path)
    for block in file.blocks:
        if block.metric in ("communication_time", "both_time"):
            assert block.samples.min() >= LASTS, "no round is shorter than what it begins"
    assert value(found["exposed_communication"]) > LASTS / 2


def test_a_handle_that_is_done_too_early_is_seen(tmp_path: Path) -> None:
    found = figures_of(tmp_path, TooEarly())
    assert value(found["check_errors"]) > 1000
    assert value(found["late_elements"]) > 1000, "and known for what it is"


def test_wrong_data_are_seen_and_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFailed, match="elements of data or products are wrong; trust no figure of this run"):
        script().bench(options_of(op="all_reduce"), alone(tmp_path), OwnThread(spoil), open_beacon(tmp_path, 0, 1))
    assert int(rows(capsys.readouterr().out)[0][-1]) >= 4
    figures, _ = derive(rank_files(tmp_path), {}, [])
    assert value(by_metric(figures, 4096)["check_errors"]) >= 4, "what was measured is kept"


def test_products_that_change_or_are_never_made_are_seen(tmp_path: Path) -> None:
    here, module = alone(tmp_path), script()
    overlap = overlap_of(tmp_path, here, module, options_of(gemm=64), OwnThread())
    for name in ("compute", "both"):
        overlap.turn(name, 1024)
    assert overlap.wrong == [0, 0]
    overlap.parts["both"] = replace(overlap.parts["both"], multiply=lambda: None)
    overlap.turn("both", 1024)
    assert overlap.wrong[-1] > 4000, "none was made since the last look"
    multiply = overlap.compute.multiply
    overlap.parts["both"] = replace(overlap.parts["both"], multiply=lambda: multiply()[3, 5].add_(1))
    overlap.turn("both", 1024)
    assert overlap.wrong[-1] == 1
    here.recorder.close()


# --- Bad input.


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--op", "barrier"], "--op: unknown collective 'barrier'; known: all_gather, all_reduce, "),
        (["--op", "allreduce"], "--op: unknown collective 'allreduce'; did you mean 'all_reduce'?"),
        (["--dtype", "float8"], "--dtype: unknown element type 'float8'"),
        (["--size", "1MiB,1024KiB"], "--size: 1048576 is there twice; keep one"),
        (["--size", "0"], "--size: input should be greater than 0"),
        (["--size", ","], "--size: expected sizes, comma-separated, such as 1MiB,16MiB"),
        (["--gemm", "1"], "--gemm: input should be greater than or equal to 8"),
        (["--ratio", "nan"], "--ratio: input should be a finite number"),
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence(argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line(OverlapOptions, None, argv)
    told = capsys.readouterr().err.strip()
    assert sentence in told
    assert "\n" not in told


def test_worlds_that_cannot_run_it_are_refused() -> None:
    with pytest.raises(ValueError, match="collectives need at least 2 ranks, got 1"):
        options_of().check_world(1)
    with pytest.raises(ValueError, match="--size 1028 does not divide for all_gather: 2 ranks × 4 bytes"):
        options_of(op="all_gather", size=(4096, 1028)).check_world(2)
    options_of().check_world(3)
    assert validate(OverlapOptions, {"size": "4KiB"}) == validate(OverlapOptions, {"size": [4096]})
    assert validate(OverlapOptions, {"size": 4096}).size == (4096,)


def test_what_the_transport_or_the_memory_cannot_do_is_one_sentence(tmp_path: Path) -> None:
    here, alive = alone(tmp_path), open_beacon(tmp_path, 0, 1)
    with pytest.raises(BadInput, match="--op all_reduce --dtype float16: own threads know no halves; choose another"):
        script().bench(options_of(dtype="float16"), here, OwnThread(), alive)
    with pytest.raises(
        BadInput,
        match=r"--size, --gemm: all_reduce of 1024TiB beside the products needs .* more than is free; give less",
    ):
        script().bench(options_of(size=(1 << 50,)), here, OwnThread(), alive)
    here.recorder.close()
