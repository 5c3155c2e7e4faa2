"""What a call of `torch.autograd.backward` was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["gradients_given", "retains", "scalars_of"]


def retains(
    grad_tensors: Any = None, retain_graph: Any = None, create_graph: Any = False, *_: Any, **named: Any
) -> bool:
    """Return whether a `backward` keeps its graph.

    Args:
        grad_tensors: its second argument.
        retain_graph: its third.
        create_graph: its fourth.
        **named: others, by name.

    Example:
        >>> retains(None, True), retains(create_graph=True), retains()
        (True, True, False)
    """
    return bool(create_graph if retain_graph is None else retain_graph)


def gradients_given(roots: Sequence[Tensor], given: Any = None, *_: Any, **named: Any) -> Sequence[Tensor | None]:
    """Return the gradient that `backward` was given for each root, or None.

    Args:
        roots: where it begins.
        given: its second argument.
        **named: others, by name.
    """
    given = named.get("grad_tensors", given)
    if given is None:
        return [None] * len(roots)
    found = given if isinstance(given, list | tuple) else [given] * len(roots)
    return [gradient if isinstance(gradient, Tensor) else None for gradient in found]


def scalars_of(tensors: Any) -> tuple[Tensor, ...]:
    """Return the tensors of one element at which `backward` begins; none if others are among them.

    Args:
        tensors: its first argument.
    """
    if isinstance(tensors, Tensor):
        return (tensors,) if tensors.numel() == 1 else ()
    found: tuple[Any, ...] = tuple(tensors) if isinstance(tensors, list | tuple) else ()
    return found if found and all(isinstance(t, Tensor) and t.numel() == 1 for t in found) else ()
