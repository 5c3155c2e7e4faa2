"""Cases of reading streams by weights that the layer before has made: single-pass hyper-connections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case, read_inputs, reading
from levada.ops.manifold.handed import read_handed, reference
from levada.ops.manifold.reference import Form

__all__ = ["cases"]

_FORM = Form()


def _inputs(tokens: int, n: int, width: int) -> Sequence[Tensor]:
    state, *own = read_inputs(tokens, n, width, mixes=True)
    return [state, torch.rand(tokens, n).requires_grad_(), *own]


def _plain(state: Tensor, handed: Tensor, *own: Tensor) -> Sequence[Tensor]:
    """What one writes."""
    x, reads, writes, mix = reference.read(state, handed, *own, _FORM)
    return [x, reads, writes, mix, state.view_as(state)]  # type: ignore[list-item]


def _ours(state: Tensor, handed: Tensor, *own: Tensor) -> Sequence[Tensor]:
    x, reads, writes, mix, new = read_handed(state, handed, *own, _FORM)  # type: ignore[call-arg]
    return [x, reads, writes, mix, new]  # type: ignore[list-item]


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for size in sizes:
        yield reading("read_handed", size, _inputs, _plain, _ours, parameters=4)
