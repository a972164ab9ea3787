"""Which rendezvous of torchrun restarts cleanly when a rank dies: c10d or static, with a shared store or an own one.

    python -m benchmarks.rendezvous               # as root: two hosts as namespaces, one torchrun of 2 ranks on each
    python -m benchmarks.rendezvous --trials 5

Every trial starts the two torchruns anew with --max-restarts=3, waits until the ranks reduce over gloo, and kills the first
rank of one host with SIGKILL. Clean: every host starts its ranks once more, and then they reduce again, all of them, for a
while. Ranks meet by torch's own init_process_group, or as ours do, by assay.world, which keeps the keys of one attempt
apart from those of another. The hosts are called node9 and node10: c10d numbers hosts by the order of their names as text.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cluster.hosts import Entered, Host

NAMES = ("node9", "node10")
ADDRESSES = ("10.77.0.9", "10.77.0.10")
PER_HOST = 2
WORLD = len(NAMES) * PER_HOST
PORT = 29500
PERIOD = 0.05  # s between two collectives
SETTLED = 20  # collectives after which ranks count as running
START_SECONDS, RESTART_SECONDS = 90.0, 60.0
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@dataclass(frozen=True)
class Cell:
    """What is tried. shared: torchrun's store is the ranks' too; meet: by torch or assay; victim: on which host."""

    rendezvous: str
    shared: bool
    meet: str
    victim: int

    @property
    def words(self) -> tuple[str, str, str, str]:
        """Its columns of the table."""
        return self.rendezvous, "shared" if self.shared else "own", self.meet, NAMES[self.victim]


@dataclass(frozen=True)
class Line:
    """What a rank says when it has started (call 0) and after every collective. host: 0 or 1; moment: monotonic s."""

    host: int
    local_rank: int
    rank: int
    pid: int
    call: int
    moment: float


@dataclass(frozen=True)
class Trial:
    """How one trial went. seconds: from the kill to the first collective of the ranks that lasted; None if none did."""

    outcome: str
    seconds: float | None
    first_rank_on: str


def cells() -> list[Cell]:
    """All that is tried. The static rendezvous knows no other than the shared store: its own is tried by torch's way only."""
    kinds = [(rendezvous, shared, "torch") for rendezvous in ("c10d", "static") for shared in (True, False)]
    kinds += [("c10d", True, "assay"), ("c10d", False, "assay"), ("static", True, "assay")]
    return [Cell(*kind, victim) for kind in kinds for victim in range(len(NAMES))]


def be_rank(folder: Path, meet: str) -> None:
    """In a rank: reduce again and again, and write a line each time."""
    import torch
    import torch.distributed as dist

    local, rank = int(os.environ["LOCAL_RANK"]), int(os.environ["RANK"])
    with (folder / f"lines-{local}").open("a", buffering=1) as lines:
        lines.write(f"{local} {rank} {os.getpid()} 0 {time.monotonic()}\n")
        if meet == "assay":
            from assay.device import open_device
            from assay.placement import placement
            from assay.world import join_torch

            join_torch(placement(os.environ), "gloo", open_device("cpu", local), RESTART_SECONDS)
        else:
            dist.init_process_group("gloo")
        call = 0
        while True:
            ones = torch.ones(1)
            dist.all_reduce(ones)
            if int(ones.item()) != WORLD:
                raise SystemExit(f"{ones.item()} of {WORLD} ranks took part")
            call += 1
            lines.write(f"{local} {rank} {os.getpid()} {call} {time.monotonic()}\n")
            time.sleep(PERIOD)


def read(folder: Path) -> list[Line]:
    """All that ranks have said, in the order of time."""
    found = []
    for host in range(len(NAMES)):
        for path in (folder / NAMES[host]).glob("lines-*"):
            for text in path.read_text().splitlines(keepends=True):
                if text.endswith("\n"):
                    local, rank, pid, call, moment = text.split()
                    found.append(Line(host, int(local), int(rank), int(pid), int(call), float(moment)))
    return sorted(found, key=lambda line: line.moment)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator["list[Host]"]:
    """Two hosts that know each other by name, gone afterwards with all that runs on them."""
    # Not above: ranks, which this file is, too, would wait for pytest.
    from tests.cluster.hosts import end, needs, reap, start_host, start_switch

    needs({})
    names = folder / "hosts"
    names.write_text(
        "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for address, name in zip(ADDRESSES, NAMES, strict=True))
    )
    process, switch = start_switch(tied=True)
    waiting, hosts = [process], []
    try:
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            process, host = start_host(switch[0], name, address, [(names, Path("/etc/hosts"))])
            waiting.append(process)
            hosts.append(host)
        yield hosts
    finally:
        end(*switch)
        reap(waiting)


def start(hosts: "list[Host]", cell: Cell, folder: Path) -> "list[Entered]":
    """One torchrun on each host; they end with the hosts."""
    from tests.cluster.hosts import Entered
    from tests.conftest import environment

    running = []
    for number, host in enumerate(hosts):
        argv = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(hosts))]
        argv += ["--nproc-per-node", str(PER_HOST), "--max-restarts", "3"]
        if cell.rendezvous == "c10d":
            argv += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NAMES[0]}:{PORT}", "--rdzv-id", "trial"]
        else:
            argv += ["--node-rank", str(number), "--master-addr", NAMES[0], "--master-port", str(PORT)]
        place = folder / host.name
        place.mkdir(parents=True)
        argv += [__file__, "--rank-in", str(place), "--meet", cell.meet]
        with (place / "log").open("w") as log:
            running.append(
                Entered(
                    host.inside(argv),
                    env=environment(**({} if cell.shared else OWN_STORE)),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    text=True,
                )
            )
    return running


def trial(cell: Cell, folder: Path) -> Trial:
    """Start, kill, and see what becomes of it."""
    folder.mkdir(parents=True)
    with two_hosts(folder) as hosts:
        running = start(hosts, cell, folder)
        deadline = time.monotonic() + START_SECONDS
        while not (before := read(folder)) or before[-1].call < SETTLED:
            if time.monotonic() > deadline or any(one.poll() is not None for one in running):
                raise SystemExit(f"the ranks did not start:\n{(folder / NAMES[0] / 'log').read_text()}")
            time.sleep(0.1)
        first_rank_on = next(NAMES[line.host] for line in before if line.rank == 0)
        pid = next(line.pid for line in before if (line.host, line.local_rank) == (cell.victim, 0))
        killed = time.monotonic()
        subprocess.run(hosts[cell.victim].inside(["kill", "-KILL", str(pid)]), check=True)
        known = {(line.host, line.pid) for line in before}
        while time.monotonic() < killed + RESTART_SECONDS:
            time.sleep(0.1)
            since = [line for line in read(folder) if (line.host, line.pid) not in known]
            if done := restarted(since):
                tries, moment = done
                return Trial("clean" if tries == 1 else f"{tries} tries", moment - killed, first_rank_on)
            # The other host cannot go on alone, though it may wait for long.
            if any(one.poll() is not None for one in running):
                return Trial("failed", None, first_rank_on)
        return Trial("hung", None, first_rank_on)


def restarted(since: list[Line]) -> tuple[int, float] | None:
    """How often ranks were started until they lasted, and when they first reduced; None if they do not last (yet).

    since: what ranks said that were started after the kill.
    """
    if not since or since[-1].call < SETTLED:
        return None
    last = since[-1]
    first = next(line for line in since if (line.host, line.pid, line.call) == (last.host, last.pid, 1))
    starts = Counter((line.host, line.local_rank) for line in since if line.call == 0)
    return max(starts.values()), first.moment


def row(words: tuple[str, ...], outcomes: str, seconds: str, first_rank_on: str) -> str:
    """A line of the table."""
    return "".join(f"{word:10}" for word in words) + f"{outcomes:28}{seconds:24}{first_rank_on}"


def campaign(trials: int, folder: Path) -> None:
    """All cells by turns, so that none has the quiet part of the hour for itself; then the table."""
    taken: dict[Cell, list[Trial]] = {cell: [] for cell in cells()}
    for number in range(trials):
        for cell in cells() if number % 2 else cells()[::-1]:
            done = trial(cell, folder / "-".join([str(number), *cell.words]))
            seconds = "" if done.seconds is None else f" {done.seconds:.2f} s"
            print(f"{number} {' '.join(cell.words)}: {done.outcome}{seconds}", flush=True)
            taken[cell].append(done)
    print("\n" + row(("", "store", "meet by", "killed on"), "outcome", "kill to collective", "rank 0 began on"))
    for cell, found in taken.items():
        outcomes = ", ".join(f"{count} {word}" for word, count in Counter(one.outcome for one in found).most_common())
        times = sorted(one.seconds for one in found if one.seconds is not None)
        seconds = f"{median(times):.1f} s [{times[0]:.1f}, {times[-1]:.1f}]" if times else "–"
        print(row(cell.words, outcomes, seconds, ", ".join(sorted({one.first_rank_on for one in found}))))
    print("seconds: median [shortest, longest]; own store: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")


def main() -> None:
    """The campaign; with --rank-in, one rank of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3, help="of each cell of the table [3]")
    parser.add_argument("--keep", type=Path, help="new folder for what ranks and torchruns write [thrown away]")
    parser.add_argument("--rank-in", type=Path, help="what a rank is started with")
    parser.add_argument("--meet", default="torch", help="what a rank is started with")
    given = parser.parse_args()
    if given.rank_in:
        be_rank(given.rank_in, given.meet)
        return
    print(f"load of this machine before: {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="rendezvous-") as temporary:
        campaign(given.trials, (given.keep or Path(temporary)).resolve())
    print(f"load of this machine after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
