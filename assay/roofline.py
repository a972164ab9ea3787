"""The roofline: what a device can attain at an arithmetic intensity, and up to which batch memory bounds a step.

Source of the model: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures", Communications of the ACM 52 (4), 2009. The dependence on the batch is ours.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Kind = Literal["counted", "analytic"]


@dataclass(frozen=True)
class StepWork:
    """FLOPs and bytes of one device's step as straight lines over its samples s: f·s FLOPs, w + a·s bytes.

    w is the traffic that does not depend on the batch: weights, gradients, optimizer state. a: bytes of each sample.
    """

    flops_per_sample: int
    bytes_fixed: int
    bytes_per_sample: int

    def flops(self, samples: int) -> int:
        """f·s, in FLOP."""
        return self.flops_per_sample * samples

    def bytes(self, samples: int) -> int:
        """w + a·s, in B."""
        return self.bytes_fixed + self.bytes_per_sample * samples

    def intensity(self, samples: int) -> float:
        """I(s) = f·s / (w + a·s), in FLOP/B. Raises ZeroDivisionError for work that moves nothing."""
        return self.flops(samples) / self.bytes(samples)


def ridge(peak: float, bandwidth: float) -> float:
    """Intensity in FLOP/B at which the roof turns flat: peak (FLOP/s) / bandwidth (B/s)."""
    return peak / bandwidth


def attainable(intensity: float, peak: float, bandwidth: float) -> float:
    """The roof in FLOP/s: min(peak, intensity · bandwidth)."""
    return min(peak, intensity * bandwidth)


def memory_bound_until(flops: int, fixed: int, moved: int, ridge: float) -> int | None:
    """The largest batch b whose intensity I(b) = f·b / (w + a·b) lies below the ridge r: the largest b < r·w / (f − r·a).

    flops, fixed, moved: f in FLOP, w and a in B; ridge: r in FLOP/B. None: at any batch, because f ≤ r·a. 0: never,
    not even a batch of one. Exact for whole numbers of any size. Raises ValueError unless f and r are above 0, w and a
    not below 0 and one of them above.
    """
    if not (flops > 0 and math.isfinite(ridge) and ridge > 0 and fixed >= 0 and moved >= 0 and fixed + moved > 0):
        raise ValueError(f"no roofline of {flops} FLOP, {fixed} B + {moved} B a sample at a ridge of {ridge} FLOP/B")
    exact = Fraction(ridge)  # a float would round the threshold to the wrong side of a whole number
    per_sample = flops - exact * moved
    if per_sample == 0 and fixed == 0:
        return 0  # every batch lies on the ridge itself, none below it
    if per_sample <= 0:
        return None
    return max(0, math.ceil(exact * fixed / per_sample) - 1)


@dataclass(frozen=True)
class RooflinePoint:
    """One case's step under a roof. `work` is counted (bytes: an upper bound) or analytic (bytes: a lower bound).

    micro_batch, passes: samples of a forward pass, and passes of a step. rate: FLOP/s per device, as achieved; None when
    unknown, and `reason` says why.
    """

    case: str
    kind: Kind
    work: StepWork
    micro_batch: int
    passes: int
    rate: float | None
    reason: str | None = None

    @property
    def samples(self) -> int:
        """Samples of a step on one device."""
        return self.micro_batch * self.passes

    @property
    def flops(self) -> int:
        """FLOP of a step on one device."""
        return self.work.flops(self.samples)

    @property
    def bytes(self) -> int:
        """B that a step of one device moves."""
        return self.work.bytes(self.samples)

    @property
    def intensity(self) -> float:
        """FLOP/B of the step."""
        return self.work.intensity(self.samples)

    def memory_bound_until(self, ridge: float) -> int | None:
        """The largest micro batch below the ridge (FLOP/B) at this number of passes; None: any, 0: none."""
        work = self.work
        per_micro = work.flops_per_sample * self.passes, work.bytes_fixed, work.bytes_per_sample * self.passes
        return memory_bound_until(*per_micro, ridge)


@dataclass(frozen=True)
class Roofline:
    """The roof of one device with `ranks` ranks loaded, in one element type, and the steps beneath it.

    peak: FLOP/s, bandwidth: B/s read plus written, both per device; None when not measured. *_name: in words, or why it
    is missing. missing: (case, kind, why there is no such point).
    """

    device: str
    ranks: int
    dtype: str
    peak: float | None
    peak_name: str
    bandwidth: float | None
    bandwidth_name: str
    points: tuple[RooflinePoint, ...] = ()
    missing: tuple[tuple[str, Kind, str], ...] = ()

    @property
    def ridge(self) -> float | None:
        """FLOP/B; None where a ceiling is missing."""
        return None if self.peak is None or self.bandwidth is None else ridge(self.peak, self.bandwidth)

    def attainable(self, point: RooflinePoint) -> float | None:
        """The roof above a point in FLOP/s; None where a ceiling is missing."""
        if self.peak is None or self.bandwidth is None:
            return None
        return attainable(point.intensity, self.peak, self.bandwidth)
