"""Ceilings that were measured lately on this machine, by this code: their raw records, kept for the next run.

An entry answers only for a case that agrees in everything that could change its figures: options, ranks, host, boot,
processor, accelerators on the bus, sources of this suite, versions, variables. It is dropped when it is too old.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay import machine
from assay.errors import BadInput, RunFailed
from assay.rundir import read_document, write_document
from assay.suite import Case
from assay.units import format_duration

ENTRY = "entry.json"
# Variables that name a job or a meeting point, and change no ceiling.
_NAMES_ONLY = ("SLURM_", "MASTER_", "TORCHELASTIC_", "ASSAY_")


@dataclass(frozen=True)
class Entry:
    """Records that may be used again. measured: when, in s of the wall clock; age: in s."""

    folder: Path
    measured: float
    age: float

    @property
    def sentence(self) -> str:
        """What the report says about them."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.measured))
        return f"not measured in this run: taken from {when}, {format_duration(self.age)} before, same machine and code"


def cache_folder(env: Mapping[str, str]) -> Path:
    """Where entries lie: `assay/ceilings` under XDG_CACHE_HOME, or under ~/.cache without it."""
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "assay" / "ceilings"


def identity(case: Case, env: Mapping[str, str]) -> dict[str, Any]:
    """All that must agree for a figure of then to be a figure of now."""
    about = machine.host()
    return {
        "case": {"script": case.script, "world": case.world, "options": case.document()["options"]},
        "host": {key: about[key] for key in ("name", "cpu", "cores_usable", "memory_bytes", "kernel")},
        "boot": machine.clock_id(),
        "accelerators": machine.accelerators(),
        "sources": machine.source_digest(),
        "software": machine.software(),
        "environment": {k: v for k, v in machine.environment(env).items() if not k.startswith(_NAMES_ONLY)},
    }


def recall(case: Case, env: Mapping[str, str]) -> Entry | None:
    """The entry for `case`, None if there is none that is young enough. One that is too old is removed."""
    if case.reuse_within <= 0:
        return None
    wanted = identity(case, env)
    folder = cache_folder(env) / _digest(wanted)
    try:
        known = read_document(folder / ENTRY)
    except BadInput:
        return None
    measured = known.get("measured")
    # A digest may meet another by chance or by hand; what is compared is what is written out.
    if known.get("identity") != wanted or not isinstance(measured, int | float):
        return None
    age = time.time() - measured
    if not 0 <= age <= case.reuse_within:  # a clock that was set back makes ages that mean nothing
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return Entry(folder, float(measured), age)


def copy_to(entry: Entry, attempt: Path) -> None:
    """Put the entry's records into an attempt's folder, with a note of where they come from. Raises RunFailed."""
    try:
        for file in sorted(entry.folder.glob("*.jsonl")):
            shutil.copy2(file, attempt / file.name)
    except OSError as error:
        raise RunFailed(f"{attempt}: {(error.strerror or str(error)).lower()}; make room and run again") from error
    write_document(attempt / "reused.json", {"from": str(entry.folder), "measured": entry.measured, "age": entry.age})


def keep(case: Case, attempt: Path, env: Mapping[str, str]) -> None:
    """Keep the records of an attempt that passed. A cache that cannot be written is no reason to fail a run."""
    if case.reuse_within <= 0:
        return
    wanted = identity(case, env)
    parent = cache_folder(env)
    with contextlib.suppress(OSError, RunFailed):
        parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            for file in sorted(attempt.glob("*.jsonl")):
                shutil.copy2(file, made / file.name)
            write_document(
                made / ENTRY, {"identity": wanted, "measured": time.time(), "host": platform.node(), "pid": os.getpid()}
            )
            folder = parent / _digest(wanted)
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _digest(wanted: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:32]
