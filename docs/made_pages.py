"""The Sphinx extension of this site: pages made of the repository's other files, and lines replaced by made text.

A page's line `{{ NAME }}` or `{{ NAME: ARGUMENT }}` stands for what the function of that name in `MAKERS` makes. So
each text, table and list has one home: a README, a docstring, a table of the package, a record.
"""

import os
import re
from pathlib import Path

import package_text
import repository_text
from repository_text import CHECKOUT, MADE, SITE
from sphinx.application import Sphinx

_LINE = re.compile(r"^\{\{ ([a-z_]+)(?:: (.+?))? \}\}$", re.MULTILINE)
# Code and emphasis in a docstring.
_MARKED = re.compile(r"(`[^`]*`|\*\w[\w -]*\*)")


def _section(argument: str, page: Path) -> str:
    name, _, heading = argument.partition(" # ")
    return repository_text.section(CHECKOUT / name, heading, page)


def _opening(argument: str, page: Path) -> str:
    name, _, heading = argument.partition(" # ")
    return repository_text.opening(CHECKOUT / name, heading, page)


def _experiments(argument: str, page: Path) -> str:
    """A list of all experiments by their questions."""
    lines = []
    for readme in repository_text.experiment_readmes():
        folder = readme.parent.relative_to(CHECKOUT).as_posix()
        link = os.path.relpath(repository_text.made_page(readme), page.parent)
        lines.append(f"- [{repository_text.title(readme)}]({link}) `{folder}`")
    return "\n".join(lines) + "\n"


MAKERS = {
    "command_line": lambda argument, page: package_text.command_line(),
    "config_keys": lambda argument, page: package_text.config_keys(),
    "configs": lambda argument, page: package_text.configs(),
    "experiments": _experiments,
    "import_order": lambda argument, page: package_text.import_order(),
    "module_map": lambda argument, page: package_text.module_map(),
    "opening": _opening,
    "public_names": lambda argument, page: package_text.public_names(),
    "section": _section,
}


def fill(text: str, page: Path) -> str:
    """A page's text with its lines of the form `{{ NAME: ARGUMENT }}` replaced.

    Raises:
      ValueError: no maker has the name.
    """

    def made(match: re.Match) -> str:
        if match[1] not in MAKERS:
            raise ValueError(f"{page}: {match[0]}: no such maker; there are {', '.join(MAKERS)}")
        return MAKERS[match[1]](match[2] or "", page)

    return _LINE.sub(made, text)


def experiment_page(readme: Path) -> str:
    """An experiment's README as a page, and below it what its folder holds: records and programs."""
    page = repository_text.made_page(readme)
    folders = sorted({path.parent for path in readme.parent.rglob("*") if _belongs(path, readme.parent)})
    lists = []
    for folder in folders:
        files = sorted(path for path in folder.iterdir() if _belongs(path, readme.parent))
        links = (f"[{path.name}]({os.path.relpath(path, page.parent)})" for path in files)
        lists.append(f"`{folder.relative_to(CHECKOUT).as_posix()}`: {', '.join(links)}\n")
    files = ["## Records and programs\n", *lists] if lists else []
    return "\n".join([repository_text.opening(readme, "", page), *files])


def _belongs(path: Path, folder: Path) -> bool:
    """Whether a file is the experiment's own: a record or a program, and of no other experiment within its folder."""
    nearest = next(parent for parent in path.parents if (parent / "README.md").is_file() or parent == folder)
    return path.suffix in (".json", ".py", ".ipynb") and path.is_file() and nearest == folder


def write_pages(app: Sphinx) -> None:
    """Writes the pages that are made whole, and removes those whose source is gone."""
    pages = {
        repository_text.made_page(readme): experiment_page(readme) for readme in repository_text.experiment_readmes()
    }
    pages |= {MADE / "reference" / f"{name}.md": text for name, text in package_text.reference_pages()}
    for stale in set(MADE.rglob("*.md")) - set(pages):
        stale.unlink()
    for page, text in pages.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        # A page that has not changed keeps its time, so that Sphinx does not build it again.
        if not page.is_file() or page.read_text() != text:
            page.write_text(text)


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replaces a page's lines before Sphinx reads it."""
    source[0] = fill(source[0], SITE / f"{docname}.md")


def as_written(app: Sphinx, what: str, name: str, obj, options, lines: list[str]) -> None:
    """Keeps a docstring's stars, underscores and colons from being taken for markup, before Napoleon reads it."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = _MARKED.split(line)
            parts[::2] = [re.sub(r"\*|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
            lines[number] = "".join(parts)
    if what in ("attribute", "data", "property"):
        # Napoleon takes what stands before a colon in the first line for a type: this one is an escaped end of line.
        lines.insert(0, "\\")


def leave_out(app: Sphinx, what: str, name: str, obj, skip: bool, options) -> bool | None:
    """Leaves out fields of named tuples, whose docstrings Python has made: the class's own says what they are."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def always_read(app: Sphinx, env, added: set, changed: set, removed: set) -> list[str]:
    """Pages with such lines are read in every build: what they stand for may have changed."""
    return [name for name in env.found_docs if _LINE.search((SITE / f"{name}.md").read_text())]


def setup(app: Sphinx) -> dict:
    """Sphinx calls it."""
    # Before Sphinx looks for pages.
    app.connect("config-inited", lambda app, config: write_pages(app))
    app.connect("source-read", fill_page)
    app.connect("env-get-outdated", always_read)
    app.connect("autodoc-skip-member", leave_out)
    # Before Napoleon, whose priority is the usual 500.
    app.connect("autodoc-process-docstring", as_written, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
