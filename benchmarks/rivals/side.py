"""One side of a comparison, started by the harness, in as many processes as there are ranks.

python -m benchmarks.rivals.side ours:ddp BOUT
"""

import sys
from collections.abc import Callable

from benchmarks.rivals.bout import Bout


def main() -> None:
    """argv: the side's name, behind a colon its engine (ours) or `compiled` (rivals), and the bout as JSON."""
    name, _, how = sys.argv[1].partition(":")
    bout = Bout.from_text(sys.argv[2])
    if name == "ours":
        from benchmarks.rivals import ours

        ours.run(bout, how)
        return
    _rival(name)(bout, how == "compiled")


def _rival(name: str) -> Callable[[Bout, bool], None]:
    # Each in a process of its own, so that none pays for another's imports.
    if name == "trainer":
        from benchmarks.rivals import trainer

        return trainer.run
    if name == "accelerate":
        from benchmarks.rivals import accelerate_loop

        return accelerate_loop.run
    from benchmarks.rivals import deepspeed_loop

    return deepspeed_loop.run


if __name__ == "__main__":
    main()
