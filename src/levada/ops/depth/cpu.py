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

__all__ = [
    "attend",
    "attend_apart",
    "attend_backward",
    "attend_backward_apart",
    "mix",
    "mix_apart",
    "mix_backward",
    "mix_backward_apart",
]

_TYPE = operator.attrgetter("dtype")


@or_reference
def attend(
    query: Tensor, sources: Sequence[Tensor], epsilon: float, factor: float, normal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means, products and `1 / rms`, contiguous."""
    loops = _loops(query, *sources)
    if loops is None:
        return reference.attend(query, sources, epsilon, factor, normal)
    means = query.new_empty(*query.shape[:-1], *sources[0].shape)
    return means, *_attend(loops, _rows(means, query.ndim), query, sources, epsilon, factor, normal)


@or_reference
def attend_apart(
    query: Tensor, sources: Sequence[Tensor], epsilon: float, factor: float, normal: bool
) -> tuple[Sequence[Tensor], Tensor, Tensor]:
    """Return the same with a tensor for each mean."""
    loops = _loops(query, *sources)
    if loops is None:
        means, products, inverse = _plainly(reference.attend, query, sources, epsilon, factor, normal)
        return means.unbind(), products, inverse
    means = [empty_like(sources[0]) for _ in range(len(query))]
    return means, *_attend(loops, means, query, sources, epsilon, factor, normal)


def _attend(
    loops: ModuleType,
    means: Sequence[Tensor],
    query: Tensor,
    sources: Sequence[Tensor],
    epsilon: float,
    factor: float,
    normal: bool,
) -> tuple[Tensor, Tensor]:
    *leading, dim = sources[0].shape
    count, kind = len(sources), _kind(query)
    products, inverse = query.new_empty(*leading, len(means), count), query.new_empty(*leading, count)
    tensors = *_whole(sources), *means, products, inverse, query.contiguous()
    options = (count, len(means), dim), kind(epsilon), kind(factor), normal
    work = sources[0].numel() * count
    loops.over_table(loops.attend, tensors, sources[0].numel() // dim, *options, work=work)
    return products, inverse


@or_reference
def attend_backward(
    cotangent: Tensor,
    query: Tensor,
    sources: Sequence[Tensor],
    products: Tensor,
    inverse: Tensor,
    factor: float,
    normal: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients, contiguous."""
    rows = _rows(cotangent.contiguous(), query.ndim)
    return attend_backward_apart(rows, query, sources, products, inverse, factor, normal)


@or_reference
def attend_backward_apart(
    cotangents: Sequence[Tensor],
    query: Tensor,
    sources: Sequence[Tensor],
    products: Tensor,
    inverse: Tensor,
    factor: float,
    normal: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Return the same of a tensor for each mean."""
    loops = _loops(query, *cotangents, *sources)
    if loops is None:
        cotangent = cotangents[0] if query.ndim == 1 else torch.stack([*cotangents])
        given = cotangent, query, sources, products, inverse, factor, normal
        by_query, by_sources = _plainly(reference.attend_backward, *given)
        return by_query, by_sources
    dim, count, kind = sources[0].shape[-1], len(sources), _kind(query)
    queries, tokens, found = len(cotangents), sources[0].numel() // dim, [empty_like(x) for x in sources]
    blocks = -(-tokens // loops.TOKENS)
    partial = query.new_empty(blocks, queries, dim)
    kept = products.contiguous(), inverse.contiguous(), query.contiguous(), partial
    tensors = *_whole(sources), *found, *_whole(cotangents), *kept
    options = tokens, (count, queries, dim), kind(factor), normal
    loops.over_table(loops.attend_backward, tensors, blocks, *options, work=sources[0].numel() * count)
    return partial.sum(0).view(query.shape), found


@or_reference
def mix(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the weighted sums, contiguous."""
    loops = _loops(weights, *sources)
    if loops is None:
        return reference.mix(weights, sources)
    sums = weights.new_empty(*weights.shape[-2:-1], *sources[0].shape)
    _mix(loops, _rows(sums, weights.ndim), weights, sources)
    return sums


@or_reference
def mix_apart(weights: Tensor, sources: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the same with a tensor for each sum."""
    loops = _loops(weights, *sources)
    if loops is None:
        whole: Tensor = _plainly(reference.mix, weights, sources)
        return whole.unbind()
    sums = [empty_like(sources[0]) for _ in range(weights.shape[-2])]
    _mix(loops, sums, weights, sources)
    return sums


def _mix(loops: ModuleType, sums: Sequence[Tensor], weights: Tensor, sources: Sequence[Tensor]) -> None:
    tensors = *_whole(sources), *sums, weights.contiguous()
    blocks, *options = _divided(loops, len(sums), weights, sources)
    loops.over_table(loops.mix, tensors, blocks, *options, work=sources[0].numel() * len(sources))


@or_reference
def mix_backward(cotangent: Tensor, weights: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients, contiguous."""
    return mix_backward_apart(_rows(cotangent.contiguous(), weights.ndim), weights, sources)


@or_reference
def mix_backward_apart(
    cotangents: Sequence[Tensor], weights: Tensor, sources: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the same of a tensor for each sum."""
    loops = _loops(weights, *cotangents, *sources)
    if loops is None:
        cotangent = cotangents[0] if weights.ndim == 1 else torch.stack([*cotangents])
        by_weights, by_sources = _plainly(reference.mix_backward, cotangent, weights, sources)
        return by_weights, by_sources
    found = [empty_like(x) for x in sources]
    blocks, *options = _divided(loops, len(cotangents), weights, sources)
    agreements = weights.new_empty(blocks, len(cotangents), len(sources))
    tensors = *_whole(sources), *found, *_whole(cotangents), weights.contiguous(), agreements
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


def _rows(x: Tensor, axes: int) -> Sequence[Tensor]:
    """Return what belongs to each query or way; of a single one without an axis it is all."""
    return (x,) if axes == 1 else x.unbind()


def _kind(x: Tensor) -> Any:
    return np.float64 if x.dtype == torch.float64 else np.float32
