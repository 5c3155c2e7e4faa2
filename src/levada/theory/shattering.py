r"""How gradients shatter: the cosine of two inputs' gradients by depth, with skips and with batch normalisation.

`gradient_correlation` has the plain network. A skip passes a gradient on unchanged, so that in blocks
$h + \alpha W\phi(h)$ a block's factor is

$$\frac{1 + \alpha^2\sigma_w^2\,E[\phi'(u_1)\phi'(u_2)]}{1 + \alpha^2\sigma_w^2\,E[\phi'(u)^2]} .$$

Batch normalisation subtracts the mean over the batch, which is what makes the signals of a plain ReLU network alike:
inputs that have nothing in common stay so, and each layer halves the cosine. Its statistics count as constants here, as
at inference, and as of a large batch of inputs most of which are unrelated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from levada._errors import UsageError, require_at_least
from levada.theory.activation import ActivationLike, as_activation
from levada.theory.moments import (
    correlated_moment,
    correlated_slope_moment,
    first_moment,
    second_moment,
    slope_second_moment,
)
from levada.theory.variance import require_variances

__all__ = [
    "batch_norm_gradient_correlation",
    "batch_norm_residual_gradient_correlation",
    "residual_gradient_correlation",
]

_MOST = 1e30  # far out activations are straight lines, and products of larger moments are not finite


def residual_gradient_correlation(
    activation: ActivationLike,
    weight_variance: float,
    depth: int,
    correlation: float = 0.0,
    q0: float = 1.0,
    multiplier: float = 1.0,
) -> Tensor:
    r"""Cosine between the input gradients of two inputs after 0 to `depth` blocks $h + \alpha W\phi(h)$.

    For ReLU at $\sigma_w^2 = 2$ a block's factor is $1 - \arccos(c_l)/2\pi$: 3/4 for unrelated signals. They do not
    stay unrelated, and the cosine falls as a power of depth, as that of the plain network does.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        depth: number of blocks.
        correlation: $c_0$ of the two inputs.
        q0: their mean square.
        multiplier: $\alpha$.

    Returns:
        Float64 tensor of shape `(depth + 1,)`; entry `l` is for a network of `l` blocks.

    Raises:
        UsageError: if a variance is negative, the depth below 1 or the correlation outside [-1, 1].

    Example:
        >>> [round(cosine, 4) for cosine in residual_gradient_correlation("relu", 2.0, depth=2).tolist()]
        [1.0, 0.75, 0.5816]

    Source: Balduzzi et al. 2017, arXiv 1702.08591 (the phenomenon); Yang and Schoenholz 2017, arXiv 1712.08969.
    """
    require_variances("residual_gradient_correlation", weight_variance)
    _require("residual_gradient_correlation", depth, correlation)
    known, scale = as_activation(activation), multiplier**2 * weight_variance
    cosines, q, c = [1.0], q0, correlation
    for _ in range(depth):
        alike = 1 + scale * correlated_slope_moment(known, q, c)
        cosines.append(cosines[-1] * alike / (1 + scale * slope_second_moment(known, q)))
        grown = q + scale * second_moment(known, q)
        c = min((c * q + scale * correlated_moment(known, q, c)) / grown, 1.0)
        q = min(grown, _MOST)
    return torch.tensor(cosines, dtype=torch.float64, device="cpu")


def batch_norm_gradient_correlation(
    depth: int, activation: ActivationLike = "relu", correlation: float = 0.0
) -> Tensor:
    r"""Cosine between the input gradients of two inputs after 0 to `depth` layers $W\phi(\mathrm{BN}(h))$.

    The correlation of the signals about the batch's mean follows $c' = (E[\phi(u_1)\phi(u_2)] - E[\phi]^2) /
    \mathrm{Var}[\phi]$ at $q = 1$, of which 0 is a fixed point: from there on $E[\phi']^2/E[\phi'^2]$ per layer, 1/2
    for ReLU.

    Args:
        depth: number of layers.
        activation: name or callable.
        correlation: $c_0$ of the two inputs, about the batch's mean.

    Returns:
        Float64 tensor of shape `(depth + 1,)`; entry `l` is for a network of `l` layers.

    Raises:
        UsageError: if the depth is below 1, the correlation outside [-1, 1], or the activation constant.

    Example:
        >>> [round(cosine, 9) for cosine in batch_norm_gradient_correlation(4).tolist()]
        [1.0, 0.5, 0.25, 0.125, 0.0625]

    Source: Balduzzi et al. 2017, arXiv 1702.08591 (the phenomenon); Yang et al. 2019, arXiv 1902.08129 (the signals).
    """
    return _normalised("batch_norm_gradient_correlation", depth, activation, 1.0, correlation, skip=False)


def batch_norm_residual_gradient_correlation(
    depth: int, activation: ActivationLike = "relu", weight_variance: float = 2.0, correlation: float = 0.0
) -> Tensor:
    r"""Cosine between the input gradients of two inputs after 0 to `depth` blocks $h + W\phi(\mathrm{BN}(h))$.

    The stream grows by the same variance $\sigma_w^2\mathrm{Var}[\phi]$ in each block, so that block $l$ counts as
    $1/l$, and the cosine falls as a power of depth: for unrelated inputs with exponent
    $-(E[\phi'^2] - E[\phi']^2)/\mathrm{Var}[\phi]$, -0.73 for ReLU.

    Args:
        depth: number of blocks.
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        correlation: $c_0$ of the two inputs, about the batch's mean, of variance 1.

    Returns:
        Float64 tensor of shape `(depth + 1,)`; entry `l` is for a network of `l` blocks.

    Raises:
        UsageError: if a variance is negative, the depth below 1, the correlation outside [-1, 1], or the activation
            constant.

    Example:
        >>> far = batch_norm_residual_gradient_correlation(4000)
        >>> round(float((far[4000] / far[2000]).log2()), 2)
        -0.73

    Source: Balduzzi et al. 2017, arXiv 1702.08591 (the phenomenon); De and Smith 2020, arXiv 2002.10444 (the stream).
    """
    owner = "batch_norm_residual_gradient_correlation"
    require_variances(owner, weight_variance)
    return _normalised(owner, depth, activation, weight_variance, correlation, skip=True)


def _normalised(
    owner: str, depth: int, activation: ActivationLike, scale: float, correlation: float, *, skip: bool
) -> Tensor:
    """Follow variance and covariance about the batch's mean; without a skip only their ratio counts."""
    _require(owner, depth, correlation)
    known = as_activation(activation)
    mean, steep = first_moment(known, 1.0) ** 2, slope_second_moment(known, 1.0)
    spread = second_moment(known, 1.0) - mean
    if not spread > 0:
        raise UsageError(f"{owner}: batch normalisation needs an activation that varies; {known.name} does not.")
    kept = 1.0 if skip else 0.0
    cosines, variance, covariance = [1.0], 1.0, correlation
    for _ in range(depth):
        c = min(max(covariance / variance, -1.0), 1.0)
        alike = kept + scale / variance * correlated_slope_moment(known, 1.0, c)
        cosines.append(cosines[-1] * alike / (kept + scale / variance * steep))
        covariance = kept * covariance + scale * (correlated_moment(known, 1.0, c) - mean)
        variance = kept * variance + scale * spread
    return torch.tensor(cosines, dtype=torch.float64, device="cpu")


def _require(owner: str, depth: int, correlation: float) -> None:
    require_at_least(owner, "depth", depth, 1)
    if not -1 <= correlation <= 1:
        raise UsageError(f"{owner}: correlation must be between -1 and 1, got {correlation}.")
