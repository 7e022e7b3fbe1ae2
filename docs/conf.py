"""Settings of the documentation site: `sphinx-build -W --keep-going -b html docs build/docs`, without a network."""

import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.environment import BuildEnvironment

# Signatures name an array's class without the parameters that NDArray spells out; the text says its type.
numpy.typing.NDArray = type("NDArray", (), {"__class_getitem__": lambda _, dtype: np.ndarray})

import gptclf  # noqa: E402 - after that

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "inventories"

project = "gptclf"
author = "The gptclf developers"
copyright = author
version = release = gptclf.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["inventories"]
nitpicky = True
# Single backquotes in docstrings link to what they name, and are code if that is not on the site.
default_role = "py:obj"
# tiktoken has no site, and modules inside the package no pages.
nitpick_ignore_regex = [("py:obj", ".*"), ("py:class", r"(tiktoken\.)?Encoding|gptclf\.\w+\..+")]

myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # what comes before a colon in a property's first line is read as a type: write a comma
strip_signature_backslash = True  # makes napoleon keep the underscore at the end of classes_
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"gptclf {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
copybutton_prompt_text = ">>> |... |$ "
copybutton_prompt_is_regexp = True


def inventory(name: str, url: str) -> tuple[str, str]:
    """Make the binary inventory of `inventories/name.txt`, a list of the names that our pages mention.

    Fetching the whole inventories would make the build depend on a network.
    """
    lines = (HERE / "inventories" / f"{name}.txt").read_text(encoding="utf-8")
    header = f"# Sphinx inventory version 2\n# Project: {name}\n# Version:\n"
    header += "# The remainder of this file is compressed using zlib.\n"
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"{name}.inv"
    path.write_bytes(header.encode() + zlib.compress(lines.encode()))
    return url, str(path)


intersphinx_mapping = {
    "python": inventory("python", "https://docs.python.org/3/"),
    "numpy": inventory("numpy", "https://numpy.org/doc/stable/"),
    "torch": inventory("torch", "https://docs.pytorch.org/docs/stable/"),
    "sklearn": inventory("sklearn", "https://scikit-learn.org/stable/"),
}

# The pages link to each other as files of the repository. The README is the start page, and nano's card a page; what
# is no page, such as an example, becomes a download.
ON_THE_SITE = {
    r"\]\((\.\./)?README\.md": "](index.md",
    r"\]\((\.\./)?gptclf/nano/README\.md": "](nano.md",
    r"\]\(docs/": "](",
    r"\]\(examples/": "](../examples/",
}


def public_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> Any:
    """Find a name of `gptclf` that a docstring of one of its modules mentions."""
    if node.get("reftype") != "obj":
        return None
    name = f"gptclf.{node['reftarget']}"
    return env.domains.python_domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)


def link_pages(*event: Any) -> None:
    """Make links to files of the repository links to pages of the site; the event ends with the text, in a list."""
    content = event[-1]
    for file, page in ON_THE_SITE.items():
        content[0] = re.sub(file, page, content[0])


def setup(app: Sphinx) -> None:
    """Rewrite links in pages and in the files that pages include, and call attributes by their name."""
    next(field for field in PyObject.doc_field_types if field.name == "variable").label = "Attributes"
    app.connect("missing-reference", public_name)
    app.connect("source-read", link_pages)
    app.connect("include-read", link_pages)
