"""Products of mixing matrices over depth: what unconstrained ones do, and what Sinkhorn iterations leave undone."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from levada.ops import sinkhorn

__all__ = [
    "constrained",
    "growth_per_layer",
    "mean_square_gain",
    "near_identity_logits",
    "perturbed_identities",
    "product_over_depth",
    "sum_statistics",
]


def perturbed_identities(epsilon: float, depth: int, streams: int, trials: int, seed: int) -> Tensor:
    """Return matrices `I + epsilon N`, N standard normal, in float64.

    Args:
        epsilon: size of the perturbation.
        depth: matrices in a product.
        streams: their size.
        trials: number of products.
        seed: seed of the numbers.

    Shape:
        Returns `(trials, depth, streams, streams)`.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(trials, depth, streams, streams, generator=generator, dtype=torch.float64)
    return torch.eye(streams, dtype=torch.float64) + epsilon * noise


def near_identity_logits(depth: int, streams: int, trials: int, seed: int) -> Tensor:
    """Return logits of matrices near the identity, alike over depth: what a trained network's layers could be.

    `logits_l = -6 (1 - I) + N + N_l`: the start of `ManifoldHyperConnection`, plus standard normal numbers that the
    layers of a product share, plus others of each layer's own. What iterations leave undone in one layer adds up with
    what they leave undone in the next, because layers err alike.

    Args:
        depth: matrices in a product.
        streams: their size.
        trials: number of products.
        seed: seed of the numbers.

    Shape:
        Returns `(trials, depth, streams, streams)`.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(trials, 1, streams, streams, generator=generator, dtype=torch.float64)
    own = torch.randn(trials, depth, streams, streams, generator=generator, dtype=torch.float64)
    return -6.0 * (1 - torch.eye(streams, dtype=torch.float64)) + shared + own


def product_over_depth(matrices: Tensor) -> Tensor:
    """Return `M_depth ... M_2 M_1`.

    Args:
        matrices: `(..., depth, n, n)`.
    """
    return functools.reduce(lambda product, m: m @ product, matrices.unbind(-3))


def mean_square_gain(epsilon: float, depth: int, streams: int) -> float:
    """Return the expected square of a row sum of a product of `I + epsilon N`: `(1 + n epsilon^2)^depth`.

    Args:
        epsilon: size of the perturbation.
        depth: matrices in a product.
        streams: their size, n.

    Example:
        >>> mean_square_gain(0.5, 2, 4)
        4.0
    """
    return float((1 + streams * epsilon**2) ** depth)


def growth_per_layer(matrices: Tensor) -> Tensor:
    """Return by how much a layer multiplies the square of the row sums' norm, the mean over the layers of a product.

    For `I + epsilon N` a layer's factor does not depend on those before it, N being alike in all directions: the
    expectation for the product is the power of that of a factor, `1 + n epsilon^2`. A mean over products of this mean
    over layers has an interval; that of the squares themselves has none to trust, for few products make up most of it.

    Args:
        matrices: `(..., depth, n, n)`.

    Shape:
        Returns `(...)`.

    Example:
        >>> growth_per_layer(2 * torch.eye(4).expand(3, 4, 4))
        tensor(4.)
    """
    signal = matrices.new_ones(*matrices.shape[:-3], matrices.shape[-1], 1)
    growths = []
    for matrix in matrices.unbind(-3):
        following = matrix @ signal
        growths.append(following.square().sum((-2, -1)) / signal.square().sum((-2, -1)))
        signal = following
    return torch.stack(growths).mean(0)


def sum_statistics(product: Tensor) -> dict[str, float]:
    """Return what the sums of products' rows and columns say, over trials.

    Args:
        product: `(trials, n, n)`.

    Returns:
        "gain", the median over trials of Amax: the largest |row sum| or |column sum|; "absolute_gain", the same of sums
        of absolute entries; "mean_square", of the row sums; "row_deviation", the largest |row sum - 1| of all;
        "log_column", the 99th percentile over trials of the largest |log column sum| (Inf where one is not positive),
        "log_column_median" its median; "largest_column" and "smallest_column" the 99th percentile of the largest and
        the first of the smallest column sum.

    Example:
        >>> sum_statistics(torch.eye(4)[None])["gain"]
        1.0
    """
    rows, columns = product.sum(-1), product.sum(-2)
    size = product.abs()
    logs = torch.where(columns > 0, columns.log().abs(), torch.inf).amax(-1)
    numbers = {
        "gain": torch.maximum(rows.abs().amax(-1), columns.abs().amax(-1)).quantile(0.5),
        "absolute_gain": torch.maximum(size.sum(-1).amax(-1), size.sum(-2).amax(-1)).quantile(0.5),
        "mean_square": rows.square().mean(),
        "row_deviation": (rows - 1).abs().amax(),
        "log_column": logs.quantile(0.99, interpolation="higher"),
        "log_column_median": logs.quantile(0.5, interpolation="higher"),
        "largest_column": columns.amax(-1).quantile(0.99),
        "smallest_column": columns.amin(-1).quantile(0.01),
    }
    return {name: float(value) for name, value in numbers.items()}


def constrained(logits: Tensor, iterations: int) -> Tensor:
    """Return the products over depth of the matrices that Sinkhorn iterations make of logits.

    Args:
        logits: `(..., depth, n, n)`.
        iterations: how often columns and rows are normalised.
    """
    return product_over_depth(sinkhorn(logits, iterations))
