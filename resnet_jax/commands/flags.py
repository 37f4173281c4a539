"""Flags that several commands have, and how their values are read and printed."""

import argparse


def workdir_flag(parser: argparse.ArgumentParser) -> None:
    """The run's folder."""
    parser.add_argument("--workdir", metavar="DIR", help="folder of the run")


def net_flags(parser: argparse.ArgumentParser) -> None:
    """A net from a run or from a file."""
    workdir_flag(parser)
    help = "instead of a run: a weight file or folder, or a name of the catalogue"
    parser.add_argument("--weights", metavar="FILE", help=help)


def checkpoint_flag(parser: argparse.ArgumentParser) -> None:
    """Which of the run's checkpoints."""
    help = "latest, best, or a step (%(default)s)"
    parser.add_argument("--checkpoint", default="latest", metavar="WHICH", help=help)


def json_flag(parser: argparse.ArgumentParser) -> None:
    """JSON instead of text."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def require(flags: argparse.Namespace, *names: str) -> None:
    """Raises a ValueError for the first flag that was not given."""
    # Not argparse's own required=True, which would hide a misspelt flag behind the one it was meant to be.
    for name in names:
        if getattr(flags, name) is None:
            raise ValueError(f"the flag --{name} is needed")


def checkpoint(text: str) -> str | int:
    """A step as a number, anything else as it is."""
    return int(text) if text.isdecimal() else text


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, such as 224,256") from None


def percent(fraction: float) -> str:
    """A fraction in percent, to be read."""
    return f"{100 * fraction:.2f} %"
