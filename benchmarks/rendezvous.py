"""Which rendezvous of torchrun restarts cleanly when a rank dies: c10d or static, each with and without a shared store.

    python -m benchmarks.rendezvous               # as root: two hosts as namespaces, one torchrun of 2 ranks on each
    python -m benchmarks.rendezvous --trials 1

Every trial starts the two torchruns anew with --max-restarts=3, waits until ranks reduce over gloo, and kills the first
rank of one host with SIGKILL. Clean: every host starts its ranks once more, and they reduce again, all of them, for a
while. The hosts have addresses whose order as text is not that of the hosts, as node9 and node10 have names: torchrun's
c10d rendezvous numbers hosts by text.
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

HOSTS, PER_HOST = 2, 2
FIRST = 8  # so many hosts before ours: the address of ours end in .9 and .10
WORLD = HOSTS * PER_HOST
PORT = 29500
PERIOD = 0.05  # s between two collectives
SETTLED = 20  # collectives after which ranks count as running
START_SECONDS, RESTART_SECONDS = 90.0, 60.0
NOT_SHARED = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


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
    """How one trial went. seconds: from the kill to the first collective of the ranks that lasted; None if there was none."""

    outcome: str
    seconds: float | None
    first_rank_on: int


def be_rank(folder: Path) -> None:
    """In a rank: reduce again and again, and write a line each time."""
    import torch
    import torch.distributed as dist

    local = int(os.environ["LOCAL_RANK"])
    with (folder / f"lines-{local}").open("a", buffering=1) as lines:
        lines.write(f"{local} {os.environ['RANK']} {os.getpid()} 0 {time.monotonic()}\n")
        dist.init_process_group("gloo")
        call = 0
        while True:
            ones = torch.ones(1)
            dist.all_reduce(ones)
            if int(ones.item()) != WORLD:
                raise SystemExit(f"{ones.item()} of {WORLD} ranks took part")
            call += 1
            lines.write(f"{local} {dist.get_rank()} {os.getpid()} {call} {time.monotonic()}\n")
            time.sleep(PERIOD)


def read(folder: Path) -> list[Line]:
    """All that ranks have said, in the order of time."""
    found = []
    for host in range(HOSTS):
        for path in sorted((folder / str(host)).glob("lines-*")):
            for text in path.read_text().splitlines(keepends=True):
                if text.endswith("\n"):
                    local, rank, pid, call, moment = text.split()
                    found.append(Line(host, int(local), int(rank), int(pid), int(call), float(moment)))
    return sorted(found, key=lambda line: line.moment)


def arguments(variant: str, hosts: "list[Host]", number: int) -> list[str]:
    """torchrun's words on host `number`."""
    words = ["--nnodes", str(HOSTS), "--nproc-per-node", str(PER_HOST), "--max-restarts", "3"]
    where = hosts[0].address
    if variant == "c10d":
        # --local-addr: here no name leads to a host.
        words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{where}:{PORT}", "--rdzv-id", "trial"]
        return [*words, "--local-addr", hosts[number].address]
    return [*words, "--node-rank", str(number), "--master-addr", where, "--master-port", str(PORT)]


@contextlib.contextmanager
def torchruns(hosts: "list[Host]", variant: str, shared: bool, folder: Path) -> Iterator["list[Entered]"]:
    """One torchrun on each host; whatever is left of them ends with the hosts."""
    from tests.cluster.hosts import Entered
    from tests.conftest import environment

    env = environment(GLOO_SOCKET_IFNAME="eth0", PYTHONUNBUFFERED="1", **({} if shared else {NOT_SHARED: "1"}))
    with contextlib.ExitStack() as stack:
        running = []
        for number, host in enumerate(hosts):
            place = folder / str(number)
            place.mkdir(parents=True)
            log = stack.enter_context((place / "log").open("w"))
            argv = [sys.executable, "-m", "torch.distributed.run", *arguments(variant, hosts, number)]
            argv += [__file__, "--rank-in", str(place)]
            process = Entered(host.inside(argv), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)
            running.append(process)
        yield running


def trial(variant: str, shared: bool, victim: int, folder: Path) -> Trial:
    """Start, kill the first rank of host `victim`, and see what becomes of it."""
    # Not above: ranks, which this file is, too, would wait for pytest.
    from tests.cluster.network import lab

    with lab(FIRST + HOSTS) as everyone, torchruns(hosts := everyone[FIRST:], variant, shared, folder) as running:
        deadline = time.monotonic() + START_SECONDS
        while not (lines := read(folder)) or lines[-1].call < SETTLED:
            if time.monotonic() > deadline or any(one.poll() is not None for one in running):
                raise SystemExit(f"the ranks did not start; see the logs:\n{tail(folder)}")
            time.sleep(0.1)
        first_rank_on = next(line.host for line in lines if line.rank == 0)
        pid = next(line.pid for line in lines if (line.host, line.local_rank) == (victim, 0))
        killed = time.monotonic()
        subprocess.run(hosts[victim].inside(["kill", "-KILL", str(pid)]), check=True)
        while time.monotonic() < killed + RESTART_SECONDS:
            time.sleep(0.1)
            old = {(line.host, line.pid) for line in lines}
            since = [line for line in read(folder) if (line.host, line.pid) not in old]
            if done := restarted(since, killed):
                tries, seconds = done
                return Trial("clean" if tries == 1 else f"{tries} tries", seconds, first_rank_on)
            if all(one.poll() is not None for one in running):
                return Trial("failed", None, first_rank_on)
        ended = sum(one.poll() is not None for one in running)
        return Trial(f"hung ({ended} of {HOSTS} ended)" if ended else "hung", None, first_rank_on)


def restarted(since: list[Line], killed: float) -> tuple[int, float] | None:
    """How often ranks were started until they lasted, and s from the kill to their first collective; None if none last.

    since: what ranks said that were started after the kill.
    """
    if not since or since[-1].call < SETTLED:
        return None
    last = since[-1]
    first = next(line for line in since if (line.host, line.pid) == (last.host, last.pid) and line.call == 1)
    starts = Counter((line.host, line.local_rank) for line in since if line.call == 0)
    return max(starts.values()), first.moment - killed


def tail(folder: Path) -> str:
    """The last of what torchrun said on both hosts."""
    return "\n".join("\n".join(path.read_text().splitlines()[-15:]) for path in sorted(folder.glob("*/log")))


def row(variant: str, shared: bool, victim: int, trials: list[Trial]) -> str:
    """A line of the table."""
    outcomes = ", ".join(
        f"{count} {outcome}" for outcome, count in Counter(one.outcome for one in trials).most_common()
    )
    times = sorted(one.seconds for one in trials if one.seconds is not None)
    said = f"{median(times):5.1f} s [{times[0]:.1f}, {times[-1]:.1f}]" if times else "–"
    landed = Counter(one.first_rank_on for one in trials)
    ranks = ", ".join(f"{landed[host]}× {'first' if host == 0 else 'second'}" for host in sorted(landed))
    store = "shared" if shared else "own"
    return f"{variant:8}{store:8}{'first' if victim == 0 else 'second':10}{outcomes:32}{said:24}{ranks}"


def campaign(trials: int, keep: Path | None) -> None:
    """All variants by turns, so that none has the quiet half of the hour for itself; then the table."""
    cells = [
        (variant, shared, victim) for variant in ("c10d", "static") for shared in (True, False) for victim in (0, 1)
    ]
    taken: dict[tuple[str, bool, int], list[Trial]] = {cell: [] for cell in cells}
    with tempfile.TemporaryDirectory(prefix="rendezvous-") as temporary:
        for number in range(trials):
            for cell in cells if number % 2 else cells[::-1]:
                variant, shared, victim = cell
                place = f"{number}-{variant}-{'shared' if shared else 'own'}-{victim}"
                done = trial(variant, shared, victim, (keep or Path(temporary)) / place)
                seconds = "" if done.seconds is None else f", {done.seconds:.2f} s"
                print(f"{place}: {done.outcome}{seconds}, rank 0 on host {done.first_rank_on}", flush=True)
                taken[cell].append(done)
    print(f"\n{'':8}{'store':8}{'killed on':10}{'outcome':32}{'kill to collective':24}rank 0 began on")
    for cell, found in taken.items():
        print(row(*cell, found))
    print("seconds: median [shortest, longest]; own store: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")


def main() -> None:
    """The campaign; with --rank-in, one rank of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5, help="of each variant and victim [5]")
    parser.add_argument("--keep", type=Path, help="new folder for what ranks and torchruns wrote [thrown away]")
    parser.add_argument("--rank-in", type=Path, help="what a rank is started with")
    given = parser.parse_args()
    if given.rank_in:
        be_rank(given.rank_in)
        return
    print(f"load of this machine before: {os.getloadavg()[0]:.1f}", flush=True)
    campaign(given.trials, given.keep and given.keep.resolve())
    print(f"load of this machine after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
