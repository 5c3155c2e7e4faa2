"""Cases of reading streams by weights that each stream decides, and by those of all tokens: hyper-connections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case, hyper_inputs, reading
from levada.ops.hyper import Parameters, read_hyper, reference
from levada.ops.hyper.static import read_static
from levada.ops.hyper.static import reference as static

__all__ = ["cases"]


def _plain(state: Tensor, *own: Tensor) -> Sequence[Tensor]:
    """What one writes."""
    return [*reference.read(state, Parameters(*own), 1e-5), state.view_as(state)]


def _ours(state: Tensor, *own: Tensor) -> Sequence[Tensor]:
    return read_hyper(state, Parameters(*own), 1e-5)


def _static_inputs(tokens: int, n: int, width: int) -> Sequence[Tensor]:
    return [torch.randn(tokens, n, width).requires_grad_(), torch.rand(n).requires_grad_()]


def _plain_static(state: Tensor, weights: Tensor) -> Sequence[Tensor]:
    return [static.read(state, weights), state.view_as(state)]


def _our_static(state: Tensor, weights: Tensor) -> Sequence[Tensor]:
    return read_static(state, weights)


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for size in sizes:
        yield reading("read_hyper", size, hyper_inputs, _plain, _ours, parameters=8, tolerance=64.0)
        yield reading("read_static", size, _static_inputs, _plain_static, _our_static, parameters=1)
