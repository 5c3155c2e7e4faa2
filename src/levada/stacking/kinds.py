"""What layers' modules hold beside tensors and modules, compared: only those that do the same are recorded."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from typing import Any, final

from torch import nn

__all__ = ["WATCHED", "Kind", "same"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_read_hooks = operator.itemgetter(*_HOOKS)
WATCHED = frozenset({*_HOOKS, "_compiled_call_impl", "compiled", "forward"})
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
        self.names = [name for name in self.states[0] if name not in {*_OWN, *_HOOKS}]
        self.read = operator.itemgetter(*self.names, self.names[0])  # of a single name it would return no tuple
        self.length = len(self.states[0])

    def difference(self) -> str:
        """Return the name of what is not the same in all, or was not there when they were stacked; "" if nothing is."""
        with contextlib.suppress(Exception):  # tensors and arrays answer with several truth values
            hooked = any(map(any, map(_read_hooks, self.states)))
            if not hooked and all(map(self.length.__eq__, map(len, self.states))):
                expected = self.read(self.states[0])
                if all(map(expected.__eq__, map(self.read, self.states))):
                    return ""
        first = self.states[0]
        for state in self.states:
            for name in {*self.names, *_HOOKS, *state} - _OWN:
                known = name in state and (name in _HOOKS or (name in self.names and name in first))
                if not known or not same((state[name],), ({} if name in _HOOKS else first[name],)):
                    return name
        return ""


def same(some: Any, other: Any) -> bool:
    """Whether two nests are equal; tensors and arrays that are not one object are taken to differ.

    Args:
        some: any nest.
        other: any other.
    """
    try:
        return bool(some == other)
    except Exception:
        return False
