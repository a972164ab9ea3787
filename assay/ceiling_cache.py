"""Ceilings that were measured lately on this machine, by this code: their raw records, kept for the next run.

An entry answers only for a case that agrees in everything that could change its figures: options, ranks, host, boot,
processor, cores, accelerators and their drivers, sources of this suite, versions, variables, and what the doctor says of
governor, boost, quotas and limits. What was measured while the machine was unfit, or while the sensors gave reason for
doubt, is not kept. An entry that is too old is removed.
"""

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import machine
from assay.errors import BadInput, RunFailed
from assay.rundir import read_document, write_document
from assay.suite import Case
from assay.units import format_duration

if TYPE_CHECKING:
    from assay.doctor.checkup import Checkup

ENTRY = "entry.json"
FORGOTTEN = 30 * 86400.0  # s after which an entry that nothing asked for is removed, whatever it is of
# Variables that name a job or a meeting point, and change no ceiling.
_NAMES_ONLY = ("SLURM_", "MASTER_", "TORCHELASTIC_", "ASSAY_")
# These say in which container ranks run.
_PLACES = ("ASSAY_NODE_PREFIX", "ASSAY_NODE_PYTHON", "ASSAY_SRUN_OPTIONS")
# What the doctor finds that may differ from run to run and changes what the machine can do.
_CIRCUMSTANCES = ("frequency governor", "boost", "CPU quota", "memory limit", "huge pages", "NUMA", "threads")


@dataclass(frozen=True)
class Entry:
    """Records that may be used again. measured: when, in s of the wall clock; age: in s; files: their names and sizes."""

    folder: Path
    measured: float
    age: float
    files: Mapping[str, int]

    @property
    def sentence(self) -> str:
        """What the report says about them."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.measured))
        return f"not measured in this run: taken from {when}, {format_duration(self.age)} before, same machine and code"


def cache_folder(env: Mapping[str, str]) -> Path | None:
    """Where entries lie: `assay/ceilings` under XDG_CACHE_HOME, or under ~/.cache; None for a user without a home."""
    try:
        return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "assay" / "ceilings"
    except RuntimeError:
        return None


def identity(case: Case, env: Mapping[str, str], checkup: "Checkup | None") -> dict[str, Any]:
    """All that must agree for a figure of then to be a figure of now. To be taken before the case is launched."""
    about = machine.host()
    found = checkup.findings if checkup else ()
    return {
        "case": {"script": case.script, "world": case.world, "options": case.document()["options"]},
        "host": {key: about[key] for key in ("name", "cpu", "memory_bytes", "kernel")},
        "boot": machine.clock_id(),
        "cores": machine.bound_cores(),
        "accelerators": machine.accelerators(),
        "sources": machine.source_digest(),
        "software": machine.software(),
        "environment": {
            k: v for k, v in machine.environment(env).items() if k in _PLACES or not k.startswith(_NAMES_ONLY)
        },
        "circumstances": {one.check: one.found for one in found if one.check in _CIRCUMSTANCES},
    }


def recall(case: Case, wanted: Mapping[str, Any], env: Mapping[str, str]) -> Entry | None:
    """The entry of that identity, None if there is none that is young enough. One that is too old is removed."""
    parent = cache_folder(env)
    if case.reuse_within <= 0 or parent is None:
        return None
    folder = parent / _digest(wanted)
    try:
        known = read_document(folder / ENTRY)
    except BadInput:
        return None
    measured, files = known.get("measured"), known.get("files")
    # A digest may meet another by chance or by hand; what is compared is what is written out.
    if known.get("identity") != wanted or not isinstance(measured, int | float) or not isinstance(files, dict):
        return None
    age = time.time() - measured
    if not 0 <= age <= case.reuse_within:  # a clock that was set back makes ages that mean nothing
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return Entry(folder, float(measured), age, files)


def copy_to(entry: Entry, attempt: Path) -> bool:
    """Put the entry's records into an attempt's folder, with a note of where they come from; whether they are whole.

    Another run may replace or remove the entry at any moment: then nothing of it stays. Raises RunFailed if the attempt
    cannot be written.
    """
    try:
        for name in entry.files:
            shutil.copy2(entry.folder / name, attempt / name)
        whole = {name: (attempt / name).stat().st_size for name in entry.files} == dict(entry.files)
    except OSError:
        whole = False
    if not whole or not entry.files:
        for name in entry.files:
            (attempt / name).unlink(missing_ok=True)
        return False
    write_document(attempt / "reused.json", {"from": str(entry.folder), "measured": entry.measured, "age": entry.age})
    return True


def keep(
    case: Case, wanted: Mapping[str, Any], attempt: Path, env: Mapping[str, str], checkup: "Checkup | None"
) -> str | None:
    """Keep the records of an attempt that passed; a sentence if they are not to be used again, and why."""
    parent = cache_folder(env)
    if case.reuse_within <= 0:
        return None
    try:
        reason = _unfit(attempt, checkup) or ("this user has no folder for it" if parent is None else None)
        if reason is None and parent is not None:
            _write(parent, wanted, attempt)
    except (OSError, RunFailed) as error:  # a cache that cannot be written is no reason to fail a run
        reason = str(error)
    return f"measured anew in the next run too: {reason}" if reason else None


def _unfit(attempt: Path, checkup: "Checkup | None") -> str | None:
    if checkup is not None and checkup.verdict == "unfit":
        return "the machine was unfit to be measured"
    from assay.scoring.sensors import doubts, read_sensors

    return next((f"{subject} {message}" for _, subject, message in doubts(read_sensors(attempt))), None)


def _write(parent: Path, wanted: Mapping[str, Any], attempt: Path) -> None:
    parent.mkdir(parents=True, exist_ok=True)
    _sweep(parent)
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    try:
        files = sorted(attempt.glob("*.jsonl"))
        for file in files:
            shutil.copy2(file, made / file.name)
        sizes = {file.name: (made / file.name).stat().st_size for file in files}
        write_document(made / ENTRY, {"identity": wanted, "measured": time.time(), "files": sizes})
        folder = parent / _digest(wanted)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what nobody asked for in a month: entries of old revisions, and what a killed run left half made."""
    for folder in parent.iterdir():
        if time.time() - folder.stat().st_mtime > FORGOTTEN:
            shutil.rmtree(folder, ignore_errors=True)


def _digest(wanted: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]
