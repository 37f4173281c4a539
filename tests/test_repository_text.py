"""Text of the READMEs for the site: the right part of it, and links that lead to the same places from elsewhere."""

import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
DOCS = CHECKOUT / "docs"


@pytest.fixture(scope="module")
def repository_text():
    sys.path.insert(0, str(DOCS))
    try:
        import repository_text
    finally:
        sys.path.remove(str(DOCS))
    return repository_text


@pytest.mark.parametrize(
    ("written", "led"),
    [
        ("[a](../shapes/)", "[a](shapes.md)"),
        ("[a](../shapes/README.md)", "[a](shapes.md)"),
        ("[a](../shapes/records)", "[a](shapes.md)"),
        ("[a](../cifar10/README.md#results-at-short-scale)", "[a](cifar10.md#results-at-short-scale)"),
        ("[a](../../CONTRIBUTING.md)", "[a](../../contributing.md)"),
        ("[a](../../README.md#data)", "[a](../../how_to/data.md)"),
        ("![a](../shapes/curves.png)", "![a](../../../experiments/shapes/curves.png)"),
        ("[a](#below), [b](https://example.org/c)", "[a](#below), [b](https://example.org/c)"),
        ("## Numbers ([a](sweep.py))", "## Numbers\n\n[a](../../../experiments/localization/sweep.py)"),
        ("`[a](b)`\n\n    [a](b)\n\n```\n[a](b)\n```", "`[a](b)`\n\n    [a](b)\n\n```\n[a](b)\n```"),
        ("    code\n\n[a](../shapes/)", "    code\n\n[a](shapes.md)"),
    ],
)
def test_links_lead_to_the_same_place_from_the_page(repository_text, written, led):
    source = CHECKOUT / "experiments" / "localization" / "README.md"
    assert repository_text.with_links(written, source, repository_text.made_page(source)) == f"{led}\n"


def test_a_link_that_leads_nowhere_is_refused(repository_text):
    with pytest.raises(ValueError, match="README.md: links to none.png, which is no file"):
        repository_text.with_links("![a](none.png)", CHECKOUT / "README.md", DOCS / "index.md")


def test_links_of_all_files_lead_somewhere(repository_text):
    sources = [*CHECKOUT.glob("*.md"), *repository_text.experiment_readmes()]
    assert len(sources) > 20
    for source in sources:
        repository_text.with_links(source.read_text(), source, DOCS / "index.md")


def test_a_section_ends_at_the_next_heading_of_its_level(repository_text, tmp_path):
    source = tmp_path / "README.md"
    source.write_text("# Title\nintro\n## One\na\n### Within\n```\n## code\n```\n## Two\nb\n")
    page = DOCS / "page.md"
    assert repository_text.section(source, "One", page) == "a\n## Within\n```\n## code\n```\n"
    assert repository_text.section(source, "Two", page) == "b\n"
    assert repository_text.opening(source, "One", page) == "# Title\nintro\n"
    assert repository_text.opening(source, "", page) == source.read_text()


def test_a_section_that_is_not_there_is_refused_with_those_that_are(repository_text, tmp_path):
    source = tmp_path / "README.md"
    source.write_text("# Title\n## One\n## One\n")
    for heading, found in (("Tow", 0), ("One", 2)):
        with pytest.raises(ValueError, match=f"has {found} headings '{heading}'; its headings: Title, One, One"):
            repository_text.section(source, heading, DOCS / "page.md")
    with pytest.raises(ValueError, match="has no heading 'Tow'"):
        repository_text.opening(source, "Tow", DOCS / "page.md")
