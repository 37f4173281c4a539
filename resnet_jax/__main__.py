"""`python -m resnet_jax`: the same as the command `resnet-jax`."""

import sys

from resnet_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
