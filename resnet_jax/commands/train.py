"""resnet-jax train."""

import argparse

from resnet_jax.commands.flags import percent, require, workdir_flag


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declares the flags."""
    help = "a config file, which is run; a workdir's config.json; or an installed config's name"
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=help)
    workdir_flag(parser)
    help = "train a detector in the four steps of Ren et al. 2015, each a run in a folder of the workdir"
    parser.add_argument("--four_steps", action="store_true", help=help)
    parser.add_argument("--print_config", action="store_true", help="print the checked config and stop")
    hosts = parser.add_argument_group(
        "several hosts: the same command on each, where no cluster says which one this is"
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    hosts.add_argument("--process_count", type=int, metavar="N", help="processes of the run")
    hosts.add_argument("--process_index", type=int, metavar="I", help="of this one, from 0")
    help = "how long to wait for the others (%(default)s)"
    hosts.add_argument("--joining_seconds", type=int, default=60, metavar="S", help=help)
    help = "a process is dead after so long without a sign of life (%(default)s)"
    hosts.add_argument("--heartbeat_seconds", type=int, default=30, metavar="S", help=help)
    help = "run as N processes on this machine's CPU, as if each were a host"
    hosts.add_argument("--simulate_hosts", type=int, metavar="N", help=help)
    help = "CPU devices of each simulated host (%(default)s)"
    hosts.add_argument("--devices_per_host", type=int, default=1, metavar="N", help=help)


def run(flags: argparse.Namespace) -> int | None:
    """Calls the package and prints what it gives."""
    from resnet_jax.config_files import load_config, to_json

    require(flags, "config")
    if not flags.print_config:
        require(flags, "workdir")
    config = load_config(flags.config, flags.overrides)
    if flags.print_config:
        print(to_json(config), end="")
        return None
    if flags.simulate_hosts is not None:
        from resnet_jax.hosts.simulate import simulate
        from resnet_jax.training.determinism import check_threads

        check_threads(config.train.determinism, flags.devices_per_host)
        return simulate(flags.simulate_hosts, flags.words, devices_per_host=flags.devices_per_host)
    from resnet_jax.hosts.launch import join

    times = {"joining_seconds": flags.joining_seconds, "heartbeat_seconds": flags.heartbeat_seconds}
    join(flags.coordinator, flags.process_count, flags.process_index, **times)
    import jax

    from resnet_jax.compiled_programs import keep_compiled_programs
    from resnet_jax.training.loop import train_seeds
    from resnet_jax.training.start_times import process_begun

    keep_compiled_programs()
    runs = [(flags.workdir, config)]
    if flags.four_steps:
        from resnet_jax.detection.four_steps import four_steps

        runs = four_steps(config, flags.workdir)
    for workdir, own in runs:
        records = train_seeds(own, workdir, begun=process_begun() if len(runs) == 1 else None)
    if jax.process_index() == 0:
        of_task = {
            "classification": ("error", "error_top1"),
            "detection": ("AP50", "ap_50"),
            "localization": ("localization error", "error_localization"),
        }
        word, name = of_task[config.task]
        found = ", ".join(percent(record["test"][name]) for record in records)
        print(f"test {word} {found} of {records[0]['test']['count']} images; see {flags.workdir}")
    return None
