"""Cases of reading all of many streams and scoring some: sparse hyper-connections, by plain operations on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case, reading
from levada.ops.sparse import read_and_score, reference

__all__ = ["cases"]


def _inputs(tokens: int, n: int, width: int) -> Sequence[Tensor]:
    size = n * width
    tensors = [
        torch.randn(tokens, n, width),
        torch.randn(n + max(n - 2, 0), size) * size**-0.5,
        torch.full((1,), 0.5),
        torch.randn(n),
    ]
    return [x.requires_grad_() for x in tensors]


def _plain(state: Tensor, *own: Tensor) -> Sequence[Tensor]:
    """What one writes."""
    return [*reference.read(state, *own, 1e-6), state.view_as(state)]


def _ours(state: Tensor, *own: Tensor) -> Sequence[Tensor]:
    return read_and_score(state, *own, 1e-6)


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for size in sizes:
        if size[1] > 2:  # two are fixed, and have no scores
            yield reading("read_and_score", size, _inputs, _plain, _ours, parameters=3)
