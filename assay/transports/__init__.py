"""What moves bytes between ranks: torch.distributed's backends and MPI itself, behind one Protocol."""

from collections.abc import Sequence

from assay.device import Device, built_in_backends
from assay.errors import BadInput
from assay.transports.protocol import Bound, Transport
from assay.world import MPI_BACKEND, World

__all__ = ["Bound", "Transport", "open_transport"]


def open_transport(name: str, world: World, device: Device, groups: Sequence[Sequence[int]]) -> Transport:
    """The transport `name` (mpi4py, or a backend of torch.distributed) for this rank's group. A call of all ranks.

    groups: every group's ranks; each rank is in one. Raises BadInput for a backend that is not there, or buffers that it
    cannot reach.
    """
    if name == MPI_BACKEND:
        from mpi4py import MPI

        from assay.transports.mpi import MpiTransport, is_device_aware

        if device.type != "cpu" and not is_device_aware():
            raise BadInput(
                f"--transport mpi: this MPI does not say that it takes {device.type} memory; build one that does, "
                "set ASSAY_MPI_DEVICE_AWARE=1 if it does, or use --device cpu"
            )
        colour = next(number for number, members in enumerate(groups) if world.rank in members)
        return MpiTransport(MPI.COMM_WORLD.Split(colour, world.rank))

    import torch.distributed as dist

    from assay.transports.torch_distributed import TorchTransport

    if not dist.is_backend_available(name):
        raise BadInput(f"backend {name} is not built into this torch; it has {', '.join(built_in_backends())}")
    if len(groups) == 1 and dist.get_backend() == name:
        return TorchTransport(name)
    # Every rank makes every group, in one order, as torch wants it.
    made = [dist.new_group(list(members), backend=name) for members in groups]
    return TorchTransport(
        name, next(group for group, members in zip(made, groups, strict=True) if world.rank in members)
    )
