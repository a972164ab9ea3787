"""Measure this machine's A/A noise: the same short case twice (A, B), five times.

    python specs/noise.py
    python specs/noise.py --device cpu --seconds 0.5 --out records

A case is a fixed number of matrix products and of small optimizer-like steps. The number is chosen once, so that a case
lasts about as long as asked for, and never changed; whatever differs between A and B after that is the machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from assay.clock import now
from assay.device import Device
from assay.doctor.finding import share
from assay.doctor.noise import ARMS, METRIC, PAIRS, PRODUCTS, STEPS, confidence, noise_of
from assay.options import parse_command_line
from assay.options.noise import NoiseOptions
from assay.progress import progress_line
from assay.ranks import Session, session
from assay.record import Block, TagValue

# Large enough that starting a product costs nothing beside it, small enough for dozens of them in a case.
CPU_SIZE, ACCELERATOR_SIZE = 512, 4096
# The tensors of a small model, of which an optimizer updates each with a handful of kernels of a few microseconds. So
# small that torch does not split them among threads: with other load, threads that wait for each other in every kernel
# make a case a hundred times longer, and this script with it.
TENSORS, ELEMENTS = 32, 1024
LEAST_LOOK = 0.05  # s that calibration must have seen, so that its own noise does not choose the number


@dataclass(frozen=True)
class Work:
    """One kind of work and how often a case repeats it."""

    kind: str
    once: Callable[[], object]
    times: int


def products(device: Device) -> Callable[[], object]:
    """One float32 product of square matrices: what a transformer spends its time on."""
    size = CPU_SIZE if device.type == "cpu" else ACCELERATOR_SIZE
    left = torch.rand(size, size, device=device.torch_device)
    right = torch.rand(size, size, device=device.torch_device)
    result = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=result)


def steps(device: Device) -> Callable[[], object]:
    """One update like Adam's on small tensors: many kernels so short that starting them is what takes time."""
    made = [torch.rand(ELEMENTS, device=device.torch_device) for _ in range(4 * TENSORS)]
    groups = [made[i : i + 4] for i in range(0, len(made), 4)]

    def update() -> None:
        for weight, gradient, first, second in groups:
            first.mul_(0.9).add_(gradient, alpha=0.1)
            second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
            weight.addcdiv_(first, second.sqrt().add_(1e-8), value=-1e-3)

    return update


def repeat(device: Device, once: Callable[[], object], times: int) -> float:
    """Seconds that `times` repetitions take, the device synchronised on both sides."""
    device.synchronize()
    begun = now()
    for _ in range(times):
        once()
    device.synchronize()
    return now() - begun


def calibrated(device: Device, kind: str, once: Callable[[], object], seconds: float) -> Work:
    """The work with the number of repetitions that lasts about `seconds` now."""
    repeat(device, once, 2)
    times = 1
    while (taken := repeat(device, once, times)) < min(LEAST_LOOK, seconds):
        times *= 2
    return Work(kind, once, max(1, round(times * seconds / taken)))


def held_memory(here: Session) -> None:
    """Record the accelerator's memory before anything of ours is in it: what is held then is held by others."""
    if here.device.type == "cpu":
        return
    free, total = here.device.memory()
    reason = "neither the driver nor torch tells it" if free is None else None
    here.recorder.block("device_memory_free", "B", [free], reason=reason)
    here.recorder.block("device_memory_total", "B", [total], reason=reason)


def noise(options: NoiseOptions, here: Session) -> list[Block]:
    """Measure and record the ten cases; the records as they would be read."""
    held_memory(here)
    kinds = {PRODUCTS: products, STEPS: steps}
    works = [
        calibrated(here.device, kind, make(here.device), options.seconds / len(kinds)) for kind, make in kinds.items()
    ]
    for work in works:  # one whole case untimed: what warms up has done so
        repeat(here.device, work.once, work.times)
    blocks = []
    for pair in range(1, PAIRS + 1):
        for arm in ARMS:
            for work in works:
                taken = repeat(here.device, work.once, work.times)
                tags: dict[str, TagValue] = {"work": work.kind, "arm": arm, "pair": pair, "times": work.times}
                here.recorder.block(METRIC, "s", [taken], tags)
                blocks.append(Block(METRIC, "s", torch.tensor([taken], dtype=torch.float64).numpy(), tags))
        print(progress_line(pair, PAIRS, f"pair {pair}"), flush=True)
    return blocks


if __name__ == "__main__":
    arguments = parse_command_line(NoiseOptions, __doc__)
    with session(arguments, "specs/noise") as joined:
        found = noise(arguments, joined)
        for item in noise_of(found):
            ratios = " ".join(f"{ratio:.3f}" for ratio in item.ratios)
            drifts = f"; B always {item.drift}: the machine drifts" if item.drift else ""
            print(f"{item.work:<16} noise {share(item.value):>7}, B/A {ratios}{drifts}")
        print(
            f"A difference below the noise cannot be decided here with {PAIRS} pairs ({confidence(PAIRS):.2%} interval)."
        )
