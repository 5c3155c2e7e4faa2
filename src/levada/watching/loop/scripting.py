"""`torch.jit.script` of a watched model: it compiles hooks with the module, and cannot compile those that measure."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn

from levada.probe.hook import measures

__all__ = ["close_scripting", "open_scripting"]

_HOOKS: Final = "_forward_hooks", "_forward_pre_hooks"
_lock: Final = threading.RLock()
_open: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
_original: Final[list[Any]] = []
_recursive = getattr(torch.jit, "_recursive", None)  # private, as is the function: without them scripting is refused


def open_scripting(owner: object) -> None:
    """Keep hooks that measure out of what `torch.jit.script` compiles, from now.

    Args:
        owner: who has hooks on a model.
    """
    with _lock:
        _open.add(owner)
        original = getattr(_recursive, "create_script_module", None)
        if _original or original is None:
            return

        @functools.wraps(original)
        def create_without_hooks(nn_module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with _without_hooks(nn_module):
                return original(nn_module, *args, **kwargs)

        _original.append(original)
        _recursive.create_script_module = create_without_hooks  # type: ignore[union-attr]


def close_scripting(owner: object) -> None:
    """Leave `torch.jit.script` as it was, once nobody has hooks any more; again is harmless.

    Args:
        owner: as above.
    """
    with _lock:
        _open.discard(owner)
        if _open or not _original:
            return
        ours = getattr(_recursive, "create_script_module", None)
        if getattr(ours, "__wrapped__", None) is _original[0]:  # else someone wrapped it again, and passes it on
            _recursive.create_script_module = _original.pop()  # type: ignore[union-attr]


@contextlib.contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """Put dictionaries of the other hooks in the place of those of a model's modules."""
    with _lock:  # the dictionaries go back in the order in which they came
        held = []
        for module in model.modules():
            for name in _HOOKS:
                hooks = vars(module).get(name, {})  # a scripted module has them elsewhere
                if any(map(measures, hooks.values())):
                    held.append((module, name, hooks))
                    module.__dict__[name] = OrderedDict((k, hook) for k, hook in hooks.items() if not measures(hook))
        try:
            yield
        finally:
            for module, name, hooks in held:
                module.__dict__[name] = hooks
