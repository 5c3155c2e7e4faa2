"""What a layer's modules and their classes hold beside tensors and modules, so that every change of it shows."""

from __future__ import annotations

import enum
import numbers
import operator
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import nn

from levada.stacking.recording import RecordingError

__all__ = ["Classes", "is_fixed", "settings_of"]

# What every module holds is looked at by itself, and the refusal is the same in all (`StackedParameters`).
_LEFT_OUT = frozenset({*nn.Module().__dict__, "layer", "requires_grad_"}) - {"training"}
_IMMUTABLE, _HEAP = 1 << 8, 1 << 9  # flags of types: the attributes of those that Python code makes can be set
_CONSTANT = frozenset({str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})


def settings_of(state: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what a module's attributes are: equal only to what the same operations are recorded for.

    Objects of other kinds may change while they compare equal to themselves, and tensors are no constants of a
    recording: neither can be a part of what it is found by.

    Args:
        state: `__dict__` of the module.

    Raises:
        RecordingError: if an attribute is neither a number, a string, a type or device of tensors, a member of an
            enumeration, a class of PyTorch or of no Python code, or a function, nor a tuple, list, set or dictionary
            of such.
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


def is_fixed(value: Any) -> bool:
    """Whether nothing in a value can change, or nothing that one layer has alone.

    Args:
        value: of an attribute.
    """
    if isinstance(value, tuple | frozenset):
        return not hasattr(value, "__dict__") and all(map(is_fixed, value))
    if isinstance(value, numbers.Number):
        return not hasattr(value, "__dict__")
    return type(value) in _CONSTANT or isinstance(value, enum.Enum | type) or _is_function(value)


@final
class Classes:
    """The classes of modules and what these hold: a method or an attribute of theirs may be replaced later.

    Args:
        modules: of all layers.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self.types = [*map(type, modules)]
        kinds = [k for k in dict.fromkeys(k for t in dict.fromkeys(self.types) for k in t.__mro__) if k is not object]
        self.held = [(vars(kind), [*vars(kind).values()]) for kind in kinds]
        self.own = own = [kind for kind in kinds if not kind.__module__.startswith("torch.")]
        self.slotted = next((kind.__name__ for kind in own if vars(kind).get("__slots__")), "")
        read = {name for kind in own for held in vars(kind).values() for name in _names(held)}
        functions = (f for kind in own for held in vars(kind).values() for f in _functions(held))
        self.functions = [(f.__name__, f.__dict__) for f in functions]
        self.data = [
            (vars(kind), [n for n, held in vars(kind).items() if n in read and not hasattr(held, "__get__")])
            for kind in own
        ]

    def changed(self) -> bool:
        """Whether a module is of another class now, or a class holds something else."""
        if [*map(type, self.modules)] != self.types:
            return True
        return any(len(now) != len(old) or any(map(operator.is_not, now.values(), old)) for now, old in self.held)

    def settings(self) -> tuple[Any, ...]:
        """Return what the classes' attributes are that their methods read.

        Raises:
            RecordingError: as `settings_of`, and if instances have slots.
        """
        if self.slotted:
            raise RecordingError(f"{self.slotted} has slots, in which a change would not be seen")
        attributes = [
            {name: {key: value for key, value in given.items() if key != "__wrapped__"}}
            for name, given in self.functions
            if given
        ]
        return tuple(
            settings_of(given)
            for given in (*attributes, *({name: held[name] for name in names} for held, names in self.data if names))
        )


def _names(held: Any) -> Iterator[str]:
    """Yield what a method, or a property, reads by name or may read by a string, and what the functions in it do."""
    constants: list[Any] = [function.__code__ for function in _functions(held)]
    while constants:
        constant = constants.pop()
        if isinstance(constant, str):  # `getattr(self, "options")`
            yield constant
        elif isinstance(constant, tuple | frozenset):
            constants += constant
        elif isinstance(constant, types.CodeType):
            yield from constant.co_names
            constants += constant.co_consts


def _functions(held: Any) -> Iterator[types.FunctionType]:
    for function in (held, *(getattr(held, name, None) for name in ("fget", "__func__", "__wrapped__"))):
        if isinstance(function, types.FunctionType):
            yield function


class _UnknownError(Exception):
    """Raised with the name of a kind of object that may change."""


def _constant(value: Any) -> Any:
    kind = type(value)
    if kind in _CONSTANT or isinstance(value, enum.Enum):
        return value
    if isinstance(value, type):
        if (
            value.__flags__ & _HEAP
            and not value.__flags__ & _IMMUTABLE
            and not f"{value.__module__}.".startswith("torch.")
        ):
            raise _UnknownError(f"class of Python code ({value.__name__})")
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
    """Return what a function carries with it: what it closes over, its defaults and its attributes."""
    if not isinstance(function, types.FunctionType):
        return ()
    try:
        cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:  # not filled yet
        raise _UnknownError("function") from None
    return cells, function.__defaults__, function.__kwdefaults__, function.__dict__
