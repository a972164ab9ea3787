"""The sensors' process of one host. A rank starts it (sidecar.py); by hand it samples until Ctrl-C.

    python -m assay.sensors --out sensors.jsonl

It is started by path and without site-packages, because half of a Python's start-up is spent on those, and it imports
neither numpy nor torch. It gives way to the ranks (nice 10): being late costs it resolution, never truth, since its
stamps are taken when it reads; the lowest priority of all would let a full machine starve it into gaps.
"""

import argparse
import gc
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

NICE = 10
OPENING = 120  # s after which the kernel ends a process that hangs while it opens its sensors; some take half a minute


def main() -> None:
    """Sample until the lifeline (standard input) ends, the parent dies, or a signal asks for the end."""
    parser = argparse.ArgumentParser(prog="assay.sensors", description="Sample this host's sensors into a file.")
    parser.add_argument("--out", type=Path, required=True, help="the file of records; must not exist yet")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between samples [1]")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where /sys and /proc are looked for [/]")
    parser.add_argument("--header", help="the starting rank's header, as JSON")
    parser.add_argument("--parent", type=int, help="end with this process, or when standard input does")
    parser.add_argument("--packages", help="folder in which optional packages lie, where none is searched")
    args = parser.parse_args()
    if not 0 < args.interval < float("inf"):
        parser.error(f"--interval {args.interval}: should be a number of seconds above 0")
    if not __package__:
        # Run by path: in place of this folder, whose modules must not be taken for packages, the one that holds assay.
        sys.path[0] = str(Path(__file__).resolve().parents[2])
    if args.packages:
        sys.path.append(args.packages)

    from assay.errors import SENTENCE_MARK, AssayError

    wait = _until_told(args.parent)
    os.nice(NICE)
    try:
        _sample(args.out, args.interval, args.root, args.header, wait)
        code = 0
    except (AssayError, OSError) as error:
        print(f"{SENTENCE_MARK}{error}", file=sys.stderr, flush=True)
        code = 1
    # All is written and every tool ended; taking an interpreter down orderly would take longer than a tick.
    os._exit(code)


def _sample(out: Path, interval: float, root: Path, given: str | None, wait: Callable[[float], bool]) -> None:
    from assay.record import Header
    from assay.recorder import Recorder
    from assay.sensors.inventory import open_sources
    from assay.sensors.sampler import sample

    if out.exists():
        raise FileExistsError(f"{out}: exists already; give another --out")
    signal.alarm(OPENING)
    inventory = open_sources(root, os.environ)
    signal.alarm(0)
    about = {
        "interval": interval,
        "sources": {source.name: source.about for source in inventory.sources},
        "absent": inventory.absent,
    }
    fields = json.loads(given) if given else _lone()
    fields |= {"pid": os.getpid(), "script": "assay/sensors", "about": about}
    recorder = Recorder(out, Header(**{**fields, "monotonic": time.monotonic(), "wall": time.time()}))
    gc.freeze()  # what is there by now stays; looking through it for garbage again and again would cost a tick
    try:
        sample(inventory.sources, recorder, interval, wait, inventory.why_no_power)
    finally:
        for source in inventory.sources:
            source.close()
        recorder.close()


def _lone() -> dict[str, object]:
    """The header's fields for a sampler that no rank has started."""
    import platform

    from assay.machine import clock_id

    one = {"rank": 0, "world": 1, "local_rank": 0, "local_world": 1, "host": platform.node(), "clock_id": clock_id()}
    return {**one, "device": "cpu", "device_name": "", "backend": "none"}


def _until_told(parent: int | None) -> Callable[[float], bool]:
    """A function that sleeps for so many seconds, or returns True at once when it is time to end."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)  # a signal makes the poll below return, wherever it arrives
    signal.signal(signal.SIGTERM, lambda *_: None)
    # Ctrl-C reaches everything that a terminal started; the rank will say when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN if parent else lambda *_: None)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    ends = select.poll()
    ends.register(reading, select.POLLIN)
    if parent:
        from assay.sensors.parent import die_with_parent

        die_with_parent(signal.SIGTERM)
        ends.register(sys.stdin.fileno(), select.POLLIN)
        if os.getppid() != parent:  # it died before the kernel was asked
            return lambda seconds: True
    return lambda seconds: bool(ends.poll(seconds * 1000))


if __name__ == "__main__":
    main()
