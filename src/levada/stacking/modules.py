"""The modules of all layers, compared at each call: they are thousands, and most calls find them as the last one."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from levada.stacking.kinds import HOOKS, WATCHED, Kind
from levada.stacking.parameters import LayerParameters
from levada.stacking.recording import RecordingError
from levada.stacking.settings import Classes, is_fixed, settings_of

__all__ = ["OTHERS", "Modules"]

OTHERS = "others"  # in place of what the layers were
_read_tables = operator.itemgetter("_buffers", "_modules", *HOOKS)
_read_state = operator.attrgetter("__dict__")
_read_parameters = operator.itemgetter("_parameters")
_LOOKS: tuple[Callable[[Any], Any], ...] = (
    *(Tensor.size, Tensor.stride, Tensor.is_neg, Tensor.is_conj),
    *map(operator.attrgetter, ("dtype", "device", "requires_grad")),
)
# The count of a dictionary's changes. Private: without it, everything is compared at each call.
_version = getattr(torch._C._dynamo.guards, "dict_version", None)


@final
class Modules:
    """The modules of layers, and what they hold beside parameters.

    Args:
        layers: of one structure, when their parameters were stacked.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        trees = [dict(layer.named_modules()) for layer in layers]
        modules = [module for tree in trees for module in tree.values()]
        self.alike = all(
            [(n, type(m)) for n, m in tree.items()] == [(n, type(m)) for n, m in trees[0].items()]
            and all(_is_held(module._parameters, i) for module in tree.values())
            and [[*module._buffers] for module in tree.values()] == [[*module._buffers] for module in trees[0].values()]
            for i, tree in enumerate(trees)
        )
        self.kinds = [Kind([tree[path] for tree in trees]) for path in trees[0]] if self.alike else []
        self.classes = Classes(modules)
        self.modules = modules
        self.states = [module.__dict__ for module in modules]
        self.parameters = [module._parameters for module in modules]
        self.children = [*itertools.chain.from_iterable(module._modules.values() for module in modules)]
        self.buffers = [(module, name) for module in modules for name in module._buffers] if self.alike else []
        self.names = _names(module._buffers for module in modules)
        self.step = len(self.buffers) // len(layers)
        self._tables: list[dict[str, Any]] = [module._buffers for module in modules]
        self._named = self.names
        self._known: list[int] | None = None  # versions, when all layers were found to be the same
        self._counted: list[Mapping[str, Any]] = []  # in which a change of any value would count
        self._empty: list[Mapping[Any, Any]] = []  # in which any value would count
        self._open = self.kinds  # which hold what can change in place
        self._types: list[type] | None = None  # of all buffers, when they were of one kind
        self._looks: list[list[Any]] = []
        self._first: list[Any] = []  # of the first layer's

    def difference(self) -> str:
        """Return what is not the same in all layers; `OTHERS` if they are no longer what they were."""
        if not all(map(operator.is_, map(_read_state, self.modules), self.states)):
            return OTHERS
        if self._known is not None and self._known == self._versions() and not any(self._empty):
            if self.classes.changed() or _names(self._tables) != self._named:
                return OTHERS
            return _difference(self._open)
        self._known = None
        if any(name not in kind.states[0] for kind in self.kinds for name in kind.names):
            return OTHERS  # somebody had put an attribute there, as a watch does for a pass
        self._tables = [state["_buffers"] for state in self.states]
        kept = all(map(operator.is_, map(_read_parameters, self.states), self.parameters))
        if not kept or _names(self._tables) != self.names or self.classes.changed():
            return OTHERS
        if not self.alike or not self._find_tables():
            return "the tree of modules"
        versions = self._versions()  # before they are compared: what changes meanwhile counts
        difference = _difference(self.kinds)
        if not difference and not any(self._empty):
            self._known = versions
        return difference

    def _find_tables(self) -> bool:
        """Find the dictionaries in which a change would count, and return whether the tree of modules is the same."""
        tables = [*itertools.chain.from_iterable(map(_read_tables, self.states))]
        width = 2 + len(HOOKS)
        children, hooks = tables[1::width], [table for i in range(2, width) for table in tables[i::width]]
        self._counted = [*self.states, *filter(None, children)]
        self._empty = [*hooks, *(table for table in (*children, *self._tables) if not table)]
        self._tables = [table for table in self._tables if table]
        self._named = _names(self._tables)
        self._open = [kind for kind in self.kinds if not all(map(is_fixed, kind.read(kind.states[0])))]
        return [*itertools.chain.from_iterable(map(dict.values, children))] == self.children

    def _versions(self) -> list[int] | None:
        return None if _version is None else [*map(_version, self._counted)]

    def held(self) -> list[Tensor | None]:
        """Return the buffers of all layers."""
        return [*itertools.chain.from_iterable(map(dict.values, self._tables))]

    def settings(self) -> tuple[Any, ...]:
        """Return what the first layer's attributes and the kinds of its buffers are, by which a recording is found.

        Raises:
            RecordingError: as `settings_of`, and if the layers' buffers are not of one kind, or have a graph.
        """
        return *(settings_of(kind.states[0]) for kind in self.kinds), self.classes.settings(), *self._buffers()

    def _buffers(self) -> list[Any]:
        held = self.held()
        given, kinds = [b for b in held if b is not None], [*map(type, held)]
        if kinds != self._types or not all(
            all(map(operator.eq, map(look, given), known)) for look, known in zip(_LOOKS, self._looks, strict=True)
        ):
            if any(b.requires_grad for b in given):
                raise RecordingError("a buffer requires a gradient, or has a graph")
            each = [None if b is None else (type(b), *(look(b) for look in _LOOKS)) for b in held]
            if each[self.step :] != each[: len(each) - self.step]:
                raise RecordingError("buffers of one name differ in kind, or only some layers have them")
            self._types, self._looks = kinds, [[*map(look, given)] for look in _LOOKS]
            self._first = each[: self.step]
        return self._first


def _names(tables: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[int]]:
    """Return all names, and how many each table has."""
    tables = [*tables]
    return [*itertools.chain.from_iterable(tables)], [*map(len, tables)]


def _difference(kinds: Iterable[Kind]) -> str:
    return next((name if name in WATCHED else repr(name) for kind in kinds if (name := kind.difference())), "")


def _is_held(table: dict[str, Any], layer: int) -> bool:
    return table.layer == layer if isinstance(table, LayerParameters) else not table
