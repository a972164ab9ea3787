"""A lab: a login node ("head") and N nodes with a real Slurm, whose power, cables and rates are in the caller's hands.

with cluster(nodes=4) as lab:
    done = lab.login(["sbatch", "--parsable", "job.sh"], cwd=tmp_path)
    lab.fail(2)
    lab.wait_job(int(done.stdout), {"COMPLETED"}, 60)
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import slurm
from tests.cluster.hosts import needs, start_switch
from tests.cluster.running import DISKS, STATE, Lab, load, wait
from tests.cluster.slurm import HEAD, Shape

__all__ = ["Lab", "cluster", "load", "start"]


def start(
    folder: Path, shape: Shape, *, unshared: Path | None = None, rate: str | None = None, tied: bool = False
) -> Lab:
    """Start a lab in `folder`. tied: it ends when this process does, however it ends. Raises RuntimeError."""
    needs(slurm.COMMANDS)
    folder = folder.resolve()
    if re.search(r"[^\w./+-]", str(folder)) or len(str(folder)) > 80:
        raise RuntimeError(f"{folder}: as the folder of a cluster, give a path of at most 80 letters, without spaces")
    if not 1 <= shape.nodes <= 250:
        raise RuntimeError(f"{shape.nodes} nodes: expected 1 to 250")
    if unshared is not None:
        unshared = unshared.resolve()
        if folder.is_relative_to(unshared):
            raise RuntimeError(f"unshared {unshared}: the cluster keeps its files below it, in {folder}; give another")
        unshared.mkdir(parents=True, exist_ok=True)
    _make_room(folder)
    slurm.write_files(folder, shape)
    waiting, switch = start_switch(tied=tied)
    nodes = [f"node{n}" for n in range(1, shape.nodes + 1)]
    rates = dict.fromkeys(nodes, rate) if rate else {}
    lab = Lab(folder, shape, unshared, switch, rates=rates, waiting=[waiting])
    try:
        lab.save()
        lab.start_host(HEAD)
        lab.start_daemon(HEAD, slurm.munged(folder))
        for name in nodes:
            lab.start_host(name)
        wait((folder / "run/munge.socket").is_socket, 10, lambda: f"munged; its log is {folder}/log/munged.log")
        lab.start_daemon(HEAD, slurm.slurmctld(folder))
        # A node that finds nobody there asks again a second later only.
        wait(lab.controlled, 20, lambda: f"slurmctld; its log is {folder}/log/slurmctld.log")
        for name in nodes:
            lab.start_daemon(name, slurm.slurmd(folder))
        lab.save()
        lab.idle(60)
    except BaseException:
        lab.stop()
        raise
    return lab


def _make_room(folder: Path) -> None:
    """Check that the folder is ours to fill; what a lab that has ended left there goes."""
    if (folder / STATE).exists():
        if load(folder).running:
            raise RuntimeError(f"{folder}: a cluster runs there already; stop it first, or give another folder")
        # Not the whole folder: somebody may have kept what jobs wrote here.
        for name in (*slurm.FOLDERS, DISKS):
            shutil.rmtree(folder / name, ignore_errors=True)
    elif folder.is_dir() and any(folder.iterdir()):
        raise RuntimeError(f"{folder}: not empty, and no cluster's folder; give another")


@contextlib.contextmanager
def cluster(
    nodes: int = 4,
    gpus: int = 8,
    cpus: int = 64,
    *,
    unshared: Path | None = None,
    rate: str | None = None,
    min_job_age: int = 600,
) -> Iterator[Lab]:
    """A lab for a test, gone afterwards, whatever happens. rate: of every node; unshared: each host has its own of it."""
    with tempfile.TemporaryDirectory(prefix="assay-lab-") as folder:
        Path(folder).chmod(0o755)
        lab = start(Path(folder), Shape(nodes, gpus, cpus, min_job_age), unshared=unshared, rate=rate, tied=True)
        try:
            yield lab
        finally:
            lab.stop()
