"""resnet-jax report."""

import argparse


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    parser.add_argument("experiment", metavar="EXPERIMENT", help="folder with records/")
    help = "a finished run to take into the records first; may be repeated"
    parser.add_argument("--add", action="append", default=[], metavar="WORKDIR", help=help)


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    from resnet_jax.analysis.report import report

    print(report(flags.experiment, add=flags.add))
