"""Initial weights as a function of (seed, parameter name, element index) alone.

No state is carried from one number to the next, so every rank makes exactly its own shard, and 1 process, any number of
data-parallel ranks and any sharding start from the same bits. Only integer sums and one multiplication turn raw
random bits into numbers, so no platform's logarithm or cosine can change them.
"""

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor, Shard

from assay.errors import RunFailed
from assay.training.model import INITIALIZER_RANGE

CHUNK = 1 << 20  # elements made at once: about 30 MiB of host memory, whatever the model's size

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"}
_ADAPTED = "base_model.model."  # the prefix that peft puts before the model's own names

# The sum of four uniform 16-bit integers (Irwin-Hall, n = 4) has variance 4·(2³² − 1)/12 and reaches ±3.46 σ.
_CENTRE = 2 * 65535
_SIGMA = math.sqrt(4 * (2**32 - 1) / 12)
_LOW_HALVES = np.uint64(0x0000FFFF0000FFFF)


def canonical_name(name: str) -> str:
    """A parameter's name without what wrappers (DDP, compile, checkpointing, adapters) add to it."""
    parts = name.removeprefix("module.").removeprefix(_ADAPTED).split(".")
    return ".".join(part for part in parts if part not in _WRAPPERS)


def raw_bits(seed: int, name: str, start: int, count: int) -> NDArray[np.uint64]:
    """Raw 64-bit outputs start … start+count−1 of the stream that (seed, name) names. Philox 4×64, Salmon et al. 2011."""
    stream = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    block, skip = divmod(start, 4)  # the generator makes four outputs per counter value
    philox = np.random.Philox(key=key, counter=np.array([block, 0, 0, 0], dtype=np.uint64))
    return np.asarray(philox.random_raw(skip + count), dtype=np.uint64)[skip:]


def draw(seed: int, name: str, start: int, count: int, std: float = INITIALIZER_RANGE) -> NDArray[np.float32]:
    """Elements start … start+count−1 of the parameter `name`: mean 0, standard deviation `std`, float32, [count]."""
    bits = raw_bits(seed, name, start, count)
    pairs = (bits & _LOW_HALVES) + ((bits >> np.uint64(16)) & _LOW_HALVES)
    total = (pairs & np.uint64(0xFFFFFFFF)) + (pairs >> np.uint64(32))
    centred = total.astype(np.int32) - np.int32(_CENTRE)
    # Integers below 2¹⁸ are exact in float32: the product is rounded once, alike on every machine.
    scaled: NDArray[np.float32] = centred.astype(np.float32) * np.float32(std / _SIGMA)
    return scaled


def initialise(model: nn.Module, seed: int) -> None:
    """Fill every parameter in place: norm weights 1, biases 0, matrices drawn. Of a sharded one, this rank's rows only.

    Raises RunFailed if a parameter is sharded in a way this function does not know.
    """
    with torch.no_grad():
        # named_parameters gives a tied matrix once, under its first name.
        for name, parameter in model.named_parameters():
            local, offset = own_part(name, parameter)
            _fill(local, offset, canonical_name(name), seed)


def own_part(name: str, parameter: torch.Tensor) -> tuple[torch.Tensor, int]:
    """This rank's contiguous part of `parameter`, and the index of its first element in the whole."""
    if not isinstance(parameter, DTensor):
        return parameter, 0
    if parameter.placements != (Shard(0),):
        raise RunFailed(
            f"{name} is placed {parameter.placements}, expected rows over one mesh dimension; use --engine fsdp"
        )
    local = parameter.to_local()
    mesh = parameter.device_mesh
    first, last = row_range(parameter.shape[0], mesh.size(), mesh.get_local_rank())
    if local.shape != (last - first, *parameter.shape[1:]):
        raise RunFailed(
            f"{name}: this rank's shard is {tuple(local.shape)}, expected rows {first} to {last} of the whole"
        )
    return local, first * math.prod(parameter.shape[1:])


def row_range(rows: int, ranks: int, rank: int) -> tuple[int, int]:
    """Rows [first, last) of `rank` as torch.chunk deals them: ceil(rows/ranks) each, the last ranks fewer or none."""
    each = -(-rows // ranks)
    return min(rank * each, rows), min((rank + 1) * each, rows)


def _fill(local: torch.Tensor, offset: int, name: str, seed: int) -> None:
    owner, _, kind = name.rpartition(".")
    if kind == "bias":
        local.zero_()
    elif owner.endswith("norm"):
        local.fill_(1.0)
    else:
        flat = local.view(-1)
        for start, count in _chunks(flat.numel()):
            flat[start : start + count].copy_(torch.from_numpy(draw(seed, name, offset + start, count)))


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, CHUNK):
        yield start, min(CHUNK, count - start)
