"""What Python code can change while a layer is recorded, as it was before."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, final

from levada.stacking.kinds import same

__all__ = ["Before"]

_CONTAINERS = frozenset({list, dict, OrderedDict, set})


@final
class Before:
    """What modules and their classes hold, down to what lists, dictionaries, sets and functions hold.

    A layer that changes it does not do the same at each call. A recording calls some layers twice and others not at
    all, so the change is undone where it was made: lists may be shared.

    Args:
        states: `__dict__` of the modules.
        classes: of the modules, as far as they may change.
    """

    def __init__(self, states: Iterable[dict[str, Any]], classes: Iterable[type]) -> None:
        self.held: dict[int, tuple[Any, Any]] = {}  # by the object, what it held
        self.classes = [(kind, _attributes(kind)) for kind in classes]
        values: list[Any] = [*states, *(attributes for _, attributes in self.classes)]
        self.states = {*map(id, values)}
        seen: set[int] = set()
        while values:
            value = values.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if type(value) in _CONTAINERS:
                self.held[id(value)] = value, value.copy()
            values += _inside(value)
            if isinstance(value, types.FunctionType):
                for cell in value.__closure__ or ():
                    self.held[id(cell)] = cell, _contents(cell)

    def put_back(self) -> bool:
        """Undo all changes, and return whether there were any."""
        changed = [(now, old) for now, old in self.held.values() if not self._unchanged(now, old)]
        for now, old in changed:
            if isinstance(now, types.CellType) and old:
                now.cell_contents = old[0]
            elif isinstance(now, types.CellType):
                del now.cell_contents
            elif isinstance(now, list):
                now[:] = old
            else:
                now.clear()
                now.update(old)
        for kind, old in self.classes:
            new = _attributes(kind)
            replaced = [name for name in {**old, **new} if name not in new or new[name] is not old.get(name, self)]
            for name in replaced:
                if name in old:
                    setattr(kind, name, old[name])
                else:
                    delattr(kind, name)
            changed += [(kind, name) for name in replaced]
        return bool(changed)

    def _unchanged(self, now: Any, old: Any) -> bool:
        if id(now) in self.states:  # in any order: what is hidden meanwhile comes back last
            return now.keys() == old.keys() and all(same(value, old[key]) for key, value in now.items())
        return same(_contents(now), old)


def _attributes(kind: type) -> dict[str, Any]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("__")}


def _contents(value: Any) -> Any:
    if not isinstance(value, types.CellType):
        return value
    try:
        return (value.cell_contents,)
    except ValueError:  # not filled yet
        return ()


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value.values()]
    if isinstance(value, list | tuple):
        return [*value]
    if isinstance(value, types.FunctionType):
        held = [content for cell in value.__closure__ or () for content in _contents(cell)]
        return [*held, value.__defaults__, value.__kwdefaults__, value.__dict__]
    return [getattr(value, name, None) for name in ("__func__", "fget")] if isinstance(value, _METHODS) else []


_METHODS: tuple[type, ...] = (staticmethod, classmethod, property)
