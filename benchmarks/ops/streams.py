"""Cases of writing to streams: `mix @ state + weights out`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case, compiled
from levada.ops import write_streams

__all__ = ["cases"]


def _inputs(tokens: int, n: int, width: int, mixes: bool) -> Sequence[Tensor]:
    tensors = [torch.randn(tokens, n, width), torch.randn(tokens, width), torch.rand(tokens, n)]
    if mixes:
        tensors.append(torch.softmax(torch.randn(tokens, n, n), -1))
    return [x.requires_grad_() for x in tensors]


def _plain(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None = None) -> Sequence[Tensor]:
    """What one writes: sums in float32."""
    wide = state if mix is None else mix @ state.to(mix.dtype)
    return [(wide + weights.unsqueeze(-1) * out.unsqueeze(-2)).to(state.dtype)]


def _ours(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor | None = None) -> Sequence[Tensor]:
    return [write_streams(state, out, weights, mix)]


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for tokens, n, width in sizes:
        for mixes in (True, False):
            yield Case(
                operator="write_streams" if mixes else "write_streams, identity",
                size={"tokens": tokens, "streams": n, "width": width},
                make=functools.partial(_inputs, tokens, n, width, mixes),
                programs={"reference": _plain, "compiled reference": compiled(_plain), "levada": _ours},
                forward=tokens * width * (2 * n + 1),
                backward=tokens * width * (3 * n + 2 if mixes else n + 2),
                wide=frozenset({2, 3}),
            )
