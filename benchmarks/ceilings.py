"""Whether the measured ceilings are ceilings: held against numpy's BLAS, torch.mm and a STREAM in C, and repeated.

    python benchmarks/ceilings.py
    python benchmarks/ceilings.py --pairs 40 --threads 2

GEMM: the shape and the call that specs/limits.py times, against the best of numpy.matmul and torch.mm over the same
shapes. Copy and triad: against loops in C, compiled here with -O3 -fopenmp, over buffers of the same size, in the same
pieces. In pairs that take turns, the order swapped from pair to pair; a pair's rate is the best of a few calls. It holds
if the lower end of the 95 % interval of the median ratio ours/theirs is at least 0.95. The loop in C against itself tells
whether the method favours a side: its interval must hold 1.
Then specs/limits.py runs three times: the intervals of each ceiling must overlap, or the doctor's findings say why not.
"""

import argparse
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import combinations, cycle
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from assay.clock import now
from assay.device import HostDevice
from assay.estimates import compare_pairs
from assay.limits.memory import PIECE, buffer_bytes, copy, triad
from assay.limits.products import KINDS, fastest, product, search, shapes_for
from assay.limits.timing import Work, take_samples
from assay.record import read_rank_file
from assay.scoring.ceilings import derive
from assay.units import format_si

REQUIRED = 0.95
REPEATS = 3
SLICE = 0.15  # s of one half of a pair
CPU = HostDevice()


def main() -> None:
    """Print every comparison with its interval, then the repetitions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40, help="interleaved pairs per comparison [40]")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each side [torch's]")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per ceiling of the repetitions [3]")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    gemm(given.pairs)
    memory(given.pairs, given.threads)
    repeat(given.seconds)


def gemm(pairs: int) -> None:
    """Our ceiling's product against the best engine and shape of all."""
    kind, shapes = KINDS["float32"], shapes_for(CPU)
    chosen = fastest(search(CPU, kind, shapes, 0.06))[0]
    rivals: dict[str, Work] = {}
    for shape in shapes:
        left, right = torch.rand(shape.m, shape.k), torch.rand(shape.k, shape.n)
        rivals[f"torch.mm {shape}"] = Work(_torch_product(left, right), shape.operations)
        rivals[f"numpy {shape}"] = Work(_numpy_product(left, right), shape.operations)
    best = max(rivals, key=lambda name: rate(rivals[name], SLICE))
    compare(f"GEMM fp32, ours {chosen} against {best}", product(CPU, kind, chosen), rivals[best], pairs, "FLOP/s")


def _torch_product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.mm(left, right)


def _numpy_product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    a, b = left.numpy(), right.numpy()
    result = np.empty((a.shape[0], b.shape[1]), dtype=np.float32)
    return lambda: np.matmul(a, b, out=result)


def memory(pairs: int, threads: int) -> None:
    """Our copy and triad against loops in C over whole buffers of the same size."""
    count = buffer_bytes(CPU, 1)
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder), threads)
        buffers = [np.ones(count // 4, dtype=np.float32) for _ in range(3)]
        copied = in_c(library.plain_copy, buffers[:2])
        added = in_c(library.plain_triad, buffers)
        compare("C -O3 against itself", in_c(library.plain_copy, buffers[:2]), copied, pairs, "B/s")
        compare("copy, against C -O3", copy(CPU, count), copied, pairs, "B/s")
        compare("triad, against C -O3", triad(CPU, count), added, pairs, "B/s")


def in_c(loop: Callable[..., object], buffers: Sequence[NDArray[np.float32]]) -> Work:
    """A loop in C over the buffers in the same pieces as ours, one after the other."""
    length = min(PIECE // 4, buffers[0].size)
    starts = cycle(range(0, buffers[0].size - length + 1, length))

    def call() -> None:
        start = next(starts)
        loop(*(ctypes.c_void_p(buffer[start:].ctypes.data) for buffer in buffers), ctypes.c_size_t(length))

    return Work(call, len(buffers) * length * 4)


def compiled(folder: Path, threads: int) -> ctypes.CDLL:
    """The loops in C as a library of `threads` threads."""
    made = folder / "stream.so"
    source = Path(__file__).with_name("stream.c")
    subprocess.run(["cc", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-o", made, source], check=True)
    library = ctypes.CDLL(str(made))
    ctypes.CDLL("libgomp.so.1").omp_set_num_threads(threads)
    return library


def rate(work: Work, seconds: float) -> float:
    """Operations or bytes per second in the best sample of about `seconds`."""
    return work.amount / take_samples(CPU, seconds, work.call, fewest=2).best_call


def compare(name: str, ours: Work, theirs: Work, pairs: int, unit: str) -> None:
    """Print both rates and the ratio ours/theirs with its interval."""
    rates: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2:
            other, own = rate(theirs, SLICE), rate(ours, SLICE)
        else:
            own, other = rate(ours, SLICE), rate(theirs, SLICE)
        rates.append((own, other))
    ratio = compare_pairs([other for _, other in rates], [own for own, _ in rates]).ratio
    low, high = ratio.low or 0.0, ratio.high or float("inf")
    word = "holds" if low >= REQUIRED else "fails" if high < REQUIRED else "undecided"
    best = ", ".join(format_si(max(side), unit) for side in zip(*rates, strict=True))
    print(
        f"{name}: best {best}; ratio {ratio.value:.3f} [{low:.3f}, {high:.3f}] of {pairs} pairs, ≥ {REQUIRED}: {word}"
    )


def repeat(seconds: float) -> None:
    """Three runs of specs/limits.py: do the ceilings' intervals overlap? If not, the doctor's screen."""
    script = Path(__file__).parents[1] / "specs" / "limits.py"
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            argv = [sys.executable, str(script), "--device", "cpu", "--seconds", str(seconds), "--out", folder]
            begun = now()
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            for figure in derive([read_rank_file(Path(folder) / "rank-00000.jsonl")]):
                if figure.estimate and figure.estimate.low is not None and figure.estimate.high is not None:
                    low, high = figure.estimate.low, figure.estimate.high
                    found.setdefault(figure.metric, []).append((figure.estimate.value, low, high))
            print(f"specs/limits.py: {now() - begun:.0f} s")
    agreed = True
    for metric, runs in found.items():
        apart = [pair for pair in combinations(runs, 2) if max(a[1] for a in pair) > min(a[2] for a in pair)]
        agreed = agreed and not apart and len(runs) == REPEATS
        shown = "; ".join(f"{value:.4g} [{low:.4g}, {high:.4g}]" for value, low, high in runs)
        print(f"{metric} in {REPEATS} runs: {shown}: {'agree' if not apart else f'{len(apart)} pairs lie apart'}")
    if not agreed:
        print("the doctor says why:")
        subprocess.run([sys.executable, "-m", "assay", "doctor"], check=False)


if __name__ == "__main__":
    main()
