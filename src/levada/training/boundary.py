"""What crosses from one stage of a pipeline to the next: a connection's whole state, as a tuple of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from levada._errors import UsageError
from levada.connection import State

__all__ = ["Crossing", "shapes_only", "state_from", "tensors_of"]


@final
@dataclass(frozen=True)
class Place:
    """Which of the tensors that cross stands here."""

    number: int


@final
@dataclass(frozen=True)
class Crossing:
    """What a stage sends on for a micro-batch; the gradients that come back are as much.

    A tensor that the state holds twice crosses once. What a state holds beside tensors and numbers serves layers of one
    process, such as the memory that `Dense` shares or the place of an `Invertible`'s newest state: it stays, and the
    other side gets None for it.

    Attributes:
        shapes: of the tensors.
        dtypes: of the tensors.
        form: the state with a `Place` for each tensor.
    """

    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    form: Any

    @property
    def bytes(self) -> int:
        """Bytes that cross for each micro-batch, in each direction."""
        return sum(shape.numel() * dtype.itemsize for shape, dtype in zip(self.shapes, self.dtypes, strict=True))


def tensors_of(state: State, owner: str, expected: Crossing | None = None) -> tuple[tuple[Tensor, ...], Crossing]:
    """Return the tensors of a state, each once and contiguous, and what they are.

    Gradients arrive for all of them, so that they pass through one function, whose backward pass begins when the last
    has come.

    Args:
        state: what the last layer of a stage left.
        owner: the connection's name, for errors.
        expected: what the next stage waits for.

    Raises:
        UsageError: if the state holds something that cannot cross, or is not what is expected.
    """
    found: dict[int, tuple[Place, Tensor]] = {}  # by identity
    form = _replaced(state, lambda leaf: _place(leaf, found, owner))
    tensors = [tensor for _, tensor in found.values()]
    crossing = Crossing(tuple(t.shape for t in tensors), tuple(t.dtype for t in tensors), form)
    if expected is not None and crossing != expected:
        raise UsageError(
            f"Pipeline: what crosses a boundary must have one form in all micro-batches, and {owner}'s state has "
            f"{_form(crossing)} where {_form(expected)} were expected. Do not change a state's form from step to step."
        )
    return _Leave.apply(*tensors), crossing  # type: ignore[no-untyped-call]


def state_from(tensors: Sequence[Tensor], crossing: Crossing) -> State:
    """Put a state together again from what crossed.

    A tensor that no later layer reads has no gradient; the stage before gets zeros for it.

    Args:
        tensors: what came.
        crossing: what it is.
    """
    arrived = _Arrive.apply(*tensors)  # type: ignore[no-untyped-call]
    return _replaced(crossing.form, lambda leaf: arrived[leaf.number] if isinstance(leaf, Place) else leaf)


def _replaced(node: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(node, tuple | list):
        inner = [_replaced(part, function) for part in node]
        return type(node)(*inner) if hasattr(node, "_fields") else type(node)(inner)
    if isinstance(node, dict):
        return type(node)((key, _replaced(part, function)) for key, part in node.items())
    return function(node)


def _place(leaf: Any, found: dict[int, tuple[Place, Tensor]], owner: str) -> Any:
    if isinstance(leaf, Tensor):
        if not leaf.is_floating_point():
            raise UsageError(
                f"Pipeline: what crosses a boundary must have a gradient, and {owner}'s state holds a tensor of "
                f"{leaf.dtype}. Keep it in a buffer of the layers that need it."
            )
        return found.setdefault(id(leaf), (Place(len(found)), leaf))[0]
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return leaf
    if tree_leaves(leaf):  # known to hold tensors, or not known at all: then it is a leaf of its own
        raise UsageError(
            f"Pipeline: a state must be made of tensors in tuples, lists or mappings, and {owner}'s holds a "
            f"{type(leaf).__name__}."
        )
    return None


def _form(crossing: Crossing) -> str:
    return ", ".join(
        f"{tuple(shape)} {str(dtype).removeprefix('torch.')}"
        for shape, dtype in zip(crossing.shapes, crossing.dtypes, strict=True)
    )


@final
class _Leave(torch.autograd.Function):
    """Make what is sent contiguous: a process receives into dense memory."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.contiguous().view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


@final
class _Arrive(torch.autograd.Function):
    """Make each gradient that is sent back contiguous, and zero where there is none."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(gradient.contiguous() for gradient in gradients)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextmanager
def shapes_only(module: nn.Module) -> Iterator[None]:
    """Run modules for the shapes of what they return: nothing is computed, counted, drawn, compiled or heard of.

    Args:
        module: whose hooks are silent meanwhile.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    hooks = [(m, name, getattr(m, name)) for m in module.modules() for name in _HOOKS if getattr(m, name)]
    buffers = [(m._buffers, name, b) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # or the step's weights would be those without values that were made here
    try:
        for m, name, held in hooks:
            setattr(m, name, type(held)())
        for own, name, buffer in buffers:
            own[name] = mode.from_tensor(buffer)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), mode:
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for m, name, held in hooks:
            setattr(m, name, held)
        for own, name, buffer in buffers:
            own[name] = buffer
