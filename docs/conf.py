"""Configuration of the documentation."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from sphinx import addnodes
from sphinx.ext.viewcode import viewcode_anchor

from levada import __version__

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # docs.catalogue, which takes from benchmarks

project = "levada"
author = "The levada authors"
copyright = "2026, the levada authors"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "docs.accessibility",
    "docs.catalogue",
    "docs.result_pages",
    "docs.tex",
    "docs.verdicts",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "discussions"]  # parts of the pages in results
html_theme = "furo"
html_math_renderer = "mathml"  # docs.tex: MathJax would come from another host
html_title = "levada"
html_static_path = ["static"]
napoleon_custom_sections = ["Shape", "Unit", "Source"]
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
html_copy_source = False


def _as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written as the pages are, in Markdown: `code` and $formulas$. Autodoc reads reStructuredText."""
    text = "\n".join(lines)
    text = re.sub(r"(?<![:`\w])`([^`]+)`(?!`)(\w?)", lambda m: f"``{m[1]}``" + (rf"\ {m[2]}" if m[2] else ""), text)
    text = re.sub(r"\$\$?([^$`]+)\$\$?", r":math:`\1`", text)
    lines[:] = text.split("\n")


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """The fields of a named tuple stand under Attributes already."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def _share_contents(app: Any) -> None:
    """Make the list of contents beside pages of source code once for all that lie equally deep: they are not in it.

    The theme makes it anew for each page, which copies every heading of the documentation.
    """
    lists: dict[Any, str] = {}

    def share(app: Any, pagename: str, template: str, context: dict[str, Any], doctree: Any) -> None:
        make = context.get("toctree")
        if make is None or not pagename.startswith("_modules/"):
            return

        def shared(**how: Any) -> str:
            key = (pagename.count("/"), *sorted(how.items()))
            if key not in lists:
                lists[key] = make(**how)
            return lists[key]

        context["toctree"] = shared

    app.connect("html-page-context", share, priority=400)  # before the theme reads it


def _anchor_sources(app: Any, doctree: Any) -> None:
    """Give each description the anchor to which its source links back.

    That is the module's name as it was described first, and the last page that describes it, where this may be
    `:no-index:`, which has no anchor, or under a shorter name.
    """
    for signature in doctree.findall(addnodes.desc_signature):
        for link in signature.findall(viewcode_anchor):
            module = link["reftarget"].removeprefix("_modules/").replace("/", ".")
            name = f"{app.env._viewcode_modules[module][3]}.{link['refid']}"
            if name not in doctree.ids:
                signature["ids"].append(name)
                doctree.ids[name] = signature


EXPLORER = Path(__file__).resolve().parents[1] / "src/levada/web/static/single/explore.html"


def _link_explorer(app: Any, docname: str, source: list[str]) -> None:
    """Link to the explorer itself from its page, where `make web` has built it."""
    if docname == "explore" and EXPLORER.exists():
        title, rest = source[0].split("\n", 1)
        source[0] = f'{title}\n\n<a href="explorer.html">Open the explorer here</a>: it needs no server.\n{rest}'


def _put_explorer(app: Any, error: Exception | None) -> None:
    if error is None and app.builder.name == "html" and EXPLORER.exists():
        shutil.copy(EXPLORER, Path(app.outdir) / "explorer.html")


def setup(app: Any) -> None:
    """Convert docstrings before napoleon reads their sections; put the explorer beside the pages."""
    _share_contents(app)
    app.connect("source-read", _link_explorer)
    app.connect("doctree-read", _anchor_sources, priority=600)  # after the links to the source
    app.connect("build-finished", _put_explorer)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _as_rst, priority=100)
