"""The hang watch: what ranks do that nobody else watches (under torchrun or mpirun by hand) when nothing moves any more.

Each rank has a thread that looks at the rank's own beacon now and then. When it has stood still for the limit, and no
other rank of the host has moved either, one rank says what hangs, gathers every rank's stack, and all of them end.
Under `assay run` the launcher does the same at the case's time limit, and no rank watches.
"""

import contextlib
import faulthandler
import fcntl
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from assay.beacon import (
    FOLDER_VARIABLE,
    Beacon,
    diagnose,
    memory_folder,
    open_beacon,
    process_states,
    read_beacons,
)
from assay.errors import RUN_FAILED_EXIT, SENTENCE_MARK, BadInput, RunFailed
from assay.stack_signal import STACK_SIGNAL

if TYPE_CHECKING:
    from assay.world import World

STACK_SECONDS = 3.0  # how long ranks that hang may take to write their stacks
SETTLE_SECONDS = 2.0  # from noticing to speaking: others notice a little later, and the lowest of them is to speak
TOLD_SECONDS = 10.0  # longest wait for whoever has taken it upon itself to speak
SWEPT_SECONDS = 600.0  # age at which a folder that nobody uses is removed

_TOLD = "hang.txt"  # made by the rank that speaks, before it does; holds the sentence, or is gone, when all is told


@contextlib.contextmanager
def beacon_of(world: "World", out: Path | None, limit: float) -> Iterator[Beacon]:
    """This rank's beacon, for as long as it works. Every rank must come. Raises RunFailed if it cannot be made.

    Where a launcher watches (ASSAY_BEACONS names its folder), that is all. By hand the ranks of a host share a folder in
    memory and watch themselves: nothing may stand still for `limit` s. Their stacks go to `out`, else to that folder.
    A signal that ends the ranks ends them at once, and the folder stays until ranks start there again (`sweep`).
    """
    launcher = os.environ.get(FOLDER_VARIABLE)
    if launcher:
        beacon = open_beacon(Path(launcher), world.rank, world.size)
        yield beacon
        beacon.phase("", 0, "the end")
        return
    folder = _shared_folder(world)
    beacon = open_beacon(folder, world.rank, world.size)
    stacks = answer_stack_requests(folder, world.rank) if out is None else None
    stop = watch(beacon, limit, out or folder)
    try:
        yield beacon
        stop()
        beacon.phase("", 0, "the end")
        beacon.path.unlink(missing_ok=True)
        if stacks is not None:
            Path(stacks.name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # the last one out does it
    except BaseException:
        stop()
        # The launcher ends all ranks now, and none of them will clean up; but where someone is speaking, stacks may lie.
        if not (folder / _TOLD).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if stacks is not None:
            faulthandler.unregister(STACK_SIGNAL)
            stacks.close()


def _shared_folder(world: "World") -> Path:
    """A folder in memory that all ranks of this host know; the first of them makes it."""
    first = world.hosts.index(world.hosts[world.rank])
    made = ""
    if first == world.rank:
        sweep(memory_folder())
        with contextlib.suppress(OSError):
            made = tempfile.mkdtemp(prefix="assay-", dir=memory_folder())
    try:
        folder = str(world.gather(made)[first])
    except BaseException:
        if made:
            Path(made).rmdir()
        raise
    if not folder:
        raise RunFailed(f"{memory_folder()}: no folder can be made there; make room, it holds where each rank is")
    Path(folder).mkdir(mode=0o700, exist_ok=True)  # hosts of one name are two hosts all the same
    return Path(folder)


def sweep(parent: Path) -> None:
    """Remove the folders of beacons that ranks of this user left in `parent` when a signal ended them all.

    No handler does it as they end: a rank that hangs in a library never comes to run one, and would outlive the signal.
    Left alone are folders of the last ten minutes, beacons whose ranks live, stacks that were asked for, and whatever
    is not ours.
    """
    for folder in parent.glob("assay-*"):
        with contextlib.suppress(OSError):
            about = folder.lstat()
            own = stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()
            if own and time.time() - about.st_mtime > SWEPT_SECONDS and _is_abandoned(folder):
                shutil.rmtree(folder)


def _is_abandoned(folder: Path) -> bool:
    """Whether it holds beacons without ranks and nothing worth keeping. Raises OSError where that cannot be known."""
    beacons = 0
    for path in folder.iterdir():
        about = path.lstat()
        if stat.S_ISREG(about.st_mode) and path.match("beacon-*.bin"):
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while the rank lives, in any container
            beacons += 1
        elif about.st_size or not path.match("stacks-rank-*.txt"):
            return False
    return beacons > 0


def answer_stack_requests(folder: Path, rank: int) -> IO[str]:
    """From now on this rank answers STACK_SIGNAL with the stacks of all its threads, in a file in `folder`.

    Raises BadInput if the file cannot be made.
    """
    # The file is opened now: a process that hangs can answer a signal, but not open files. Before this line the signal
    # would end the process; that it holds the file of its pid open is how others know that they may ask.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"stacks-rank-{rank:05d}.pid-{os.getpid()}.txt").open("w")
    except OSError as error:
        raise BadInput(
            f"--out {folder}: cannot be written ({(error.strerror or str(error)).lower()}); give another"
        ) from None
    faulthandler.register(STACK_SIGNAL, file=file, all_threads=True)
    return file


def collect_stacks(folder: Path) -> list[Path]:
    """Ask every rank of this host that answers into `folder`, and give them 3 s; the files that have become something.

    A stopped process answers only when it runs again, so it is continued: whatever is told of it must be read before.
    """
    files = _answering(folder)
    for pid in files.values():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, STACK_SIGNAL)
            os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + STACK_SECONDS
    while time.monotonic() < deadline and any(_length(path) == 0 for path in files):
        time.sleep(0.05)
    return [path for path in files if _length(path)]


def stack_files(folder: Path) -> list[Path]:
    """The files of stacks in `folder` that have become something, of whatever host's ranks."""
    return [path for path in sorted(folder.resolve().glob("stacks-rank-*.txt")) if _length(path)]


def _length(path: Path) -> int | None:
    """Bytes written so far; None once it is gone, as the file of a rank that has come to its end."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _answering(folder: Path) -> dict[Path, int]:
    """The pid behind each file of stacks, of those that are alive and hold it open."""
    files = {}
    for path in sorted(folder.resolve().glob("stacks-rank-*.pid-*.txt")):
        pid = int(path.stem.rpartition("pid-")[2])
        # A rank may have ended; its number may be another process's by now, which the signal would end.
        with contextlib.suppress(psutil.Error):
            if any(opened.path == str(path) for opened in psutil.Process(pid).open_files()):
                files[path] = pid
    return files


def watch(beacon: Beacon, limit: float, stacks: Path) -> Callable[[], None]:
    """Watch this rank until the returned function is called: when nothing has moved for `limit` s, say so and end it.

    One rank of the host prints one sentence with SENTENCE_MARK on stderr, every rank ends with RUN_FAILED_EXIT. stacks:
    the folder in which the ranks answer STACK_SIGNAL.
    """
    ended = threading.Event()
    watcher = _Watcher(beacon, limit, stacks, ended)
    thread = threading.Thread(target=watcher.run, name="hang watch", daemon=True)
    thread.start()

    def stop() -> None:
        ended.set()
        # It may be ending the process; then the caller must not run ahead of what is being told.
        thread.join(STACK_SECONDS + TOLD_SECONDS)

    return stop


class _Watcher:
    def __init__(self, beacon: Beacon, limit: float, stacks: Path, ended: threading.Event) -> None:
        self._beacon = beacon
        self._limit = limit
        self._stacks = stacks
        self._ended = ended
        self._told = beacon.folder / _TOLD
        # Seldom enough to stay out of the way of what is timed.
        self._pause = min(5.0, limit / 10)

    def run(self) -> None:
        """Look until the end."""
        position, since = self._beacon.position(), time.monotonic()
        others: dict[int, tuple[int, int]] | None = None
        while not self._ended.wait(self._pause):
            if self._told.exists():
                self._follow()
            now = time.monotonic()
            if self._beacon.position() != position or not self._beacon.expects_motion:
                position, since, others = self._beacon.position(), now, None
            elif now - since >= self._limit / 2 and others is None:
                others = self._positions()
            elif now - since >= self._limit and others is not None:
                if self._positions() != others:  # we wait for somebody who works
                    since, others = now - self._limit / 2, self._positions()
                elif self._settle(position):
                    self._speak(now - since)

    def _positions(self) -> dict[int, tuple[int, int]]:
        return {reading.rank: reading.position for reading in read_beacons(self._beacon.folder)}

    def _settle(self, position: tuple[int, int]) -> bool:
        """Give others time to notice too, the lower ranks most; whether this rank is to speak."""
        self._beacon.stalled(True)
        begun = time.monotonic()
        while (waited := time.monotonic() - begun) < 2 * SETTLE_SECONDS:
            if self._ended.wait(0.02) or self._beacon.position() != position:
                self._beacon.stalled(False)
                return False
            if self._told.exists() or not self._beacon.folder.exists():
                self._follow()
            if waited >= SETTLE_SECONDS and not self._lower_one_has_noticed():
                break
        try:
            self._told.touch(exist_ok=False)
        except (FileExistsError, FileNotFoundError):
            self._follow()
        except OSError:
            pass  # a full memory must not keep us from speaking, even if twice
        return True

    def _lower_one_has_noticed(self) -> bool:
        return any(r.stalled and r.rank < self._beacon.rank for r in read_beacons(self._beacon.folder))

    def _speak(self, still: float) -> None:
        try:
            self._tell(still)
        finally:
            _end()  # whatever could not be told: no rank may go on hanging without its watch

    def _tell(self, still: float) -> None:
        readings = read_beacons(self._beacon.folder)
        diagnosis = diagnose(readings, process_states(readings), still)
        what = diagnosis.sentence if diagnosis else f"no progress for {still:.0f} s; no beacon can be read"
        answering = _answering(self._stacks)
        where = f"; where each rank was: {self._stacks}/stacks-rank-*.txt" if answering else ""
        sentence = f"rank {self._beacon.rank}: {what}{where}"
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more; the stacks may still reach a file
            print(f"{SENTENCE_MARK}{sentence}", file=sys.stderr, flush=True)
        # Only now: a stopped rank goes on when it is asked, and the others with it.
        if not collect_stacks(self._stacks):
            faulthandler.dump_traceback(all_threads=True)
        # Either tells the others. They and this rank end at once, before each notices that its peers are gone and says so.
        if self._stacks == self._beacon.folder:
            with contextlib.suppress(OSError):
                self._told.write_text(sentence + "\n")
        else:
            shutil.rmtree(self._beacon.folder, ignore_errors=True)

    def _follow(self) -> None:
        """End when another rank has said why."""
        deadline = time.monotonic() + TOLD_SECONDS
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline and not self._told.stat().st_size:
                time.sleep(0.002)
        _end()


def _end() -> None:
    # What has been measured is in the records; the table so far may still be in a buffer.
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(RUN_FAILED_EXIT)
