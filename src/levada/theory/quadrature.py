r"""Integrals against the standard normal density that hold their accuracy at every scale of the integrand.

Gauss-Hermite nodes sit at fixed places, so they miss a slope that is concentrated within $1/\sqrt q$ of zero once the
variance $q$ is large, and they converge slowly across a kink. Here Gauss-Legendre panels are split at every kink and
halve towards it until they are as narrow as the integrand's finest feature.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gauss_legendre", "normal_mean", "pair_mean"]

# The density beyond is below 1e-22 of its peak.
_REACH = 10.0
_NODES = 16


@functools.cache
def gauss_legendre(num: int) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights of $\int_{-1}^{1} f(x)\,dx \approx \sum_i w_i f(x_i)$, exact to degree `2 num - 1`.

    Args:
        num: number of nodes.

    Returns:
        Nodes and weights, float64, each of shape `(num,)`.

    Example:
        >>> nodes, weights = gauss_legendre(4)
        >>> round(float((weights * nodes**6).sum()), 12) == round(2 / 7, 12)
        True

    Source: Golub and Welsch 1969.
    """
    with torch.inference_mode(False):
        order = torch.arange(1, num, dtype=torch.float64, device="cpu")
        off_diagonal = order / (4 * order**2 - 1).sqrt()
        nodes, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
        return nodes, 2 * vectors[0] ** 2


def _graded(centres: tuple[float, ...], levels: int) -> list[float]:
    widths = [math.ldexp(1.0, -level) for level in range(levels + 1)]
    return [*centres, *(c + sign * width for c in centres for width in widths for sign in (-1, 1))]


def _levels(finest: float) -> int:
    return max(0, math.ceil(-math.log2(finest)))


@functools.lru_cache(maxsize=256)
def _normal_rule(centres: tuple[float, ...], levels: int) -> tuple[Tensor, Tensor]:
    steps = [float(step) for step in range(-int(_REACH), int(_REACH) + 1)]
    inside = {edge for edge in _graded(centres, levels) if abs(edge) < _REACH}
    with torch.inference_mode(False):
        edges = torch.tensor(sorted({*steps, *inside}), dtype=torch.float64, device="cpu")
        z, dz = _panels(edges)
        weights = dz * torch.exp(-z.square() / 2)
        return z, weights / weights.sum()


def _panels(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and widths of Gauss-Legendre panels between consecutive `edges` (..., n), flattened to (..., nodes)."""
    nodes, weights = gauss_legendre(_NODES)
    half = (edges[..., 1:] - edges[..., :-1]).unsqueeze(-1) / 2
    left = edges[..., :-1].unsqueeze(-1)
    return (left + half * (1 + nodes)).flatten(-2), (half * weights).flatten(-2)


def normal_mean(function: Callable[[Tensor], Tensor], centres: tuple[float, ...], finest: float) -> float:
    r"""$\int \frac{dz}{\sqrt{2\pi}} e^{-z^2/2} f(z)$.

    Args:
        function: $f$, elementwise on a float64 tensor.
        centres: where $f$ has kinks, or features narrower than 1.
        finest: width of the narrowest feature around the centres.

    Returns:
        The integral.

    Example:
        >>> abs(normal_mean(torch.abs, (0.0,), 1.0) - math.sqrt(2 / math.pi)) < 1e-14
        True
    """
    z, weights = _normal_rule(centres, _levels(finest))
    return float((weights * function(z)).sum())


def pair_mean(
    function: Callable[[Tensor], Tensor], correlation: float, centres: tuple[float, ...], finest: float
) -> float:
    r"""$E[f(v_1) f(v_2)]$ for standard normal $v_1, v_2$ of the given correlation $c$, $|c| < 1$.

    $$E[f(v_1) f(v_2)] = \int Dv_1\, f(v_1) \int Dz\, f(c v_1 + \sqrt{1-c^2}\, z)$$

    The inner panels follow both the conditional density, which narrows as $|c| \to 1$, and the features of $f$.

    Args:
        function: $f$, elementwise on a float64 tensor.
        correlation: $c$.
        centres: where $f$ has kinks, or features narrower than 1.
        finest: width of the narrowest feature around the centres.

    Returns:
        The double integral.

    Example:
        >>> round(pair_mean(torch.sin, 0.5, (0.0,), 1.0), 12) == round(math.exp(-1) * math.sinh(0.5), 12)
        True
    """
    spread = math.sqrt((1 - correlation) * (1 + correlation))
    mirrored = tuple(centre / correlation for centre in centres) if abs(correlation) > 0.5 else ()
    # The inner mean is f smoothed over `spread`: as narrow as that around a kink.
    outer = tuple(sorted({*centres, *mirrored}))
    v, weights = _normal_rule(outer, _levels(min(finest, spread)))
    middle = (correlation * v).unsqueeze(-1)
    steps = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64, device="cpu")
    features = torch.tensor(_graded(centres, _levels(finest)), dtype=torch.float64, device="cpu")
    inside = torch.minimum(torch.maximum(features, middle - _REACH * spread), middle + _REACH * spread)
    edges = torch.cat([middle + steps * spread, inside], dim=-1).sort(dim=-1).values
    inner, dv = _panels(edges)
    density = torch.exp(-((inner - middle) / spread).square() / 2) / (spread * math.sqrt(2 * math.pi))
    return float((weights * function(v) * (dv * density * function(inner)).sum(-1)).sum())
