"""What the library holds, as its source says it: names and sentences, read without importing torch with the library.

The lists of the library are import lines and literal tables, which `ast` reads as they stand; a test compares what is
read with what is there once all is imported.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import levada

__all__ = ["Definition", "derived", "elements", "entries", "keywords"]


class Definition(NamedTuple):
    """A class or a function, and the module that it is in.

    Attributes:
        name: as the module calls it.
        module: its dotted name.
        node: the definition.
    """

    name: str
    module: str
    node: ast.ClassDef | ast.FunctionDef

    @property
    def sentence(self) -> str:
        """The first line of the docstring."""
        return (ast.get_docstring(self.node) or "").partition("\n")[0]

    def constant(self, name: str) -> Any:
        """Return the value of a class attribute, of the class or the first base that has it; None without one.

        Args:
            name: of the attribute, which is given a literal.
        """
        for one in _line(self):
            for statement in one.node.body:
                if isinstance(statement, ast.Assign | ast.AnnAssign) and name in _targets(statement):
                    assert statement.value is not None
                    return ast.literal_eval(statement.value)
        return None


def derived(package: str, base: str) -> list[Definition]:
    """Return the classes that a package imports in its `__init__` and that are derived from a class, by name.

    Args:
        package: such as "levada.connections".
        base: the name of the class, which is left out.

    Example:
        >>> [one.name for one in derived("levada.connections", "Connection")][:2]
        ['AttentionResidual', 'Dense']
    """
    found = (_find(package, name) for name in _imports(package))
    classes = [one for one in found if one is not None and isinstance(one.node, ast.ClassDef)]
    return sorted((one for one in classes if base in _ancestors(one)), key=lambda one: one.name)


def entries(module: str, table: str, function: Callable[[ast.expr], ast.expr]) -> dict[str, Definition]:
    """Return what the names of a table stand for.

    Args:
        module: that has the table, a literal one, as it is or in `MappingProxyType`.
        table: its name.
        function: entry -> the name of a function, which says what the entry does.
    """
    value = _value(module, table)
    literal = value.args[0] if isinstance(value, ast.Call) else value
    assert isinstance(literal, ast.Dict)
    names = (ast.literal_eval(key) for key in literal.keys if key is not None)
    return {name: _named(module, function(one)) for name, one in zip(names, literal.values, strict=True)}


def elements(module: str, table: str) -> list[Definition]:
    """Return the functions of a table that a comprehension makes of a tuple of them.

    Args:
        module: that has the table.
        table: its name.
    """
    listed = next(one for one in ast.walk(_value(module, table)) if isinstance(one, ast.Tuple))
    return [_named(module, one) for one in listed.elts]


def keywords(module: str, name: str, known: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """Return keyword arguments of the call that a name of a module is given.

    Args:
        module: dotted name.
        name: of the object.
        known: what the arguments may call.
        wanted: the names of the arguments; those that are missing are left out.
    """
    call = _value(module, name)
    assert isinstance(call, ast.Call)
    # Of the library's own source: expressions of literals and of what is known.
    return {
        one.arg: eval(compile(ast.Expression(one.value), module, "eval"), dict(known))
        for one in call.keywords
        if one.arg is not None and one.arg in wanted
    }


@functools.cache
def _tree(module: str) -> ast.Module:
    path = Path(levada.__file__).parent.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def _imports(module: str) -> dict[str, tuple[str, str]]:
    """Give what a module imports from the library: name -> module, name there."""
    froms = (one for one in _tree(module).body if isinstance(one, ast.ImportFrom))
    return {
        alias.asname or alias.name: (str(one.module), alias.name)
        for one in froms
        if str(one.module).startswith("levada")
        for alias in one.names
    }


def _find(module: str, name: str) -> Definition | None:
    """Find a class or a function by the name that it has in a module; None if the library has no such."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return Definition(name, module, node)
    imported = _imports(module).get(name)
    return _find(*imported) if imported is not None else None


def _named(module: str, expression: ast.expr) -> Definition:
    """Find what `name`, or `module.name`, stands for in a module."""
    if isinstance(expression, ast.Attribute):
        assert isinstance(expression.value, ast.Name)
        module, name = ".".join(_imports(module)[expression.value.id]), expression.attr
    else:
        assert isinstance(expression, ast.Name)
        name = expression.id
    found = _find(module, name)
    assert found is not None, f"{module} has no {name}"
    return found


def _bases(definition: Definition) -> Iterator[str]:
    for base in definition.node.bases if isinstance(definition.node, ast.ClassDef) else ():
        if isinstance(base, ast.Name):
            yield base.id


def _line(definition: Definition) -> Iterator[Definition]:
    """Yield a class and those of the library that it is derived from, the nearest first."""
    yield definition
    for name in _bases(definition):
        parent = _find(definition.module, name)
        if parent is not None:
            yield from _line(parent)


def _ancestors(definition: Definition) -> set[str]:
    """Return the names of what a class is derived from."""
    return {base for one in _line(definition) for base in _bases(one)}


def _targets(statement: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _value(module: str, name: str) -> ast.expr:
    """Return what a name of a module is given."""
    for statement in _tree(module).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and name in _targets(statement):
            assert statement.value is not None
            return statement.value
    raise AssertionError(f"{module} has no {name}")
