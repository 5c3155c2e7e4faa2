"""Connections that compute their activations again in the backward pass, made to keep them while they are measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from levada.connection import Connection

__all__ = ["activations_kept"]


@contextlib.contextmanager
def activations_kept(model: nn.Module) -> Iterator[None]:
    """Let connections that undo their layers keep the activations instead, in forward passes inside the context.

    The numbers are the same, and the graph is an ordinary one: it holds every boundary, and one may go back through it
    several times and from the middle, which a recomputing layer refuses.

    Args:
        model: whose connections are switched, and switched back at the end.

    Example:
        >>> import levada
        >>> layer = levada.connection.Layer(levada.Reversible(2), nn.Identity())
        >>> with activations_kept(layer):
        ...     inside = layer.connection.recompute
        >>> inside, layer.connection.recompute
        (False, True)
    """
    switched = [m for m in model.modules() if isinstance(m, Connection) and getattr(m, "recompute", None) is True]
    try:
        for connection in switched:
            connection.__dict__["recompute"] = False
        yield
    finally:
        for connection in switched:
            connection.__dict__["recompute"] = True
