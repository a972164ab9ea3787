"""One run of specs/noise.py as a process of its own: what is wrong with torch or the device ends there, not here."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from assay import machine
from assay.doctor.finding import Finding
from assay.doctor.noise import Noise, noise_of
from assay.errors import BAD_INPUT_EXIT, AssayError, BadInput, RunFailed
from assay.launchers import attended
from assay.launchers.protocol import Command, Outcome
from assay.options.base import command_line
from assay.options.noise import NoiseOptions
from assay.record import Block, read_rank_file
from assay.scripts import script_path
from assay.sensors.sidecar import VARIABLE as SENSORS

SCRIPT = "specs/noise"
LIMIT_SECONDS = 60.0  # two for the cases; the rest is for importing torch from a slow network file system
# One rank by itself, whatever launcher this process is below, and no sampling beside it: that would be noise of ours.
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", SENSORS: "off"}


@dataclass(frozen=True)
class Trial:
    """How the noise run went. finding: why there is no noise; device: name and type; memory in bytes, None if untold."""

    noises: tuple[Noise, ...] = ()
    finding: Finding | None = None
    device: str | None = None
    memory_total: int | None = None
    memory_free: int | None = None


def command(device: str, out: Path, python: str, env: Mapping[str, str]) -> Command:
    """What is started: one rank with every core, as a case of one rank would be."""
    # One rank talks to nobody. Asking torch for the device's default backend could fail for nothing.
    options = NoiseOptions(device=device, out=out, backend="none")
    argv = [python, str(script_path(SCRIPT)), *command_line(options)]
    threads = env.get("OMP_NUM_THREADS") or str(machine.usable_cores())
    return Command(argv, {**_ALONE, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"})


def run_trial(device: str, python: str | None = None, limit: float = LIMIT_SECONDS) -> Trial:
    """Run it to its end or the limit (s). Whatever goes wrong is the trial's finding, but for one thing.

    python: the interpreter; the present one without it. Everything started has ended when this returns or raises.
    Raises BadInput, with the script's own sentence, if torch does not offer the device: that says nothing about the
    machine.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="assay-doctor-") as folder:
            path = Path(folder)
            started = command(device, path / "records", python or machine.python(), os.environ)
            outcome = attended.run(started, path, limit, None, lambda line: None)
            absent = _absent_device(outcome)
            if absent is None and (outcome.timed_out or outcome.exit_code != 0):
                return Trial(finding=_failure(outcome, limit, path / "stderr.log"))
            if absent is None:
                return _read(path / "records" / "rank-00000.jsonl")
    except (AssayError, OSError) as error:
        return Trial(finding=Finding("noise", "bad", str(error), "mend that first: python specs/noise.py shows more"))
    raise BadInput(absent)


def _absent_device(outcome: Outcome) -> str | None:
    # Other input that the script may refuse (its folder, say) is not the user's: he gave nothing but the device.
    sentence = (outcome.sentence or "").removeprefix("rank 0: ")
    refused = outcome.exit_code == BAD_INPUT_EXIT and sentence.startswith("--device ")
    return sentence if refused else None


def _failure(outcome: Outcome, limit: float, log: Path) -> Finding:
    if outcome.timed_out:
        found = f"the noise run did not end within {limit:g} s"
        return Finding("noise", "bad", found, "look where it hangs: python specs/noise.py")
    last = next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
    said = outcome.sentence or last.strip()[:300] or f"exit code {outcome.exit_code} without a word"
    return Finding("noise", "bad", f"the noise run failed: {said}", "mend that first: python specs/noise.py shows more")


def _read(path: Path) -> Trial:
    file = read_rank_file(path)
    if file.header is None:
        raise RunFailed("the noise run left no records")
    return Trial(
        noises=noise_of(file.blocks),
        device=f"{file.header.device_name} ({file.header.device})",
        memory_total=_bytes(file.blocks, "device_memory_total"),
        memory_free=_bytes(file.blocks, "device_memory_free"),
    )


def _bytes(blocks: list[Block], metric: str) -> int | None:
    # A null sample is read as NaN, which is unequal to itself.
    values = [float(value) for block in blocks if block.metric == metric for value in block.samples]
    return int(values[0]) if values and values[0] == values[0] else None
