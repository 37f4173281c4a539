"""resnet-jax export."""

import argparse

from resnet_jax.commands.flags import checkpoint, checkpoint_flag, net_flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("output", metavar="OUT", help="NAME.jax_export; NAME.jax_export.json is written beside it")
    net_flags(parser)
    checkpoint_flag(parser)
    help = "fold batch normalization into the convolutions"
    parser.add_argument("--fold_batch_norm", action="store_true", help=help)
    help = "where it can run: cpu, cuda, rocm, tpu (%(default)s)"
    parser.add_argument("--platforms", default="cpu,cuda,tpu", metavar="NAME,...", help=help)
    parser.add_argument("--overwrite", action="store_true", help="replace the two files if they are there")


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    from resnet_jax.evaluation.trained_net import load_net
    from resnet_jax.pretrained.export import export_inference

    file = load_net(workdir=flags.workdir, weights=flags.weights, checkpoint=checkpoint(flags.checkpoint))
    assert file.input is not None
    options = {
        "fold_batch_norm": flags.fold_batch_norm,
        "platforms": flags.platforms.split(","),
        "overwrite": flags.overwrite,
    }
    labels = {key: getattr(file, key) for key in ("name", "metrics", "source", "license")}
    print(export_inference(flags.output, file.model, file.variables, input=file.input, **options, **labels))
