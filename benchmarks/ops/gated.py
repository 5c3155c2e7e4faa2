"""Cases of reading streams through a gate for each element: the products of rank `width / 8` are not in the bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case, reading
from levada.ops.gated import read_gated, reference

__all__ = ["cases"]


def _inputs(tokens: int, n: int, width: int) -> Sequence[Tensor]:
    rank, size = max(width // 8, 1), n * width
    tensors = [
        torch.randn(tokens, n, width),
        torch.rand(n, width) + 0.5,
        torch.randn(rank, size) * size**-0.5,
        torch.randn(size, rank) * rank**-0.5,
        torch.randn(n, size) * size**-0.5,
    ]
    return [x.requires_grad_() for x in tensors]


def _plain(state: Tensor, *parameters: Tensor) -> Sequence[Tensor]:
    """What one writes."""
    return [*reference.read(state, *parameters, 1e-6), state.view_as(state)]


def _ours(state: Tensor, *parameters: Tensor) -> Sequence[Tensor]:
    return read_gated(state, *parameters, 1e-6)


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for size in sizes:
        yield reading("read_gated", size, _inputs, _plain, _ours, parameters=4)
