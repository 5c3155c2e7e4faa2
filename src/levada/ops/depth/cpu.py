"""Attention over depth and weighted sums on a CPU: by loops that Numba compiles; without it the reference runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from levada.ops._define import empty_like
from levada.ops._kernels import TYPES
from levada.ops._loading import import_kernels, or_reference
from levada.ops.depth import reference

__all__ = ["attend", "attend_backward", "mix", "mix_backward"]

_TYPE = operator.attrgetter("dtype")


@or_reference
def attend(
    query: Tensor, sources: Sequence[Tensor], epsilon: float, factor: float, normal: bool, apart: bool = False
) -> tuple[Any, Tensor, Tensor]:
    """Return the means, products and `1 / rms`, contiguous; the means as one tensor, or `apart` as one for each."""
    loops = _loops(query, *sources)
    if loops is None:
        means, *kept = _plainly(reference.attend, query, sources, epsilon, factor, normal)
        return means.unbind() if apart else means, *kept
    *leading, dim = sources[0].shape
    means, rows = _empty(query.shape[:-1], sources[0], apart)
    count, queries, kind = len(sources), len(rows), _kind(query)
    products, inverse = query.new_empty(*leading, queries, count), query.new_empty(*leading, count)
    tensors = *_whole(sources), *rows, products, inverse, query.contiguous()
    options = (count, queries, dim), kind(epsilon), kind(factor), normal
    work = sources[0].numel() * count
    loops.over_table(loops.attend, tensors, sources[0].numel() // dim, *options, work=work)
    return means, products, inverse


@or_reference
def attend_backward(
    cotangent: Tensor | Sequence[Tensor],
    query: Tensor,
    sources: Sequence[Tensor],
    products: Tensor,
    inverse: Tensor,
    factor: float,
    normal: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients, contiguous; cotangents may be one tensor, or one for each mean."""
    rows = _rows(cotangent, query.ndim)
    loops = _loops(query, *rows, *sources)
    if loops is None:
        given = _together(cotangent), query, sources, products, inverse, factor, normal
        by_query, by_sources = _plainly(reference.attend_backward, *given)
        return by_query, by_sources
    dim, count, kind = sources[0].shape[-1], len(sources), _kind(query)
    queries, tokens, found = len(rows), sources[0].numel() // dim, [empty_like(x) for x in sources]
    blocks = -(-tokens // loops.TOKENS)
    partial = query.new_empty(blocks, queries, dim)
    kept = products.contiguous(), inverse.contiguous(), query.contiguous(), partial
    tensors = *_whole(sources), *found, *_whole(rows), *kept
    options = tokens, (count, queries, dim), kind(factor), normal
    loops.over_table(loops.attend_backward, tensors, blocks, *options, work=sources[0].numel() * count)
    return partial.sum(0).view(query.shape), found


@or_reference
def mix(weights: Tensor, sources: Sequence[Tensor], apart: bool = False) -> Any:
    """Return the weighted sums, contiguous, as one tensor, or `apart` as one for each."""
    loops = _loops(weights, *sources)
    if loops is None:
        whole = _plainly(reference.mix, weights, sources)
        return whole.unbind() if apart else whole
    sums, rows = _empty(weights.shape[-2:-1], sources[0], apart)
    tensors = *_whole(sources), *rows, weights.contiguous()
    blocks, *options = _divided(loops, len(rows), weights, sources)
    loops.over_table(loops.mix, tensors, blocks, *options, work=sources[0].numel() * len(sources))
    return sums


@or_reference
def mix_backward(
    cotangent: Tensor | Sequence[Tensor], weights: Tensor, sources: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients, contiguous; cotangents may be one tensor, or one for each sum."""
    rows = _rows(cotangent, weights.ndim)
    loops = _loops(weights, *rows, *sources)
    if loops is None:
        by_weights, by_sources = _plainly(reference.mix_backward, _together(cotangent), weights, sources)
        return by_weights, by_sources
    found = [empty_like(x) for x in sources]
    blocks, *options = _divided(loops, len(rows), weights, sources)
    agreements = weights.new_empty(blocks, len(rows), len(sources))
    tensors = *_whole(sources), *found, *_whole(rows), weights.contiguous(), agreements
    loops.over_table(loops.mix_backward, tensors, blocks, *options, work=sources[0].numel() * len(sources))
    return (agreements.sum(0) if weights.ndim < 3 else agreements).view(weights.shape), found


def _divided(loops: ModuleType, ways: int, weights: Tensor, sources: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return how many blocks of tokens there are, however many threads, and options of the loops of sums."""
    dim, shared = sources[0].shape[-1], weights.ndim < 3
    tokens, together = sources[0].numel() // dim, max(1, loops.ELEMENTS // dim) if shared else 1
    return -(-tokens // together), tokens, (len(sources), ways, dim), together, shared, _kind(weights)(1)


def _loops(*tensors: Tensor) -> ModuleType | None:
    """Return the loops if they take these: of one type that they are compiled for, and something to do."""
    types = {*map(_TYPE, tensors)}
    if len(types) > 1 or not types <= TYPES or not tensors[-1].numel():
        return None
    return import_kernels("levada.ops.depth.loops", "numba")


def _plainly(function: Callable[..., Any], *given: Any) -> Any:
    """Return what plain operations make of it without autocast, as below the dispatcher."""
    with torch.autocast("cpu", enabled=False):
        return function(*given)


def _whole(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return tensors if all(map(Tensor.is_contiguous, tensors)) else [x.contiguous() for x in tensors]


def _empty(ways: Sequence[int], like: Tensor, apart: bool) -> tuple[Any, Sequence[Tensor]]:
    """Return memory for results, as one tensor or apart, and what of it belongs to each query or way."""
    if apart:
        rows = [empty_like(like) for _ in range(*ways)]
        return rows, rows
    whole = like.new_empty(*ways, *like.shape)
    return whole, _rows(whole, 1 + len(ways))


def _rows(given: Tensor | Sequence[Tensor], axes: int) -> Sequence[Tensor]:
    """Return what belongs to each query or way; of a single one without an axis one tensor is all."""
    if not isinstance(given, Tensor):
        return given
    return (given,) if axes == 1 else given.unbind()


def _together(given: Tensor | Sequence[Tensor]) -> Tensor:
    return given if isinstance(given, Tensor) else torch.stack([*given])


def _kind(x: Tensor) -> Any:
    return np.float64 if x.dtype == torch.float64 else np.float32
