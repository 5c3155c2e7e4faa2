"""Attention over depth and weighted sums on a CPU: by loops that Numba compiles; without it the reference runs."""

from __future__ import annotations

from collections.abc import Sequence
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


@or_reference
def attend(
    query: Tensor, sources: Sequence[Tensor], epsilon: float, factor: float, normal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means, products and `1 / rms`, contiguous."""
    loops = _loops(query, *sources)
    if loops is None:
        return reference.attend(query, sources, epsilon, factor, normal)
    *leading, dim = sources[0].shape
    queries, count, kind, whole = query.numel() // dim, len(sources), _kind(query), _whole(sources)
    products, inverse = query.new_empty(*leading, queries, count), query.new_empty(*leading, count)
    means = query.new_empty(*query.shape[:-1], *leading, dim)
    given = [products.view(-1, queries, count), inverse.view(-1, count), torch.empty_like(inverse).view(-1, count)]
    options = _copied(query, dim), _addresses(whole), _array(means, queries, -1, dim), kind(epsilon), kind(factor)
    tokens = torch.arange(len(given[0]))
    loops.over_tokens(loops.attend, [tokens, *given], *options, normal, work=sources[0].numel() * count)
    return means, products, inverse


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
    loops = _loops(cotangent, query, *sources)
    if loops is None:
        return reference.attend_backward(cotangent, query, sources, products, inverse, factor, normal)
    dim, count, kind, whole = sources[0].shape[-1], len(sources), _kind(query), _whole(sources)
    queries, found = query.numel() // dim, [empty_like(x) for x in sources]
    starts = torch.arange(0, sources[0].numel() // dim, loops.TOKENS)
    partial, work = query.new_empty(len(starts), queries, dim), query.new_empty(len(starts), 4, queries, count)
    options = _array(cotangent, queries, -1, dim), _copied(query, dim), _addresses(whole), _addresses(found)
    kept = _array(products, -1, queries, count), _array(inverse, -1, count), kind(factor), normal
    size = sources[0].numel() * count
    loops.over_tokens(loops.attend_backward, [starts, partial, work], *options, *kept, work=size)
    return partial.sum(0).view(query.shape), found


@or_reference
def mix(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the weighted sums, contiguous."""
    loops = _loops(weights, *sources)
    if loops is None:
        return reference.mix(weights, sources)
    *leading, dim = sources[0].shape
    rows, whole = _rows(weights), _whole(sources)
    sums = weights.new_empty(*weights.shape[-2:-1], *leading, dim)
    options = rows, _addresses(whole), _array(sums, rows.shape[1], -1, dim), weights.ndim < 3
    tokens = torch.arange(sources[0].numel() // dim)
    loops.over_tokens(loops.mix, [tokens], *options, work=sources[0].numel() * len(sources))
    return sums


@or_reference
def mix_backward(cotangent: Tensor, weights: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients, contiguous."""
    loops = _loops(cotangent, weights, *sources)
    if loops is None:
        return reference.mix_backward(cotangent, weights, sources)
    dim, count, shared, rows, whole = (
        sources[0].shape[-1],
        len(sources),
        weights.ndim < 3,
        _rows(weights),
        _whole(sources),
    )
    found, tokens = [empty_like(x) for x in sources], torch.arange(sources[0].numel() // dim)
    agreements = weights.new_empty(len(tokens), rows.shape[1], count)
    options = _array(cotangent, rows.shape[1], -1, dim), rows, _addresses(whole), _addresses(found), shared
    loops.over_tokens(loops.mix_backward, [tokens, agreements], *options, work=sources[0].numel() * count)
    return (agreements.sum(0) if shared else agreements).view(weights.shape), found


def _loops(*tensors: Tensor) -> ModuleType | None:
    """Return the loops if they take these: of one type that they are compiled for, and something to do."""
    types = {x.dtype for x in tensors}
    if len(types) > 1 or not types <= TYPES or not tensors[-1].numel():
        return None
    return import_kernels("levada.ops.depth.loops", "numba")


def _whole(sources: Sequence[Tensor]) -> list[Tensor]:
    return [x.contiguous() for x in sources]


def _addresses(tensors: Sequence[Tensor]) -> Any:
    """Return where tensors begin; they must live until nobody reads there any more."""
    return torch.tensor([x.data_ptr() for x in tensors]).numpy()


def _array(x: Tensor, *shape: int) -> Any:
    return x.detach().contiguous().view(shape).numpy()


def _copied(query: Tensor, dim: int) -> Any:
    """Return a parameter as an array: no storage that an array shares can be resized, as sharding does."""
    return query.detach().clone(memory_format=torch.contiguous_format).view(-1, dim).numpy()


def _rows(weights: Tensor) -> Any:
    """Return weights as an array `(tokens, ways, sources)`, with one token where they are the same for all."""
    rows = weights.detach().clone(memory_format=torch.contiguous_format)
    return rows.view(-1, *(weights.shape[-2:] if weights.ndim > 1 else (1, len(weights)))).numpy()


def _kind(x: Tensor) -> Any:
    return np.float64 if x.dtype == torch.float64 else np.float32
