"""Cases of Sinkhorn normalisation: tokens are its matrices, streams their rows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.ops import Case, compiled
from levada.ops import sinkhorn
from levada.ops.sinkhorn import reference

__all__ = ["cases"]

_ITERATIONS = 20


def _inputs(tokens: int, n: int) -> Sequence[Tensor]:
    return [torch.randn(tokens, n, n).requires_grad_()]


def _written_out(logits: Tensor) -> Sequence[Tensor]:
    """What one writes; autograd keeps each step."""
    mix = (logits - logits.amax((-2, -1), keepdim=True)).exp()
    for _ in range(_ITERATIONS):
        mix = mix / mix.sum(-2, keepdim=True)
        mix = mix / mix.sum(-1, keepdim=True)
    return [mix]


def _plain(logits: Tensor) -> Sequence[Tensor]:
    return [reference.sinkhorn(logits, _ITERATIONS, 0.0)]


def _ours(logits: Tensor) -> Sequence[Tensor]:
    return [sinkhorn(logits, _ITERATIONS)]


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens and streams; no width matters. Logits are in float32, as coefficients are."""
    for tokens, n in dict.fromkeys((tokens, n) for tokens, n, _ in sizes):
        yield Case(
            operator="sinkhorn",
            size={"matrices": tokens, "rows": n},
            make=functools.partial(_inputs, tokens, n),
            programs={
                "reference": _plain,
                "written out": _written_out,
                "compiled, written out": compiled(_written_out),
                "levada": _ours,
            },
            forward=2 * tokens * n * n,
            backward=3 * tokens * n * n,
            tolerance=64.0,
            wide=frozenset({0}),
        )
