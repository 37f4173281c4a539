"""Text made of the package for the site: the command line's help, config keys, configs, the map, the reference."""

import ast
import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from repository_text import CHECKOUT

import resnet_jax
from resnet_jax import cli
from resnet_jax.config_keys import KEYS, TASKS, describe_keys

PACKAGE = CHECKOUT / "resnet_jax"
# Each of their modules is a command, which is documented by its help.
_COMMANDS = "resnet_jax.commands"


def public_names() -> str:
    """Every name of `resnet_jax`, with its docstring."""
    parts = []
    for name in resnet_jax.__all__:
        if not name.startswith("__"):
            kind = "class" if isinstance(getattr(resnet_jax, name), type) else "function"
            parts.append(f"## {name}\n\n{_directive(f'auto{kind}:: resnet_jax.{name}', members=kind == 'class')}")
    return "\n".join(parts)


def command_line() -> str:
    """What `resnet-jax --help` and that of each command print."""
    parts = [f"```text\n{_help_of([])}```\n"]
    for name in cli.COMMANDS:
        text = _help_of([name]).replace(describe_keys(), "  see the table of config keys")
        parts.append(f"## {name}\n\n```text\n{text}```\n")
    return "\n".join(parts)


def config_keys() -> str:
    """Tables of all config keys, a section each."""
    parts = []
    for name, keys in groupby(KEYS, lambda key: key.rpartition(".")[0]):
        parts.append(f"## {name or 'The run'}\n")
        parts.append("| key | default | it may hold | meaning |\n| --- | --- | --- | --- |")
        for key in keys:
            rule = KEYS[key]
            tasks = [] if rule.tasks in ((), TASKS) else [f"({' and '.join(rule.tasks)})"]
            cells = (f"`{key}`", f"`{rule.default}`", rule.allowed, " ".join([rule.doc, *tasks]))
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("")
    return "\n".join(parts)


def configs() -> str:
    """What each file of configs/ says of itself, and its variants."""
    parts = []
    for path in sorted((CHECKOUT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        first, _, rest = module.__doc__.partition("\n\n")
        variants = ", ".join(f"`{path.stem}:{variant}`" for variant in module.VARIANTS)
        parts.append(f"## {path.stem}\n\n{first}\n\n```text\n{rest.strip()}\n```\n\n**Variants:** {variants}.\n")
    return "\n".join(parts)


def module_map() -> str:
    """Every module with the first sentence of its docstring, by folder."""
    parts = []
    for folder, modules in groupby(sorted(PACKAGE.rglob("*.py"), key=_place), lambda path: path.parent):
        modules = list(modules)
        inside = folder.relative_to(CHECKOUT).as_posix()
        said = [f"{_first_line(folder / '__init__.py')}\n"] if folder != PACKAGE else []
        rows = [f"| `{path.name}` | {_first_line(path)} |" for path in modules if path.name != "__init__.py"]
        parts += [f"### {inside}/\n", *said, "| file | what it is |\n| --- | --- |", *rows, ""]
    return "\n".join(parts)


def import_order() -> str:
    """The layers of modules from the ground up, from the table that the test of imports goes by."""
    tree = ast.parse((CHECKOUT / "tests" / "test_layers.py").read_text())
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "LAYERS"
        and isinstance(node.value, ast.Dict)
    )
    lines = []
    for layer, modules in zip(table.keys, table.values, strict=True):
        names = sorted(node.value for node in ast.walk(modules) if isinstance(node, ast.Constant))
        lines.append(f"1. **{ast.literal_eval(layer)}**: {', '.join(f'`{name}`' for name in names)}")
    return "\n".join(lines) + "\n"


def reference_pages() -> Iterator[tuple[str, str]]:
    """Name and text of a page for each folder of the package, with all of its modules' documentation."""
    for folder, modules in groupby(sorted(PACKAGE.rglob("*.py"), key=_place), lambda path: path.parent):
        name = ".".join(folder.relative_to(CHECKOUT).parts)
        if name == _COMMANDS:
            continue
        parts = [f"# {name}\n"]
        if folder != PACKAGE:
            parts.append(_directive(f"automodule:: {name}", members=False))
        for path in modules:
            if not path.name.startswith("__"):
                module = f"{name}.{path.stem}"
                parts.append(f"## {module}\n\n{_directive(f'automodule:: {module}', members=True)}")
        yield name, "\n".join(parts)


def _help_of(words: list[str]) -> str:
    printed = io.StringIO()
    # argparse breaks lines by the terminal's width, and may colour them.
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    with contextlib.redirect_stdout(printed):
        code = cli.main([*words, "--help"])
    if code != 0:
        raise ValueError(f"resnet-jax {' '.join(words)} --help ended with {code}")
    return printed.getvalue()


def _directive(line: str, *, members: bool) -> str:
    options = "   :members:\n" if members else ""
    return f"```{{eval-rst}}\n.. {line}\n{options}```\n"


def _place(path: Path) -> tuple[Path, str]:
    return path.parent, path.name


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0].replace("|", "\\|")
