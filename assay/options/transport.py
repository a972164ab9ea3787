"""Options that every benchmark of communication has: what moves the bytes, and when a call counts as hanging."""

from typing import Literal

from pydantic import Field

from assay.options.base import ScriptOptions

MPI = "mpi"


class TransportOptions(ScriptOptions):
    """Which transport is measured."""

    transport: Literal["torch", "mpi"] = Field(
        "torch", description="torch: torch.distributed over --backend; mpi: MPI itself (mpi4py), started with mpirun"
    )
    hang_limit: float = Field(
        300.0, gt=0, description="seconds without progress after which a hang is diagnosed and the run ended"
    )

    @property
    def needs_mpi(self) -> bool:
        """Whether ranks find each other through MPI."""
        return self.transport == MPI

    @property
    def needs_torch(self) -> bool:
        """Whether torch.distributed is wanted."""
        return self.transport != MPI

    @property
    def backend_is_torch(self) -> bool:
        """Whether what is measured goes over torch.distributed."""
        return self.transport != MPI
