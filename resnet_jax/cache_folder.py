"""Where the library keeps what it can fetch or make again: downloaded weights, compiled programs, images' sizes."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$RESNET_JAX_CACHE, else $XDG_CACHE_HOME/resnet_jax, else ~/.cache/resnet_jax; it need not be there yet."""
    if own := os.environ.get("RESNET_JAX_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnet_jax"
