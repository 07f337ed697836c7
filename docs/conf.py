"""The site that `docs/` becomes: `python3 dev.py docs`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torchenv_magic
from docs.generation import fill_page

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "torchenv_magic"
author = "torchenv_magic contributors"
project_copyright = author
version = release = torchenv_magic.__version__

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
# A link to any heading of a page is checked, and a heading has the anchor that GitHub gives it.
myst_heading_anchors = 4
nitpicky = True

highlight_language = "text"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = "torchenv_magic"
html_copy_source = False
html_show_sourcelink = False
# The same file from the same sources, on any day.
html_last_updated_fmt = None


def fill(_app: Sphinx, name: str, content: list[str]) -> None:
    content[0] = fill_page(f"{name}.md", content[0])


def level(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: object) -> None:
    # Sphinx makes headings of the captions and gives them no level, so that a screen reader has to
    # guess it.
    tree = str(context.get("furo_navigation_tree", ""))
    context["furo_navigation_tree"] = tree.replace(
        'role="heading">', 'role="heading" aria-level="2">'
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", fill)
    # After the theme, which makes the tree.
    app.connect("html-page-context", level, priority=900)
    # What a page takes from elsewhere is not among the files whose time Sphinx compares.
    app.connect("env-get-outdated", lambda _app, env, *_: list(env.found_docs))
    return {"parallel_read_safe": True}
