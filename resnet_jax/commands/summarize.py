"""resnet-jax summarize."""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("model", metavar="MODEL", help="such as resnet50 or cifar_plain20")
    parser.add_argument("--image_size", type=int, metavar="PIXELS", help="side of the image (the family's own)")
    parser.add_argument("--num_classes", type=int, metavar="N", help="the family's own")
    parser.add_argument("--block", metavar="KIND", help="basic or bottleneck (the name's own)")
    parser.add_argument("--shortcut", metavar="OPTION", help="A, B or C (the family's own)")
    parser.add_argument("--stride_in", metavar="CONVOLUTION", help="1x1 or 3x3 (the name's own)")


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    from resnet_jax.models.summary import summarize

    given = {name: value for name, value in vars(flags).items() if name != "model" and value is not None}
    print(summarize(flags.model, **given))
