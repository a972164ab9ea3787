"""Rates of the disk under a folder: written and synced, written directly, read directly. Proven not to be the page cache's."""

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil

from assay.clock import now

PIECE = 16 << 20  # bytes per write or read: what checkpoint writers use; a multiple of every disk's block
CACHED = 0.05  # share of a file in the page cache from which on "direct" access was none

Way = Literal["write_fsync", "write_direct", "read_direct"]
WAYS: tuple[Way, ...] = ("write_fsync", "write_direct", "read_direct")


class NoDisk(Exception):
    """This folder cannot be measured in this way. The message is the reason, for readers."""


def time_pass(folder: Path, way: Way, count: int) -> float:
    """Seconds to write or read `count` bytes (a multiple of PIECE) once, in a file of ours that is removed afterwards.

    write_fsync: through the page cache, over when fsync returns. write_direct: with O_DIRECT and a final fsync.
    read_direct: with O_DIRECT, of a file that was written and synced before, untimed.
    Raises NoDisk, with the reason, where the file system refuses; OSError never escapes.
    """
    if is_in_memory(folder):
        raise NoDisk(f"{folder} lies in memory, on no disk")
    path = folder / f".assay-disk-{os.getpid()}"
    try:
        with _removed_afterwards(path), mmap.mmap(-1, PIECE) as piece:
            piece.write(os.urandom(PIECE))  # zeros, or the same page again, would be compressed by some file systems
            seconds = _write(path, piece, count, direct=way != "write_fsync")
            if way == "write_fsync":
                return seconds
            if way == "read_direct":
                seconds = _read(path, piece, count)
            if cached_share(path) > CACHED:
                raise NoDisk(f"{folder}: direct access went through the page cache; it tells nothing of the disk")
            return seconds
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise NoDisk(f"the file system of {folder} has no direct access (O_DIRECT)") from None
        raise NoDisk(f"{folder}: {(error.strerror or str(error)).lower()}") from None


def is_in_memory(folder: Path) -> bool:
    """Whether the folder's file system keeps its files in memory alone."""
    there = folder.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[at] for at in (there, *there.parents) if at in mounts), "") in ("tmpfs", "ramfs", "devtmpfs")


def cached_share(path: Path) -> float:
    """The share of a file's pages that lie in the page cache (mincore)."""
    size = path.stat().st_size
    if not size:
        return 0.0
    page = mmap.PAGESIZE
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped,
    ):
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        seen = (ctypes.c_ubyte * -(-size // page))()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), seen) != 0:
            raise OSError(ctypes.get_errno(), "mincore refused")
    return sum(byte & 1 for byte in seen) / len(seen)


def _write(path: Path, piece: mmap.mmap, count: int, *, direct: bool) -> float:
    begun = now()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if direct else 0), 0o600)
    try:
        done = 0
        while done < count:
            done += os.write(file, piece)
        os.fsync(file)
    finally:
        os.close(file)
    return now() - begun


def _read(path: Path, piece: mmap.mmap, count: int) -> float:
    # Whatever another path left in the page cache must not answer for the disk.
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        begun = now()
        done = 0
        while done < count:
            read = os.readv(file, [piece])
            if not read:
                raise OSError(errno.EIO, "the file ended early")
            done += read
        seconds = now() - begun
    finally:
        os.close(file)
    return seconds


@contextlib.contextmanager
def _removed_afterwards(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
