"""What a process notices when another one of its run is gone, in words."""

import contextlib
import re
from collections.abc import Iterator

# Of gloo (CPU), NCCL (GPU) and jax's coordination service.
_SIGNS = re.compile(r"gloo|nccl|connection (closed|reset) by peer|coordination service", re.IGNORECASE)


class PeerLost(ConnectionError):
    """Another process of the run did not come, has ended, or cannot be reached."""


@contextlib.contextmanager
def lost_peers_named() -> Iterator[None]:
    """Within the block, what a collective operation says of a lost process is raised as PeerLost.

    It is the word of the library that carries the collectives, whose exceptions have no class of their own.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        import jax

        if jax.process_count() == 1 or not _SIGNS.search(str(error)):
            raise
        raise PeerLost(
            "another process of the run is gone, and what it ended with is in its own output; start the same command "
            f"again on all hosts, and the run goes on from its last checkpoint ({str(error).splitlines()[0][:300]})"
        ) from error
