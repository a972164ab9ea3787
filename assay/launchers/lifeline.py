"""The process between the runner and the ranks: when the runner dies, however it dies, everything below ends.

    python -m assay.launchers.lifeline FD GRACE COMMAND…

FD is the reading end of a pipe that the runner alone holds open: its end means that the runner is gone, or wants the
case to stop. Orphans (ranks whose torchrun was killed) are adopted, so none can escape. GRACE above 0: the ranks live on
other hosts, and COMMAND (srun, mpirun) has so many seconds to end them before it is killed itself.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

import psutil

from assay.beacon import FOLDER_VARIABLE

POLL_SECONDS = 0.05
END_SECONDS = 10.0  # longest wait for killed processes to be gone; only an uninterruptible one takes longer
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Make this process the parent of every orphan below it (Linux), so that none can escape `end_descendants`."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value)


def end_descendants(spared: Iterable[psutil.Process] = ()) -> None:
    """Kill everything below this process but `spared`, and wait until it is gone."""
    deadline = time.monotonic() + END_SECONDS
    me, spared = psutil.Process(), set(spared)
    while time.monotonic() < deadline:
        below = [process for process in me.children(recursive=True) if process not in spared]
        if not below:
            return
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in below:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
        time.sleep(0.01)


def main() -> int:
    """Run the command until it ends or the pipe does; its exit code, or 143 when it was stopped."""
    pipe, grace, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    os.set_inheritable(pipe, False)
    adopt_orphans()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        # No process of another host can see this one, and must not wonder where it is.
        env={**os.environ, **({} if grace else {"ASSAY_LIFELINE": str(os.getpid())})},
        # Should this process itself be killed, the kernel ends torchrun, and the ranks have asked to follow it. srun and
        # mpirun must hear of it, or the ranks would live on.
        preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM if grace else signal.SIGKILL),
    )
    try:
        while child.poll() is None:
            if select.select([pipe], [], [], POLL_SECONDS)[0]:
                if grace:
                    child.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(grace)
                return 128 + signal.SIGTERM
    finally:
        end_descendants()
        # The runner has read its ranks' beacons by now, and one that was killed cannot remove them.
        if FOLDER_VARIABLE in os.environ:
            shutil.rmtree(os.environ[FOLDER_VARIABLE], ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
