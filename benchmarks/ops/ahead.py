"""Cases of writing to streams and reading them again, one layer's end and the next one's beginning."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case, read_inputs
from levada.ops import write_streams
from levada.ops.manifold import Form, read_streams, reference
from levada.ops.manifold.ahead import write_and_read
from levada.ops.streams import reference as streams

__all__ = ["cases"]

_FORM = Form()


def _inputs(tokens: int, n: int, width: int) -> Sequence[Tensor]:
    state, *parameters = read_inputs(tokens, n, width, mixes=True)
    tensors = [
        state,
        torch.randn(tokens, width),
        torch.rand(tokens, n),
        torch.softmax(torch.randn(tokens, n, n), -1),
    ]
    return [*(x.requires_grad_() for x in tensors), *parameters]


def _plain(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor, *parameters: Tensor) -> Sequence[Tensor]:
    new = streams.write(state, out, weights, mix)
    x, _, writes, mixes = reference.read(new, *parameters, _FORM)
    return [x, writes, mixes, new]


def _two(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor, *parameters: Tensor) -> Sequence[Tensor]:
    x, _, writes, mixes, new = read_streams(write_streams(state, out, weights, mix), *parameters, _FORM)
    return [x, writes, mixes, new]


def _one(state: Tensor, out: Tensor, weights: Tensor, mix: Tensor, *parameters: Tensor) -> Sequence[Tensor]:
    x, _, writes, mixes, new = write_and_read(state, out, weights, mix, *parameters, _FORM)
    return [x, writes, mixes, new]  # type: ignore[list-item]


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens, streams, width."""
    for tokens, n, width in sizes:
        yield Case(
            operator="write and read",
            size={"tokens": tokens, "streams": n, "width": width},
            make=functools.partial(_inputs, tokens, n, width),
            programs={"reference": _plain, "levada, two operations": _two, "levada": _one},
            forward=(3 * n + 2) * tokens * width,
            backward=(6 * n + 3) * tokens * width,
            tolerance=32.0,
            wide=frozenset({2, 3, 4, 5, 6}),
        )
