"""Options of specs/noise.py."""

from typing import ClassVar

from pydantic import Field

from assay.options.base import ScriptOptions


class NoiseOptions(ScriptOptions):
    """How long one of the ten short cases lasts."""

    synopsis: ClassVar[str] = "A/A noise of this machine: the same short case twice, five times"

    seconds: float = Field(
        0.15, gt=0, le=60, description="seconds that one case is made to last, of which there are ten"
    )

    def check_world(self, world: int) -> None:
        """Raise ValueError for several ranks: they would measure each other."""
        if world != 1:
            raise ValueError(f"the noise of a machine is measured by one rank alone, not by {world}; start one")
