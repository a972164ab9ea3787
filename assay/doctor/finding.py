"""What a check says: a state, what was found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

State = Literal["good", "warn", "bad", "unknown"]
STATES: tuple[State, ...] = ("bad", "warn", "unknown", "good")  # the order in which a reader wants them


@dataclass(frozen=True)
class Finding:
    """One check. warn: figures may be off; bad: do not measure; unknown: `found` holds the reason why.

    advice: what to do, for warn and bad; it may be empty where nothing can be done or nothing needs to be.
    """

    check: str
    state: State
    found: str
    advice: str = ""


def share(part: float) -> str:
    """A share of one for a sentence: `0.034` → `3.4 %`, `0.4` → `40 %`."""
    return f"{part:.1%}".replace("%", " %") if part < 0.1 else f"{part:.0%}".replace("%", " %")
