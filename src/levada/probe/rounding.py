"""What low precision would do to a layer's coefficients: made once more, with every operation rounded to bfloat16."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["rounding_error"]


class _NotTwiceError(RuntimeError):
    """What draws at random, or changes what it was given, is not made a second time."""


class _Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Round what every operation reads and makes to bfloat16.

    As where all tensors are kept in bfloat16: a sum inside one operation stays wide, as hardware keeps it. The tensors
    keep their type, so that code which asks for float32, and operations that have no bfloat16, run as they are.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made: dict[int, Tensor] = {}  # held, so that their ids stay theirs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise _NotTwiceError
        for told, value in zip(func._schema.arguments, args, strict=False):
            if told.alias_info is not None and told.alias_info.is_write and id(value) not in self._made:
                raise _NotTwiceError
        made = func(*_each(args, self.rounded), **{key: _each(v, self.rounded) for key, v in (kwargs or {}).items()})
        alias = func._schema.returns[0].alias_info if func._schema.returns else None
        if alias is None:
            return _each(made, self.rounded)
        return _each(made, self._overwritten if alias.is_write else self._kept)

    def rounded(self, tensor: Tensor) -> Tensor:
        """Return a tensor in its own type with values of bfloat16."""
        if id(tensor) in self._made:
            return tensor
        return self._kept(tensor.bfloat16().to(tensor.dtype) if tensor.is_floating_point() else tensor)

    def _overwritten(self, tensor: Tensor) -> Tensor:
        return self._kept(tensor.copy_(tensor.bfloat16()) if tensor.is_floating_point() else tensor)

    def _kept(self, tensor: Tensor) -> Tensor:
        self._made[id(tensor)] = tensor
        return tensor


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(_each(item, function) for item in value) if isinstance(value, list | tuple) else value


@torch.no_grad()
def rounding_error(module: nn.Module, state: Tensor, exact: Sequence[Tensor | None]) -> Tensor:
    """Return how far coefficients made in bfloat16 lie from what was made: the largest relative error of the three.

    Rounding the finished coefficients costs `2^-9` at most. Made in bfloat16, an error of the logits is multiplied by
    their size before a sigmoid or a Sinkhorn iteration sees it, which is why coefficients are made in float32.

    Args:
        module: the connection; it is not changed.
        state: the streams of some tokens.
        exact: read, mix and write of these tokens.

    Returns:
        A scalar in the Frobenius norm; NaN where the coefficients cannot be made a second time: where they are drawn at
        random, change a buffer, or are not made token by token.

    Example:
        >>> import levada
        >>> connection, state = levada.HyperConnection(4, streams=2), torch.ones(3, 2, 4)
        >>> float(rounding_error(connection, state, connection.coefficients(state)))
        0.0
    """
    try:
        mode, twin = _Rounded(), _without_hooks(module)
        with mode:
            made = [value if value is None else value + 0 for value in type(module).coefficients(twin, state)]  # type: ignore[attr-defined]
        errors = [_relative(low, full) for low, full in zip(made, exact, strict=True) if full is not None]
    except Exception:  # a user's module may fail in any way, and measuring must not stop the training
        return torch.full((), torch.nan, device=state.device)
    return torch.stack(errors).amax()


def _relative(low: Tensor | None, full: Tensor) -> Tensor:
    size = torch.linalg.vector_norm(full.float()).clamp_min(torch.finfo(torch.float32).tiny)
    assert low is not None
    error: Tensor = torch.linalg.vector_norm((low - full).float()) / size
    return error


def _without_hooks(module: nn.Module) -> nn.Module:
    """Return a module that shares parameters and buffers: no hook hears of it, and no attribute is set."""
    twin = copy.copy(module)
    for name, held in vars(module).items():
        if isinstance(held, OrderedDict) and name.endswith("hooks"):
            vars(twin)[name] = OrderedDict()
    vars(twin)["_parameters"], vars(twin)["_buffers"] = dict(module._parameters), dict(module._buffers)
    vars(twin)["_modules"] = {n: m if m is None else _without_hooks(m) for n, m in module._modules.items()}
    return twin
