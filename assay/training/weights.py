"""Initial weights as a function of (seed, parameter name, element index) alone.

No state is carried from one number to the next, so every rank makes exactly its own shard, and 1 process, any number of
data-parallel ranks and any sharding start from the same bits. Only integer sums and one multiplication turn raw
random bits into numbers, so no platform's logarithm or cosine can change them.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from transformers.pytorch_utils import Conv1D

from assay.errors import RunFailed
from assay.training.model import INITIALIZER_RANGE

CHUNK = 1 << 20  # elements that a thread takes at once: its host memory is about 4 MiB, whatever the model's size
PIECE = 1 << 14  # elements that go through all passes while they lie in a core's own cache

Work = Callable[[], None]

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"}
_ADAPTED = "base_model.model."  # the prefix that peft puts before the model's own names
_LORA_A, _LORA_B = ".lora_A.", ".lora_B."

# The sum of four uniform 16-bit integers (Irwin-Hall, n = 4) has variance 4·(2³² − 1)/12 and reaches ±3.46 σ.
_CENTRE = np.float32(2 * 65535)
_SIGMA = math.sqrt(4 * (2**32 - 1) / 12)
_LOW_HALVES = np.uint64(0x0000FFFF0000FFFF)
_HALF = np.uint64(16)
_INTO_UPPER = np.uint64(2**32 + 1)
_UPPER = 1 if sys.byteorder == "little" else 0


@dataclass(frozen=True)
class Part:
    """What this rank holds of a parameter. values: flat view of it without gradients, [n]; start: index of its first element in the whole."""

    values: torch.Tensor
    start: int
    shape: tuple[int, ...]  # of the whole parameter


def canonical_name(name: str) -> str:
    """A parameter's name without what wrappers (DDP, compile, checkpointing, adapters) add to it."""
    parts = name.removeprefix("module.").removeprefix(_ADAPTED).split(".")
    return ".".join(part for part in parts if part not in _WRAPPERS)


def is_adapter(name: str) -> bool:
    """Whether a parameter is peft's addition to the model, which no folder of base weights holds."""
    return _LORA_A in name or _LORA_B in name


def raw_bits(seed: int, name: str, start: int, count: int) -> NDArray[np.uint64]:
    """Raw 64-bit outputs start … start+count−1 of the stream that (seed, name) names. Philox 4×64, Salmon et al. 2011."""
    return np.asarray(_stream(seed, name, start).random_raw(count), dtype=np.uint64)


def _stream(seed: int, name: str, start: int) -> np.random.Philox:
    """The generator whose next output is number `start`."""
    stream = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    block, skip = divmod(start, 4)  # the generator makes four outputs per counter value
    philox = np.random.Philox(key=key, counter=np.array([block, 0, 0, 0], dtype=np.uint64))
    philox.random_raw(skip, False)
    return philox


def draw(seed: int, name: str, start: int, count: int, std: float = INITIALIZER_RANGE) -> NDArray[np.float32]:
    """Elements start … start+count−1 of the parameter `name`: mean 0, standard deviation `std`, float32, [count]."""
    drawn = np.empty(count, dtype=np.float32)
    draw_into(drawn, seed, name, start, std)
    return drawn


def draw_into(out: NDArray[np.float32], seed: int, name: str, start: int, std: float = INITIALIZER_RANGE) -> None:
    """`draw` as many elements as `out` has, [n], into its memory. Releases the interpreter's lock nearly all the time."""
    philox, scale = _stream(seed, name, start), np.float32(std / _SIGMA)
    sums = np.empty(min(PIECE, out.size), dtype=np.uint64)
    for first in range(0, out.size, PIECE):
        piece = out[first : first + PIECE]
        _add_up(philox.random_raw(piece.size), sums[: piece.size], piece)
        np.subtract(piece, _CENTRE, out=piece)
        np.multiply(piece, scale, out=piece)  # the only rounding


def _add_up(bits: NDArray[np.uint64], sums: NDArray[np.uint64], out: NDArray[np.float32]) -> None:
    """The sum of the four 16-bit parts of each of `bits`, exact in float32 because it is below 2¹⁸. Spoils `bits`."""
    np.bitwise_and(bits, _LOW_HALVES, out=sums)
    np.right_shift(bits, _HALF, out=bits)
    np.bitwise_and(bits, _LOW_HALVES, out=bits)
    np.add(sums, bits, out=sums)
    # Two sums of two now lie in 32 bits each; this adds the lower to the upper, and conversion reads only that half.
    np.multiply(sums, _INTO_UPPER, out=sums)
    out[...] = sums.view(np.int32)[_UPPER::2]


def initialise(model: nn.Module, seed: int) -> None:
    """Fill every parameter in place: norm weights 1, biases 0, matrices drawn. Of a sharded one, this rank's part only.

    Matrices of LoRA: the second 0; the first drawn as wide as peft draws it, standard deviation 1/√(3·in), which is that
    of its uniform distribution over ±1/√in. Whole numbers (a quantised base) and buffers are left as they are. As many
    threads as torch uses. Raises RunFailed if a parameter is of a layer, or sharded in a way, that is not known here.
    """
    in_threads(_fills(model, seed, lambda name: True))


def initialise_adapters(model: nn.Module, seed: int) -> None:
    """`initialise` for what peft has added only: the base keeps the weights that it has."""
    in_threads(_fills(model, seed, is_adapter))


def in_threads(works: Iterable[Work]) -> None:
    """Do all of them, in as many threads as torch uses. Raises what the first that failed has raised."""
    threads = torch.get_num_threads()
    if threads == 1:
        for work in works:
            work()
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()


def _fills(model: nn.Module, seed: int, wanted: Callable[[str], bool]) -> Iterator[Work]:
    """What is to be done, chunk by chunk; constants are written at once."""
    # named_parameters gives a tied matrix once, under its first name.
    for full_name, parameter in model.named_parameters():
        if not wanted(full_name) or not parameter.is_floating_point():
            continue
        constant, std = _rule(full_name, model.get_submodule(full_name.rpartition(".")[0]))
        part, name = own_part(full_name, parameter), canonical_name(full_name)
        if constant is not None:
            part.values.fill_(constant)
            continue
        for first in range(0, part.values.numel(), CHUNK):
            yield _Fill(part.values[first : first + CHUNK], seed, name, part.start + first, std)


@dataclass(frozen=True)
class _Fill:
    values: torch.Tensor
    seed: int
    name: str
    start: int
    std: float

    def __call__(self) -> None:
        direct = self.values.device.type == "cpu" and self.values.dtype == torch.float32
        out = self.values.numpy() if direct else np.empty(self.values.numel(), dtype=np.float32)
        draw_into(out, self.seed, self.name, self.start, self.std)
        if not direct:
            self.values.copy_(torch.from_numpy(out))


def _rule(name: str, owner: nn.Module) -> tuple[float | None, float]:
    """The constant that a parameter starts with, or None and the standard deviation to draw it with."""
    if name.endswith("bias") or _LORA_B in name:
        return 0.0, 0.0
    # transformers' norms are classes of their own; FSDP2 derives from whatever class it shards, and puts FSDP before.
    if type(owner).__name__.endswith("Norm"):
        return 1.0, 0.0
    if isinstance(owner, nn.Linear) and _LORA_A in name:
        return None, 1 / math.sqrt(3 * owner.in_features)
    if isinstance(owner, nn.Linear | nn.Embedding | Conv1D):
        return None, INITIALIZER_RANGE
    raise RunFailed(
        f"{name} belongs to a {type(owner).__name__}, for which assay knows no initial values; "
        "start from a folder of weights with --weights, or choose another model"
    )


def own_part(name: str, parameter: torch.Tensor) -> Part:
    """This rank's contiguous part of a parameter that is whole or, by FSDP2 or HSDP, in rows.

    Raises RunFailed for any other placement.
    """
    if isinstance(parameter, DTensor):
        return _own_rows(name, parameter)
    return Part(_flat(name, parameter.detach()), 0, tuple(parameter.shape))


def _own_rows(name: str, parameter: DTensor) -> Part:
    mesh = parameter.device_mesh
    over = [i for i, placement in enumerate(parameter.placements) if placement == Shard(0)]
    if len(over) != 1 or any(p != Replicate() for i, p in enumerate(parameter.placements) if i != over[0]):
        raise RunFailed(
            f"{name} is placed {parameter.placements}, expected rows over one mesh dimension and copies over the others; "
            "use --engine fsdp"
        )
    local = parameter.to_local().detach()
    first, last = row_range(parameter.shape[0], mesh.size(over[0]), mesh.get_local_rank(over[0]))
    if local.shape != (last - first, *parameter.shape[1:]):
        raise RunFailed(
            f"{name}: this rank's shard is {tuple(local.shape)}, expected rows {first} to {last} of the whole"
        )
    return Part(_flat(name, local), first * math.prod(parameter.shape[1:]), tuple(parameter.shape))


def _flat(name: str, values: torch.Tensor) -> torch.Tensor:
    if not values.is_contiguous():
        raise RunFailed(f"{name} does not lie in memory in one piece, so it cannot be filled in place")
    return values.view(-1)


def row_range(rows: int, ranks: int, rank: int) -> tuple[int, int]:
    """Rows [first, last) of `rank` as torch.chunk deals them: ceil(rows/ranks) each, the last ranks fewer or none."""
    each = -(-rows // ranks)
    return min(rank * each, rows), min((rank + 1) * each, rows)
