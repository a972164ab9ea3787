"""DeepSpeed, brought up so that nothing is compiled while ranks run.

DeepSpeed compiles its C++ operations when they are first asked for, into a folder that all ranks share: the first rank
builds, the others wait for its lock file, and for ever if that rank was ended. Two would be asked for here. Neither is
needed: the shared-memory all-reduce serves inference only, and torch has a fused AdamW for the host (docs/engines.md).
"""

import os
import warnings
from typing import Any

import torch.distributed as dist

from assay.device import Device, default_backend
from assay.errors import BadInput, RunFailed
from assay.world import World, first_line

SHARED_MEMORY_OP = "deepspeed_shm_comm"


def open_deepspeed(engine: str, world: World, device: Device) -> Any:
    """The package `deepspeed`, on this device and in the process group of this world; of one rank, one is made.

    Raises BadInput if it is not installed or does not know the device.
    """
    os.environ["DS_ACCELERATOR"] = device.type  # it would take a GPU that it sees, although --device says cpu
    # torchrun sets them, but not every launcher does, and nobody does for a single process.
    ours = {"RANK": world.rank, "LOCAL_RANK": world.local_rank, "WORLD_SIZE": world.size}
    for name, value in ours.items():
        os.environ.setdefault(name, str(value))
    try:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        chosen = get_accelerator().device_name()
    except (ImportError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"--engine {engine}: deepspeed cannot be used on {device.type} ({first_line(str(error))}); "
            "pip install 'assay[deepspeed]', or use --engine fsdp"
        ) from None
    if chosen != device.type:
        raise BadInput(f"--engine {engine}: deepspeed took the device {chosen}, not {device.type}; use --engine fsdp")
    # Else it asks which operations could be compiled, by starting compilers, and compiles this one.
    deepspeed.ops.__compatible_ops__ = {SHARED_MEMORY_OP: False}
    _refuse_to_compile()
    # torch 2.13 renamed what DeepSpeed calls in every step, and says so in every step.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+_tensor` is deprecated")
    if not dist.is_initialized():
        from torch.distributed import HashStore  # type: ignore[attr-defined] # documented, but re-exported implicitly

        # DeepSpeed would open a port for it, and ask an installed MPI who else is there.
        dist.init_process_group(default_backend(device), store=HashStore(), rank=0, world_size=1)
    return deepspeed


def _refuse_to_compile() -> None:
    from deepspeed.ops.op_builder.builder import OpBuilder

    def refuse(self: Any, verbose: bool = True) -> None:
        raise RunFailed(
            f"DeepSpeed wants to compile its operation {self.name} while ranks run, and they could wait for it for ever; "
            f"build it beforehand: {self.BUILD_VAR}=1 pip install --no-build-isolation --force-reinstall deepspeed"
        )

    OpBuilder.jit_load = refuse
