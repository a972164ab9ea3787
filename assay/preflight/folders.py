"""Room in a folder, whether it can be written, and whether all hosts see the same one."""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from assay.preflight.facts import Folder
from assay.preflight.reason import reason_of

# Network file systems tell others of a new file late. A name that nobody has asked for before is not remembered as
# absent, and opening its folder makes NFS look anew; so this is enough, where a minute would be needed for old names.
_LOOKS = (0.0, 0.1, 0.3, 0.6)  # s before each look


@dataclass(frozen=True)
class Probe:
    """A small file that the first host writes, for the others to find. path: absolute; content: random."""

    path: str
    content: str


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def room(folder: Path) -> Folder:
    """Free bytes for `folder`, which need not be there yet, and whether it can be written."""
    place = existing(folder)
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Folder(str(place), None, reason_of(error))
    try:
        # Rights say too little: of a read-only disk, a quota, a network file system that does not trust root.
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 512)
            file.flush()
    except OSError as error:
        return Folder(str(place), free, reason_of(error))
    return Folder(str(place), free, None)


def place_probe(folder: Path) -> Probe:
    """Write the file into `folder` or the nearest one above it. Raises OSError. Remove it with remove_probe."""
    path = existing(folder) / f".assay-preflight-{secrets.token_hex(8)}"
    content = secrets.token_hex(16)
    try:
        with path.open("x") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return Probe(str(path), content)


def remove_probe(probe: Probe) -> None:
    """Remove the file; it may be gone already."""
    with contextlib.suppress(OSError):
        Path(probe.path).unlink()


def sees(probe: Probe) -> bool:
    """Whether the first host's file is here. Takes a second where it is not."""
    path = Path(probe.path)
    for pause in _LOOKS:
        time.sleep(pause)
        with contextlib.suppress(OSError):
            os.close(os.open(path.parent, os.O_RDONLY))
            if path.read_text() == probe.content:
                return True
    return False
