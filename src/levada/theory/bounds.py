r"""Worst cases: the bound that textbooks quote, the bound that holds, and what norm-one weights really do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from levada._errors import UsageError, require_at_least
from levada.theory.activation import ActivationLike, as_activation

__all__ = ["gaussian_gain", "gaussian_spectral_norm", "gradient_bound", "greatest_slope", "weight_free_bound"]

_NORMS = ("variance", "spectral", "frobenius")
TRACY_WIDOM_MEAN = -1.2065335745820  # of real symmetric matrices


def greatest_slope(activation: ActivationLike) -> float:
    r"""$\max_u |\phi'(u)|$ over $|u| \le 30$: 1/4 for sigmoid, 1 for tanh and ReLU, above 1 for GELU.

    Args:
        activation: name or callable.

    Returns:
        The greatest slope.

    Example:
        >>> round(greatest_slope("sigmoid"), 12), round(greatest_slope("tanh"), 12), greatest_slope("gelu") > 1.1
        (0.25, 1.0, True)
    """
    known = as_activation(activation)
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.float64, device="cpu")
    best = grid[known.slope(grid).abs().argmax()]
    near = best + torch.linspace(-1e-3, 1e-3, 2_001, dtype=torch.float64, device="cpu")
    return float(known.slope(near).abs().max())


def weight_free_bound(depth: int, activation: ActivationLike = "sigmoid") -> float:
    r"""$\max|\phi'|^{n}$, the often quoted $0.25^n$ for sigmoids: it forgets the weights, so it bounds nothing.

    Args:
        depth: $n$, number of layers.
        activation: name or callable.

    Returns:
        The number that is quoted.

    Raises:
        UsageError: if the depth is negative.

    Example:
        >>> f"{weight_free_bound(20):.3e}"
        '9.095e-13'
    """
    require_at_least("weight_free_bound", "depth", depth, 0)
    return greatest_slope(activation) ** depth


def gradient_bound(spectral_norms: Sequence[float], activation: ActivationLike = "sigmoid") -> float:
    r"""$\prod_l \|W_l\|_2\, \max|\phi'|$: no gradient can grow by more on its way to the input.

    Args:
        spectral_norms: $\|W_l\|_2$, one per layer. A wide square Gaussian layer has $2\sigma_w$.
        activation: name or callable.

    Returns:
        The bound on the ratio of gradient norms.

    Raises:
        UsageError: if a norm is negative.

    Example:
        >>> f"{gradient_bound([2.0] * 20):.2e}"      # Gaussian sigmoid network of weight variance 1
        '9.54e-07'

    Source: Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063.
    """
    for norm in spectral_norms:
        require_at_least("gradient_bound", "spectral norm", norm, 0.0)
    return math.prod(spectral_norms) * weight_free_bound(len(spectral_norms), activation)


def gaussian_gain(normalised: Literal["variance", "spectral", "frobenius"], dim: int) -> float:
    r"""Factor of one square Gaussian matrix on a typical vector's norm, when the given quantity of the matrix is 1.

    A variance of $1/n$ keeps lengths; a spectral norm of 1 halves them, since then $\|W\|_2 = 2\sigma_w$ in a wide
    layer; a Frobenius norm of 1 divides them by $\sqrt n$. A "norm" of 1 says nothing until it says which.

    Args:
        normalised: "variance" (n times the variance of an entry), "spectral" or "frobenius" (norms).
        dim: $n$.

    Returns:
        The factor per layer.

    Raises:
        UsageError: if the name is not one of these, or `dim` is below 1.

    Example:
        >>> f"{gaussian_gain('spectral', 256) ** 20:.2e}", f"{gaussian_gain('frobenius', 256) ** 20:.2e}"
        ('9.54e-07', '8.27e-25')
    """
    require_at_least("gaussian_gain", "dim", dim, 1)
    if normalised not in _NORMS:
        raise UsageError(f"gaussian_gain: normalised must be one of {', '.join(_NORMS)}, got {normalised!r}.")
    return {"variance": 1.0, "spectral": 0.5, "frobenius": 1 / math.sqrt(dim)}[normalised]


def gaussian_spectral_norm(dim: int) -> float:
    r"""Mean spectral norm of a square Gaussian matrix of variance $1/n$: 2, less a part that falls as $n^{-2/3}$.

    The largest eigenvalue of $n W W^\top$ is $\mu + \sigma T$ with $\mu = (\sqrt{n-1} + \sqrt n)^2$,
    $\sigma = \sqrt\mu\,(1/\sqrt{n-1} + 1/\sqrt n)^{1/3}$ and $T$ from the Tracy-Widom law, whose mean is $-1.2065$.

    Args:
        dim: $n$, at least 2.

    Returns:
        The norm.

    Raises:
        UsageError: if `dim` is below 2.

    Example:
        >>> f"{gaussian_spectral_norm(256):.3f}", f"{(1 / gaussian_spectral_norm(256)) ** 20:.2e}"
        ('1.979', '1.18e-06')

    Source: Johnstone 2001, "On the distribution of the largest eigenvalue in principal components analysis".
    """
    require_at_least("gaussian_spectral_norm", "dim", dim, 2)
    sides = math.sqrt(dim - 1) + math.sqrt(dim)
    spread = sides * (1 / math.sqrt(dim - 1) + 1 / math.sqrt(dim)) ** (1 / 3)
    return math.sqrt((sides**2 + TRACY_WIDOM_MEAN * spread) / dim)
