"""What `torch.utils.flop_counter.FlopCounterMode` counts of the operations: their matrix products, as of others.

Imported with `levada.ops` where the counter is there already. Import it before a counter is made that came later: the
counter itself imports Triton, which takes seconds, so that nobody else should wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import levada.ops.gated
import levada.ops.hyper.static
import levada.ops.manifold.ahead
import levada.ops.manifold.handed
import levada.ops.sparse  # noqa: F401  (which registers operations)

__all__ = ["of_attention", "of_gates", "of_handed", "of_hyper", "of_reading", "of_static", "of_sums", "of_writing"]
__all__ += ["of_writing_and_reading"]

_Shape = Sequence[int]


def of_writing(state: _Shape, out: _Shape, weights: _Shape, mix: _Shape | None, **_: Any) -> int:
    """Count what the matrix mixes: two for each of n^2 dim products of a token."""
    return 0 if mix is None else 2 * math.prod(mix) * state[-1]


def of_reading(state: _Shape, projection: _Shape, *_: Any, **__: Any) -> int:
    """Count the projection of all streams, and their sum for the branch."""
    return 2 * math.prod(state) * (projection[0] + 1)


def of_handed(state: _Shape, handed: _Shape, *others: Any, **__: Any) -> int:
    """Count the same, where the weights of that sum were handed on."""
    return of_reading(state, *others)


def of_writing_and_reading(
    state: _Shape, out: _Shape, weights: _Shape, mix: _Shape | None, projection: _Shape, *_: Any, **__: Any
) -> int:
    """Count both."""
    return of_writing(state, out, weights, mix) + of_reading(state, projection)


def of_gates(
    state: _Shape, gain: _Shape, down: _Shape, up: _Shape, projection: _Shape | None, *_: Any, **__: Any
) -> int:
    """Count the product of rank `rank`, the weights that write, and the sum through the gates."""
    return 2 * math.prod(state) * (2 * down[0] + (0 if projection is None else projection[0]) + 1)


def of_hyper(state: _Shape, read: _Shape, mix: _Shape, write: _Shape, projection: _Shape, *_: Any, **__: Any) -> int:
    """Count the projection of each stream, and the sum of all for the branch."""
    return 2 * math.prod(state) * (projection[0] + 1)


def of_static(state: _Shape, read: _Shape, *_: Any, **__: Any) -> int:
    """Count the sum of all streams by weights of all tokens."""
    return 2 * math.prod(state)


def of_attention(query: _Shape, sources: Sequence[_Shape], *_: Any, **__: Any) -> int:
    """Count the products of queries and sources, and the means."""
    queries = math.prod(query[:-1])
    return 4 * queries * sum(map(math.prod, sources))


def of_sums(weights: _Shape, sources: Sequence[_Shape], *_: Any, **__: Any) -> int:
    """Count the sums over sources."""
    ways = weights[-2] if len(weights) > 1 else 1
    return 2 * ways * sum(map(math.prod, sources))


def _register(name: str, formula: Callable[..., int], before: int, left_out: int | None = None) -> None:
    """Register an operation and its backward pass, which has two products for each.

    Args:
        name: the operation's.
        formula: of its arguments' shapes.
        before: how many arguments the backward pass has before these.
        left_out: which of the following is none of these.
    """
    register_flop_formula(getattr(torch.ops.levada, name))(formula)

    def backward(*shapes: Any, **_: Any) -> int:
        return 2 * formula(*(shape for k, shape in enumerate(shapes[before:]) if k != left_out))

    register_flop_formula(getattr(torch.ops.levada, f"{name}_backward"))(backward)


_register("streams_write", of_writing, 1)
_register("streams_read", of_reading, 5)
_register("streams_read_handed", of_handed, 5)
_register("streams_read_gated", of_gates, 3)
_register("streams_read_hyper", of_hyper, 5)
_register("streams_read_sparse", of_reading, 4)
_register("streams_read_static", of_static, 2)
_register("streams_write_read", of_writing_and_reading, 5, left_out=4)  # the new streams
_register("depth_attend", of_attention, 1)
_register("depth_mix", of_sums, 1)
