"""The tokenizer of a causal model's text: the one that came with its weights, else one that is trained on the text."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from assay.errors import BadInput
from assay.options import FinetuneOptions, PretrainOptions
from assay.training.pretrained import open_folder
from assay.training.tokenizer import END_OF_TEXT, shared_tokenizer
from assay.world import World

_ENDS = ("</s>", END_OF_TEXT, "<|end_of_text|>")  # of LLaMA, GPT-2 and ours, LLaMA 3

CausalOptions = PretrainOptions | FinetuneOptions


def tokenizer_for(options: CausalOptions, texts: Sequence[str], vocab: int, world: World) -> tuple[Tokenizer, int]:
    """The tokenizer, and the token behind a whole text. All ranks call it together. Raises BadInput if there is none."""
    if options.weights is None:
        tokenizer = shared_tokenizer(texts, vocab, options.tokenizer_cache, world)
        return tokenizer, token_that_ends(tokenizer, None, "the tokenizer")
    tokenizer = load_tokenizer(options.weights)
    with open_folder(options.weights) as source:
        return tokenizer, token_that_ends(tokenizer, source.config.get("eos_token_id"), str(options.weights))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that lies beside the weights of a decoder: tokenizer.json, else tokenizer.model of sentencepiece.

    Raises BadInput if there is none that can be read, or sentencepiece is needed and not installed.
    """
    whole, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    path = whole if whole.exists() else pieces
    if not path.exists():
        raise BadInput(
            f"{folder}: neither {whole.name} nor {pieces.name}; put the one there that the weights came with"
        )
    try:
        if path == whole:
            return _unbounded(Tokenizer.from_file(str(path)))
        for needed in ("sentencepiece", "google.protobuf"):
            importlib.import_module(needed)
        from transformers import LlamaTokenizerFast

        # By name: what AutoTokenizer picks depends on other files, and may be code of the folder's own.
        tokenizer: Tokenizer = LlamaTokenizerFast.from_pretrained(str(folder), local_files_only=True).backend_tokenizer
    except ImportError:
        raise BadInput(f"{path}: pip install sentencepiece protobuf to read it, or put {whole.name} there") from None
    except Exception as error:  # the Rust side raises plain Exception, transformers anything
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(f"{path}: no tokenizer ({why}); copy it again") from None
    return _unbounded(tokenizer)


def _unbounded(tokenizer: Tokenizer) -> Tokenizer:
    # The file may ask for cutting and padding, as whoever saved it last had it; both are our tasks' own here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_that_ends(tokenizer: Tokenizer, named: object, where: str) -> int:
    """The token behind a whole text: `named`, what config.json has as eos_token_id, else the one of a usual name.

    Raises BadInput, saying `where`, if there is neither.
    """
    first = named[0] if isinstance(named, list) and named else named
    if isinstance(first, int):
        return first
    known = (tokenizer.token_to_id(name) for name in _ENDS)
    end = next((token for token in known if token is not None), None)
    if end is None:
        raise BadInput(
            f"{where}: no token that ends a text: config.json has no eos_token_id, and the tokenizer none of "
            f"{', '.join(_ENDS)}; add eos_token_id to config.json"
        )
    return end


def check_vocabulary(tokens: NDArray[np.int32], options: CausalOptions, vocab: int) -> None:
    """Raise BadInput if there are tokens that the model does not know."""
    largest = int(tokens.max(initial=0))
    if largest >= vocab:
        raise BadInput(
            f"the tokenizer in {options.weights} gives token {largest}, and {options.model} knows {vocab}; "
            "give the --model that these weights are of"
        )
