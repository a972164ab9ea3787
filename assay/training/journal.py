"""What is written down of each step: records, a progress line a second, and the end of a run whose loss diverged."""

import math
from collections import deque
from collections.abc import Mapping

import numpy as np

from assay.clock import now
from assay.errors import RunFailed
from assay.options import TrainingOptions
from assay.progress import progress_line
from assay.ranks import Session
from assay.recorder import Series
from assay.throughput import FINAL_STEPS, tgs
from assay.training.loop import Step
from assay.training.optimizer import learning_rate

PROGRESS_SECONDS = 1.0
MOST_SKIPPED = 20  # steps in a row: a loss scale that is halved so often reaches what no gradient needs


def _name(rank: int, own: float) -> str:
    return "" if math.isfinite(own) else f"rank {rank}"


class Journal:
    """Takes each step as it ends.

    step_times: seconds of each measured step; final_loss: over the last ones; skipped: steps of fp16 that changed nothing.
    """

    def __init__(self, here: Session, options: TrainingOptions, tags: Mapping[str, str]) -> None:
        self._here = here
        self._options = options
        self._tokens = 0
        self._total = options.warmup_steps + options.steps
        self._warmup = self._open("warmup", 0, tags)
        self._measured = self._open("measured", options.warmup_steps, tags)
        self._next_line = 0.0
        self.step_times: list[float] = []
        self.skipped = 0
        self._skipped_in_a_row = 0
        self._last: deque[float] = deque(maxlen=FINAL_STEPS)

    def _open(self, phase: str, first_step: int, tags: Mapping[str, str]) -> list[Series]:
        metrics = [("step_time", "s")]
        if self._here.world.is_first:
            metrics += [("loss", "1"), ("grad_norm", "1"), ("learning_rate", "1"), ("tokens", "tokens")]
        tags = {**tags, "phase": phase}
        return [self._here.recorder.series(metric, unit, tags, first_step) for metric, unit in metrics]

    def add(self, step: int, seconds: float, taken: Step) -> None:
        """Record one step. Raises RunFailed, after recording it, if loss or gradients are no numbers any more."""
        loss, norm = float(taken.loss), float(taken.norm)
        measured = step >= self._options.warmup_steps
        if measured:
            self.step_times.append(seconds)
            self._last.append(loss)
            self._tokens += taken.tokens
        values = (seconds, loss, norm, learning_rate(step, self._options), float(taken.tokens))
        # Ranks other than the first keep only the first series: step_time.
        for series, value in zip(self._measured if measured else self._warmup, values, strict=False):
            series.add(value)
        self._expect_progress(step, loss, norm, float(taken.own))
        if self._here.world.is_first:
            self._say(step + 1, seconds, loss, taken.tokens)

    def _expect_progress(self, step: int, loss: float, norm: float, own: float) -> None:
        # Loss and norm are the same on all ranks, so all of them come to the same end here.
        if math.isfinite(loss) and math.isfinite(norm):
            self._skipped_in_a_row = 0
            return
        if math.isfinite(loss) and self._options.precision == "fp16":
            # The loss scale was too high: the engine changes nothing in such a step and lowers the scale.
            self.skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row < MOST_SKIPPED:
                return
        self._here.recorder.flush()
        what = f"gradient norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
        where = f"{what} at step {step} of {self._total}"
        world = self._here.world
        wrong, first = int(world.total(float(not math.isfinite(own)))), world.first_said(_name(world.rank, own))
        if 0 < wrong < world.size:
            raise RunFailed(
                f"{where}, from {wrong} of {world.size} ranks, first {first}: look at its data and its device"
            )
        raise RunFailed(
            f"{where}; training diverged: lower --lr (it is {self._options.lr:g}) or lengthen --lr-warmup-steps"
        )

    def _say(self, done: int, seconds: float, loss: float, tokens: int) -> None:
        moment = now()
        if moment < self._next_line and done < self._total:
            return
        self._next_line = moment + PROGRESS_SECONDS
        rate = tokens / seconds
        print(progress_line(done, self._total, f"loss {loss:.4f}, {rate:,.0f} tokens/s"), flush=True)

    def tgs(self) -> float:
        """Tokens per device and second over all measured steps, of all ranks together. All ranks call it."""
        world = self._here.world
        longest = world.largest(np.array([math.fsum(self.step_times)]))
        return tgs(float(self._tokens), [longest] * world.size)

    @property
    def final_loss(self) -> float:
        """Mean of the last losses, as the report gives it; nan before the first measured step."""
        return math.fsum(self._last) / len(self._last) if self._last else math.nan
