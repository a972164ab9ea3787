"""The process between the runner and the ranks: when the runner dies, however it dies, everything below ends.

    python -m assay.launchers.lifeline FD COMMAND…

FD is the reading end of a pipe that the runner alone holds open: its end means that the runner is gone, or wants the
case to stop. Orphans (ranks whose torchrun was killed) are adopted, so none can escape.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

import psutil

POLL_SECONDS = 0.05
END_SECONDS = 10.0  # longest wait for killed processes to be gone; only an uninterruptible one takes longer
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value)


def end_descendants() -> None:
    """Kill everything below this process and wait until it is gone."""
    deadline = time.monotonic() + END_SECONDS
    me = psutil.Process()
    while time.monotonic() < deadline:
        below = me.children(recursive=True)
        if not below:
            return
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _reap()
        time.sleep(0.01)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def main() -> int:
    """Run the command until it ends or the pipe does; its exit code, or 143 when it was stopped."""
    pipe, command = int(sys.argv[1]), sys.argv[2:]
    os.set_inheritable(pipe, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        # Should this process itself be killed, the kernel ends torchrun, and the ranks have asked to follow it.
        preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    while child.poll() is None:
        if select.select([pipe], [], [], POLL_SECONDS)[0]:
            end_descendants()
            return 128 + signal.SIGTERM
    end_descendants()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
