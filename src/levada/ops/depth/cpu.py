"""Attention over depth and weighted sums on a CPU: by loops that Numba compiles; without it the reference runs."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from levada.ops._define import import_kernels
from levada.ops.depth import reference

__all__ = ["attend", "attend_backward", "mix", "mix_backward"]

_TYPES = {torch.float32, torch.float64}


def attend(
    query: Tensor, sources: Sequence[Tensor], epsilon: float, factor: float, normal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means, products and `1 / rms`, contiguous."""
    loops = _loops(query, *sources)
    if loops is None:
        return reference.attend(query, sources, epsilon, factor, normal)
    (tokens, dim), queries, kind = sources[0].shape, len(query), _kind(query)
    products, inverse = query.new_empty(tokens, queries, len(sources)), query.new_empty(tokens, len(sources))
    means, whole = query.new_empty(queries, tokens, dim), _whole(sources)
    given = [torch.arange(tokens), products, inverse, torch.empty_like(inverse)]
    options = _copied(query), _addresses(whole), _array(means), kind(epsilon), kind(factor), normal
    loops.over_tokens(loops.attend, given, *options, work=tokens * dim * len(sources))
    return means, products, inverse


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
    (tokens, dim), queries, count, kind = sources[0].shape, len(query), len(sources), _kind(query)
    whole, found = _whole(sources), [torch.empty_like(x, memory_format=torch.contiguous_format) for x in sources]
    starts = torch.arange(0, tokens, loops.TOKENS)
    partial, work = query.new_empty(len(starts), queries, dim), query.new_empty(len(starts), 4, queries, count)
    arrays = _array(cotangent), _copied(query), _addresses(whole), _addresses(found), _array(products), _array(inverse)
    options = *arrays, kind(factor), normal
    loops.over_tokens(loops.attend_backward, [starts, partial, work], *options, work=tokens * dim * count)
    return partial.sum(0), found


def mix(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the weighted sums, contiguous."""
    loops = _loops(weights, *sources)
    if loops is None:
        return reference.mix(weights, sources)
    tokens, dim = sources[0].shape
    sums, whole = weights.new_empty(weights.shape[1], tokens, dim), _whole(sources)
    options = _copied(weights), _addresses(whole), _array(sums), len(weights) == 1
    loops.over_tokens(loops.mix, [torch.arange(tokens)], *options, work=tokens * dim * len(sources))
    return sums


def mix_backward(cotangent: Tensor, weights: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients, contiguous."""
    loops = _loops(cotangent, weights, *sources)
    if loops is None:
        return reference.mix_backward(cotangent, weights, sources)
    (tokens, dim), count, shared = sources[0].shape, len(sources), len(weights) == 1
    whole, found = _whole(sources), [torch.empty_like(x, memory_format=torch.contiguous_format) for x in sources]
    agreements = weights.new_empty(tokens, *weights.shape[1:])
    options = _array(cotangent), _copied(weights), _addresses(whole), _addresses(found), shared
    loops.over_tokens(loops.mix_backward, [torch.arange(tokens), agreements], *options, work=tokens * dim * count)
    return agreements.sum(0, keepdim=True) if shared else agreements, found


def _loops(*tensors: Tensor) -> ModuleType | None:
    """Return the loops if they take these: of one type that they are compiled for, and something to do."""
    types = {x.dtype for x in tensors}
    if len(types) > 1 or not types <= _TYPES or not tensors[-1].numel():
        return None
    return import_kernels("levada.ops.depth.loops", "numba")


def _whole(sources: Sequence[Tensor]) -> list[Tensor]:
    return [x.contiguous() for x in sources]


def _addresses(tensors: Sequence[Tensor]) -> Any:
    """Return where tensors begin; they must live until nobody reads there any more."""
    return torch.tensor([x.data_ptr() for x in tensors]).numpy()


def _array(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


def _copied(x: Tensor) -> Any:
    """Return a parameter as an array: no storage that an array shares can be resized, as sharding does."""
    return x.detach().contiguous().clone().numpy()


def _kind(x: Tensor) -> Any:
    return np.float64 if x.dtype == torch.float64 else np.float32
