"""Run by mpirun from test_channel.py: each rank prints what it hears in one call of each kind.

mpirun -n 3 python tests/ranks_channel.py
"""

import json
import math
import sys
from typing import Any

import numpy as np

from assay.channel import Channel, MpiChannel, first_said

LONG = "x" * 100_000


def spoken(channel: Channel) -> dict[str, Any]:
    """What this rank hears in one call of each kind."""
    rank, size = channel.rank, channel.size
    return {
        "rank": rank,
        "collect": channel.collect([rank, LONG[:rank]]),
        "gather": channel.gather(f"n{rank // 2}"),
        "broadcast": channel.broadcast(f"{LONG}{rank}", size - 1)[-3:],
        "largest": channel.largest(np.array([[rank, -rank], [-math.inf, 5.0]])).tolist(),
        "total": channel.total(np.array([1.0, rank])).tolist(),
        "nothing": channel.total(np.array([])).tolist(),
        "agree": channel.agree(40 + rank),
        "said": first_said(channel, f"rank {rank}" if rank else ""),
        "silent": first_said(channel, ""),
    }


def main() -> None:
    from mpi4py import MPI

    # In one piece: mpirun gives ranks a terminal, and puts their pieces together as they come.
    sys.stdout.write(json.dumps(spoken(MpiChannel(MPI.COMM_WORLD.Dup()))) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
