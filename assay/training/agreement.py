"""What all ranks must have alike, though each reads it for itself."""

from assay.errors import BadInput
from assay.world import World


def same_everywhere(what: str, digest: str, world: World) -> None:
    """Raise BadInput, on every rank, unless all have the same `digest` of `what`. All ranks call it together.

    Ranks that train on other data count other losses, may take another number of steps, and then wait for each other.
    """
    first = world.broadcast(digest)
    own = f"{what}: rank {world.rank} on {world.hosts[world.rank]} reads other content than rank 0 on {world.hosts[0]}"
    told = world.first_said(own if digest != first else "")
    if told:
        raise BadInput(f"{told}; give every host the same copy")
