"""Text of the repository's own Markdown files for the site: whole or one section, its links led to the site's pages."""

import os
import re
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
SITE = CHECKOUT / "docs"
MADE = SITE / "made"

# Files that are pages, or whose sections are; an experiment's README is a page of its own.
_PAGES = {
    "README.md": SITE / "index.md",
    "CONTRIBUTING.md": SITE / "contributing.md",
    "CHANGELOG.md": SITE / "changelog.md",
    "SECURITY.md": SITE / "security.md",
    "docs": SITE / "index.md",
}

_HEADING = re.compile(r"^(#+) +(.*?) *$")
# Sphinx has no place in its tables of contents for a file that a heading links to.
_LINKED_HEADING = re.compile(r"^(#+ .*?) *\(?(\[[^\]]*\]\([^)]*\))\)? *$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()([^()\s]+)(?=\))")


def experiment_readmes() -> list[Path]:
    """The READMEs of all experiments, and of those within them."""
    return sorted(path for path in (CHECKOUT / "experiments").rglob("README.md") if ".venvs" not in path.parts)


def made_page(readme: Path) -> Path:
    """The page that is made of an experiment's README: docs/made/experiments/NAME.md."""
    folder = readme.parent.relative_to(CHECKOUT / "experiments")
    return MADE / "experiments" / f"{'_'.join(folder.parts) or 'experiments'}.md"


def page_of(path: Path) -> Path | None:
    """The site's page of a repository's file or folder; None if it has none."""
    if (name := path.relative_to(CHECKOUT).as_posix()) in _PAGES:
        return _PAGES[name]
    if path.is_dir():
        path /= "README.md"
    if path.is_relative_to(CHECKOUT / "experiments") and path.name == "README.md" and path.is_file():
        return made_page(path)
    return None


def title(source: Path) -> str:
    """The text of a file's first heading."""
    return next(match[2] for line in source.read_text().splitlines() if (match := _HEADING.match(line)))


def section(source: Path, heading: str, page: Path) -> str:
    """The text below a heading, as far as the next one of its level or above, for a page of the site.

    Args:
      source: a Markdown file of the repository.
      heading: its text. Headings within come up to the levels that follow a page's title.
      page: where the text will stand.

    Raises:
      ValueError: there is no such heading, or more than one.
    """
    lines = source.read_text().splitlines()
    headings = [(number, *match.groups()) for number, match in _headings(lines)]
    starts = [(number, len(marks)) for number, marks, text in headings if text == heading]
    if len(starts) != 1:
        known = ", ".join(text for _, _, text in headings)
        raise ValueError(f"{source}: has {len(starts)} headings {heading!r}; its headings: {known}")
    start, level = starts[0]
    end = next((number for number, marks, _ in headings if number > start and len(marks) <= level), len(lines))
    inside = lines[start + 1 : end]
    for number, _ in list(_headings(inside)):
        inside[number] = inside[number][level - 1 :]
    return with_links("\n".join(inside), source, page)


def opening(source: Path, before: str, page: Path) -> str:
    """A file's text from its title to a heading, for a page of the site; the whole text if the heading is empty.

    Raises:
      ValueError: there is no such heading.
    """
    lines = source.read_text().splitlines()
    ends = [number for number, match in _headings(lines) if match[2] == before]
    if before and not ends:
        raise ValueError(f"{source}: has no heading {before!r}")
    return with_links("\n".join(lines[: ends[0]] if before else lines), source, page)


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@cache
def _section_homes() -> dict[tuple[Path, str], Path]:
    """Pages that hold a section of a file, by the file and the section's anchor."""
    return {
        ((CHECKOUT / match[1]).resolve(), slug(match[2])): page
        for page in SITE.rglob("*.md")
        if not page.is_relative_to(MADE)
        for match in re.finditer(r"^\{\{ section: (.+?) # (.+?) \}\}$", page.read_text(), re.MULTILINE)
    }


def with_links(text: str, source: Path, page: Path) -> str:
    """A file's text with links and images led from its own place to the page's.

    Links to files with a page of their own lead there, a folder's to its page or to that of the experiment it is in;
    other files go along with the site.

    Raises:
      ValueError: a link leads to a file that does not exist.
    """

    def lead(match: re.Match) -> str:
        link = match[1]
        if re.match(r"[a-z]+:", link):
            return link
        name, hash_mark, anchor = link.partition("#")
        target = (source.parent / name).resolve() if name else source
        if home := _section_homes().get((target, anchor)):
            return os.path.relpath(home, page.parent)
        if not name:
            return link
        if not target.exists() or not target.is_relative_to(CHECKOUT):
            raise ValueError(f"{source}: links to {link}, which is no file of the repository")
        own = page_of(target)
        if own is None and target.is_dir():
            own = next((found for folder in target.parents if (found := page_of(folder))), None)
        return os.path.relpath(own or target, page.parent) + hash_mark + anchor

    # Code is left as it is: fenced or indented blocks, and spans.
    parts = re.split(r"(^```[\s\S]*?^```$|^(?: {4}.*\n?)+|`[^`\n]+`)", text, flags=re.MULTILINE)
    led = (
        part if number % 2 else _LINKED_HEADING.sub(r"\1\n\n\2", _LINK.sub(lead, part))
        for number, part in enumerate(parts)
    )
    return "".join(led) + "\n"


def _headings(lines: list[str]):
    """Line numbers and matches of headings outside of fenced code."""
    fenced = False
    for number, line in enumerate(lines):
        fenced ^= line.startswith("```")
        if not fenced and (match := _HEADING.match(line)):
            yield number, match
