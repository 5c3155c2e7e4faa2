"""What every operation refuses: kernels find their way in memory by the shapes of a few of its tensors alone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levada._errors import UsageError

__all__ = ["MisfitError", "Signature", "axes", "differ", "require_iterations", "requirement"]

Shapes = Callable[..., Sequence[Sequence[int] | None]]
"""Takes an operation's arguments and returns its tensors' shapes in turn, of a list that of each; None for any."""


class Signature(NamedTuple):
    """What an operation takes, and how many tensors it returns.

    Attributes:
        schema: arguments and results, as in `(Tensor x) -> Tensor`, tensors first.
        shapes: of the tensors that it takes.
        types: the same of their types, None for any real floating one, as all are if it is left out. A gradient's
            kernels ask for more: what arrives is of the types of what was returned.
    """

    schema: str
    shapes: Shapes
    types: Callable[..., Sequence[torch.dtype | None]] | None = None


class MisfitError(Exception):
    """An argument cannot be used, whatever the others are: what is required, and what came."""


def axes(name: str, x: Tensor, *names: str) -> torch.Size:
    """Return the shape of a tensor that has these axes.

    Args:
        name: the argument's name.
        x: the tensor.
        *names: of its axes.

    Raises:
        MisfitError: if it has another number of axes.
    """
    if x.ndim != len(names):
        raise MisfitError(f"{name} must be ({', '.join(names)}), got {tuple(x.shape)}")
    return x.shape


def require_iterations(iterations: int) -> None:
    """Raise unless there is an iteration or more: kernels read what the first one leaves.

    Raises:
        MisfitError: if there is none.
    """
    if iterations < 1:
        raise MisfitError(f"iterations must be at least 1, got {iterations}")


def differ(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Return whether shapes differ; of sizes that a trace cannot compare, that they do not.

    The kernel compares them where they are known.

    Args:
        shape: a tensor's.
        expected: what it must be.
    """
    unlike = [a != b for a, b in zip(shape, expected, strict=False)]
    return len(shape) != len(expected) or any(map(_is_so, unlike))


def _is_so(truth: bool | torch.SymBool) -> bool:
    if isinstance(truth, bool):
        return truth
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return bool(guard_or_false(truth))


def requirement(
    name: str, signature: Signature, differ: Callable[[Any, Any], bool] = operator.ne
) -> Callable[[Sequence[Any]], None]:
    """Return a function that refuses an operation's arguments if tensors do not fit each other.

    They must have the shapes and types that it says, real floating ones where it says none, and be on one device.

    Args:
        name: of the operation.
        signature: with which it is registered.
        differ: compares two shapes.
    """
    schema, shapes, types = signature
    arguments = [one.split() for one in schema[1 : schema.index(")")].split(", ")]
    names = [label for kind, label in arguments if kind.startswith("Tensor")]
    lists = [k for k, (kind, _) in enumerate(arguments) if kind == "Tensor[]"]

    def require(given: Sequence[Any]) -> None:
        try:
            expected = shapes(*given)
        except MisfitError as misfit:
            raise UsageError(f"levada::{name}: {misfit}. Call it with what its function in levada.ops gives.") from None
        tensors = given[: len(names)]
        for k in lists:  # an argument that is a list is as many tensors of one shape
            expected = (*expected[:k], *[expected[k]] * len(tensors[k]), *expected[k + 1 :])
            tensors = (*tensors[:k], *tensors[k], *tensors[k + 1 :])
        device = None
        for x, shape in zip(tensors, expected, strict=True):
            if x is None:
                continue
            device = device or x.device
            if (shape is not None and differ(x.shape, shape)) or x.device != device or not x.is_floating_point():
                raise _refusal(name, [*_labelled(names, given)], expected, differ)
        for label, x, dtype in zip(names, given, types(*given) if types else (), strict=False):
            if x is not None and dtype is not None and x.dtype != dtype:
                raise UsageError(
                    f"levada::{name}: {label} must be of {dtype} beside the others, got {x.dtype}. Convert it first."
                )

    return require


def _labelled(names: Iterable[str], given: Iterable[Any]) -> Iterator[tuple[str, Tensor | None]]:
    for name, x in zip(names, given, strict=False):
        if isinstance(x, list | tuple):
            yield from ((f"{name}[{k}]", one) for k, one in enumerate(x))
        else:
            yield name, x


def _refusal(
    name: str,
    labelled: Sequence[tuple[str, Tensor | None]],
    expected: Sequence[Sequence[int] | None],
    differ: Callable[[Any, Any], bool],
) -> UsageError:
    given = [(label, x, shape) for (label, x), shape in zip(labelled, expected, strict=True) if x is not None]
    for label, x, shape in given:
        if shape is not None and differ(x.shape, tuple(shape)):
            return UsageError(
                f"levada::{name}: {label} must be {tuple(shape)} beside the other tensors, got "
                f"{tuple(x.shape)}. Reshape it: kernels find their way in memory by these shapes."
            )
    first, like, _ = given[0]
    label, x = next((label, x) for label, x, _ in given if x.device != like.device or not x.is_floating_point())
    return UsageError(
        f"levada::{name}: {label} must be of real floating point, on {like.device} as {first} is, got {x.dtype} on "
        f"{x.device}. Convert it first."
    )
