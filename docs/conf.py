"""How Sphinx builds these pages: make docs."""

import os
from pathlib import Path

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

from weighted_bce import __version__

project = "weighted_bce"
author = "the weighted_bce developers"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
# The inventory of torch is not always to be had.
if os.environ.get("DOCS_ONLINE") == "1":
    intersphinx_mapping = {"torch": ("https://docs.pytorch.org/docs/stable", None)}

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature would be longer than a line; Args says what is taken

html_theme = "furo"
html_title = f"weighted_bce {release}"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_math_renderer = "mathml"
copybutton_exclude = ".linenos, .gp, .go"


def _mathml(node: nodes.Element, as_block: bool) -> str:
    return latex2mathml.tex2mathml(node.astext(), as_block=as_block)


def _inline_formula(self: nodes.NodeVisitor, node: nodes.Element) -> None:
    self.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _formula(self: nodes.NodeVisitor, node: nodes.Element) -> None:
    self.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _list_external_links(app: Sphinx, error: Exception | None) -> None:
    """Writes external links to a file: whether they lead somewhere only a network can tell."""
    if error is None:
        pages = map(app.env.get_doctree, app.env.found_docs)
        links = {
            node["refuri"]
            for page in pages
            for node in page.findall(nodes.reference)
            if node.get("refuri", "").startswith("http")
        }
        listed = Path(app.outdir) / "external_links.txt"
        listed.write_text("".join(f"{link}\n" for link in sorted(links)))
        print(f"{len(links)} external links, which were not followed: {listed}")


def setup(app: Sphinx) -> None:
    # Browsers render MathML by themselves, without a script from another site.
    app.add_html_math_renderer("mathml", (_inline_formula, None), (_formula, None))
    app.connect("build-finished", _list_external_links)
