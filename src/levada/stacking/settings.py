"""What a layer's modules hold beside tensors and modules, in a form in which every change of it shows."""

from __future__ import annotations

import enum
import numbers
import types
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from levada.stacking.recording import RecordingError

__all__ = ["settings_of"]

# What every module holds is looked at by itself, and the refusal is the same in all (`StackedParameters`).
_LEFT_OUT = frozenset({*nn.Module().__dict__, "layer", "requires_grad_"}) - {"training"}
_CONSTANT = frozenset({str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})


def settings_of(state: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a module's attributes are: equal only to what the same operations are recorded for.

    Objects of other kinds may change while they compare equal to themselves, and tensors are no constants of a
    recording: neither can be a part of what it is found by.

    Args:
        state: `__dict__` of the module.

    Raises:
        RecordingError: if an attribute is neither a number, a string, a type or device of tensors, a member of an
            enumeration, a class or a function, nor a tuple, list, set or dictionary of such.
    """
    found: list[Any] = []
    for name, value in state.items():
        if name not in _LEFT_OUT:
            try:
                found.append((name, _constant(value)))
            except (_UnknownError, RecursionError) as unknown:
                held = unknown.args[0] if isinstance(unknown, _UnknownError) else type(value).__name__
                raise RecordingError(
                    f"{name!r} holds a {held}, in which a change would not be seen (buffers may hold tensors)"
                ) from None
    return tuple(found)


class _UnknownError(Exception):
    """Raised with the name of a kind of object that may change."""


def _constant(value: Any) -> Any:
    kind = type(value)
    if kind in _CONSTANT or isinstance(value, type | enum.Enum):
        return value
    if isinstance(value, numbers.Number) and not hasattr(value, "__dict__"):  # those of NumPy included
        return kind, repr(value)  # 0.0 equals -0.0, and 1 equals True
    if isinstance(value, tuple) and not hasattr(value, "__dict__"):
        return kind, *map(_constant, value)
    if kind is list:
        return kind, *map(_constant, value)
    if kind in (set, frozenset):
        return kind, frozenset(map(_constant, value))
    if kind in (dict, OrderedDict):
        return kind, *((_constant(key), _constant(item)) for key, item in value.items())
    if _is_function(value):
        return value, *map(_constant, _carried(value))
    raise _UnknownError(kind.__name__)


def _is_function(value: Any) -> bool:
    if isinstance(value, types.BuiltinFunctionType):  # methods of a list or a tensor are of this type too
        return isinstance(value.__self__, types.ModuleType | type | None)
    return isinstance(value, types.FunctionType | types.MethodDescriptorType)


def _carried(function: Any) -> tuple[Any, ...]:
    """Return what a function carries with it: what it closes over, and its defaults."""
    if not isinstance(function, types.FunctionType):
        return ()
    try:
        cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:  # not filled yet
        raise _UnknownError("function") from None
    return cells, function.__defaults__, function.__kwdefaults__
