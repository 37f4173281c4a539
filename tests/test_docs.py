"""The site of documentation: built without a warning, with every name, key and experiment, and no broken link."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import resnet_jax
from resnet_jax.cli import COMMANDS
from resnet_jax.config_keys import KEYS

CHECKOUT = Path(__file__).resolve().parent.parent
READMES = sorted((CHECKOUT / "experiments").rglob("README.md"))
MODULES = sorted(
    ".".join(path.relative_to(CHECKOUT).with_suffix("").parts)
    for path in (CHECKOUT / "resnet_jax").rglob("*.py")
    if not path.name.startswith("__") and path.parent.name != "commands"
)


class Page(HTMLParser):
    """What a page has: its text, the anchors in it, and where its links and images lead."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.words: list[str] = []
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text())
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            # A canonical address and the like are no links that a reader follows.
            if value and (name == "src" or name == "href" and tag in ("a", "link")):
                self.links.append(value)

    def target(self, link: str) -> Path:
        """The file that a link within the site leads to."""
        parts = urlsplit(link)
        return (self.path.parent / unquote(parts.path)).resolve() if parts.path else self.path

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Page]:
    """All pages by their paths, of a site that is built here, with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", folder / "read", "docs", folder / "html"],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert built.returncode == 0, built.stderr
    return {path: Page(path) for path in sorted((folder / "html").rglob("*.html"))}


def page(site: dict[Path, Page], name: str) -> Page:
    """The page of that name, without its ending."""
    return next(page for path, page in site.items() if path.as_posix().endswith(f"/html/{name}.html"))


@pytest.mark.slow
def test_every_public_name_and_module_is_documented(site):
    public = page(site, "reference/public").anchors
    assert {f"resnet_jax.{name}" for name in resnet_jax.__all__ if name != "__version__"} - public == set()
    documented = set().union(*(page.anchors for path, page in site.items() if path.parent.parent.name == "made"))
    assert {f"module-{name}" for name in MODULES} - documented == set()


@pytest.mark.slow
def test_every_command_and_config_key_has_its_place(site):
    commands, keys = page(site, "reference/command_line"), page(site, "reference/config_keys")
    assert [name for name in COMMANDS if f"usage: resnet-jax {name}" not in commands.text] == []
    assert [key for key, rule in KEYS.items() if f"{key} {rule.default} {rule.allowed}" not in keys.text] == []


@pytest.mark.slow
def test_every_config_and_file_of_the_package_has_its_place(site):
    configs, tree = page(site, "reference/configs"), page(site, "map")
    names = [path.stem for path in (CHECKOUT / "configs").glob("*.py")]
    assert [name for name in names if name not in configs.anchors] == []
    files = [path.name for path in (CHECKOUT / "resnet_jax").rglob("*.py") if path.name != "__init__.py"]
    assert [name for name in files if name not in tree.text] == []


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES, ids=[path.parent.name for path in READMES])
def test_every_experiment_has_a_page_with_its_figures_and_records(site, readme):
    name = "_".join(readme.parent.relative_to(CHECKOUT / "experiments").parts) or "experiments"
    experiment = page(site, f"made/experiments/{name}")
    assert any(link.endswith(f"made/experiments/{name}.html") for link in page(site, "results").links)
    # By their bytes, since the site gives files of one name several.
    linked = {experiment.target(link).read_bytes() for link in experiment.links if not urlsplit(link).scheme}
    wanted = [*readme.parent.glob("*.png"), *readme.parent.glob("*.json"), *(readme.parent / "records").rglob("*.json")]
    assert [path.name for path in wanted if path.read_bytes() not in linked] == []


@pytest.mark.slow
def test_no_link_within_the_site_leads_nowhere(site):
    followed, broken = 0, []
    for path, own in site.items():
        for link in own.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = own.target(link)
            followed += 1
            if not target.is_file():
                broken.append(f"{path.name}: {link}")
            elif parts.fragment and target in site and unquote(parts.fragment) not in site[target].anchors | {""}:
                broken.append(f"{path.name}: {link}: no such anchor")
    assert followed > 1000
    assert broken == []
