"""Reading streams through gates on a GPU: the library's own matrix products, and a kernel for all between two of them.

Forward, `_normalise` writes the normalised streams, which the first product takes, and `_average` sums the streams
through the gates of what the second one gave. Backward, both are made again; `_by_gates` writes the gradients by the
features and by the gates' logits, and `_by_streams` takes the first to the streams, and adds up the gain's over tokens.
Products are in float32, as their sums are the gates' logits and the weights that write.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

from typing import Final

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor
from torch.nn import functional

from levada.ops._device import TYPES, as_float32, on, past_limit
from levada.ops._precision import full_precision
from levada.ops.gated import reference

__all__ = ["BLOCK", "LIMIT", "PARTS", "block_of", "read", "read_backward", "takes"]

# What a sweep may set: channels that `_average` and `_by_gates` take, and programs of `_by_streams` for each stream.
BLOCK: Final = {"channels": 1024}
PARTS: Final = {"programs": 256}
LIMIT: Final = {"width": 2**14}  # channels of a stream: a program has all of them in registers


@triton.jit
def _normalise(
    state, gain, inverse, features,
    width: tl.constexpr, n: tl.constexpr, block: tl.constexpr, epsilon: tl.constexpr, known: tl.constexpr,
):  # fmt: skip
    """Write a token's stream over its root mean square, times its gain; the norm is written too, or known."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    x = tl.load(state + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if known:
        factor = tl.load(inverse + row)
    else:
        factor = 1 / tl.sqrt(tl.sum(x * x) / width + epsilon)
        tl.store(inverse + row, factor)
    scale = tl.load(gain + (row % n) * width + column, mask=inside, other=0.0)
    tl.store(features + row * width + column, factor * scale * x, mask=inside)


@triton.jit
def _gate(logits, place, inside):
    return 1 / (1 + tl.exp(-tl.load(logits + place, mask=inside, other=0.0)))


@triton.jit
def _average(
    features, logits, x,
    width: tl.constexpr, n: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write a block of channels of the gated mean of a token's streams."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    total = tl.zeros([block], dtype=tl.float32)
    for j in tl.static_range(n):
        place = (token * n + j) * width + column
        total += _gate(logits, place, inside) * tl.load(features + place, mask=inside, other=0.0)
    tl.store(x + token * width + column, total / n, mask=inside)


@triton.jit
def _by_gates(
    by_x, logits, features, by_features,
    width: tl.constexpr, n: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Write the gradient by the features, but for the way through the gates, and that by the logits over them."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < width
    share = tl.load(by_x + token * width + column, mask=inside, other=0.0).to(tl.float32) / n
    for j in tl.static_range(n):
        place = (token * n + j) * width + column
        gate = _gate(logits, place, inside)
        tl.store(by_features + place, share * gate, mask=inside)
        found = share * tl.load(features + place, mask=inside, other=0.0) * gate * (1 - gate)
        tl.store(logits + place, found, mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _by_streams(
    by_features, by_new, state, inverse, gain, by_state, by_gain, tokens,
    width: tl.constexpr, n: tl.constexpr, block: tl.constexpr, adds: tl.constexpr,
):  # fmt: skip
    """Write the gradient by a stream of some tokens, and what the gain gets from them."""
    j = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    column = tl.arange(0, block)
    inside = column < width
    scale = tl.load(gain + j * width + column, mask=inside, other=0.0)
    total = tl.zeros([block], dtype=tl.float32)
    for token in range(part, tokens, tl.num_programs(1)):  # far apart, so that all programs have as many
        row = token * n + j
        factor = tl.load(inverse + row)
        x = tl.load(state + row * width + column, mask=inside, other=0.0).to(tl.float32)
        found = tl.load(by_features + row * width + column, mask=inside, other=0.0)
        total += factor * found * x
        found *= scale
        shrink = tl.sum(found * x) * factor * factor * factor / width
        found = factor * found - shrink * x
        if adds:
            found += tl.load(by_new + row * width + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(by_state + row * width + column, found, mask=inside)
    tl.store(by_gain + (part * n + j) * width + column, total, mask=inside)


def read(
    state: Tensor, gain: Tensor, down: Tensor, up: Tensor, projection: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that write, and what was projected and norms for the way back."""
    if not takes(state):
        return reference.read_and_keep(state, gain, down, up, projection, epsilon)
    tokens, n, width = state.shape
    rank, state = len(down), state.contiguous()
    x = state.new_empty(tokens, width)
    inverse = torch.empty(tokens, n, dtype=torch.float32, device=state.device)
    features = _features(state, gain, inverse, epsilon, known=False)
    with full_precision(state):
        found = functional.linear(features, as_float32(reference.stacked(down, projection)))
        logits = functional.linear(functional.silu(found[:, :rank] / n), as_float32(up))
    with on(state.device):
        block = block_of(width, BLOCK["channels"])
        _average[(tokens, triton.cdiv(width, block))](features, logits, x, width=width, n=n, block=block)
    return x, 2 * torch.sigmoid(found[:, rank:] / n), found, inverse


def read_backward(
    by_x: Tensor, by_writes: Tensor, by_new: Tensor | None,
    state: Tensor, gain: Tensor, down: Tensor, up: Tensor, projection: Tensor | None,
    found: Tensor, inverse: Tensor, epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients by state, gain, down, up and projection; see the reference."""
    if not takes(state):
        parameters = gain, down, up, projection
        return reference.read_backward(by_x, by_writes, by_new, state, *parameters, found, inverse, epsilon)
    tokens, n, width = state.shape
    rank, state = len(down), state.contiguous()
    weights, narrow_weights = as_float32(reference.stacked(down, projection)), as_float32(up)
    features = _features(state, gain, inverse, epsilon, known=True)
    scaled = found / n
    sigma = torch.sigmoid(scaled)
    logits, open_, writes = scaled[:, :rank], sigma[:, :rank], sigma[:, rank:]
    narrow = logits * open_
    by_features, by_state = torch.empty_like(features), torch.empty_like(state)
    by_gain = torch.empty(min(PARTS["programs"], tokens), n, width, dtype=torch.float32, device=state.device)
    with full_precision(state), on(state.device):
        by_logits = functional.linear(narrow, narrow_weights)
        block = block_of(width, BLOCK["channels"])
        _by_gates[(tokens, triton.cdiv(width, block))](
            by_x.contiguous(), by_logits, features, by_features, width=width, n=n, block=block
        )
        by_narrow = (by_logits @ narrow_weights) * open_ * (1 + logits * (1 - open_))
        by_found = torch.cat([by_narrow, 2 * by_writes * writes * (1 - writes)], 1) / n
        by_up, by_weights = by_logits.mT @ narrow, by_found.mT @ features
        by_features.addmm_(by_found, weights)
        _by_streams[(n, len(by_gain))](
            by_features, state if by_new is None else by_new.contiguous(), state, inverse, as_float32(gain), by_state,
            by_gain, tokens, width=width, n=n, block=block_of(width, width), adds=by_new is not None,
            num_warps=_warps(width),
        )  # fmt: skip
    by_projection = gain.new_empty(0) if projection is None else by_weights[rank:].to(projection.dtype, copy=True)
    return (
        by_state,
        by_gain.sum(0).to(gain.dtype),
        by_weights[:rank].to(down.dtype),
        by_up.to(up.dtype),
        by_projection,
    )


def _features(state: Tensor, gain: Tensor, inverse: Tensor, epsilon: float, *, known: bool) -> Tensor:
    """Return the normalised streams side by side, in float32; the norms are written, or known."""
    tokens, n, width = state.shape
    features = torch.empty(tokens, n * width, dtype=torch.float32, device=state.device)
    with on(state.device):
        _normalise[(tokens * n,)](
            state, as_float32(gain), inverse, features, width=width, n=n, block=block_of(width, width), epsilon=epsilon,
            known=known, num_warps=_warps(width),
        )  # fmt: skip
    return features


def block_of(width: int, most: int) -> int:
    """Return how many channels a program takes, of at most so many that are asked for.

    Args:
        width: of a stream.
        most: what is asked for.
    """
    return int(min(triton.next_power_of_2(most), max(16, triton.next_power_of_2(width))))


def _warps(width: int) -> int:
    return int(min(8, max(1, triton.next_power_of_2(width) // 512)))


def takes(state: Tensor) -> bool:
    """Return whether the kernels take these: float64 they leave to the reference, and what is past their limit.

    Args:
        state: the streams.
    """
    if state.dtype not in TYPES or not state.numel():
        return False
    if state.shape[2] > LIMIT["width"]:
        past_limit(f"streams of {state.shape[2]} channels, read through gates", f"at most {LIMIT['width']} channels")
        return False
    return True
