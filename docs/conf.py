"""How Sphinx builds the site: `sphinx-build -W docs docs/_build`."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The extension beside this file, and the package of this very checkout, whichever is installed.
sys.path[:0] = [str(HERE), str(HERE.parent)]

import resnet_jax  # noqa: E402

project = "resnet_jax"
author = copyright = "The resnet-jax authors"
version = release = resnet_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "made_pages"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "resnet_jax"
html_copy_source = False
html_show_sphinx = False

# Anchors of headings as GitHub makes them, which the included files' links count on.
myst_heading_anchors = 4
# Indented blocks are shell commands, tables of plain text and Python, which nothing tells apart.
highlight_language = "none"

# In docstrings `name` is code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# A page has a heading for each name or module; entries of all members take long to put into every page's navigation.
toc_object_entries = False
napoleon_attr_annotations = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# A name in a signature must lead somewhere, but for those of other libraries, which are documented elsewhere.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!resnet_jax\b)\w+\..*"),
    # Arrays as jaxtyping writes them, and type variables.
    ("py:class", r"Array|ndarray|dict\[str|resnet_jax\.data\..*\.(T|Item|Result)"),
]
