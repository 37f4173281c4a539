"""The command line: it finds the command, reads its flags, and turns errors into a line and an exit code."""

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from resnet_jax import exit_codes
from resnet_jax.commands import (
    benchmark,
    convert,
    detect,
    evaluate,
    export,
    measure,
    predict,
    prepare,
    report,
    summarize,
    train,
)

USAGE = "resnet-jax COMMAND [FLAG ...]"
TRACEBACK = "RESNET_JAX_TRACEBACK"
# Commands that take --config.SECTION.KEY.
_WITH_CONFIG = ("train", "benchmark", "evaluate", "detect")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command.

    Args:
      argv: the words after `resnet-jax`; None takes them from the process.

    Returns:
      The exit code, see `exit_codes`; for those that are not 0 a line on stderr says why. Any exception but those that
      have a code is a fault of the program and leaves its traceback.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _warnings_shown():
            _refuse_what_is_no_text(words)
            code = _dispatch(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("resnet-jax: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            # Nothing more can be flushed at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            # The reader, `head` say, has what it wanted; but a run is not over because nobody watches it any more.
            if words[0] != "train":
                return exit_codes.DONE
        if (of_error := _code_of(error)) is None:
            raise
        return _fail(error, of_error)


def _refuse_what_is_no_text(words: Sequence[str]) -> None:
    """Python has a stand-in for bytes that its encoding does not know, which libraries that store paths cannot take."""
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                f"{ascii(word)}: these bytes are no text in this process's encoding, {sys.getfilesystemencoding()}; "
                "set PYTHONUTF8=1, or LC_ALL to a locale with UTF-8, or choose another name"
            ) from None


def program() -> None:
    """The process: runs `main` and ends with its code, though other processes of the run may wait for this one."""
    try:
        code = main()
    except BaseException:
        traceback.print_exc()
        code = 1
    from resnet_jax.hosts.launch import leave

    sys.exit(leave(code))


def _code_of(error: Exception) -> int | None:
    """The exit code of an exception; None if it is a fault of the program."""
    if type(error) is ValueError or isinstance(error, OSError) and not isinstance(error, ConnectionError):
        return exit_codes.BAD_INPUT
    from resnet_jax.checkpoints import CheckpointError
    from resnet_jax.data.stream import WorkerLost
    from resnet_jax.hosts.peers import PeerLost
    from resnet_jax.training.preemption import Preempted
    from resnet_jax.training.saving import ReplicasDiffer

    codes = {
        Preempted: exit_codes.PREEMPTED,
        PeerLost: exit_codes.PEER_LOST,
        ReplicasDiffer: exit_codes.ASTRAY,
        WorkerLost: exit_codes.WORKER_LOST,
        CheckpointError: exit_codes.UNSAVED,
        FloatingPointError: exit_codes.DIVERGED,
        ValueError: exit_codes.BAD_INPUT,
        OSError: exit_codes.BAD_INPUT,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), None)


@contextlib.contextmanager
def _warnings_shown() -> Iterator[None]:
    """The package's own warnings on stderr, one line each, whatever other libraries do with theirs."""
    logger, handler = logging.getLogger("resnet_jax"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("resnet-jax: warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


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
        from resnet_jax.config_rules import unknown

        raise ValueError(unknown("command", words[0], COMMANDS))
    name, command = words[0], COMMANDS[words[0]]
    parser = _Parser(
        prog=f"resnet-jax {name}",
        description=command.help,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_flags(parser)
    overrides, rest = _split_overrides(words[1:]) if name in _WITH_CONFIG else ({}, words[1:])
    try:
        flags, unused = parser.parse_known_intermixed_args(rest)
    except SystemExit:  # argparse has printed the help that was asked for
        return 0
    if unused:
        raise ValueError(_unused(unused[0], name, parser))
    if name in _WITH_CONFIG:
        flags.overrides, flags.words = overrides, words
    return command.run(flags) or 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(f"{message}; see {self.prog} --help")

    def format_help(self) -> str:
        if self.prog.rpartition(" ")[2] in _WITH_CONFIG:
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
    from resnet_jax.config_keys import KEYS
    from resnet_jax.config_rules import nearest

    if not word.startswith("-"):
        return f"unexpected argument {word!r} of {command}; see {parser.prog} --help"
    flag = word.partition("=")[0]
    known = [text for action in parser._actions for text in action.option_strings if text.startswith("--")]
    overrides = [f"--config.{key}" for key in KEYS] if command in _WITH_CONFIG else []
    return (
        f"unknown flag {flag} of {command}; did you mean {nearest(flag, known + overrides)}? "
        f"Flags: {', '.join(known)}" + (", --config.SECTION.KEY" if overrides else "")
    )


class _Command(NamedTuple):
    help: str
    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int | None]


COMMANDS: dict[str, _Command] = {
    "train": _Command("train a net and test it; a stopped run goes on from its workdir", train.add_flags, train.run),
    "evaluate": _Command("test a trained net on a whole split", evaluate.add_flags, evaluate.run),
    "predict": _Command("classify images with a trained net", predict.add_flags, predict.run),
    "detect": _Command("draw what a trained detector finds in images", detect.add_flags, detect.run),
    "summarize": _Command("print a net's sizes, parameters, multiply-adds", summarize.add_flags, summarize.run),
    "prepare": _Command("make a data set's folder, without TensorFlow", prepare.add_flags, prepare.run),
    "measure": _Command("compute a training set's mean image and colour components", measure.add_flags, measure.run),
    "convert": _Command("turn weights from elsewhere into a weight file, or back", convert.add_flags, convert.run),
    "export": _Command("write a trained net as one function for programs with jax alone", export.add_flags, export.run),
    "benchmark": _Command("plan a run on many devices, from its compiled step", benchmark.add_flags, benchmark.run),
    "report": _Command("print an experiment's results, from its records", report.add_flags, report.run),
}
