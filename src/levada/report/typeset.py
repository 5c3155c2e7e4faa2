"""Formulas that studies write in plain letters, set as they are written by hand: powers, signs, subscripts."""

from __future__ import annotations

import re
from html import escape
from typing import Any, Final

__all__ = ["superscripted", "typeset"]

_POWER: Final = re.compile(r"(?<=[\w)])\^(\([\w\s./+*−-]{1,24}\)|[−-]?\w+(?:\.\w+)*)")
_CODE: Final = re.compile(r"`([^`\n]+)`")
_SIGNS: Final = ((" &lt;= ", " ≤ "), (" &gt;= ", " ≥ "), (" +- ", " ± "), ("log10", "log<sub>10</sub>"))
_RAISED: Final = str.maketrans("0123456789-−+()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻⁺⁽⁾ⁿⁱ")


def typeset(text: Any) -> str:
    """Escape a text for HTML, and set its `x^y` as a power, `<=` as a sign, and what stands in backticks as code.

    Args:
        text: plain text; nothing in it is taken for HTML.

    Example:
        >>> typeset("at least 2^(depth/2) <= 10^6.9, a^b<c>; `levada check m^2`")
        'at least 2<sup>depth/2</sup> ≤ 10<sup>6.9</sup>, a<sup>b</sup>&lt;c&gt;; <code>levada check m^2</code>'
    """
    parts = _CODE.split(str(text))
    return "".join(f"<code>{escape(part)}</code>" if i % 2 else _set(part) for i, part in enumerate(parts))


def _set(text: str) -> str:
    written = re.sub(r"(?<=\d) %", "\u00a0%", escape(text))  # a number keeps its unit
    for letters, sign in _SIGNS:
        written = written.replace(letters, sign)
    return _POWER.sub(lambda found: f"<sup>{found[1].strip('()').replace('-', '−')}</sup>", written)


def superscripted(text: str) -> str:
    """Set the powers of a text in letters alone, where every character of an exponent has a raised one.

    Example:
        >>> superscripted("0.25^n and 2^(depth/2)")
        '0.25ⁿ and 2^(depth/2)'
    """

    def raised(found: re.Match[str]) -> str:
        exponent = found[1].strip("()")
        there = all(ord(letter) in _RAISED for letter in exponent)
        return exponent.translate(_RAISED) if there else found[0]

    return _POWER.sub(raised, text)
