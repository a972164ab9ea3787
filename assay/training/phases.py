"""Where the time of a step goes: a few steps after the measured ones, taken apart.

Looking costs: the device is waited for at the end of each phase, which the measured steps do not do. So these are steps
of their own, trained like all others, and their sum is not the measured step time.

Communication is exposed where arithmetic waits for it. With DistributedDataParallel all of it lies between the last
gradient that backward computes and the end of backward. FSDP2 and DeepSpeed wait in the host, call by call, where the
backend blocks (gloo); where it does not, nothing on the host tells, and the figure is null.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from assay.clock import now
from assay.ranks import Session
from assay.training.loop import Job, train_step

PHASES = ("data", "forward", "backward", "optimizer")
METHOD = "sampled steps behind the measured ones, the device waited for after each phase"


def sample_phases(job: Job, here: Session, tags: Mapping[str, str]) -> None:
    """Train --phase-steps more steps, and record what each of their phases took on this rank. All ranks call it."""
    first = job.options.warmup_steps + job.options.steps
    phases: dict[str, list[float]] = {phase: [] for phase in PHASES}
    exposed: list[float] = []
    for step in range(first, first + job.options.phase_steps):
        took: dict[str, float] = defaultdict(float)
        job.world.barrier()  # or a rank's wait for another would be the other's phase
        job.device.synchronize()
        last = now()

        def mark(phase: str) -> None:
            nonlocal last
            job.device.synchronize()
            end = now()
            if phase == "backward" and waited.last_gradient is not None:
                waited.seconds += end - waited.last_gradient
            took[phase] += end - last  # noqa: B023 # called within this very step only
            last = end

        with _waiting(job) as waited:
            train_step(job, step, mark)
        for phase in PHASES:
            phases[phase].append(took[phase])
        exposed.append(waited.seconds)
    if not job.options.phase_steps:
        return
    told = {**tags, "how": METHOD}
    for phase, seconds in phases.items():
        here.recorder.block(f"{phase}_time", "s", seconds, told, first_step=first)
    _record_exposed(job, here, exposed, told, first)


def _record_exposed(job: Job, here: Session, seconds: list[float], tags: Mapping[str, str], first: int) -> None:
    reason = None
    if job.world.size > 1 and job.world.backend != "gloo":
        reason = f"{job.world.backend} does not hold the host up, and the device's own wait is not sampled"
    samples: list[Any] = [None] * len(seconds) if reason else list(seconds)
    here.recorder.block("exposed_communication_time", "s", samples, tags, first_step=first, reason=reason)


class _Waited:
    """Seconds for which arithmetic waited for bytes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.last_gradient: float | None = None  # when backward computed its last one, where that is looked at


@contextmanager
def _waiting(job: Job) -> Iterator[_Waited]:
    """Counts the waits of one step."""
    waited = _Waited()
    if job.world.size == 1:
        yield waited
        return
    handles = []
    if isinstance(job.engine.module, DistributedDataParallel):
        # It waits in C++, at the end of backward.
        def seen(_: torch.Tensor) -> None:
            waited.last_gradient = now()

        trained = [one for one in job.engine.module.parameters() if one.requires_grad]
        handles = [one.register_post_accumulate_grad_hook(seen) for one in trained]  # type: ignore[no-untyped-call] # untyped in torch
    work: Any = dist.Work
    original = work.wait

    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin = now()
        try:
            return original(self, *args, **kwargs)
        finally:
            waited.seconds += now() - begin

    work.wait = wait
    try:
        yield waited
    finally:
        work.wait = original
        for handle in handles:
            handle.remove()
