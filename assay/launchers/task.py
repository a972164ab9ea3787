"""What every rank becomes that is a task of srun's: the script, with the variables that torch.distributed reads.

    srun … python -m assay.launchers.task comms/bench.py …

Our own scripts would find their place by Slurm's variables alone; any other script reads RANK and WORLD_SIZE.
"""

import os
import sys

from assay import stack_signal
from assay.errors import SENTENCE_MARK, BadInput
from assay.placement import placement, rendezvous_environment


def main() -> None:
    """Become the script, run by this very interpreter."""
    stack_signal.ignore()
    try:
        place = placement(os.environ)
        given = rendezvous_environment(place, os.environ)
    except BadInput as error:
        print(f"{SENTENCE_MARK}{error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    given["LOCAL_WORLD_SIZE"] = str(place.local_world)
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], {**os.environ, **given})


if __name__ == "__main__":
    main()
