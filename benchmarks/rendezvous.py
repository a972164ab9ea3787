"""Which rendezvous of torchrun restarts cleanly when a rank dies: c10d or static, with a shared store or an own one.

    python -m benchmarks.rendezvous               # as root: two hosts as namespaces, one torchrun of 2 ranks on each
    python -m benchmarks.rendezvous --trials 5    # 20 minutes on 2 cores

Every trial starts the two torchruns anew with --max-restarts=3, waits until the ranks reduce over gloo, and kills the first
rank of one host with SIGKILL. Clean: every host starts its ranks once more, and then they reduce again, all of them, for a
while. Ranks meet by torch's own init_process_group, or as ours do, by assay.world, which keeps the keys of one attempt
apart from those of another by torchrun's count of restarts. The hosts are called node9 and node10: c10d numbers hosts by the order of their names as text.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
TURN_SECONDS = 15.0  # after the kill; a trial that takes longer waits for the most part, and lets the next one begin
AT_ONCE = 6
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
    """What a rank says when it has started (call 0) and after every collective.

    host: 0 or 1; attempt: the restarts that torchrun has counted; moment: monotonic s.
    """

    host: int
    local_rank: int
    rank: int
    attempt: int
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

    local = int(os.environ["LOCAL_RANK"])
    about = f"{local} {os.environ['RANK']} {os.environ['TORCHELASTIC_RESTART_COUNT']} {os.getpid()}"
    with (folder / f"lines-{local}").open("a", buffering=1) as lines:
        lines.write(f"{about} 0 {time.monotonic()}\n")
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
            lines.write(f"{about} {call} {time.monotonic()}\n")
            time.sleep(PERIOD)


def read(folder: Path) -> list[Line]:
    """All that ranks have said, in the order of time."""
    found = []
    for host in range(len(NAMES)):
        for path in (folder / NAMES[host]).glob("lines-*"):
            for text in path.read_text().splitlines(keepends=True):
                if text.endswith("\n"):
                    *numbers, moment = text.split()
                    local, rank, attempt, pid, call = map(int, numbers)
                    found.append(Line(host, local, rank, attempt, pid, call, float(moment)))
    return sorted(found, key=lambda line: line.moment)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator["list[Host]"]:
    """Two hosts that know each other by name, gone afterwards with all that runs on them."""
    # Not above: this file is started as a rank, too, by its path, and finds no tests there.
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
                    env={**os.environ, "OMP_NUM_THREADS": "1", **({} if cell.shared else OWN_STORE)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    text=True,
                )
            )
    return running


def trial(cell: Cell, folder: Path, turn: threading.Lock) -> Trial:
    """Start, kill, and see what becomes of it. turn: held while this needs the machine's cores."""
    folder.mkdir(parents=True)
    with two_hosts(folder) as hosts:
        with turn:
            running = start(hosts, cell, folder)
            deadline = time.monotonic() + START_SECONDS
            while not (before := read(folder)) or before[-1].call < SETTLED:
                if time.monotonic() > deadline or any(one.poll() is not None for one in running):
                    raise SystemExit(f"the ranks did not start:\n{(folder / NAMES[0] / 'log').read_text()}")
                time.sleep(0.1)
            pid = next(line.pid for line in before if (line.host, line.local_rank) == (cell.victim, 0))
            killed = time.monotonic()
            subprocess.run(hosts[cell.victim].inside(["kill", "-KILL", str(pid)]), check=True)
            done = watch(folder, before, running, killed + TURN_SECONDS)
        outcome, moment = done or watch(folder, before, running, killed + RESTART_SECONDS) or (hung(folder), None)
        first_rank_on = next(NAMES[line.host] for line in before if line.rank == 0)
        return Trial(outcome, None if moment is None else moment - killed, first_rank_on)


def watch(
    folder: Path, before: list[Line], running: "Sequence[Entered]", until: float
) -> tuple[str, float | None] | None:
    """How it ended, and when ranks that lasted first reduced (monotonic s); None if that is not known by `until`."""
    known = {(line.host, line.pid) for line in before}
    while time.monotonic() < until:
        time.sleep(0.1)
        done = restarted([line for line in read(folder) if (line.host, line.pid) not in known])
        if done is not None:
            tries, moment = done
            return "clean" if tries == 1 else f"{tries} tries", moment
        # The other host cannot go on alone, though it may wait for long.
        if any(one.poll() is not None for one in running):
            return "failed", None
    return None


def hung(folder: Path) -> str:
    """The word for a trial without an end, and whether the hosts' torchruns have counted differently."""
    counts = {line.host: line.attempt for line in read(folder) if line.call == 0}
    return "hung" if len(set(counts.values())) == 1 else "hung (counts differ)"


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


def row(words: tuple[str, ...], first_rank_on: str, seconds: str, outcomes: str) -> str:
    """A line of the table."""
    return "".join(f"{word:10}" for word in words) + f"{first_rank_on:17}{seconds:24}{outcomes}"


def campaign(trials: int, folder: Path) -> None:
    """All cells by turns, so that none has the quiet part of the hour for itself; then the table."""
    order = [(number, cell) for number in range(trials) for cell in (cells() if number % 2 else cells()[::-1])]
    taken: dict[Cell, list[Trial]] = {cell: [] for cell in cells()}
    turn = threading.Lock()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        under_way = [
            pool.submit(trial, cell, folder / "-".join([str(number), *cell.words]), turn) for number, cell in order
        ]
        try:
            for (number, cell), future in zip(order, under_way, strict=True):
                done = future.result()
                seconds = "" if done.seconds is None else f" {done.seconds:.2f} s"
                print(f"{number} {' '.join(cell.words)}: {done.outcome}{seconds}", flush=True)
                taken[cell].append(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print("\n" + row(("", "store", "meet by", "killed on"), "rank 0 began on", "kill to collective", "outcomes"))
    for cell, found in taken.items():
        outcomes = "; ".join(f"{count} × {word}" for word, count in Counter(one.outcome for one in found).most_common())
        times = sorted(one.seconds for one in found if one.seconds is not None)
        seconds = f"{median(times):.1f} s [{times[0]:.1f}, {times[-1]:.1f}]" if times else "–"
        print(row(cell.words, ", ".join(sorted({one.first_rank_on for one in found})), seconds, outcomes))
    print(
        "seconds: median [shortest, longest]; own store: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1; "
        "counts differ: the two torchruns have counted unequal numbers of restarts"
    )


def main() -> None:
    """The campaign; with --rank-in, one rank of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2, help="of each cell of the table [2]")
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
