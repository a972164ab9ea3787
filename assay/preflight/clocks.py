"""The offset of a host's wall clock to the first host's, with the bound of its error. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from assay.preflight.facts import Exchange

EXCHANGES = 8


@dataclass(frozen=True)
class Offset:
    """seconds: that host's wall clock − the first host's; error: to either side, whatever the network did."""

    seconds: float
    error: float


def offset_of(exchanges: Sequence[Exchange]) -> Offset:
    """What the exchange with the least round trip tells (NTP's formulas, RFC 5905, section 8).

    The true offset is within half of the round trip, however unequal its two ways are. Raises ValueError on no exchanges.
    """
    if not exchanges:
        raise ValueError("no exchanges")
    asked, heard, answered, back = min(exchanges, key=_round_trip)
    return Offset(((asked - heard) + (back - answered)) / 2, _round_trip((asked, heard, answered, back)) / 2)


def _round_trip(exchange: Exchange) -> float:
    asked, heard, answered, back = exchange
    # A clock that is set in between could make it negative.
    return max((back - asked) - (answered - heard), 0.0)
