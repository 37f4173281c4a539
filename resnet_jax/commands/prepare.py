"""resnet-jax prepare."""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    help = "cifar10, cifar100, digits, image_folder, imagenet2012 or tfds_folder"
    parser.add_argument("dataset", metavar="DATASET", help=help)
    parser.add_argument("--data_dir", metavar="DIR", help="folder of TFDS data sets (TFDS's own default)")
    parser.add_argument("--source", metavar="PATH", help="archive or folder on disk, instead of a download")
    help = "imagenet2012, tfds_folder: those to make, such as train,validation (all)"
    parser.add_argument("--splits", metavar="SPLIT,...", help=help)
    help = "tfds_folder: make images smaller whose shorter side is longer"
    parser.add_argument("--short_side", type=int, metavar="PIXELS", help=help)
    parser.add_argument("--encoding", metavar="FORM", help="of smaller images: jpeg or bmp (jpeg)")
    parser.add_argument("--quality", type=int, metavar="PERCENT", help="of smaller images as JPEG (95)")


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    from resnet_jax.data.prepare import prepare

    splits = None if flags.splits is None else flags.splits.split(",")
    options = {"splits": splits, "short_side": flags.short_side, "encoding": flags.encoding, "quality": flags.quality}
    given = {name: value for name, value in options.items() if value is not None}
    print(prepare(flags.dataset, data_dir=flags.data_dir, source=flags.source, **given))
