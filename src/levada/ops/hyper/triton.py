"""Reading the streams of hyper-connections on a GPU, by the kernels that read those of other connections.

A stream is to them what all streams of a token are there: `project`, `_read`, `_by_reads` and `_by_state` are shared,
and so is what is moved, forward `(2 n + 1) dim` elements a token and backward `(4 n + 2) dim`. The weights' own kernels
are here. Weights that sum to zero take a norm's mean out; on the way back it is one more row of weights, ones.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
from __future__ import annotations

import functools
from typing import Any, Final

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]
from torch import Tensor

from levada.ops._device import TYPES, as_float32, on, past_limit
from levada.ops.hyper import reference
from levada.ops.hyper.reference import Parameters
from levada.ops.manifold.gates.triton import add_parts, store_by_logits
from levada.ops.manifold.products.triton import by_state_of, project
from levada.ops.manifold.triton import of_reads, sum_streams

__all__ = ["MOST_STREAMS", "WEIGHTS", "read", "read_backward", "takes"]

# What a sweep may set: streams that a program takes, of some tokens, and its warps.
WEIGHTS: Final = {"streams": 128, "num_warps": 4}
MOST_STREAMS: Final = 16


@triton.jit
def _tanh(x):
    small = tl.exp(-2 * tl.abs(x))
    size = (1 - small) / (1 + small)
    return tl.where(x < 0, -size, size)


@triton.jit(do_not_specialize=["tokens"])
def _weights(
    sums, static, offset, reads, mix, writes, features, norms, tokens,
    size: tl.constexpr, parts: tl.constexpr, n: tl.constexpr, padded: tl.constexpr, together: tl.constexpr,
    epsilon: tl.constexpr, centred: tl.constexpr,
):  # fmt: skip
    """Make the weights of tokens of what was projected; keep the features, one over sizes, and means."""
    count: tl.constexpr = n + 2
    columns: tl.constexpr = count + (3 if centred else 1)
    token = tl.program_id(0).to(tl.int64) * together + tl.arange(0, together)[:, None]
    stream = tl.arange(0, padded)[None, :]
    real = (token < tokens) & (stream < n)
    row = token * n + stream
    stride = tokens.to(tl.int64) * n * columns
    squares = add_parts(sums, row * columns + count, real, stride, parts) / size
    mean = tl.zeros([together, padded], dtype=tl.float32)
    if centred:
        over = add_parts(sums, row * columns + count + 1, real, stride, parts) / size
        squares = tl.maximum(squares - over * over, 0.0)
        mean = over + tl.load(sums + row * columns + count + 2, mask=real, other=0.0)
    inverse = 1 / tl.sqrt(squares + epsilon)
    tl.store(norms + 2 * row, inverse, mask=real)
    tl.store(norms + 2 * row + 1, mean, mask=real)
    for k in tl.static_range(count):
        found = add_parts(sums, row * columns + k, real, stride, parts)
        found *= inverse
        tl.store(features + row * count + k, found, mask=real)
        said = tl.load(static + n * count + (1 if k == count - 1 else 0)) * _tanh(found + tl.load(offset + k))
        value = tl.load(static + k * n + stream, mask=stream < n, other=0.0) + said
        if k == 0:
            tl.store(reads + row, value, mask=real)
        elif k == count - 1:
            tl.store(writes + row, value, mask=real)
        else:
            tl.store(mix + (token * n + (k - 1)) * n + stream, value, mask=real)


@triton.jit(do_not_specialize=["tokens"])
def _weights_backward(
    by_reads, by_mix, by_writes, features, norms, static, offset, by_logits, factors, sums, tokens,
    size: tl.constexpr, n: tl.constexpr, padded: tl.constexpr, together: tl.constexpr, split: tl.constexpr,
    centred: tl.constexpr,
):  # fmt: skip
    """Write streams' gradients by products, what streams are multiplied by, and a program's sums for the parameters."""
    count: tl.constexpr = n + 2
    columns: tl.constexpr = count + (1 if centred else 0)
    token = tl.program_id(0).to(tl.int64) * together + tl.arange(0, together)[:, None]
    stream = tl.arange(0, padded)[None, :]
    real = (token < tokens) & (stream < n)
    row = token * n + stream
    inverse = tl.load(norms + 2 * row, mask=real, other=0.0)
    mean = tl.load(norms + 2 * row + 1, mask=real, other=0.0)
    start = sums + tl.program_id(0).to(tl.int64) * (n * count + 2 + count)
    along = tl.zeros([together, padded], dtype=tl.float32)
    by_scale = tl.zeros([together, padded], dtype=tl.float32)
    for k in tl.static_range(count):
        if k == 0:
            g = tl.load(by_reads + row, mask=real, other=0.0)
        elif k == count - 1:
            g = tl.load(by_writes + row, mask=real, other=0.0)
        else:
            g = tl.load(by_mix + (token * n + (k - 1)) * n + stream, mask=real, other=0.0)
        scale = tl.load(static + n * count + (1 if k == count - 1 else 0))
        feature = tl.load(features + row * count + k, mask=real, other=0.0)
        said = _tanh(feature + tl.load(offset + k))
        if k == 0:
            weight = tl.load(static + stream, mask=stream < n, other=0.0) + scale * said
            tl.store(factors + 2 * row, weight, mask=real)
        tl.store(start + n * k + stream, tl.sum(g, 0)[None, :], mask=stream < n)
        if k == count - 1:
            tl.store(start + n * count, tl.sum(by_scale))
            tl.store(start + n * count + 1, tl.sum(g * said))
        by_scale += g * said
        found = g * scale * (1 - said * said)
        along += found * feature
        tl.store(start + n * count + 2 + k, tl.sum(found))
        store_by_logits(by_logits, row, k, found * inverse, real, columns, split)
    shrink = along * inverse * inverse / size
    tl.store(factors + 2 * row + 1, shrink, mask=real)
    if centred:
        store_by_logits(by_logits, row, count, shrink * mean, real, columns, split)


def read(state: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what the branch reads, the weights that read, mix and write, and features and norms for the way back."""
    if not takes(state):
        return reference.read_and_keep(state, *arguments)
    *given, epsilon = arguments
    own = Parameters(*given)
    tokens, n, width = state.shape
    state, centred = state.contiguous(), own.shift is not None
    weights, offset = reference.stacked(own, torch.float32)
    full = functools.partial(torch.empty, dtype=torch.float32, device=state.device)
    reads, mix, writes = full(tokens, n), full(tokens, n, n), full(tokens, n)
    features, norms = full(tokens, n, n + 2), full(tokens, n, 2)
    with on(state.device):
        sums = project(state.view(tokens * n, 1, width), weights, centred=centred)
        chosen = _options(n, width)
        _weights[(triton.cdiv(tokens, chosen["together"]),)](
            sums, _static(own), offset, reads, mix, writes, features, norms, tokens,
            parts=len(sums), epsilon=epsilon, centred=centred, **chosen,
        )  # fmt: skip
        x = sum_streams(state, reads)
    return x, reads, mix, writes, features, norms


def read_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Return the gradients by state and `Parameters`; see the reference."""
    by_x, by_reads, by_mix, by_writes, by_new, state, *given, features, norms, _ = arguments
    if not takes(state):
        return reference.read_backward(*arguments)
    own = Parameters(*given)
    tokens, n, width = state.shape
    count, centred = n + 2, own.shift is not None
    columns = count + centred
    state, by_x = state.contiguous(), by_x.contiguous()
    weights, offset = reference.stacked(own, torch.float32)
    split = state.dtype == torch.bfloat16  # float16 has not the range that gradients need
    full = functools.partial(torch.empty, dtype=torch.float32, device=state.device)
    with on(state.device):
        by_reads, factors = of_reads(by_x, state, by_reads), full(tokens, n, 2)
        chosen = _options(n, width)
        kind = state.dtype if split else torch.float32
        by_logits = torch.empty(tokens * n, (1 + split) * columns, dtype=kind, device=state.device)
        sums = full(triton.cdiv(tokens, chosen["together"]), n * count + 2 + count)
        _weights_backward[(len(sums),)](
            by_reads, by_mix.contiguous(), by_writes.contiguous(), features, norms, _static(own), offset,
            by_logits, factors, sums, tokens, split=split, centred=centred, **chosen,
        )  # fmt: skip
        factor = torch.cat([weights, weights.new_ones(1, width)]) if centred else weights
        by_state, by_weights = by_state_of(
            by_x, by_new, state.view(tokens * n, 1, width), by_logits, factors, factor, each=n
        )
    return by_state.view(state.shape), *_by_own(own, by_weights[:count], sums.sum(0))


def _by_own(own: Parameters, by_weights: Tensor, sums: Tensor) -> list[Tensor]:
    """Return the gradients by the parameters, of sums in the order in which the loops for a CPU have them too."""
    n = len(own.read)
    by_read, by_mix, by_write, *by_scales, by_offset = torch.split(sums, [n, n * n, n, 1, 1, n + 2])
    by_projection, by_gain, by_shift = reference.by_rows(own, by_weights, by_offset)
    found = by_read, by_mix.view(n, n), by_write, by_projection, *by_scales, by_gain, by_shift
    kinds = [by_gain.dtype if x is None else x.dtype for x in own]
    return [y.to(kind, copy=True) for y, kind in zip(found, kinds, strict=True)]  # no two results in one memory


def _static(own: Parameters) -> Tensor:
    """Return the weights of all tokens, and the scales, behind each other."""
    parts = own.read, own.mix, own.write, own.mix_scale, own.write_scale
    return torch.cat([as_float32(x).flatten() for x in parts])


def _options(n: int, width: int) -> dict[str, int]:
    padded = int(triton.next_power_of_2(n))
    together = max(1, WEIGHTS["streams"] // padded)
    return {"size": width, "n": n, "padded": padded, "together": together, "num_warps": WEIGHTS["num_warps"]}


def takes(state: Tensor) -> bool:
    """Return whether the kernels take these: float64 they leave to the reference, and what is past their limit.

    Args:
        state: the streams.
    """
    if state.dtype not in TYPES or not state.numel():
        return False
    if state.shape[1] > MOST_STREAMS:
        past_limit(f"{state.shape[1]} streams that are mixed", f"at most {MOST_STREAMS}")
        return False
    return True
