"""Pretrained weights: a local Hugging Face folder, read into a model that has memory, whole or sharded.

A rank reads the bytes of its own part and no others. Files are read, not mapped: a map reads ahead what nobody needs,
and a file that is too short would end the process by a signal instead of a sentence. Nothing in a folder is executed.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from assay.errors import BadInput, RunFailed
from assay.training.weights import CHUNK, Part, Work, canonical_name, in_threads, is_adapter, own_part

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SAMPLED = 64  # bytes of every tensor that go into the digest

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BITS = re.compile(r"[A-Z]+(\d+)")
_PREFIXES = ("model.", "transformer.", "bert.")  # of the body, which a folder may have been saved without
_RENAMED = ((".gamma", ".weight"), (".beta", ".bias"))  # what BERT's first folders call a norm's
# Buffers that old versions of transformers stored, and newer ones compute.
_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.(masked_)?bias|position_ids|token_type_ids)$")

_CHOOSE = "choose the --model whose weights these are, or another folder"
# What config.json calls a size, by family.
_SIZES = (
    ("hidden size", ("hidden_size", "n_embd")),
    ("layers", ("num_hidden_layers", "n_layer")),
    ("attention heads", ("num_attention_heads", "n_head")),
    ("key-value heads", ("num_key_value_heads",)),
    ("feed-forward size", ("intermediate_size", "n_inner")),
    ("vocabulary", ("vocab_size",)),
    ("tied embeddings", ("tie_word_embeddings",)),
    ("activation", ("hidden_act", "activation_function")),
)
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
# InternLM 1 has LLaMA's layers under LLaMA's names; the two GELUs are one function, by many kernels and by one.
_ALIKE = {"internlm": "llama", "gelu_new": "gelu_pytorch_tanh"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. name: as the file has it; dtype: safetensors' word; start: of its first byte in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    file: BinaryIO


@dataclass(frozen=True)
class Folder:
    """An opened folder: its configuration, and where its tensors lie, by parameter. Threads may share it."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    def find(self, name: str) -> Stored | None:
        """The tensor of a parameter, by the parameter's name in any wrapper."""
        return self.tensors.get(_key(name))

    def read(self, tensor: Stored, start: int, count: int) -> torch.Tensor:
        """Elements start … start+count−1 of a tensor's rows laid end to end, in the type they are stored in, [count].

        Raises RunFailed if the disk fails or the file has become shorter.
        """
        dtype = _DTYPES[tensor.dtype]
        buffer = np.empty(count * dtype.itemsize, dtype=np.uint8)
        at, done = tensor.start + start * dtype.itemsize, 0
        while done < buffer.size:
            try:
                got = os.preadv(tensor.file.fileno(), [buffer.data[done:]], at + done)
            except OSError as error:
                raise RunFailed(f"{tensor.file.name}: cannot be read ({error.strerror})") from None
            if not got:
                raise RunFailed(f"{tensor.file.name}: became shorter while it was read; copy it again")
            done += got
        return torch.from_numpy(buffer).view(dtype)

    def rows(self, name: str, first: int, last: int, columns: int) -> torch.Tensor:
        """Rows first … last−1 of the matrix of parameter `name`, float32, on the host, [last − first, columns].

        Raises BadInput if the folder has no such matrix.
        """
        tensor = self.find(name)
        if tensor is None or tensor.shape[1:] != (columns,) or last > tensor.shape[0]:
            raise BadInput(_differs(self.path, name, tensor, (last, columns)))
        return self.read(tensor, first * columns, (last - first) * columns).float().view(-1, columns)


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[Folder]:
    """The folder, while in the `with`. Raises BadInput if something in it is missing, torn or of another format."""
    if not path.is_dir():
        raise BadInput(f"--weights {path}: no such folder; name one with {CONFIG} and {SINGLE} or {INDEX}")
    config = _read_json(path / CONFIG)
    tensors: dict[str, Stored] = {}
    with contextlib.ExitStack() as files:
        for shard in _shards(path):
            try:
                header = _header(shard, files.enter_context(shard.open("rb")))
            except OSError as error:
                raise BadInput(f"{shard}: cannot be read ({error.strerror}); copy the whole folder again") from None
            for tensor in header:
                twin = tensors.setdefault(_key(tensor.name), tensor)
                if twin is not tensor:
                    raise BadInput(f"{shard}: {tensor.name} and {twin.name} are one parameter; leave only one of them")
        yield Folder(path, config, tensors)


def load(model: nn.Module, folder: Path) -> None:
    """Fill every parameter of `model` from `folder`, converted to the parameter's type: of a sharded one, this rank's part.

    Adapters are not touched, nor are parameters of whole numbers (a quantised base, see Folder.rows). The norms' epsilon
    becomes the folder's. As many threads as torch uses. Raises BadInput, before anything is written, if configuration,
    names or shapes are not the model's, and names the first that is not.
    """
    with open_folder(folder) as source:
        _check_config(model, source)
        in_threads(_reads(source, _matched(model, source)))
        _take_epsilon(model, source.config)


def weights_source(folder: Path) -> dict[str, str | int]:
    """What records say about a folder: its name, its bytes, and a digest that tells folders apart without reading all.

    Of the digest: config.json, and every tensor's name, type, shape and first 64 bytes.
    """
    digest, total = hashlib.blake2b(digest_size=16), 0
    with open_folder(folder) as source:
        digest.update(json.dumps(source.config, sort_keys=True).encode())
        for key, tensor in sorted(source.tensors.items()):
            size = _size(tensor)
            sample = os.pread(tensor.file.fileno(), min(size, _SAMPLED), tensor.start)
            digest.update(f"{key} {tensor.dtype} {tensor.shape} ".encode() + sample)
            total += size
    name = folder.resolve().name
    return {"weights_folder": name, "weights_bytes": total, "weights_digest": digest.hexdigest()}


def _key(name: str) -> str:
    """What a parameter is called in every folder and wrapper."""
    name = canonical_name(name)
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            name = name[len(prefix) :]
            break
    for old, new in _RENAMED:
        if name.endswith(old):
            return name[: -len(old)] + new
    return name


def _matched(model: nn.Module, source: Folder) -> list[tuple[Part, Stored]]:
    """What this rank holds of each parameter to be read, and where it lies. Raises BadInput on the first that differs."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not is_adapter(name):
            names.setdefault(parameter, []).append(name)
    found = []
    for parameter, [name, *tied] in names.items():
        part = own_part(name, parameter)
        # A matrix with two names may be stored under either.
        tensor = next((tensor for tensor in map(source.find, [name, *tied]) if tensor), None)
        if tensor is None and not parameter.is_floating_point():
            continue  # the scales of a quantised base
        if tensor is None or tensor.shape != part.shape:
            raise BadInput(_differs(source.path, name, tensor, part.shape))
        if tensor.dtype not in _DTYPES:
            raise BadInput(
                f"{source.path}: {tensor.name} is stored as {tensor.dtype}, expected one of {', '.join(_DTYPES)}; "
                "take the folder as it was before quantisation"
            )
        if parameter.is_floating_point():
            found.append((part, tensor))
    known = {_key(name) for several in names.values() for name in several}
    foreign = next((tensor for key, tensor in source.tensors.items() if key not in known), None)
    if foreign:
        raise BadInput(f"{source.path}: {foreign.name} of shape {foreign.shape} is not in the model; {_CHOOSE}")
    return found


def _differs(folder: Path, name: str, tensor: Stored | None, shape: tuple[int, ...]) -> str:
    there = f"has shape {tensor.shape}" if tensor else "is missing"
    return f"{folder}: {canonical_name(name)} {there}, the model's has shape {shape}; {_CHOOSE}"


def _reads(source: Folder, matched: list[tuple[Part, Stored]]) -> Iterator[Work]:
    for part, tensor in matched:
        for first in range(0, part.values.numel(), CHUNK):
            yield _Read(source, tensor, part.start + first, part.values[first : first + CHUNK])


@dataclass(frozen=True)
class _Read:
    source: Folder
    tensor: Stored
    start: int
    values: torch.Tensor

    def __call__(self) -> None:
        self.values.copy_(self.source.read(self.tensor, self.start, self.values.numel()))


def _check_config(model: nn.Module, source: Folder) -> None:
    configs = (getattr(part, "config", None) for part in model.modules())
    ours: Mapping[str, Any] = next((config.to_dict() for config in configs if isinstance(config, PretrainedConfig)), {})
    both = source.config, ours
    pairs = [("model_type", *(config.get("model_type") for config in both))]
    pairs += [(words, *(next((c[key] for key in keys if key in c), None) for c in both)) for words, keys in _SIZES]
    if "rope_parameters" in ours or "rope_theta" in ours:
        pairs.append(("rotary base and kind", *map(_rope, both)))
    for words, theirs, wanted in pairs:
        same = _ALIKE.get(str(theirs), theirs) == _ALIKE.get(str(wanted), wanted)
        if theirs is not None and wanted is not None and not same:
            raise BadInput(f"{source.path / CONFIG}: {words} {theirs}, the model's is {wanted}; {_CHOOSE}")


def _rope(config: Mapping[str, Any]) -> str:
    # One mapping since transformers 5; a number and a mapping before.
    found = config.get("rope_parameters") or config.get("rope_scaling")
    rope = found if isinstance(found, Mapping) else {}
    base = rope.get("rope_theta") or config.get("rope_theta") or 10000
    number = f"{base:g}" if isinstance(base, int | float) else base
    return f"{number} {rope.get('rope_type') or rope.get('type') or 'default'}"


def _take_epsilon(model: nn.Module, config: Mapping[str, Any]) -> None:
    value = next((config[key] for key in _EPSILONS if isinstance(config.get(key), float)), None)
    for part in model.modules() if value is not None else ():
        for name in ("eps", "variance_epsilon"):
            if type(part).__name__.endswith("Norm") and hasattr(part, name):
                setattr(part, name, value)


def _shards(folder: Path) -> list[Path]:
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        names = _read_json(folder / INDEX).get("weight_map")
        # Only files of this folder: an index is not to say what else is read.
        if isinstance(names, dict) and names and all(isinstance(n, str) and n == Path(n).name for n in names.values()):
            return [folder / name for name in sorted(set(names.values()))]
        raise BadInput(f"{folder / INDEX}: no weight_map of parameters to files; copy it again")
    if any(folder.glob("*.bin")):
        raise BadInput(
            f"{folder}: weights in .bin files, which can run code when they are opened; only safetensors are read: load "
            "the folder with transformers' from_pretrained and save it with save_pretrained"
        )
    raise BadInput(f"{folder}: neither {SINGLE} nor {INDEX}; name a folder that has one")


def _header(path: Path, file: BinaryIO) -> list[Stored]:
    """The tensors of a file: 8 bytes that give the length of a JSON header, the header, the data (safetensors' format)."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    end = behind = 8 + length
    if end > size:
        raise BadInput(
            f"{path}: no safetensors file, or a torn one: {size} bytes, {end} or more expected; copy it again"
        )
    try:
        entries = json.loads(file.read(length))
        tensors = []
        for name, entry in entries.items():
            if name == "__metadata__" or _BUFFERS.search(name):
                continue
            first, last = entry["data_offsets"]
            tensor = Stored(name, str(entry["dtype"]), tuple(map(int, entry["shape"])), behind + int(first), file)
            if first < 0 or last - first != _size(tensor):
                raise ValueError(f"{name} from byte {first} to {last}")
            tensors.append(tensor)
            end = max(end, behind + last)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise BadInput(f"{path}: no safetensors file, or a damaged one ({error}); copy it again") from None
    if end > size:
        raise BadInput(f"{path}: torn: {size} bytes, {end} expected; copy it again")
    return tensors


def _size(tensor: Stored) -> int:
    bits = 8 if tensor.dtype == "BOOL" else int((_BITS.match(tensor.dtype) or ["", "0"])[1])
    return math.prod(tensor.shape) * bits // 8


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; name a whole Hugging Face folder") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: a JSON object was expected; copy it again")
    return found
