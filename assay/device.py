"""The device behind one small Protocol: the CPU, or whatever `torch.accelerator` offers.

The only file that knows how vendors differ. torch loads vendors' backends itself (entry point `torch.backends`), so
cuda, xpu, npu, mlu, musa, hpu and the rest arrive here under their own names. torch is imported when a device is opened.
"""

import resource
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from assay.errors import BadInput
from assay.machine import cpu_model, memory_left

if TYPE_CHECKING:
    import torch

    from assay.device_events import Timeline


# Accelerators whose ranks cannot talk to each other: `auto` passes them by, so that the whole suite runs on one device.
_WITHOUT_COLLECTIVES = {"mps"}


class Memory(NamedTuple):
    """Bytes of a device's memory; None where the driver does not tell."""

    free: int | None
    total: int | None


class Device(Protocol):
    """What a measurement needs of a device."""

    @property
    def type(self) -> str:
        """torch's device type: cpu, cuda, xpu, npu, …"""

    @property
    def torch_device(self) -> "torch.device":
        """Where tensors are made."""

    @property
    def name(self) -> str:
        """The product's name."""

    @property
    def memory_method(self) -> str:
        """What `peak_memory` counts."""

    def synchronize(self) -> None:
        """Return when all work that was enqueued on the device is done."""

    def memory(self) -> Memory:
        """What is free now and what there is."""

    def peak_memory(self) -> int | None:
        """Most bytes in use since the start or the last reset; None if the device cannot tell."""

    def reset_peak_memory(self) -> None:
        """Start counting the peak anew, where the device can."""

    def timeline(self) -> "Timeline | None":
        """Events of the device on the host's clock; None where the device has none with a time."""


class HostDevice:
    """The CPU: work is done when a call returns."""

    type = "cpu"
    memory_method = "peak resident set of the process"

    @property
    def torch_device(self) -> "torch.device":
        """torch's cpu device."""
        import torch

        return torch.device("cpu")

    @property
    def name(self) -> str:
        """The processor's name."""
        return cpu_model()

    def synchronize(self) -> None:
        """Nothing is outstanding."""

    def memory(self) -> Memory:
        """The host's memory, as far as this process's control groups allow."""
        return Memory(*memory_left())

    def peak_memory(self) -> int | None:
        """Peak resident set in bytes (the kernel counts KiB, macOS bytes)."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def reset_peak_memory(self) -> None:
        """The kernel's peak cannot be reset."""

    def timeline(self) -> "Timeline | None":
        """The host's own clock is all there is."""
        return None


class Accelerator:
    """Any accelerator of torch: its module (`torch.cuda`, `torch.npu`, …) has the same functions everywhere."""

    memory_method = "peak of torch's allocator"

    def __init__(self, type_: str, index: int) -> None:
        import torch

        self.type = type_
        self.index = index
        self.torch_device = torch.device(type_, index)
        self._module: Any = torch.get_device_module(type_)
        torch.accelerator.set_device_index(index)

    @property
    def name(self) -> str:
        """The product's name as its driver gives it, else the type."""
        ask = getattr(self._module, "get_device_name", None)
        return str(ask(self.index)) if ask else self.type

    def synchronize(self) -> None:
        """Wait for every stream of the device."""
        import torch

        torch.accelerator.synchronize(self.index)

    def memory(self) -> Memory:
        """What the driver tells, through torch's module of the device."""
        ask = getattr(self._module, "mem_get_info", None)
        try:
            return Memory(*map(int, ask(self.index))) if ask else Memory(None, None)
        except RuntimeError:  # torch.xpu has the function on every GPU, but its driver answers on some only
            return Memory(None, None)

    def peak_memory(self) -> int | None:
        """Peak of the caching allocator in bytes, None where the backend has no such count."""
        ask = getattr(self._module, "max_memory_allocated", None)
        return int(ask(self.index)) if ask else None

    def reset_peak_memory(self) -> None:
        """Reset the allocator's peak where the backend can."""
        reset = getattr(self._module, "reset_peak_memory_stats", None)
        if reset:
            reset(self.index)

    def timeline(self) -> "Timeline | None":
        """By the events of torch's module of the device, where they can be timed."""
        from assay.device_events import Timeline

        try:
            return Timeline(lambda: self._module.Event(enable_timing=True), self.synchronize)
        except (AttributeError, TypeError, RuntimeError):  # some vendors have no events, or events without times
            return None


def open_device(name: str, local_rank: int) -> Device:
    """The device of this rank: `auto` takes the accelerator if there is one, else the CPU.

    Raises BadInput if the named device is not there or has fewer devices than local ranks need.
    """
    import torch

    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    found = present.type if present and present.type not in _WITHOUT_COLLECTIVES else "cpu"
    wanted = found if name == "auto" else name
    if wanted == "cpu":
        return HostDevice()
    if present is None or present.type != wanted:
        offered = f"cpu and {present.type}" if present else "cpu only"
        raise BadInput(
            f"--device {wanted} is not there: torch {torch.__version__} offers {offered}; "
            "install the vendor's torch backend, or use --device auto"
        )
    count = torch.accelerator.device_count()
    if local_rank >= count:
        raise BadInput(
            f"local rank {local_rank} has no {wanted} device: this host has {count}; start at most {count} ranks a host"
        )
    return Accelerator(wanted, local_rank)


def default_backend(device: Device) -> str:
    """torch.distributed's default backend for the device. Raises BadInput where torch knows none."""
    import torch.distributed as dist

    try:
        return str(dist.get_default_backend_for_device(device.torch_device))
    except (RuntimeError, ValueError):
        raise BadInput(f"torch knows no default backend for {device.type}; name it with --backend") from None


def built_in_backends() -> list[str]:
    """The torch.distributed backends that this torch can use, those of vendors' plug-ins included."""
    import torch.distributed as dist

    known = dict.fromkeys(("gloo", "nccl", "mpi", "ucc", "xccl", *dist.Backend.backend_list))
    return [name for name in known if name != "undefined" and dist.is_backend_available(name)]


def describe_build() -> dict[str, object]:
    """torch's version, the toolkits it was built against (cuda, hip, xpu …) and the vendors' plug-ins with versions."""
    import torch

    toolkits = {name: getattr(torch.version, name, None) for name in ("cuda", "hip", "xpu", "rocm")}
    plugins = {entry.name: entry.dist.version if entry.dist else None for entry in entry_points(group="torch.backends")}
    built = {name: str(version) for name, version in toolkits.items() if version}
    return {"torch": torch.__version__, **built, **({"torch_plugins": plugins} if plugins else {})}


def describe_devices() -> dict[str, object]:
    """What torch offers here: its build, the accelerator's type and every device's name, and the backends built in."""
    import torch

    present = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    names = [Accelerator(present.type, i).name for i in range(torch.accelerator.device_count())] if present else []
    return {
        **describe_build(),
        "accelerator": present.type if present else None,
        "devices": names or [HostDevice().name],
        "backends": built_in_backends(),
    }
