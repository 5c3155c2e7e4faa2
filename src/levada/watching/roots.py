"""What a call of `torch.autograd.backward` was given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

__all__ = ["gradients_given", "retains", "scalars_of"]


def retains(*args: Any, **named: Any) -> bool:
    """Return whether a `backward` keeps its graph.

    Args:
        *args: behind the tensors.
        **named: by name.

    Example:
        >>> retains(None, True), retains(create_graph=True), retains()
        (True, True, False)
    """
    given = dict(zip(("grad_tensors", "retain_graph", "create_graph"), args, strict=False), **named)
    kept = given.get("retain_graph")
    return bool(given.get("create_graph") if kept is None else kept)


def gradients_given(roots: Sequence[Tensor], given: Any = None, *_: Any, **named: Any) -> Sequence[Tensor | None]:
    """Return the gradient that `backward` was given for each root, or None.

    Args:
        roots: where it begins.
        given: its second argument.
        **named: others, by name.
    """
    given = named.get("grad_tensors", given)
    found = given if isinstance(given, list | tuple) else [given] * len(roots)
    return [gradient if isinstance(gradient, Tensor) else None for gradient in found]


def scalars_of(tensors: Any) -> tuple[Tensor, ...]:
    """Return the tensors of one element at which `backward` begins; none if others are among them.

    Args:
        tensors: its first argument.
    """
    given: Iterable[Any] = (
        (tensors,) if isinstance(tensors, Tensor) else tensors if isinstance(tensors, list | tuple) else ()
    )
    found = tuple(given)
    return found if found and all(isinstance(t, Tensor) and t.numel() == 1 for t in found) else ()
