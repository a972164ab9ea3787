"""The beacon: what each rank is doing at this moment, where other processes can read it when the rank hangs.

A rank keeps one small file mapped into its memory. A phase is told with `Beacon.phase`; inside it, an iteration costs two
assignments to one integer, no system call and no lock:

    beacon.phase("all_reduce", 4096, "call by call")
    cell[0] = 2 * k + 1   # iteration k is entered: before the barrier in front of the call, and outside the timed region
    cell[0] = 2 * k + 2   # it is left

Every rank must tell the same phases in the same order: their count is what puts the ranks in order. The file belongs
into memory (`memory_folder`): a mapped page of a disk file is write-protected whenever the kernel has written it back,
and the next assignment then waits for the file system. A rank that lives holds a lock on its file: without one the file
is left over from a rank that a signal has ended.
"""

import contextlib
import fcntl
import mmap
import os
import platform
import struct
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from assay.errors import RunFailed
from assay.units import format_size

FOLDER_VARIABLE = "ASSAY_BEACONS"  # tells the ranks where their launcher reads beacons
MOST_NAMED = 8  # ranks that a sentence names by number
ENDED = "ended"  # the state of a process that is there no more

_MAGIC = b"assay-bc"
_VERSION = 2
_HEAD = struct.Struct("=8sQQQQ64s")  # magic, version, rank, world, pid, host
_CELL, _PHASES, _STALLED = 16, 17, 18  # indices of 64-bit cells
_CELLS = struct.Struct("=QQQ")
_SLOT = struct.Struct("=Q64s64s")  # bytes, op, phase
_SLOTS = (256, 512)  # phases take turns, so that the one before is whole while the next is written
_SIZE = 1024


class Beacon:
    """This rank's beacon. `cell[0]`: see the top of this file."""

    def __init__(self, path: Path, rank: int, page: mmap.mmap) -> None:
        self.path = path
        self.folder = path.parent
        self.rank = rank
        self._page = page
        self._cells = memoryview(page).cast("Q")
        self._phases = 0
        self.expects_motion = False
        self.cell = self._cells[_CELL : _CELL + 1]

    def phase(self, op: str, size: int, phase: str) -> None:
        """From now on this rank does `phase` of `op` (at most 64 bytes each) with `size` bytes; no iteration is entered.

        Without an op (`""`) nothing is expected to move, and no hang is seen in it.
        """
        self.cell[0] = 0
        after = self._phases + 1
        text = op.encode()[:64], phase.encode()[:64]
        _SLOT.pack_into(self._page, _SLOTS[after % 2], size, *text)
        self._cells[_PHASES] = self._phases = after  # last: a reader looks into the other slot until now
        self.expects_motion = bool(op)

    def position(self) -> tuple[int, int]:
        """How far this rank is; greater is further."""
        return self._phases, self.cell[0]

    def stalled(self, value: bool) -> None:
        """Let the other ranks' watches know that this rank's watch sees it stand still."""
        self._cells[_STALLED] = value


@dataclass(frozen=True)
class Reading:
    """A rank's beacon as it was read. phases: how many it has told."""

    rank: int
    world: int
    pid: int
    host: str
    phases: int
    cell: int
    stalled: bool
    op: str
    size: int
    phase: str

    @property
    def position(self) -> tuple[int, int]:
        """How far the rank is; greater is further."""
        return self.phases, self.cell

    @property
    def inside(self) -> bool:
        """Whether it is inside an iteration."""
        return self.cell % 2 == 1

    @property
    def iteration(self) -> int:
        """The iteration it is inside of, or else is to enter next; counted from 0. In back-to-back phases a batch."""
        return self.cell // 2

    @property
    def place(self) -> str:
        """For people: what it is doing."""
        if self.phases == 0:
            return "start-up"
        if not self.op:
            return self.phase
        op = f"{self.op} of {format_size(self.size)}" if self.size else self.op
        return f"{op}, {self.phase}, {'' if self.inside else 'before '}iteration {self.iteration}"


@dataclass(frozen=True)
class Diagnosis:
    """Who hangs where. All ranks but `unknown` are in one of inside, outside, behind; furthest: one that is furthest.

    inside, outside: as far as the furthest, and inside its iteration or between two. behind: never came there.
    states: kernel's state of ranks that are not simply sleeping or running. moving: somebody moved in the `watched` s.
    """

    furthest: Reading
    hindmost: Reading
    inside: tuple[int, ...]
    outside: tuple[int, ...]
    behind: tuple[int, ...]
    unknown: tuple[int, ...]
    states: Mapping[int, str]
    moving: bool
    watched: float

    @property
    def sentence(self) -> str:
        """One sentence without its full stop: op, size, phase and iteration, and who is where."""
        world = self.furthest.world
        parts = []
        if self.behind:
            last = "last seen in" if len(self.behind) == 1 else "the hindmost last seen in"
            never = "never entered it" if self.furthest.inside else "never came there"
            lacks = f"{_be(self.behind)} not there yet" if self.moving else never
            parts.append(f"{name_ranks(self.behind, world)} {lacks} ({last} {self.hindmost.place})")
        if self.inside:
            parts.append(f"{name_ranks(self.inside, world)} {_be(self.inside)} inside")
        if self.outside:
            parts.append(f"{name_ranks(self.outside, world)} came there")
        for state, words in _STATES.items():
            ranks = [rank for rank in sorted(self.states) if self.states[rank] == state]
            if ranks:
                parts.append(f"{name_ranks(ranks, world)} {_be(ranks)} {words}")
        if self.unknown:
            parts.append(f"nothing is known of {name_ranks(self.unknown, world)}")
        head = "still moving in" if self.moving else f"no progress for {self.watched:.0f} s in"
        return f"{head} {self.furthest.place}: {', '.join(parts)}"


_STATES = {
    psutil.STATUS_STOPPED: "stopped (SIGSTOP)",
    psutil.STATUS_TRACING_STOP: "held by a debugger",
    psutil.STATUS_DISK_SLEEP: "waiting in the kernel (disk or driver)",
    ENDED: "no longer alive",
}


def memory_folder() -> Path:
    """Where files are memory and no disk takes part in writing to them; elsewhere than on Linux the temporary folder."""
    shared = Path("/dev/shm")  # noqa: S108 # only the parent of folders that mkdtemp makes
    return shared if os.access(shared, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def open_beacon(folder: Path, rank: int, world: int) -> Beacon:
    """Make this rank's file in `folder`, which is there. Raises RunFailed, naming it, if it cannot be made."""
    path = folder / f"beacon-{rank:05d}.bin"
    try:
        with path.open("w+b") as file:
            # Real zeros: a page that the file system finds no room for later would kill the rank (SIGBUS).
            file.write(_HEAD.pack(_MAGIC, _VERSION, rank, world, os.getpid(), _here()).ljust(_SIZE, b"\0"))
            file.flush()
            # The map has a descriptor of its own on the same file, which keeps the lock for as long as the rank lives.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return Beacon(path, rank, mmap.mmap(file.fileno(), _SIZE))
    except OSError as error:
        raise RunFailed(
            f"{path}: {(error.strerror or str(error)).lower()}; make room there, it holds where each rank is"
        ) from None


def read_beacons(folder: Path) -> list[Reading]:
    """Every readable beacon of the folder, by rank; files that are none are left out."""
    found = [_read(path) for path in sorted(folder.glob("beacon-*.bin"))]
    return [reading for reading in found if reading is not None]


def _read(path: Path) -> Reading | None:
    # The phase may change while it is read: then its count has changed too, and the next look is soon enough.
    for _ in range(3):
        try:
            data = path.read_bytes()
            again = path.read_bytes()
        except OSError:
            return None
        if len(data) != _SIZE or len(again) != _SIZE:
            return None
        if data[_PHASES * 8 : _PHASES * 8 + 8] == again[_PHASES * 8 : _PHASES * 8 + 8]:
            break
    magic, version, rank, world, pid, host = _HEAD.unpack_from(data)
    if (magic, version, path.name) != (_MAGIC, _VERSION, f"beacon-{rank:05d}.bin") or rank >= world:
        return None
    cell, phases, stalled = _CELLS.unpack_from(data, _CELL * 8)
    size, op, phase = _SLOT.unpack_from(data, _SLOTS[phases % 2])
    return Reading(rank, world, pid, _text(host), phases, cell, bool(stalled), _text(op), size, _text(phase))


def _here() -> bytes:
    return platform.node().encode()[:64]


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("utf-8", "replace")


def process_states(readings: Iterable[Reading], alive: Collection[int] | None = None) -> dict[int, str]:
    """The kernel's state (psutil's words, or ENDED) by rank, of the ranks of this host as far as it can be asked.

    alive: the pids that may be theirs, where the caller knows: any other has ended, whoever has its number by now.
    """
    states = {}
    for reading in readings:
        if reading.host != _text(_here()):
            continue
        if alive is not None and reading.pid not in alive:
            states[reading.rank] = ENDED
            continue
        try:
            state: str = psutil.Process(reading.pid).status()
        except psutil.NoSuchProcess:
            state = ENDED
        except psutil.Error:
            continue
        states[reading.rank] = ENDED if state in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else state
    return states


def diagnose(
    readings: Sequence[Reading], states: Mapping[int, str], watched: float, earlier: Sequence[Reading] = ()
) -> Diagnosis | None:
    """What hangs, from everybody's readings; None where no rank has told a phase.

    states: of their processes by rank, as `process_states` gives them, read at the same time. watched: for how many
    seconds it is known who moved. earlier: readings from their beginning; without them nobody has moved.
    """
    if not any(reading.phases for reading in readings):
        return None
    furthest = max(readings, key=lambda reading: reading.position)
    there = [reading.rank for reading in readings if reading.position == furthest.position]
    known = {reading.rank for reading in readings}
    before = {reading.rank: reading.position for reading in earlier}
    return Diagnosis(
        furthest=furthest,
        hindmost=min(readings, key=lambda reading: reading.position),
        inside=tuple(there) if furthest.inside else (),
        outside=() if furthest.inside else tuple(there),
        behind=tuple(sorted(known.difference(there))),
        unknown=tuple(rank for rank in range(furthest.world) if rank not in known),
        states={rank: state for rank, state in states.items() if state in _STATES},
        moving=any(before.get(reading.rank, reading.position) != reading.position for reading in readings),
        watched=watched,
    )


def name_ranks(ranks: Sequence[int], world: int) -> str:
    """`rank 1`, `ranks 0 and 2`, `all 4 ranks`; of many, the first 8 and how many more."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) == world:
        return "both ranks" if world == 2 else f"all {world} ranks"
    if len(ranks) > MOST_NAMED:
        return f"ranks {', '.join(map(str, ranks[:MOST_NAMED]))} and {len(ranks) - MOST_NAMED} more"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _be(ranks: Sequence[int]) -> str:
    return "is" if len(ranks) == 1 else "are"
