"""How long a run still takes, as far as that can be known."""

from assay.suite import Case, Suite


class TimeLeft:
    """What remains of a run. A case that moves tells its own rest; other cases are judged by those that ended."""

    def __init__(self, suite: Suite) -> None:
        self._waiting = {case.name: case for case in suite.cases}
        self._ended: list[float] = []
        self._first: dict[str, tuple[float, float]] = {}

    def ended(self, case: Case, seconds: float) -> None:
        """A case has ended after so many s; 0 if it was kept from before."""
        del self._waiting[case.name]
        if seconds:
            self._ended.append(seconds)

    def left(self, case: Case, seconds: float, share: float) -> float | None:
        """Seconds to the end of the run, when `share` of a case is done after `seconds`; None while that tells nothing."""
        # From the first sign of progress on: starting up takes long and says nothing about the pace.
        first_seconds, first_share = self._first.setdefault(case.name, (seconds, share))
        if share <= first_share:
            return None
        rest = (seconds - first_seconds) / (share - first_share) * (1 - share)
        typical = (sum(self._ended) + seconds + rest) / (len(self._ended) + 1)
        others = sum(min(typical, other.time_limit) for name, other in self._waiting.items() if name != case.name)
        return rest + others
