"""What a connection's docstring says, taken apart: summary, equation, when to use it, what it costs, source, example.

The notation is held by `tests/test_catalogue.py`. The second paragraph begins with the equation, in code spans. One
paragraph begins with "Use it". The section Cost says "`F` parameters" or "No parameters", more if an option is set as
"and `F` more if `option`", with conditions such as "not `option`" and "`option` and `another="value"`", and "reads `F`
and writes `F` elements per token" or "reads and writes `F`"; names of one letter are those that Args gives ("streams:
number of streams, n.") or "m = `F`" defines. A formula F is written as in a paper, `n^2 + 2 n`: names beside each other
are multiplied.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Entry", "evaluate", "names_of", "parameters_of", "traffic_of"]

_SECTIONS = ("Args", "Shape", "Cost", "Raises", "Example", "Source")
_FUNCTIONS = {"floor": math.floor, "ceil": math.ceil}
_CONDITION = "(?:not )?`[^`]+`"
_TOKEN = re.compile(r"\s*(?:([A-Za-z_]\w*)|(\d+)|([-+*/^(),]))")


@dataclass(frozen=True)
class Entry:
    """A docstring's parts; paragraphs are Markdown.

    Attributes:
        name: of the class.
        summary: the first sentence.
        equation: the paragraph that begins with the equation.
        about: the paragraphs that follow.
        use: when to use it, and when not.
        sections: the text of each section, by its title.
    """

    name: str
    summary: str
    equation: str
    about: tuple[str, ...]
    use: str
    sections: Mapping[str, str]

    @classmethod
    def of(cls, connection: type) -> Entry:
        """Take a class's docstring apart.

        Raises:
            ValueError: if a part is missing.
        """
        text = inspect.getdoc(connection) or ""
        head, *rest = re.split(rf"^({'|'.join(_SECTIONS)}):", text, flags=re.MULTILINE)
        sections = {title: inspect.cleandoc(body) for title, body in zip(rest[::2], rest[1::2], strict=True)}
        paragraphs = [part.strip() for part in head.strip().split("\n\n")]
        used = [part for part in paragraphs if part.startswith("Use it")]
        name = connection.__name__
        if len(paragraphs) < 3 or not paragraphs[1].startswith("`") or len(used) != 1 or "Cost" not in sections:
            raise ValueError(
                f"{name}: a connection's docstring needs a summary, a paragraph that begins with the equation in a "
                'code span, one paragraph that begins with "Use it", and a section Cost.'
            )
        about = tuple(part for part in paragraphs[2:] if part not in used)
        return cls(name, paragraphs[0].replace("\n", " "), paragraphs[1], about, used[0], sections)


def evaluate(formula: str, names: Mapping[str, float]) -> float:
    """Return the value of a formula such as `(3 n + 2) dim`.

    Raises:
        ValueError: if it is not in the notation, or a name has no value.

    Example:
        >>> evaluate("n^2 + 2 n", {"n": 4}), evaluate("2 floor(7 / 2) (n + 1)", {"n": 4})
        (24, 30)
    """
    python, position, after_value = "", 0, False
    while position < len(formula.rstrip()):
        found = _TOKEN.match(formula, position)
        if found is None:
            raise ValueError(f"`{formula}` is no formula from character {position} on.")
        name, number, mark = found.groups()
        if name and name not in names and name not in _FUNCTIONS:
            raise ValueError(f"`{formula}`: {name} has no value; there are: {', '.join(sorted(names))}.")
        python += "*" if after_value and (name or number or mark == "(") else ""
        python += name or number or mark.replace("^", "**")
        after_value = bool(number) or mark == ")" or (name is not None and name not in _FUNCTIONS)
        position = found.end()
    return eval(python, {"__builtins__": {}, **_FUNCTIONS}, dict(names))  # type: ignore[no-any-return]


def names_of(entry: Entry, connection: Any, **options: Any) -> dict[str, float]:
    """Return what the names in a connection's formulas stand for: its options and attributes, and what is defined.

    Args:
        entry: of the connection's class.
        connection: the layer.
        options: with which it was made.
    """
    defaults = {name: p.default for name, p in inspect.signature(type(connection)).parameters.items()}
    known = {**defaults, **options, **vars(connection)}
    values: dict[str, float] = {name: value for name, value in known.items() if isinstance(value, int | float)}
    values |= {f'{name}="{value}"': True for name, value in known.items() if isinstance(value, str)}
    for option, letter in re.findall(r"^(\w+): .*, (\w)\.$", entry.sections["Args"], re.MULTILINE):
        values[letter] = values[option]
    for name, formula in re.findall(r"(\w+) = `([^`]+)`", entry.sections["Cost"]):
        values[name] = evaluate(formula, values)
    return values


def parameters_of(entry: Entry, names: Mapping[str, Any]) -> float:
    """Return the number of a layer's parameters, as the docstring has it.

    Raises:
        ValueError: if the section Cost does not say it in the notation.
    """
    cost = " ".join(entry.sections["Cost"].split())
    found = re.match(r"(?:No|(\d+)|`([^`]+)`) parameters?\b", cost)
    if found is None:
        raise ValueError(f'{entry.name}: Cost must begin with "`F` parameters" or "No parameters", got: {cost[:40]}')
    if "none in layer 0" in cost and names["layer"] == 0:
        return 0
    total = evaluate(found[1] or found[2] or "0", names)
    for formula, conditions in re.findall(rf"and `([^`]+)` more if ({_CONDITION}(?: and {_CONDITION})*)", cost):
        if all(_holds(option, names) != bool(no) for no, option in re.findall(r"(not )?`([^`]+)`", conditions)):
            total += evaluate(formula, names)
    return total


def _holds(option: str, names: Mapping[str, Any]) -> bool:
    return option in names if '="' in option else bool(names[option])


def traffic_of(entry: Entry, names: Mapping[str, Any]) -> float:
    """Return the elements per token that a layer reads and writes at least, as the docstring has it.

    Raises:
        ValueError: if the section Cost does not say it in the notation.
    """
    cost = " ".join(entry.sections["Cost"].split())
    if "reads and writes nothing" in cost:
        return 0
    found = re.search(r"reads (?:`([^`]+)` )?and writes `([^`]+)` elements per token", cost)
    if found is None:
        raise ValueError(f'{entry.name}: Cost must say "reads `F` and writes `F` elements per token", got: {cost}')
    return (evaluate(found[1], names) if found[1] else 0) + evaluate(found[2], names)
