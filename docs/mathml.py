"""Formulas of docstrings, plain text such as `x'_i = sum_j mix_ij x_j`, as MathML: browsers set it without a script."""

from __future__ import annotations

import html
import re
from typing import NoReturn

__all__ = ["is_formula", "to_mathml"]

_SUB = r"(?:_(\{[^}]*\}|[A-Za-z0-9]{1,3})(?!\w))?"  # at most three characters, or in braces
_NAME = re.compile(rf"([A-Za-z]+(?:_[A-Za-z]{{4,}}|_[A-Za-z]+(?=_))*)(\d*)('?){_SUB}")
_CLOSE = re.compile(rf"\)('?){_SUB}")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_MARK = re.compile(r"\.\.\.|<=|>=|[-+*/=<>|,;.:]")
_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "epsilon": "ε", "sigma": "σ", "lambda": "λ"}
_MARKS = {"-": "−", "*": "⊙", ".": "·", "<=": "≤", ">=": "≥", "...": "…"}


def is_formula(code: str) -> bool:
    """Whether a code span is mathematics: an equation, or a letter."""
    return (" = " in code or re.fullmatch(r"[A-Za-z](_\w{1,3})?", code) is not None) and '"' not in code


def to_mathml(formula: str, *, display: bool = False) -> str:
    """Return a formula as a MathML element.

    Args:
        formula: as docstrings write it.
        display: whether it stands on a line of its own.

    Raises:
        ValueError: if it cannot be read.

    Example:
        >>> to_mathml("x' = x_0")
        '<math><mrow><mrow><mi>x</mi><mo>′</mo></mrow><mo>=</mo><msub><mi>x</mi><mn>0</mn></msub></mrow></math>'
    """
    kind = ' display="block"' if display else ""
    return f"<math{kind}>{_Reader(formula, display).whole()}</math>"


class _Reader:
    """Reads a formula from left to right."""

    def __init__(self, formula: str, display: bool) -> None:
        self.formula, self.display = formula.strip(), display
        self.position = 0

    def whole(self) -> str:
        """Read all of it."""
        row = self.row()
        if self.position < len(self.formula):
            self.fail()
        return row

    def row(self) -> str:
        """Read up to the end, or to what closes a parenthesis that was opened before."""
        atoms: list[str] = []
        before = ""  # what the last atom was: nothing or a mark, a "letter" or number, a "word"
        while self.position < len(self.formula) and self.formula[self.position] != ")":
            spaced = self.take(re.compile(" +")) is not None
            if mark := self.take(_MARK):
                atoms.append(f"<mo>{html.escape(_MARKS.get(mark[0], mark[0])).replace('|', '&#124;')}</mo>")
                before = ""
            elif self.take(re.compile(r"\^")):
                atoms.append(f"<msup>{atoms.pop() if before else self.fail()}{self.power()}</msup>")
            else:
                atom, kind = self.value()
                if before and (kind != "group" or spaced):  # without a space a group is what a function is applied to
                    atoms.append(f'<mspace width="{0.25 if "word" in (before, kind) else 0.1}em"/>')
                atoms.append(atom)
                before = kind
        return f"<mrow>{''.join(atoms)}</mrow>"

    def value(self) -> tuple[str, str]:
        """Read a number, a name or a group, and say which kind it is."""
        if number := self.take(_NUMBER):
            return f"<mn>{number[0]}</mn>", "letter"
        if name := self.take(_NAME):
            return self.name(*name.groups())
        inner, prime, sub = self.group()
        return _attached(
            f'<mrow><mo stretchy="false">(</mo>{inner}<mo stretchy="false">)</mo></mrow>', prime, sub
        ), "group"

    def name(self, name: str, digits: str, prime: str, sub: str | None) -> tuple[str, str]:
        """Set a name: upright words, Greek letters, sums and roots."""
        if name == "sqrt":
            return f"<msqrt>{self.group()[0]}</msqrt>", "letter"
        below = _subscript(sub or digits)
        if name == "sum":
            return (
                f"<munder><mo>∑</mo>{below}</munder>" if self.display and below else _attached("<mo>∑</mo>", "", below)
            ), ""
        letter = _GREEK.get(name, name)
        return _attached(f"<mi>{letter}</mi>", prime, below), "letter" if len(letter) == 1 else "word"

    def power(self) -> str:
        """Read what follows `^`."""
        return self.group()[0] if self.formula[self.position : self.position + 1] == "(" else self.value()[0]

    def group(self) -> tuple[str, str, str]:
        """Read a group, and return what is in it, its prime and its subscript."""
        if self.take(re.compile(r"\(")) is None:
            self.fail()
        inner = self.row()
        close = self.take(_CLOSE) or self.fail()
        return inner, close[1], _subscript(close[2])

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Go past what the pattern matches here."""
        found = pattern.match(self.formula, self.position)
        if found is not None:
            self.position = found.end()
        return found

    def fail(self) -> NoReturn:
        """Raise, and say where."""
        raise ValueError(f"`{self.formula}` cannot be read from character {self.position} on.")


def _subscript(text: str | None) -> str:
    if not text:
        return ""
    if text.startswith("{"):
        return _Reader(text[1:-1], display=False).whole()
    indices = [f"<mn>{c}</mn>" if c.isdigit() else f"<mi>{c}</mi>" for c in text]  # one after the other: ij
    return indices[0] if len(indices) == 1 else f"<mrow>{''.join(indices)}</mrow>"


def _attached(base: str, prime: str, below: str) -> str:
    # A raised prime is tiny where there is no mathematical font; the sign beside the base is right with any.
    primed = f"<mrow>{base}<mo>′</mo></mrow>" if prime else base
    return f"<msub>{primed}{below}</msub>" if below else primed
