"""How an attempt ended: its status, from what its launcher saw and from the records that it left."""

from collections.abc import Sequence
from pathlib import Path

from assay.launchers.protocol import Outcome
from assay.record import read_header
from assay.rundir import Status
from assay.suite import Case


def judge(case: Case, attempt: Path, outcome: Outcome, undelivered: Sequence[str]) -> Status:
    """The status of an attempt that was not interrupted. undelivered: what hosts could not deliver, a sentence each."""
    log = attempt / "stderr.log"
    if outcome.timed_out:
        found = outcome.diagnosis
        told = f"; {found.sentence}" if found else ""
        stacks = f"; where each rank was: {outcome.stacks[0].parent}/stacks-rank-*.txt" if outcome.stacks else ""
        return Status(
            "timeout",
            "run",
            outcome.exit_code,
            outcome.seconds,
            f"not done within its time limit of {case.time_limit:g} s{told}{stacks}",
            "raise time_limit, or let the case do less"
            if found and found.moving
            else "look at the stacks for the rank that others wait for, or raise time_limit",
        )
    if outcome.exit_code != 0:
        reason = outcome.sentence or f"exit code {outcome.exit_code} without an error sentence"
        return Status("failed", "run", outcome.exit_code, outcome.seconds, reason, f"see {log}")
    missing = missing_records(case, attempt)
    if missing:
        missing = "; ".join([missing, *undelivered])
        advice = "the script must run in every rank and write its records to --out"
        return Status("failed", "records", 0, outcome.seconds, missing, advice)
    return Status("passed", "run", 0, outcome.seconds)


def missing_records(case: Case, attempt: Path) -> str | None:
    """What is wrong with the records of a case that ended well: ranks without a file or without a header."""
    bad = []
    for rank in range(case.world):
        path = attempt / f"rank-{rank:05d}.jsonl"
        if not path.exists() or not _starts_with_header(path):
            bad.append(rank)
    if not bad:
        return None
    names = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
    return f"no records from {len(bad)} of {case.world} ranks: {names}"


def _starts_with_header(path: Path) -> bool:
    try:
        return read_header(path) is not None
    except OSError:
        return False
