"""A byte-level BPE tokenizer trained on the very text, to the model's vocabulary size, and kept for the next run."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from assay.errors import AssayError, BadInput
from assay.world import World

END_OF_TEXT = "<|endoftext|>"
_SMALLEST_VOCAB = 257  # every byte, and the end of a document


def text_digest(documents: Sequence[str]) -> str:
    """32 hexadecimal digits that stand for exactly this text, cut into exactly these documents."""
    digest = hashlib.blake2b(digest_size=16)
    for document in documents:
        data = document.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def shared_tokenizer(documents: Sequence[str], vocab: int, cache: Path | None, world: World) -> Tokenizer:
    """The tokenizer for this text, the same on every rank: rank 0 takes it from the cache or trains it and sends it.

    Sent, not read by each rank, so that hosts need not share a disk. cache: a folder; None is ~/.cache/assay or below
    $XDG_CACHE_HOME. Raises BadInput, on every rank, if `vocab` is too small or the cache cannot be written.
    """
    if vocab < _SMALLEST_VOCAB:
        raise BadInput(
            f"a vocabulary of {vocab} cannot hold every byte; text needs a model of {_SMALLEST_VOCAB} or more"
        )
    message: list[str | None] = [None, None]  # the tokenizer, or rank 0's reason for having none
    if world.is_first:
        try:
            message[0] = _cached(documents, vocab, cache or default_cache())
        except AssayError as error:
            message[1] = str(error)
    if world.size > 1:
        dist.broadcast_object_list(message, src=0)
    if message[0] is None:
        raise BadInput(message[1] or "rank 0 sent no tokenizer; look at its log")
    tokenizer: Tokenizer = Tokenizer.from_str(message[0])
    return tokenizer


def default_cache() -> Path:
    """The user's cache folder for assay: $XDG_CACHE_HOME/assay or ~/.cache/assay."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "assay"


def _cached(documents: Sequence[str], vocab: int, cache: Path) -> str:
    # Another version of the trainer may merge otherwise, so its version is part of what the file stands for.
    name = f"{text_digest(documents)}-{vocab}-{tokenizers.__version__}"
    path = cache / f"bpe-{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}.json"
    found = _read(path, vocab)
    if found is not None:
        return found
    trained: str = _train(documents, vocab).to_str()
    try:
        _write(path, trained)
    except OSError as error:
        raise BadInput(
            f"the tokenizer cannot be kept in {cache} ({error.strerror}); name a writable folder with --tokenizer-cache"
        ) from None
    return trained


def _read(path: Path, vocab: int) -> str | None:
    # A file that is damaged, whatever the way, is worth no question: training takes a second and replaces it.
    try:
        text = path.read_text(encoding="utf-8")
        tokenizer = Tokenizer.from_str(text)
    except Exception:  # the Rust side raises plain Exception
        return None
    return text if tokenizer.token_to_id(END_OF_TEXT) is not None and tokenizer.get_vocab_size() <= vocab else None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _train(documents: Sequence[str], vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer
