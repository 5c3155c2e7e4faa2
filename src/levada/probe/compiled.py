"""Compiled models: find the module inside, and run it without compiling."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import nn

from levada.connection import Layer

__all__ = ["eager", "is_compiled", "unwrapped"]


def unwrapped(model: nn.Module) -> tuple[nn.Module, bool]:
    """Return the module that `torch.compile` wrapped, and whether it or anything inside is compiled.

    Args:
        model: compiled or not.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(layer) == (layer, False), unwrapped(torch.compile(layer, backend="eager"))[0] is layer
        (True, True)
    """
    compiled = any(is_compiled(m) for m in model.modules())
    while _is_wrapper(model):
        model = model.get_submodule("_orig_mod")
    return model, compiled


def is_compiled(module: nn.Module) -> bool:
    """Return whether a call of the module, its children not looked at, runs compiled.

    Args:
        module: any module.
    """
    if isinstance(module, Layer) and module.compiled is not None:  # a Stack compiles its layers itself
        return True
    return _is_wrapper(module) or getattr(module, "_compiled_call_impl", None) is not None


def _is_wrapper(module: nn.Module) -> bool:
    # Importing the class would load the compiler.
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in dict(module.named_children())


def eager(compiled: bool) -> AbstractContextManager[object]:
    """Return a context in which what is compiled runs as it is written, so that hooks see every call.

    Args:
        compiled: whether anything is.
    """
    if not compiled:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return,no-untyped-call,unused-ignore]
