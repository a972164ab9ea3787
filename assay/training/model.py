"""Models from their shapes: the classes of transformers, made without memory and then placed on a device."""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from assay.device import Device
from assay.errors import RunFailed
from assay.presets import ModelShape

INITIALIZER_RANGE = 0.02  # standard deviation of initial matrices, as in the configurations of all families here


def build_model(
    shape: ModelShape, seq_len: int, dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> nn.Module:
    """A causal language model on the meta device: shapes and names, no memory yet. It has no dropout.

    seq_len: tokens per sequence, for which there are positions; attention: "sdpa" or "eager". InternLM 1 is LLaMA with
    biases on q, k, v and o (modeling_internlm.py of internlm/internlm-7b: `bias=config.bias` on the four projections).
    """
    make = _gpt if shape.family == "gpt" else _llama
    with torch.device("meta"):
        return make(shape, max(shape.positions, seq_len), attention).to(dtype)


def _llama(shape: ModelShape, positions: int, attention: str) -> nn.Module:
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=positions,
        attention_bias=shape.family == "internlm",
        tie_word_embeddings=shape.tied,
        initializer_range=INITIALIZER_RANGE,
        use_cache=False,
        attn_implementation=attention,
    )
    made: nn.Module = LlamaForCausalLM(config)
    return made


def _gpt(shape: ModelShape, positions: int, attention: str) -> nn.Module:
    config = GPT2Config(
        vocab_size=shape.vocab,
        n_embd=shape.hidden,
        n_inner=shape.intermediate,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_positions=positions,
        tie_word_embeddings=shape.tied,
        initializer_range=INITIALIZER_RANGE,
        activation_function="gelu_pytorch_tanh",  # gelu_new's function in one kernel, which keeps 2 tensors instead of 5
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,  # GPT-2's own lie outside of smaller vocabularies
        eos_token_id=None,
        use_cache=False,
        attn_implementation=attention,
    )
    made: nn.Module = GPT2LMHeadModel(config)
    return made


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers, in order, also of a wrapped model and of an encoder: what engines shard one by one."""
    # Their list is the first and outermost that any of our models has, whatever its name is under wrappers.
    return list(next(part for part in model.modules() if isinstance(part, nn.ModuleList)))


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters; a matrix shared by two modules counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def materialise(model: nn.Module, device: Device) -> None:
    """Give a meta model (sharded, wrapped or not) memory on `device`. Parameters hold garbage until they are initialised.

    Parameters that were one stay one, and buffers that no state dict holds get their values. Raises RunFailed if there
    is such a buffer of unknown value.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    model.to_empty(device=device.torch_device)
    for first, *others in names.values():
        for name in others:
            # to_empty gives each owner its own memory.
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner).register_parameter(last, model.get_parameter(first))
    for path, part in model.named_modules():
        for name in sorted(part._non_persistent_buffers_set):
            value = _buffer_value(part, name, f"{path}.{name}")
            part.register_buffer(name, value.to(device.torch_device), persistent=False)


def _buffer_value(owner: nn.Module, name: str, path: str) -> torch.Tensor:
    """What the constructor had put there: nothing else ever does, so to_empty's garbage would stay."""
    if name in ("inv_freq", "original_inv_freq"):  # made anew, because they are float32 whatever the model's type
        with torch.device("cpu"):
            fresh: torch.Tensor = type(owner)(config=owner.config).get_buffer(name)
        return fresh
    shape = owner.get_buffer(name).shape
    if name == "position_ids":
        return torch.arange(shape[-1]).expand(shape)
    if name == "token_type_ids":
        return torch.zeros(shape, dtype=torch.long)
    raise RunFailed(f"nobody knows the value of the buffer {path}; use the transformers of constraints.txt")
