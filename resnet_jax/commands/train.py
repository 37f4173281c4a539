"""resnet-jax train."""

import argparse

from resnet_jax.commands.flags import percent, require, workdir_flag


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    help = "a config file, which is run; a workdir's config.json; or an installed config's name"
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=help)
    workdir_flag(parser)
    parser.add_argument("--print_config", action="store_true", help="print the checked config and stop")


def run(flags: argparse.Namespace) -> None:
    """Calls the package and prints what it gives."""
    from resnet_jax.config_files import load_config, to_json

    require(flags, "config")
    if not flags.print_config:
        require(flags, "workdir")
    config = load_config(flags.config, flags.overrides)
    if flags.print_config:
        print(to_json(config), end="")
        return
    from resnet_jax.training.loop import train

    test = train(config, flags.workdir)["test"]
    print(f"test error {percent(test['error_top1'])} of {test['count']} images; see {flags.workdir}")
