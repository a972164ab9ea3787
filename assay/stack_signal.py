"""The signal that asks a rank for the stacks of all its threads.

Launchers send it to whole process trees, so whoever starts ranks ignores it first: what it starts inherits that, until a
rank answers instead.
"""

import signal

STACK_SIGNAL = signal.SIGUSR2  # SIGUSR1 is Slurm's usual warning


def ignore() -> None:
    """From now on neither this process nor what it starts ends by the signal."""
    signal.signal(STACK_SIGNAL, signal.SIG_IGN)
