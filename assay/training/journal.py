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


class Journal:
    """Takes each step as it ends. `step_times`: seconds of each measured step; `final_loss`: over the last ones."""

    def __init__(self, here: Session, options: TrainingOptions, tags: Mapping[str, str]) -> None:
        self._here = here
        self._options = options
        self._tokens = 0
        self._total = options.warmup_steps + options.steps
        self._warmup = self._open("warmup", 0, tags)
        self._measured = self._open("measured", options.warmup_steps, tags)
        self._next_line = 0.0
        self.step_times: list[float] = []
        self._last: deque[float] = deque(maxlen=FINAL_STEPS)

    def _open(self, phase: str, first_step: int, tags: Mapping[str, str]) -> list[Series]:
        metrics = [("step_time", "s")]
        if self._here.world.is_first:
            metrics += [("loss", "1"), ("grad_norm", "1"), ("learning_rate", "1"), ("tokens", "tokens")]
        tags = {**tags, "phase": phase}
        return [self._here.recorder.series(metric, unit, tags, first_step) for metric, unit in metrics]

    def add(self, step: int, seconds: float, taken: Step) -> None:
        """Record one step. Raises RunFailed, after recording it, if the loss is no number any more."""
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
        if not math.isfinite(loss):
            self._here.recorder.flush()
            raise RunFailed(
                f"rank {self._here.world.rank}: loss is {loss} at step {step} of {self._total}; training diverged: lower --lr "
                f"(it is {self._options.lr:g}) or lengthen --lr-warmup-steps"
            )
        if self._here.world.is_first:
            self._say(step + 1, seconds, loss, taken.tokens)

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
