"""Following a job that was submitted: what Slurm says of it, what it prints, and whether it is really over."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from assay.launchers.job_state import PASSING, JobState, NoAnswer, ask, ask_books

SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 15.0  # between two looks; the longer, the longer nothing has changed
SETTLE_SECONDS = 6.0  # for which squeue must have forgotten a job: it forgets none within a minute or so
PASSING_SECONDS = 30.0  # for which an end that is mostly followed by a requeue must have lasted


class Followed:
    """A job, from its submission to its end."""

    def __init__(
        self, job: str, name: str, output: Path, say: Callable[[str], None], relay: Callable[[str], None]
    ) -> None:
        """output: the file that it prints into. say: told of every change; relay: of every line of output."""
        self.job = job
        self.name = name
        self.over = False
        self.state: JobState | None = None
        """What Slurm last knew of it."""
        self._output = output
        self._say = say
        self._pass_on = relay
        self._read = 0
        self._end_seen: float | None = None

    def look(self, now: JobState | None) -> bool:
        """Take what squeue said of it (None: it does not know the job); whether something has changed."""
        moved = self._relay()
        if now is not None and (self.state is None or now.sentence != self.state.sentence):
            moved = True
            self._say(f"{self.name}: {now.sentence}")
        self.state = now or self.state
        if now is not None and not now.ended:
            self._end_seen = None
            return moved
        self._end_seen = self._end_seen or time.monotonic()
        needed = SETTLE_SECONDS if now is None else PASSING_SECONDS if now.state in PASSING else 0.0
        if time.monotonic() - self._end_seen >= needed:
            if now is None:
                self.state = ask_books(self.job)
            self._relay(to_the_end=True)
            self.over = True
        return True

    def _relay(self, *, to_the_end: bool = False) -> bool:
        """Pass on what the job has printed since: whole lines, and at its end what is no whole line too."""
        try:
            with self._output.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except OSError:
            return False
        whole = text if to_the_end else text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            self._pass_on(line)
        return bool(whole)


def look_at(jobs: Sequence[Followed], say: Callable[[str], None]) -> bool:
    """One question to Slurm about all of them; whether something has changed."""
    try:
        states = ask([one.job for one in jobs])
    except NoAnswer as error:
        say(f"{error}; asking again")
        return False
    moved = [one.look(states.get(one.job)) for one in jobs]  # each of them, whatever the first says
    return any(moved)


def pause_after(moved: bool, pause: float) -> float:
    """Seconds to the next look."""
    return SHORTEST_SECONDS if moved else min(LONGEST_SECONDS, pause * 1.3)
