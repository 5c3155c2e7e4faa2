"""What layers' modules hold beside tensors and modules, compared: only those that do the same are recorded."""

from __future__ import annotations

import contextlib
import numbers
import operator
from collections.abc import Sequence
from typing import Any, final

from torch import nn

__all__ = ["HOOKS", "WATCHED", "Kind", "same"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_read_hooks = operator.itemgetter(*HOOKS)
WATCHED = frozenset({*HOOKS, "_compiled_call_impl", "compiled", "forward"})
# What layers may differ in: what they hold is looked at by itself, `layer` hidden while a layer is recorded, and the
# rest has no part in a call, or none where there are no hooks.
_OWN = frozenset({"_parameters", "_buffers", "_modules", "layer"}) | {
    *("_non_persistent_buffers_set", "_state_dict_hooks", "_state_dict_pre_hooks", "_is_full_backward_hook"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_forward_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs"),
}


@final
class Kind:
    """Modules at one place in all layers, compared in few calls: what they do must not depend on which it is.

    Args:
        modules: of all layers.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.states = [module.__dict__ for module in modules]
        self.names = [name for name in self.states[0] if name not in {*_OWN, *HOOKS}]
        self.read = operator.itemgetter(*self.names, self.names[0])  # of a single name it would return no tuple
        self.length = len(self.states[0])

    def difference(self) -> str:
        """Return the name of what is not the same in all, or was not there when they were stacked; "" if nothing is."""
        with contextlib.suppress(KeyError):
            hooked = any(map(any, map(_read_hooks, self.states)))
            if not hooked and all(map(self.length.__eq__, map(len, self.states))):
                first, *columns = zip(*map(self.read, self.states), strict=True)
                if all(map(_are_same, (first, *columns))):
                    return ""
        expected = self.states[0]
        for state in self.states:
            for name in {*self.names, *HOOKS, *state} - _OWN:
                if name in HOOKS:
                    alike = name in state and not state[name]
                else:
                    alike = name in state and name in self.names and name in expected
                    alike = alike and same(state[name], expected[name])
                if not alike:
                    return name
        return ""


def _are_same(values: Sequence[Any]) -> bool:
    first = values[0]
    return all(same(first, value) for value in values if value is not first)


def same(some: Any, other: Any) -> bool:
    """Whether two nests are equal, and do the same to a tensor: 0.0 is not -0.0, and 1 is not True, but NaN is NaN.

    Tensors and arrays that are not one object are taken to differ.

    Args:
        some: any nest.
        other: any other.
    """
    if some is other:
        return True
    try:
        if isinstance(some, numbers.Number):
            return bool(_told(some) == _told(other))
        if type(some) is not type(other):
            return False
        if isinstance(some, list | tuple):
            return len(some) == len(other) and all(map(same, some, other))
        if isinstance(some, dict):
            return same([*some], [*other]) and same([*some.values()], [*other.values()])
        if isinstance(some, set | frozenset):
            return {*map(_told, some)} == {*map(_told, other)}
        return bool(some == other)
    except Exception:
        return False


def _told(value: Any) -> Any:
    """Return what only equals what does the same, of a number or an element of a set."""
    if isinstance(value, numbers.Number):
        return type(value), repr(value)
    if isinstance(value, tuple):
        return type(value), *map(_told, value)
    return frozenset(map(_told, value)) if isinstance(value, frozenset) else value
