"""Engines: how a model is spread over the ranks. Each proves that it really is, because wrapping can fail silently."""

from assay.training.engines.native import DataParallel, FullyShardedParallel, Plain
from assay.training.engines.protocol import Engine, MakeEngine, Setting


def _zero(setting: Setting) -> Engine:
    from assay.training.engines.zero import make_zero  # deepspeed takes seconds to import

    return make_zero(setting)


def _accelerate(setting: Setting) -> Engine:
    from assay.training.engines.accelerated import make_accelerate

    return make_accelerate(setting)


ENGINES: dict[str, MakeEngine] = {
    "none": Plain,
    "ddp": DataParallel,
    "fsdp": FullyShardedParallel,
    "zero1": _zero,
    "zero2": _zero,
    "zero3": _zero,
    "accelerate": _accelerate,
}

__all__ = ["ENGINES", "Engine", "MakeEngine", "Setting"]
