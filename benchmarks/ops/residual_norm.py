"""Cases of a residual connection and the norm behind it: `y = x + f`, `z = norm(y) * weight (+ bias)`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.ops import Case, compiled
from levada.ops.residual_norm import residual_norm

__all__ = ["cases"]


def _inputs(tokens: int, width: int, centred: bool) -> Sequence[Tensor]:
    tensors = [torch.randn(tokens, width), torch.randn(tokens, width), torch.rand(width)]
    return [x.requires_grad_() for x in (*tensors, *([torch.randn(width)] if centred else []))]


def _plain(state: Tensor, out: Tensor, weight: Tensor, bias: Tensor | None = None) -> Sequence[Tensor]:
    """What one writes: in float32."""
    y = state + out
    wide = y.to(weight.dtype)
    wide = wide if bias is None else wide - wide.mean(-1, keepdim=True)
    z = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight
    return [y, (z if bias is None else z + bias).to(y.dtype)]


def _torch(state: Tensor, out: Tensor, weight: Tensor, bias: Tensor | None = None) -> Sequence[Tensor]:
    y = state + out
    weight, bias = weight.to(y.dtype), None if bias is None else bias.to(y.dtype)  # as torch wants them
    if bias is None:
        return [y, functional.rms_norm(y, y.shape[-1:], weight, 1e-5)]
    return [y, functional.layer_norm(y, y.shape[-1:], weight, bias, 1e-5)]


def _ours(state: Tensor, out: Tensor, weight: Tensor, bias: Tensor | None = None) -> Sequence[Tensor]:
    return residual_norm(state, out, weight, bias, centred=bias is not None)


def cases(sizes: Sequence[tuple[int, int, int]]) -> Iterator[Case]:
    """Yield cases at sizes of tokens and width; the number of streams is for others."""
    for tokens, width in dict.fromkeys((tokens, width) for tokens, _, width in sizes):
        for centred in (False, True):
            yield Case(
                operator="residual + layer norm" if centred else "residual + RMS norm",
                size={"tokens": tokens, "width": width},
                make=functools.partial(_inputs, tokens, width, centred),
                programs={
                    "reference": _plain,
                    "compiled reference": compiled(_plain),
                    "torch": _torch,
                    "levada": _ours,
                },
                forward=4 * tokens * width,
                backward=4 * tokens * width,
                wide=frozenset({2, 3}),
            )
