"""Attention over depth and weighted sums of sources, by plain operations: what the kernels must compute."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["attend", "attend_backward", "coefficients", "mix", "mix_backward", "type_of", "weights_of"]


def attend(
    query: Tensor, sources: Sequence[Tensor], epsilon: float, factor: float, normal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means, and for the way back the products of queries and sources, and each source's `1 / rms`.

    Args:
        query: `(queries, dim)`, or `(dim,)` for a single one; in the type to compute in.
        sources: each `(..., dim)`.
        epsilon: what is added to a mean square.
        factor: what the means are multiplied by.
        normal: whether the sources are divided by their rms in the mean too.

    Shape:
        Means `(queries, ..., dim)`, or `(..., dim)` for a single one, products `(..., queries, sources)`, `1 / rms`
        `(..., sources)`.
    """
    inverse, products = [], []
    rows = query.unsqueeze(0) if query.ndim == 1 else query
    for source in sources:
        full = source.to(query.dtype)
        inverse.append(torch.rsqrt(full.square().mean(-1) + epsilon))
        products.append(torch.stack([(full * one).sum(-1) for one in rows.unbind()], -1))
    found = torch.stack(products, -1), torch.stack(inverse, -1)
    means = _mixed(weights_of(*found, factor, normal), sources)
    return means[0] if query.ndim == 1 else torch.stack(means), *found


def weights_of(products: Tensor, inverse: Tensor, factor: float, normal: bool) -> Tensor:
    """Return what each source is multiplied by, `(..., queries, sources)`."""
    inverse = inverse.unsqueeze(-2)
    weights = factor * torch.softmax(products * inverse, -1)
    return weights * inverse if normal else weights


def coefficients(
    agreements: Tensor, products: Tensor, inverse: Tensor, factor: float, normal: bool, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what cotangents, queries and the source itself are multiplied by in the gradient of a source.

    Args:
        agreements: products of cotangents and sources, `(..., queries, sources)`.
        products: of queries and sources, likewise.
        inverse: `1 / rms` of the sources, `(..., sources)`.
        factor: what the means were multiplied by.
        normal: whether the sources are divided by their rms in the mean too.
        dim: width of a source.
    """
    scale = inverse.unsqueeze(-2)
    shares = torch.softmax(products * scale, -1)
    by_weights = factor * agreements
    by_shares = by_weights * scale if normal else by_weights
    by_scores = shares * (by_shares - (shares * by_shares).sum(-1, keepdim=True))
    by_inverse = (by_scores * products).sum(-2)
    if normal:
        by_inverse = by_inverse + (by_weights * shares).sum(-2)
    weights = factor * shares * scale if normal else factor * shares
    return weights, by_scores * scale, by_inverse * inverse**3 / -dim


def attend_backward(
    cotangent: Tensor,
    query: Tensor,
    sources: Sequence[Tensor],
    products: Tensor,
    inverse: Tensor,
    factor: float,
    normal: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients by the queries and by the sources.

    Args:
        cotangent: of the means.
        query: as in `attend`.
        sources: as in `attend`.
        products: what `attend` returned.
        inverse: what `attend` returned.
        factor: as in `attend`.
        normal: as in `attend`.
    """
    single = query.ndim == 1
    rows, cotangents = (query[None], cotangent[None]) if single else (query, cotangent)
    agreements = _products(cotangents, sources, query.dtype)
    weights, by_products, by_squares = coefficients(agreements, products, inverse, factor, normal, sources[0].shape[-1])
    by_query, by_sources = torch.zeros_like(rows), []
    for i, source in enumerate(sources):
        full = source.to(query.dtype)
        of_products = by_products[..., i]
        by_query = by_query + torch.stack([_sum(one.unsqueeze(-1) * full) for one in of_products.unbind(-1)])
        gradient = by_squares[..., i, None] * full
        for k, one in enumerate(rows.unbind()):
            gradient = gradient + weights[..., k, i, None] * cotangents[k] + of_products[..., k, None] * one
        by_sources.append(gradient.to(source.dtype))
    return by_query[0] if single else by_query, by_sources


def mix(weights: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return weighted sums of the sources.

    Args:
        weights: `(..., ways, sources)`, or `(ways, sources)` for all tokens alike, or `(sources,)` for a single sum.
        sources: each `(..., dim)`.

    Shape:
        `(ways, ..., dim)`, or `(..., dim)` for a single sum.
    """
    if weights.ndim == 1:
        return _mixed(weights.unsqueeze(0), sources)[0]
    return torch.stack(_mixed(weights, sources))


def mix_backward(cotangent: Tensor, weights: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the gradients by the weights and by the sources.

    Args:
        cotangent: of the sums.
        weights: as in `mix`.
        sources: as in `mix`.
    """
    rows, cotangents = (weights[None], cotangent[None]) if weights.ndim == 1 else (weights, cotangent)
    agreements = _products(cotangents, sources, weights.dtype)
    by_weights = agreements.reshape(-1, *rows.shape[-2:]).sum(0).view_as(weights) if weights.ndim < 3 else agreements
    by_sources = []
    for i, source in enumerate(sources):
        gradient = rows[..., 0, i, None] * cotangents[0]
        for k, one in enumerate(cotangents[1:].unbind(), 1):
            gradient = gradient + rows[..., k, i, None] * one
        by_sources.append(gradient.to(source.dtype))
    return by_weights, by_sources


def type_of(sources: Sequence[Tensor]) -> torch.dtype:
    """Return the type of what is made of sources."""
    return functools.reduce(torch.promote_types, (x.dtype for x in sources))


def _mixed(weights: Tensor, sources: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums, one source at a time: a stack of them would be a copy of all."""
    kind = type_of(sources)
    sums = []
    for way in weights.unbind(-2):
        total = way[..., 0, None] * sources[0]
        for i, source in enumerate(sources[1:], 1):
            total = total + way[..., i, None] * source
        sums.append(total.to(kind))
    return sums


def _products(rows: Tensor, sources: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the products of cotangents `(ways, ..., dim)` and sources, `(..., ways, sources)`."""
    full = rows.to(dtype)
    return torch.stack([(full * source).sum(-1).movedim(0, -1) for source in sources], -1)


def _sum(x: Tensor) -> Tensor:
    """Return the sum over all tokens."""
    return x.reshape(-1, x.shape[-1]).sum(0)
