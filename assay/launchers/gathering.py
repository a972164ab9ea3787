"""Without a shared file system: what ranks wrote on their own hosts comes into the job's folder here.

Whether the folder is shared is not asked: where a rank's records are missing here, its host is asked for them. On a
cluster that shares its folders nothing is missing, and nothing is done.
"""

import io
import os
import select
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from assay.launchers.attended import surroundings
from assay.launchers.protocol import Job

AT_ONCE = 16  # hosts that are asked at the same time
HOST_SECONDS = 120.0  # longest wait for a host that sends nothing any more
END_SECONDS = 10.0  # that its command may take to end when all has been sent


def gather(job: Job, hosts: Sequence[str], on_host: Callable[[str, Sequence[str]], list[str]]) -> list[str]:
    """Fetch what is missing; a sentence for every host that could not deliver.

    hosts: of the job's ranks, in order. on_host: the argv that runs an argv on a host and passes on what it prints.
    """
    missing = {rank for rank in range(job.layout.world) if not (job.folder / f"rank-{rank:05d}.jsonl").exists()}
    asked = sorted({job.layout.node_of(rank) for rank in missing})
    if not asked:
        return []
    argv = ["tar", "-C", str(job.folder.resolve()), "-cf", "-", "."]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = pool.map(lambda node: _fetch(hosts[node], on_host(hosts[node], argv), job.folder), asked)
    return [sentence for sentence in told if sentence]


def _fetch(host: str, argv: list[str], folder: Path) -> str | None:
    try:
        # Complaints go to a file: a host with many of them must not wait for us, while we wait for its archive.
        with tempfile.TemporaryFile() as complaints:
            refused, code = _receive(argv, complaints, folder)
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").strip().splitlines()
    except OSError as error:
        refused, code, said = str(error), 1, []
    if code == 0 and not refused:
        return None
    why = (said[-1] if said else refused) or f"exit code {code}"
    return f"{host} could not deliver its records ({why}); they may still lie there in {folder}"


def _receive(argv: list[str], complaints: IO[bytes], folder: Path) -> tuple[str, int]:
    """Unpack what `argv` prints; what was wrong with it (empty: nothing), and the exit code."""
    refused = ""
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, env=surroundings()
    ) as process:
        assert process.stdout is not None  # a pipe was asked for
        try:
            with tarfile.open(fileobj=_Patient(process.stdout), mode="r|") as archive:
                for member in archive:
                    _keep(archive, member, folder)
        except (tarfile.TarError, OSError, ValueError) as error:
            refused = str(error)
            process.stdout.close()  # whoever still writes into it ends by that
            if isinstance(error, TimeoutError):
                process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            refused = refused or f"did not end within {END_SECONDS:g} s after its records"
    return refused, process.returncode


class _Patient(io.RawIOBase):
    """A pipe that may be silent for `HOST_SECONDS`, but no longer."""

    def __init__(self, pipe: IO[bytes]) -> None:
        super().__init__()
        self._pipe = pipe

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """What has come, at most `size` bytes. Raises TimeoutError if nothing comes."""
        if not select.select([self._pipe], [], [], HOST_SECONDS)[0]:
            raise TimeoutError(f"sent nothing for {HOST_SECONDS:g} s")
        return os.read(self._pipe.fileno(), size)


def _keep(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one file of the archive, unless it is here already. Only plain files directly in the folder are ours."""
    name = member.name.removeprefix("./")
    content = archive.extractfile(member) if member.isreg() and name and "/" not in name else None
    target = folder / name
    if content is None or target.exists():
        return
    part = folder / f".{name}.part"
    try:
        with part.open("wb") as file:
            while chunk := content.read(1 << 20):
                file.write(chunk)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
