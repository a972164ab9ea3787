"""What computation hides of communication: formulas over rounds. Arrays are [rounds], s, of the slowest rank."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PARTS = ("compute", "communication", "both")
"""What a round times: products alone, a collective alone, both at once."""


def exposed_times(compute: Array, both: Array) -> Array:
    """Communication that products did not hide, in s, round by round: t_both − t_compute.

    Where all is hidden it is 0 but for noise, half of which is negative: cut off at 0, its median would be too high.
    """
    return both - compute


def overlap_shares(compute: Array, communication: Array, both: Array) -> Array:
    """The part of what could be hidden that was, round by round: (t_compute + t_communication − t_both) / min of the two.

    The shorter of two things that run at once can be hidden whole and no more, so 1 is complete overlap, and 0 what one
    after the other takes; below 0, each is slower in the other's company than both in turn. Noise goes beyond both ends.
    """
    return (compute + communication - both) / np.minimum(compute, communication)
