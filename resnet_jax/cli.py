"""The command line: flags in, one call of the package, lines out.

Each sub-command is a function that declares its flags and a function that calls the package. The latter
imports whatever is heavy, so that `resnet-jax --help` and a misspelt flag answer at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

USAGE = "resnet-jax COMMAND [FLAG ...]"
TRACEBACK = "RESNET_JAX_TRACEBACK"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command.

    Args:
      argv: the words after `resnet-jax`; None takes them from the process.

    Returns:
      The exit code: 0, 2 for an error the user can mend (one line on stderr: what was asked for, or a file,
      disk or network), 3 for a loss that is not finite, 130 when interrupted. Any other exception is a fault of
      the program and leaves its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except FloatingPointError as error:
        return _fail(error, 3)
    except BrokenPipeError:
        # The reader, `head` say, has what it wanted; nothing more can be flushed to it at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        print("resnet-jax: interrupted", file=sys.stderr)
        return 130


def _fail(error: Exception, code: int) -> int:
    if os.environ.get(TRACEBACK):
        raise error
    print(f"resnet-jax: error: {error}", file=sys.stderr)
    return code


def _dispatch(words: list[str]) -> int:
    if words and words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words and words[0] == "--version":
        from resnet_jax import __version__

        print(__version__)
        return 0
    if not words or words[0].startswith("-"):
        raise ValueError(f"a command comes first: {', '.join(COMMANDS)}; see resnet-jax --help")
    if words[0] not in COMMANDS:
        from resnet_jax.config_keys import unknown

        raise ValueError(unknown("command", words[0], COMMANDS))
    name, command = words[0], COMMANDS[words[0]]
    parser = _Parser(
        prog=f"resnet-jax {name}",
        description=command.help,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_flags(parser)
    overrides, rest = _split_overrides(words[1:]) if name == "train" else ({}, words[1:])
    try:
        flags, unused = parser.parse_known_args(rest)
    except SystemExit:  # argparse has printed the help that was asked for
        return 0
    if unused:
        raise ValueError(_unused(unused[0], name, parser))
    if name == "train":
        flags.overrides = overrides
    command.run(flags)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(f"{message}; see {self.prog} --help")

    def format_help(self) -> str:
        if self.prog.endswith(" train"):
            from resnet_jax.config_keys import describe_keys

            self.epilog = f"config keys and their defaults (--config.KEY VALUE is the same):\n{describe_keys()}"
        return super().format_help()


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items())
    return (
        f"usage: {USAGE}\n\nResidual and plain nets of He et al. 2015 in JAX\n\ncommands:\n{commands}\n\n"
        f"resnet-jax COMMAND --help lists its flags; resnet-jax --version prints the version.\n"
        f"{TRACEBACK}=1 in the environment shows where an error comes from."
    )


def _split_overrides(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Takes `--config.KEY=VALUE` and `--config.KEY VALUE` out of the words; the last one for a key holds."""
    overrides, rest, position = {}, [], 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--config."):
            rest.append(word)
            continue
        flag, equals, value = word.partition("=")
        if not equals:
            if position == len(words) or words[position].startswith("--"):
                raise ValueError(f"{flag} needs a value: {flag}=VALUE")
            value = words[position]
            position += 1
        overrides[flag.removeprefix("--config.")] = value
    return overrides, rest


def _unused(word: str, command: str, parser: argparse.ArgumentParser) -> str:
    from resnet_jax.config_keys import KEYS, nearest

    if not word.startswith("-"):
        return f"unexpected argument {word!r} of {command}; see {parser.prog} --help"
    flag = word.partition("=")[0]
    known = [text for action in parser._actions for text in action.option_strings if text.startswith("--")]
    overrides = [f"--config.{key}" for key in KEYS] if command == "train" else []
    return (
        f"unknown flag {flag} of {command}; did you mean {nearest(flag, known + overrides)}? "
        f"Flags: {', '.join(known)}" + (", --config.SECTION.KEY" if overrides else "")
    )


# The sub-commands: flags, then the call


def _workdir_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", metavar="DIR", help="folder of the run")


def _checkpoint_flag(parser: argparse.ArgumentParser) -> None:
    help = "latest, best, or a step (%(default)s)"
    parser.add_argument("--checkpoint", default="latest", metavar="WHICH", help=help)


def _json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _require(flags: argparse.Namespace, *names: str) -> None:
    # Not argparse's own required=True, which would hide a misspelt flag behind the one it was meant to be.
    for name in names:
        if getattr(flags, name) is None:
            raise ValueError(f"the flag --{name} is needed")


def _checkpoint(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _train_flags(parser: argparse.ArgumentParser) -> None:
    help = "a config file, which is run; a workdir's config.json; or an installed config's name"
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=help)
    _workdir_flag(parser)
    parser.add_argument("--print_config", action="store_true", help="print the checked config and stop")


def _train(flags: argparse.Namespace) -> None:
    from resnet_jax.config_files import load_config, to_json

    _require(flags, "config")
    if not flags.print_config:
        _require(flags, "workdir")
    config = load_config(flags.config, flags.overrides)
    if flags.print_config:
        print(to_json(config), end="")
        return
    from resnet_jax.training.loop import train

    test = train(config, flags.workdir)["test"]
    print(f"test error {_percent(test['error_top1'])} of {test['count']} images; see {flags.workdir}")


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    help = "the run's folder; repeated, an ensemble"
    parser.add_argument("--workdir", action="append", default=[], metavar="DIR", help=help)
    help = "a weight file, one more net; may be repeated"
    parser.add_argument("--weights", action="append", default=[], metavar="FILE", help=help)
    help = "says on what data to test weight files (the first workdir's)"
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help=help)
    help = "a file of --save_scores, one more of the ensemble; may be repeated"
    parser.add_argument("--scores", action="append", default=[], metavar="FILE", help=help)
    help = "how an image is tested: center, ten_crop, multi_scale (%(default)s)"
    parser.add_argument("--protocol", default="center", metavar="NAME", help=help)
    help = "of ten_crop and multi_scale: probabilities or logits (%(default)s)"
    parser.add_argument("--average", default="probabilities", metavar="WHAT", help=help)
    help = "of multi_scale, shorter sides in pixels (the paper's: 224,256,384,480,640)"
    parser.add_argument("--scales", type=_numbers, metavar="N,N,...", help=help)
    _checkpoint_flag(parser)
    parser.add_argument("--split", help="in TFDS's syntax (the config's test split)")
    parser.add_argument("--data_dir", metavar="DIR", help="folder of TFDS data sets (the config's)")
    help = "keep the scores of every image: NAME.npz, or a folder for several workdirs"
    parser.add_argument("--save_scores", metavar="PATH", help=help)
    parser.add_argument("--batch_size", type=int, metavar="N", help="images of one step (the config's)")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes (the config's)")
    help = "average batch-norm statistics over this many training batches first (%(default)s)"
    parser.add_argument("--recompute_statistics", type=int, default=0, metavar="BATCHES", help=help)
    _json_flag(parser)


def _evaluate(flags: argparse.Namespace) -> None:
    if not flags.workdir and not flags.weights and not flags.scores:
        raise ValueError("the flag --workdir is needed, or --weights or --scores")
    from resnet_jax.config_files import load_config
    from resnet_jax.evaluation.run import evaluate

    other = ("workdir", "checkpoint", "config", "json")
    given = {name: value for name, value in vars(flags).items() if name not in other}
    config = None if flags.config is None else load_config(flags.config)
    result = evaluate(flags.workdir, config=config, checkpoint=_checkpoint(flags.checkpoint), **given)
    members = result["members"]
    if flags.json:
        print(json.dumps(result if "ensemble" in result else members[0]))
    elif "ensemble" in result:
        print(_ensemble_table([*members, result["ensemble"]]))
    else:
        for name, value in members[0].items():
            print(f"{name}: {_percent(value) if name.startswith('error') else value}")


def _ensemble_table(entries: list[dict]) -> str:
    """One line for each member and the ensemble, the last."""
    width = max(len(entry["member"]) for entry in entries)
    lines = [f"{'':{width}}    top-1    top-5   count  protocol"]
    for entry in entries:
        errors = f"{_percent(entry['error_top1']):>8} {_percent(entry['error_top5']):>8}"
        lines.append(f"{entry['member']:{width}} {errors} {entry['count']:>7}  {entry['protocol']}")
    return "\n".join(lines)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, such as 224,256") from None


def _predict_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    _workdir_flag(parser)
    _checkpoint_flag(parser)
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes an image (%(default)s)")
    _json_flag(parser)


def _predict(flags: argparse.Namespace) -> None:
    _require(flags, "workdir")
    from resnet_jax.evaluation.predict import predict_workdir

    predictions = predict_workdir(flags.workdir, flags.images, checkpoint=_checkpoint(flags.checkpoint), top=flags.top)
    if flags.json:
        print(json.dumps(dict(zip(flags.images, predictions, strict=True))))
        return
    for image, classes in zip(flags.images, predictions, strict=True):
        print(image)
        for name, probability in classes:
            print(f"  {_percent(probability):>8}  {name}")


def _summarize_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="such as resnet50 or cifar_plain20")
    parser.add_argument("--image_size", type=int, metavar="PIXELS", help="side of the image (the family's own)")
    parser.add_argument("--num_classes", type=int, metavar="N", help="the family's own")
    parser.add_argument("--shortcut", metavar="OPTION", help="A, B or C (the family's own)")
    parser.add_argument("--stride_in", metavar="CONVOLUTION", help="1x1 or 3x3 (the name's own)")


def _summarize(flags: argparse.Namespace) -> None:
    from resnet_jax.models.summary import summarize

    given = {name: value for name, value in vars(flags).items() if name != "model" and value is not None}
    print(summarize(flags.model, **given))


def _prepare_flags(parser: argparse.ArgumentParser) -> None:
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


def _prepare(flags: argparse.Namespace) -> None:
    from resnet_jax.data.prepare import prepare

    splits = None if flags.splits is None else flags.splits.split(",")
    options = {"splits": splits, "short_side": flags.short_side, "encoding": flags.encoding, "quality": flags.quality}
    given = {name: value for name, value in options.items() if value is not None}
    print(prepare(flags.dataset, data_dir=flags.data_dir, source=flags.source, **given))


def _measure_flags(parser: argparse.ArgumentParser) -> None:
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


def _measure(flags: argparse.Namespace) -> None:
    from resnet_jax.data.statistics import measure

    print(measure(**vars(flags)))


def _report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="folder with records/")
    help = "a finished run to take into the records first; may be repeated"
    parser.add_argument("--add", action="append", default=[], metavar="WORKDIR", help=help)


def _report(flags: argparse.Namespace) -> None:
    from resnet_jax.analysis.report import report

    print(report(flags.experiment, add=flags.add))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


class _Command(NamedTuple):
    help: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


COMMANDS: dict[str, _Command] = {
    "train": _Command("train a net and test it; a stopped run goes on from its workdir", _train_flags, _train),
    "evaluate": _Command("test a trained net on a whole split", _evaluate_flags, _evaluate),
    "predict": _Command("classify image files with a trained net", _predict_flags, _predict),
    "summarize": _Command("print a net's sizes, parameters, multiply-adds", _summarize_flags, _summarize),
    "prepare": _Command("make a data set's folder, without TensorFlow", _prepare_flags, _prepare),
    "measure": _Command("compute a training set's mean image and colour components", _measure_flags, _measure),
    "report": _Command("print an experiment's results, from its records", _report_flags, _report),
}
