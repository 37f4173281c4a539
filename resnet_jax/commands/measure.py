"""resnet-jax measure."""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("dataset", metavar="DATASET", help="a prepared data set of large images")
    parser.add_argument("--data_dir", metavar="DIR", help="folder of TFDS data sets (TFDS's own default)")
    parser.add_argument("--split", default="train", help="the training split (%(default)s)")
    parser.add_argument("--image_size", type=int, default=224, metavar="PIXELS", help="side of the crops (%(default)s)")
    help = "shorter side before the crop (%(default)s)"
    parser.add_argument("--short_side", type=int, default=256, metavar="PIXELS", help=help)
    parser.add_argument(
        "--output", metavar="FILE", help="instead of beside the data; for --config.data.statistics=FILE"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes (by cores; 0: threads)")


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    from resnet_jax.data.statistics import measure

    print(measure(**vars(flags)))
