"""resnet-jax predict."""

import argparse

from resnet_jax.commands.flags import checkpoint, checkpoint_flag, net_flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    net_flags(parser)
    checkpoint_flag(parser)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes an image (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="images at once (%(default)s)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="print a line of JSON an image")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="print CSV, a row a class")


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    from resnet_jax.compiled_programs import keep_compiled_programs
    from resnet_jax.evaluation.predict import predict
    from resnet_jax.evaluation.prediction import FORMATS

    keep_compiled_programs()
    options = {name: getattr(flags, name) for name in ("workdir", "weights", "top", "batch_size")}
    predictions = predict(flags.images, checkpoint=checkpoint(flags.checkpoint), **options)
    form, count, unread = FORMATS[flags.form or "text"], 0, 0
    if form.header is not None:
        print(form.header)
    for prediction in predictions:
        # A file's name need not be text.
        print(form.text(prediction).encode(errors="backslashreplace").decode(), flush=True)
        count, unread = count + 1, unread + (prediction.error is not None)
    if unread:
        raise ValueError(f"{unread} of {count} images could not be read")
