"""Without a shared file system: what ranks wrote on their own hosts comes into the job's folder here.

Whether the folder is shared is not asked: where a rank's records are missing here, its host is asked for them. On a
cluster that shares its folders nothing is missing, and nothing is done.
"""

import subprocess
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from assay.launchers.protocol import Job

AT_ONCE = 16  # hosts that are asked at the same time
HOST_SECONDS = 120.0  # longest wait for a host that sends nothing any more


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
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None  # a pipe was asked for
        refused = ""
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    _keep(archive, member, folder)
        except (tarfile.TarError, OSError) as error:
            refused = str(error)
        try:
            _, said = process.communicate(timeout=HOST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            said = b""
            refused = f"no end within {HOST_SECONDS:g} s"
    if process.returncode == 0 and not refused:
        return None
    lines = said.decode("utf-8", "replace").strip().splitlines()
    why = (lines[-1] if lines else refused) or f"exit code {process.returncode}"
    return f"{host} could not deliver its records ({why}); they may still lie there in {folder}"


def _keep(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one file of the archive, unless it is here already. Only plain files directly in the folder are ours."""
    name = member.name.removeprefix("./")
    content = archive.extractfile(member) if member.isreg() and name and "/" not in name else None
    target = folder / name
    if content is None or target.exists():
        return
    part = folder / f".{name}.part"
    with part.open("wb") as file:
        while chunk := content.read(1 << 20):
            file.write(chunk)
    part.replace(target)
