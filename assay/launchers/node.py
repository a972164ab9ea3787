"""What every host of a job runs once: torchrun for the ranks of this host, as the host that the launcher says it is.

    srun … python -m assay.launchers.node --nodes 4 --per-node 8 --meet node1:29500 -- comms/bench.py …

The rendezvous is static: host 0 holds the store, and rank 0 is on it. (torchrun's c10d rendezvous numbers hosts by name,
so that rank 0 may be on any.) torchrun runs in this very process, which costs no second interpreter.
"""

import os
import sys

from assay import stack_signal
from assay.errors import BAD_INPUT_EXIT, SENTENCE_MARK, BadInput
from assay.placement import Placement, placement


def torchrun_arguments(argv: list[str], place: Placement) -> list[str]:
    """torchrun's arguments on the host `place.rank` of `place.world`. Raises BadInput if that is not the number asked for."""
    options, program = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    if place.local_world != 1:
        raise BadInput(f"{place.launcher} started {place.local_world} processes of this on one host; start one a host")
    given = dict(zip(options[::2], options[1::2], strict=True))
    if int(given["--nodes"]) != place.world:
        raise BadInput(
            f"{place.launcher} started {place.world} hosts, but the job has {given['--nodes']}; start one process a host"
        )
    host, _, port = given["--meet"].rpartition(":")
    return [
        *("--nnodes", given["--nodes"], "--node-rank", str(place.rank), "--nproc-per-node", given["--per-node"]),
        *("--master-addr", host, "--master-port", port, "--max-restarts", "0"),
        *("--", *program),
    ]


def main() -> None:
    """Become torchrun."""
    stack_signal.ignore()
    try:
        arguments = torchrun_arguments(sys.argv[1:], placement(os.environ))
    except BadInput as error:
        print(f"{SENTENCE_MARK}{error}", file=sys.stderr, flush=True)
        raise SystemExit(BAD_INPUT_EXIT) from None
    from torch.distributed.run import main as torchrun

    torchrun(arguments)


if __name__ == "__main__":
    main()
