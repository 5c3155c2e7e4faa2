"""Cases of statistics of many tensors: as many as streams times three, of a layer's size; nothing is differentiated."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case
from levada.ops import tensor_statistics
from levada.ops.statistics import reference

__all__ = ["cases"]


def _inputs(tokens: int, count: int, width: int) -> Sequence[Tensor]:
    return [torch.randn(tokens, width) for _ in range(count)]


def _plain(*tensors: Tensor) -> Sequence[Tensor]:
    """What one writes, tensor by tensor."""
    return [reference.statistics(tensors)]


def _ours(*tensors: Tensor) -> Sequence[Tensor]:
    return [tensor_statistics(tensors)]


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for tokens, n, width in sizes:
        count = 3 * n
        yield Case(
            operator="tensor_statistics",
            size={"tokens": tokens, "tensors": count, "width": width},
            make=functools.partial(_inputs, tokens, count, width),
            programs={"reference": _plain, "levada": _ours},
            forward=count * tokens * width,
            backward=0,
        )
