"""What the sensors' process costs: CPU seconds of its start, of each tick, and its share of one core.

    python benchmarks/sampling.py                 # this host's own sensors, 60 s
    python benchmarks/sampling.py --planted       # files as a host with 8 cards, 256 processors and 8 InfiniBand ports has

Must reach: at most 0.1 % of one core for the ticks, everything that they write included; the start is shown apart. The
process is started as a rank starts it. Planted files cost what reading and writing them costs here; drivers that must
ask their device first cost more on a real host, and are then read less often (see assay/sensors/sampler.py).
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from assay.errors import RunFailed
from assay.estimates import median_interval
from assay.placement import Placement
from assay.record import read_rank_file
from assay.sensors.sampler import FLUSH_TICKS
from assay.sensors.sidecar import command

LIMIT = 0.001


def plant(root: Path) -> None:
    """Make the files of a large host below `root`."""
    files = {"proc/stat": "cpu  1 2 3 4 5 6 7 8 0 0\n" + "".join(f"cpu{n} 1 2 3\n" for n in range(256))}
    files["proc/self/cgroup"] = "0::/\n"
    files["sys/fs/cgroup/cpu.stat"] = "nr_throttled 0\nthrottled_usec 0\n"
    for number in range(8):
        card = f"sys/class/drm/card{number}/device/hwmon/hwmon{number}"
        files |= {f"{card}/name": "amdgpu", f"{card}/power1_average": "300000000"}
        files |= {f"{card}/temp{sensor}_input": "60000" for sensor in (1, 2, 3)}
        files |= {f"{card}/freq{domain}_input": "2100000000" for domain in (1, 2)}
        port = f"sys/class/infiniband/mlx5_{number}/ports/1"
        files |= {f"{port}/counters/{name}": "0" for name in ("symbol_error", "link_downed", "port_rcv_errors")}
        files |= {f"{port}/hw_counters/{name}": "0" for name in ("out_of_sequence", "packet_seq_err")}
        net = f"sys/class/net/eth{number}"
        files |= {f"{net}/statistics/{name}": "0" for name in ("rx_errors", "tx_errors", "rx_dropped", "tx_dropped")}
        files[f"{net}/device/vendor"] = "0x15b3"
    for package in range(2):
        zone = f"sys/class/powercap/intel-rapl:{package}"
        files |= {f"{zone}/name": f"package-{package}", f"{zone}/energy_uj": "1", f"{zone}/max_energy_range_uj": "9"}
        files[f"sys/class/thermal/thermal_zone{package}/type"] = "x86_pkg_temp"
        files[f"sys/class/thermal/thermal_zone{package}/temp"] = "55000"
    files |= {f"sys/devices/system/cpu/cpufreq/policy{n}/scaling_cur_freq": "2100000" for n in range(256)}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def cpu_seconds(pid: int) -> float:
    """CPU time that a living process has taken so far, its children's not included."""
    return time.clock_gettime(~pid << 3 | 2)  # how Linux numbers the CPU clock of another process


def measure(root: Path, out: Path, seconds: float, interval: float) -> None:
    """Run the process for `seconds` and print what it took."""
    argv = command(out, Placement(0, 1, 0, 1, "none"), "cpu", "")
    argv += [f"--root={root}", f"--interval={interval}"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE)
    while not out.exists() or out.read_bytes().count(b"\n") < 2:  # header, and the first samples after the first tick
        if process.poll() is not None:
            raise RunFailed(f"the sensors' process ended with exit code {process.returncode}")
        time.sleep(0.01)
    start = cpu_seconds(process.pid)
    taken, moments = [start], [time.monotonic()]
    while moments[-1] - moments[0] < seconds:
        time.sleep(interval)
        taken.append(cpu_seconds(process.pid))
        moments.append(time.monotonic())
    if process.stdin is not None:
        process.stdin.close()
    _, _, usage = os.wait4(process.pid, 0)
    ticks = np.diff(taken)
    read = read_rank_file(out)
    sources = sorted({str(block.tags["source"]) for block in read.blocks if "source" in block.tags})
    series = {(block.metric, *map(str, block.tags.values())) for block in read.blocks if block.metric != "sensor_time"}
    print(
        f"{len(sources)} sources ({', '.join(sources)}), {len(series)} series, {out.stat().st_size / seconds:.0f} bytes/s"
    )
    print(
        f"start and first tick: {start * 1e3:.0f} ms of CPU; {usage.ru_utime + usage.ru_stime:.3f} s in all, end included"
    )
    print(
        f"a tick: {np.median(ticks) * 1e6:.0f} µs median, {ticks.max() * 1e6:.0f} µs at most (writing), {ticks.size} ticks"
    )
    report(np.array(taken), np.array(moments))


def report(taken: NDArray[np.float64], moments: NDArray[np.float64]) -> None:
    """The share of a core, over all ticks and over each stretch that holds one writing; its verdict."""
    whole = (taken[-1] - taken[0]) / (moments[-1] - moments[0])
    at = np.arange(0, len(taken), FLUSH_TICKS)
    shares = np.diff(taken[at]) / np.diff(moments[at])
    if not shares.size:
        print(f"ticks: {whole:.4%} of one core: too short to judge, there is a writing every {FLUSH_TICKS} ticks")
        return
    estimate = median_interval(shares)
    low, high = estimate.low or shares.min(), estimate.high or shares.max()
    word = "holds" if high <= LIMIT else "fails" if low > LIMIT else "undecided"
    print(
        f"ticks: {whole:.4%} of one core [{low:.4%}, {high:.4%}], limit {LIMIT:.1%}: {word} ({shares.size} stretches)"
    )


def main() -> None:
    """Measure this host's sensors, or planted ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--planted", action="store_true", help="files as a large host has them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path("/")
        if args.planted:
            root = Path(name) / "root"
            plant(root)
        measure(root, Path(name) / "sensors-00000.jsonl", args.seconds, args.interval)


if __name__ == "__main__":
    main()
