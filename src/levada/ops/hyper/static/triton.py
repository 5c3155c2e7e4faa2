"""Reading streams by weights of all tokens on a GPU: forward the sum that others take too, backward in one pass.

Forward `(n + 1) dim` elements a token are moved, backward `(3 n + 1) dim`.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

from typing import Final

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops._device import TYPES, as_float32, on
from levada.ops.hyper.static import reference
from levada.ops.manifold.triton import block_of, sum_streams

__all__ = ["BACKWARD", "read", "read_backward"]

# What a sweep may set: channels of all streams together that are taken at a time, and warps.
BACKWARD: Final = {"elements": 4096, "num_warps": 4}


@triton.jit
def _static_backward(
    by_x, by_new, state, weights, by_state, by_weights,
    width: tl.constexpr, n: tl.constexpr, padded: tl.constexpr, block: tl.constexpr, adds: tl.constexpr,
):  # fmt: skip
    """Write a token's gradient by its streams, and its part of that by the weights."""
    token = tl.program_id(0).to(tl.int64)
    stream = tl.arange(0, padded)
    weight = tl.load(weights + stream, mask=stream < n, other=0.0)
    total = tl.zeros([padded, block], dtype=tl.float32)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        here = (stream < n)[:, None] & (column < width)[None, :]
        place = (token * n + stream)[:, None] * width + column[None, :]
        g = tl.load(by_x + token * width + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        total += g * tl.load(state + place, mask=here, other=0.0).to(tl.float32)
        found = weight[:, None] * g
        if adds:
            found += tl.load(by_new + place, mask=here, other=0.0).to(tl.float32)
        tl.store(by_state + place, found, mask=here)
    tl.store(by_weights + token * n + stream, tl.sum(total, 1), mask=stream < n)


def read(state: Tensor, weights: Tensor) -> tuple[Tensor]:
    """Return what the branch reads."""
    if state.dtype not in TYPES or not state.numel():
        return reference.read_and_keep(state, weights)
    # A row of n numbers a token, of n dim that are read.
    reads = as_float32(weights).expand(len(state), -1).contiguous()
    return (sum_streams(state.contiguous(), reads),)


def read_backward(by_x: Tensor, by_new: Tensor | None, state: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients by state and weights; see the reference."""
    if state.dtype not in TYPES or not state.numel():
        return reference.read_backward(by_x, by_new, state, weights)
    tokens, n, width = state.shape
    state, by_x = state.contiguous(), by_x.contiguous()
    by_state, padded = torch.empty_like(state), triton.next_power_of_2(n)
    by_weights = torch.empty(tokens, n, dtype=torch.float32, device=state.device)
    with on(state.device):
        _static_backward[(tokens,)](
            by_x, state if by_new is None else by_new.contiguous(), state, as_float32(weights), by_state, by_weights,
            width=width, n=n, padded=padded, block=block_of(width, BACKWARD["elements"] // padded),
            adds=by_new is not None, num_warps=BACKWARD["num_warps"],
        )  # fmt: skip
    return by_state, by_weights.sum(0).to(weights.dtype)
