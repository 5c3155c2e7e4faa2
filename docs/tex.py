r"""Formulas of the documentation, in the part of TeX that they use, as MathML: browsers set it, no script is asked for.

As a Sphinx extension it is the math renderer "mathml". What it does not know stops the build: a formula that is shown
wrongly is worse than a build that says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from typing import Any, Final, NoReturn

__all__ = ["setup", "tex_to_mathml"]

_TOKEN: Final = re.compile(r"\\[A-Za-z]+\*?|\\.|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
_LETTERS: Final = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ϵ", "varepsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "phi": "ϕ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ",
    "Theta": "Θ", "Lambda": "Λ", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω", "ell": "ℓ", "infty": "∞",
}  # fmt: skip
_MARKS: Final = {
    "cdot": "⋅", "times": "×", "odot": "⊙", "circ": "∘", "pm": "±", "approx": "≈", "sim": "∼", "le": "≤", "ge": "≥",
    "ne": "≠", "to": "→", "mapsto": "↦", "leftarrow": "←", "in": "∈", "perp": "⊥", "top": "⊤", "mid": "∣",
    "partial": "∂", "nabla": "∇", "dots": "…", "ldots": "…", "cdots": "⋯",
}  # fmt: skip
_FENCES: Final = {
    "(": "(", ")": ")", "[": "[", "]": "]", "|": "|", "\\|": "‖", "\\lVert": "‖", "\\rVert": "‖", "\\{": "{",
    "\\}": "}", "\\lceil": "⌈", "\\rceil": "⌉", "\\lfloor": "⌊", "\\rfloor": "⌋", "\\langle": "⟨", "\\rangle": "⟩",
}  # fmt: skip
_FUNCTIONS: Final = frozenset({"ln", "log", "exp", "tanh", "sin", "cos", "arccos", "arcsin"})
_LIMITS: Final = {"sum": "∑", "prod": "∏", "max": "max", "min": "min", "Pr": "Pr"}
_ACCENTS: Final = {"bar": "¯", "hat": "^", "tilde": "~"}
_SPACES: Final = {",": 0.167, ":": 0.222, ";": 0.278, " ": 0.25, "quad": 1.0, "qquad": 2.0}
_SIZES: Final = {"big": 1.2, "bigl": 1.2, "bigr": 1.2, "Big": 1.8, "Bigl": 1.8, "Bigr": 1.8}
_BOARD: Final = {"E": "𝔼", "R": "ℝ", "P": "ℙ", "N": "ℕ", "Z": "ℤ", "C": "ℂ"}
_SIGNS: Final = {"-": "−", "*": "∗"}


def tex_to_mathml(formula: str, *, display: bool = False) -> str:
    r"""Return a formula as a MathML element.

    Args:
        formula: in TeX, without dollars.
        display: whether it stands on a line of its own.

    Raises:
        ValueError: if it holds what is not known here.

    Example:
        >>> tex_to_mathml(r"\sqrt{q_l}")
        '<math><msqrt><mrow><msub><mi>q</mi><mi>l</mi></msub></mrow></msqrt></math>'
    """
    kind = ' display="block"' if display else ""
    return f"<math{kind}>{_Reader(formula).whole()}</math>"


def _row(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 and not parts[0].startswith("<msub") else f"<mrow>{''.join(parts)}</mrow>"


def _space(ems: float) -> str:
    return f'<mspace width="{ems}em"/>'


class _Reader:
    """Reads a formula from left to right."""

    def __init__(self, formula: str) -> None:
        self.formula = formula
        self.tokens = _TOKEN.findall(formula.strip())
        self.at = 0

    def whole(self) -> str:
        row = self.row(())
        if self.at < len(self.tokens):
            self.fail(f"unexpected {self.tokens[self.at]!r}")
        return row

    def fail(self, why: str) -> NoReturn:
        raise ValueError(f"docs.tex reads no such formula, {why}: {self.formula!r}. Write it otherwise, or teach it.")

    def peek(self) -> str:
        while self.at < len(self.tokens) and self.tokens[self.at].isspace():
            self.at += 1
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            self.fail("it ends too early")
        self.at += 1
        return token

    def row(self, ends: tuple[str, ...]) -> str:
        """Read atoms with their scripts, up to one of `ends`, which stays."""
        parts: list[str] = []
        while (token := self.peek()) and token not in ends and token != "}":
            named = token[1:] in _FUNCTIONS
            if named and parts and not parts[-1].endswith(("</mo>", "/>")):
                parts.append(_space(0.167))
            base, limits = self.atom()
            parts.append(self.scripts(base, limits))
            if named and self.peek() not in ("", "(", "}", *ends):
                parts.append(_space(0.167))
        if ends and not self.peek():
            self.fail(f"{ends[0]!r} is missing")
        return _row(parts)

    def scripts(self, base: str, limits: bool) -> str:
        """Read what is raised and lowered; primes are raised before it."""
        raised, lowered = [], ""
        while (token := self.peek()) in ("^", "_", "'") and token:
            self.take()
            if token == "'":
                raised.append("<mo>′</mo>")
            elif token == "^":
                raised.append(self.argument())
            elif lowered:
                self.fail("something is lowered twice")
            else:
                lowered = self.argument()
        upper = _row(raised) if raised else ""
        under, over, both = ("munder", "mover", "munderover") if limits else ("msub", "msup", "msubsup")
        if lowered and upper:
            return f"<{both}>{base}{lowered}{upper}</{both}>"
        if lowered:
            return f"<{under}>{base}{lowered}</{under}>"
        return f"<{over}>{base}{upper}</{over}>" if upper else base

    def argument(self) -> str:
        """Read a group, or as TeX does one sign: of a number its first digit."""
        token = self.peek()
        if token[:1].isdigit() and len(token) > 1:
            self.tokens[self.at] = token[1:]
            return f"<mn>{token[0]}</mn>"
        return self.atom()[0]

    def words(self) -> str:
        """Read a group as text."""
        if self.take() != "{":
            self.fail("a group of words must begin with {")
        start, deep = self.at, 1
        while deep and self.at < len(self.tokens):
            deep += {"{": 1, "}": -1}.get(self.tokens[self.at], 0)
            self.at += 1
        text = "".join(self.tokens[start : self.at - 1]).replace("\\_", "_").replace("\\,", " ")
        if deep or "\\" in text:
            self.fail("words hold no commands")
        return text

    def upright(self) -> str:
        """Read a name, which may have a name lowered."""
        name, _, lowered = self.words().partition("_{")
        made = f'<mi mathvariant="normal">{escape(name)}</mi>'
        return f'<msub>{made}<mi mathvariant="normal">{escape(lowered[:-1])}</mi></msub>' if lowered else made

    def atom(self) -> tuple[str, bool]:
        """Read one thing without its scripts, and say whether these stand above and below it."""
        token = self.take()
        if token == "{":
            row = self.row(("}",))
            self.take()
            return row, False
        if token[0].isdigit():
            return f"<mn>{token}</mn>", False
        if token in _FENCES:
            return f'<mo stretchy="false">{_FENCES[token]}</mo>', False
        if token[0] == "\\":
            return self.command(token[1:])
        if token.isalpha():
            return f"<mi>{token}</mi>", False
        if token == "/":
            return '<mo lspace="0" rspace="0">/</mo>', False
        if token in "+-*=<>,;:.!":
            return f"<mo>{escape(_SIGNS.get(token, token))}</mo>", False
        return self.fail(f"what is {token!r}")

    def command(self, name: str) -> tuple[str, bool]:
        if name in _LIMITS:
            return f'<mo movablelimits="true" form="prefix">{_LIMITS[name]}</mo>', True
        if name in _FUNCTIONS:
            return f"<mi>{name}</mi>", False
        if name in _LETTERS:
            return f"<mi>{_LETTERS[name]}</mi>", False
        if name in _MARKS:
            return f"<mo>{_MARKS[name]}</mo>", False
        if name in _SPACES:
            return _space(_SPACES[name]), False
        if name in ("text", "mathrm", "operatorname"):
            return (f"<mtext>{escape(self.words())}</mtext>" if name == "text" else self.upright()), False
        return self.built(name), False

    def built(self, name: str) -> str:
        """Read a command that has arguments."""
        if name in ("frac", "tfrac", "dfrac"):
            style = {"tfrac": ' displaystyle="false"', "dfrac": ' displaystyle="true"'}.get(name, "")
            made = f"<mfrac>{self.argument()}{self.argument()}</mfrac>"
            return f"<mstyle{style}>{made}</mstyle>" if style else made
        if name == "binom":
            inner = f'<mfrac linethickness="0">{self.argument()}{self.argument()}</mfrac>'
            return f"<mrow><mo>(</mo>{inner}<mo>)</mo></mrow>"
        if name == "sqrt":
            return f"<msqrt>{self.argument()}</msqrt>"
        if name in _ACCENTS:
            return f'<mover accent="true">{self.argument()}<mo stretchy="false">{_ACCENTS[name]}</mo></mover>'
        if name == "int":
            return "<mo>∫</mo>"
        if name == "mathbb":
            letter = re.sub("<[^>]*>", "", self.argument())
            return f"<mi>{_BOARD[letter]}</mi>" if letter in _BOARD else self.fail(f"no such letter, {letter!r}")
        if name in _SIZES:
            size = _SIZES[name]
            return f'<mo minsize="{size}em" maxsize="{size}em">{self.fence()}</mo>'
        if name == "left":
            first = self.fence()
            inner = self.row(("\\right",))
            self.take()
            return f"<mrow><mo>{first}</mo>{inner}<mo>{self.fence()}</mo></mrow>"
        return self.fail(f"what is \\{name}")

    def fence(self) -> str:
        token = self.take()
        return _FENCES[token] if token in _FENCES else self.fail(f"{token!r} is no bracket")


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
