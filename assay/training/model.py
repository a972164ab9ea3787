"""Models from their shapes: the LLaMA classes of transformers, made without memory and then placed on a device."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from assay.device import Device
from assay.presets import ModelShape

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
INITIALIZER_RANGE = 0.02  # standard deviation of initial matrices, as in the LLaMA and InternLM configurations


def build_model(shape: ModelShape, seq_len: int, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> nn.Module:
    """A causal language model on the meta device: shapes and names, no memory yet.

    seq_len: tokens per sequence; attention: "sdpa" or "eager". InternLM 1 is LLaMA with biases on q, k, v and o
    (modeling_internlm.py of internlm/internlm-7b: `bias=config.bias` on the four projections).
    """
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max(2048, seq_len),
        attention_bias=shape.family == "internlm",
        tie_word_embeddings=shape.tied,
        initializer_range=INITIALIZER_RANGE,
        use_cache=False,
        attn_implementation=attention,
    )
    with torch.device("meta"):
        model: nn.Module = LlamaForCausalLM(config).to(dtype)
    return model


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated layers, in order: what engines shard one by one."""
    return list(model.get_submodule("model.layers").children())


def count_parameters(model: nn.Module) -> int:
    """Elements of all parameters; a matrix shared by two modules counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def materialise(model: nn.Module, device: Device) -> None:
    """Give a meta model (sharded or not) memory on `device`. Parameters hold garbage until they are initialised."""
    tied = model.get_parameter("lm_head.weight") is model.get_parameter("model.embed_tokens.weight")
    model.to_empty(device=device.torch_device)
    if tied:
        # to_empty gives each owner its own memory.
        model.get_submodule("lm_head").register_parameter("weight", model.get_parameter("model.embed_tokens.weight"))
    # Rotary frequencies are buffers computed at construction and kept in no state dict: to_empty leaves garbage in
    # them that nothing would ever overwrite. They stay float32 whatever the model's type.
    decoder = model.get_submodule("model")
    rotary = decoder.get_submodule("rotary_emb")
    decoder.add_module("rotary_emb", type(rotary)(config=model.config).to(device.torch_device))
