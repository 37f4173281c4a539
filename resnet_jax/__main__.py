"""`python -m resnet_jax`: the same as the command `resnet-jax`."""

from resnet_jax.cli import program

if __name__ == "__main__":
    program()
