"""What the pre-flight says: checks with a state, what was found, and what to do; and the verdict of all."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA = "assay-preflight/1"
MOST_NAMED = 8  # hosts that a sentence names; a thousand names would hide what it says

State = Literal["ok", "warning", "failed", "unknown"]
STATES: tuple[State, ...] = ("failed", "warning", "unknown", "ok")  # the order in which a reader wants them


@dataclass(frozen=True)
class Check:
    """One finding. failed: do not start the job; unknown: `found` holds the reason.

    hosts: those that it is about, none where it is about all alike. fix: one sentence to do; empty where nothing need be.
    """

    name: str
    state: State
    found: str
    fix: str = ""
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """All checks, what weighs most first. reports: what each host told, as plain values. seconds: how long all took."""

    checks: tuple[Check, ...]
    hosts: tuple[str, ...]
    reports: Mapping[str, Any]
    seconds: float
    when: str

    @property
    def ready(self) -> bool:
        """Whether no check failed; what is unknown or a warning does not count."""
        return not any(check.state == "failed" for check in self.checks)

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        failed = dict.fromkeys(check.name for check in self.checks if check.state == "failed")
        doubts = dict.fromkeys(check.name for check in self.checks if check.state in ("warning", "unknown"))
        hosts = "1 host" if len(self.hosts) == 1 else f"{len(self.hosts)} hosts"
        if failed:
            return f"Not ready: mend first: {', '.join(failed)} ({hosts}, {self.seconds:.1f} s)."
        reserve = f", with doubts: {', '.join(doubts)}" if doubts else ""
        return f"Ready{reserve} ({hosts}, {self.seconds:.1f} s)."

    def document(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {
            "schema": SCHEMA,
            "when": self.when,
            "seconds": self.seconds,
            "ready": self.ready,
            "sentence": self.sentence,
            "hosts": list(self.hosts),
            "checks": [asdict(check) for check in self.checks],
            "reports": dict(self.reports),
        }


def sorted_checks(checks: Sequence[Check]) -> tuple[Check, ...]:
    """What weighs most first; the order within a state is kept."""
    return tuple(sorted(checks, key=lambda check: STATES.index(check.state)))


def some(names: Sequence[str]) -> str:
    """Names for a sentence: `a`, `a and b`, `a, b and c`, `a, b, … and 90 others`."""
    if len(names) > MOST_NAMED:
        return f"{', '.join(names[: MOST_NAMED - 1])} and {len(names) - MOST_NAMED + 1} others"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def plural(count: int, noun: str) -> str:
    """`1 host`, `3 hosts`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
