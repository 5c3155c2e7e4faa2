"""Cases of reading streams by weights that each stream decides, and by those of all tokens: hyper-connections."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case, compiled, hyper_inputs
from levada.ops.hyper import Parameters, read_hyper, reference
from levada.ops.hyper.static import read_static
from levada.ops.hyper.static import reference as static

__all__ = ["cases"]


def _plain(state: Tensor, *own: Tensor) -> Sequence[Tensor]:
    """What one writes; the streams are handed on, so that a gradient arrives by them as well."""
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
    for tokens, n, width in sizes:
        moved = {"forward": (n + 1) * tokens * width, "backward": (3 * n + 1) * tokens * width}
        size = {"tokens": tokens, "streams": n, "width": width}
        yield Case(
            operator="read_hyper",
            size=size,
            make=functools.partial(hyper_inputs, tokens, n, width),
            programs={"reference": _plain, "compiled reference": compiled(_plain), "levada": _ours},
            tolerance=64.0,
            wide=frozenset(range(1, 9)),
            **moved,
        )
        yield Case(
            operator="read_static",
            size=size,
            make=functools.partial(_static_inputs, tokens, n, width),
            programs={"reference": _plain_static, "compiled reference": compiled(_plain_static), "levada": _our_static},
            tolerance=32.0,
            wide=frozenset({1}),
            **moved,
        )
