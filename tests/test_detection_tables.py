"""The commands for the paper's tables of detection are accepted, and go on with nothing that no other has made."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from resnet_jax import cli
from resnet_jax.commands import evaluate
from resnet_jax.config_files import from_json
from resnet_jax.detection.from_config import detector_of
from resnet_jax.detection.run import changed
from resnet_jax.localization.run import FREE as LOCALIZATION_FREE

README = Path(__file__).resolve().parent.parent / "experiments" / "benchmarks" / "detection" / "README.md"


def commands_of(section):
    """The words of each command in the section's blocks, without "resnet-jax"."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line) for line in lines]
    assert words and all(program == "resnet-jax" for program, *_ in words)
    return [rest for _, *rest in words]


SECTIONS = re.findall(r"^### (Table.*?)\n(.*?)(?=^### |\Z)", README.read_text(), re.MULTILINE | re.DOTALL)


def trained(words, capsys):
    """Workdir and config of a command."""
    (workdir,) = (word.removeprefix("--workdir=") for word in words if word.startswith("--workdir="))
    code = cli.main([*words, "--print_config"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return workdir, from_json(out)


def described(words, runs):
    """The config of a test, and of each of its runs."""
    parser = argparse.ArgumentParser()
    evaluate.add_flags(parser)
    flags, rest = parser.parse_known_args(words[1:])
    overrides = [re.fullmatch(r"--config\.([\w.]+)=(.+)", word) for word in rest]
    assert all(overrides), rest
    members = [runs[workdir] for workdir in flags.workdir]
    free = {"free": LOCALIZATION_FREE} if members[0].task == "localization" else {}
    return changed(members[0], dict(found.groups() for found in overrides), **free), members, flags


def test_every_command_is_accepted_and_needs_no_run_but_those_before_it(capsys):
    runs, results = {}, set()
    for words in (words for _, section in SECTIONS for words in commands_of(section)):
        if words[0] == "train":
            workdir, config = trained(words, capsys)
            assert workdir not in runs
            runs[workdir] = config
            if config.task == "localization":
                assert config.localizer.weights is not None
                assert config.localizer.proposals_from in (None, *runs)
                continue
            before = config.detector.start_from
            assert (before is None) != (config.detector.weights is None)
            if before is not None:
                nets = [detector_of(each, num_classes=20) for each in (config, runs[before])]
                assert nets[0] == nets[1]
            continue
        config, members, flags = described(words, runs)
        assert len({each.seed for each in members}) == len(members)
        if config.task == "localization":
            assert len(config.evaluate.short_sides) == 5
            continue
        file = flags.results
        assert config.evaluate.refinement or file is not None
        assert file is None or file not in results
        results.add(file)
        nets = [detector_of(each, num_classes=20) for each in members]
        assert nets == nets[:1] * len(nets)


def test_every_table_has_its_commands():
    numbers = {number for title, _ in SECTIONS for number in re.findall(r"\d+", title.partition(":")[0])}
    assert numbers == {str(number) for number in range(7, 15)}


@pytest.mark.parametrize(
    ("change", "said"),
    [("--config.detector.new_classes=true", "needs detector.start_from"), ("--config.detector.contxt=1", "context")],
)
def test_a_command_that_is_not_accepted_fails(change, said, capsys):
    words = commands_of(SECTIONS[0][1])[0]
    with pytest.raises(AssertionError, match=said):
        trained([*words, change], capsys)
