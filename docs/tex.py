r"""Formulas of the documentation as MathML: browsers set it, no script is asked for.

As a Sphinx extension it is the math renderer "mathml"; latex2mathml reads the formulas. What that does not know stops
the build: a formula that is shown wrongly is worse than a build that says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from latex2mathml.converter import convert

__all__ = ["setup", "tex_to_mathml"]


def tex_to_mathml(formula: str, *, display: bool = False) -> str:
    r"""Return a formula as a MathML element.

    Args:
        formula: in TeX, without dollars.
        display: whether it stands on a line of its own.

    Raises:
        ValueError: if it holds what is not known.

    Example:
        >>> tex_to_mathml(r"\alpha^2")
        '<math ...><mrow><msup><mi>&#x003B1;</mi><mn>2</mn></msup></mrow></math>'
    """
    try:
        made = convert(formula, display="block" if display else "inline")
    except Exception as error:  # it has a class for each fault, and an IndexError for some
        raise ValueError(
            f"latex2mathml cannot read {formula!r}: {type(error).__name__}. Write it otherwise."
        ) from error
    if found := re.search(
        r"\\\w*|[{}]", made
    ):  # what it does not know it passes on as it came; braces that are shown are entities
        raise ValueError(f"latex2mathml does not know {found[0]!r} in {formula!r}. Write it otherwise.")
    return made


def _inline(translator: Any, node: Any) -> None:
    from docutils.nodes import SkipNode

    translator.body.append(tex_to_mathml(node.astext()))
    raise SkipNode


def _display(translator: Any, node: Any) -> None:
    from docutils.nodes import SkipNode

    translator.body.append(f'<div class="math">{tex_to_mathml(node.astext(), display=True)}</div>')
    raise SkipNode


def setup(app: Any) -> Mapping[str, bool]:
    """Let Sphinx set formulas by `tex_to_mathml`."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
