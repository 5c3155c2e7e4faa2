r"""The singular values of a deep network's Jacobian: their mean square, their spread, their largest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from levada._errors import UsageError, require_at_least
from levada.theory.activation import ActivationLike, as_activation
from levada.theory.moments import slope_fourth_moment, slope_second_moment
from levada.theory.variance import require_variances

__all__ = ["JacobianMoments", "jacobian_moments", "largest_squared_singular_value", "probe_deviation"]


@final
@dataclass(frozen=True, slots=True)
class JacobianMoments:
    r"""Moments of the squared singular values $s^2$ of an input-output Jacobian.

    Attributes:
        mean: $E[s^2]$, the mean gain of a squared gradient.
        relative_variance: $\mathrm{Var}[s^2]/E[s^2]^2$; 0 is dynamical isometry: every direction keeps its length.
    """

    mean: float
    relative_variance: float


def jacobian_moments(
    activation: ActivationLike, weight_variance: float, depth: int, q: float = 1.0, orthogonal: bool = False
) -> JacobianMoments:
    r"""$E[s^2] = \chi^L$ and $\mathrm{Var}[s^2]/E[s^2]^2 = L\,(\mu_2/\mu_1^2 - 1 - s_1)$, $\mu_k = E[\phi'^{2k}]$.

    $s_1$ is -1 for Gaussian and 0 for orthogonal weights (scaled to the same variance).

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        depth: $L$, number of layers.
        q: variance of the pre-activations, the same in each layer.
        orthogonal: weights are scaled orthogonal matrices, not Gaussian.

    Returns:
        The two moments.

    Raises:
        UsageError: if a variance is negative, the depth below 1, or the activation has no slope.

    Example:
        >>> jacobian_moments("linear", 1.0, depth=20, orthogonal=True).relative_variance < 1e-12
        True
        >>> round(jacobian_moments("relu", 2.0, depth=20).relative_variance, 9)           # 2 L
        40.0

    Source: Pennington, Schoenholz, Ganguli 2017, arXiv 1711.04735.
    """
    require_variances("jacobian_moments", weight_variance)
    require_at_least("jacobian_moments", "depth", depth, 1)
    first, second = slope_second_moment(activation, q), slope_fourth_moment(activation, q)
    if first == 0:
        raise UsageError(
            f"jacobian_moments: {as_activation(activation).name} has no slope at q={q:g}; its Jacobian is 0."
        )
    spread = second / first**2 - (1.0 if orthogonal else 0.0)
    return JacobianMoments((weight_variance * first) ** depth, max(depth * spread, 0.0))


def largest_squared_singular_value(depth: int, weight_variance: float = 1.0) -> float:
    r"""$\sigma_w^{2L}\,(L+1)^{L+1}/L^L$, for a product of $L$ wide square Gaussian matrices; near $eL$ for large $L$.

    The upper edge of the Fuss-Catalan distribution. At $L = 1$ it is 4: a matrix of variance $1/n$ keeps lengths on
    average and has spectral norm 2.

    Args:
        depth: $L$.
        weight_variance: width times the variance of one weight.

    Returns:
        The largest squared singular value.

    Raises:
        UsageError: if the depth is below 1 or the variance negative.

    Example:
        >>> largest_squared_singular_value(1)
        4.0

    Source: Penson and Zyczkowski 2011, arXiv 1103.3453.
    """
    require_at_least("largest_squared_singular_value", "depth", depth, 1)
    require_variances("largest_squared_singular_value", weight_variance)
    if weight_variance == 0:
        return 0.0
    return math.exp(depth * math.log(weight_variance) + (depth + 1) * math.log(depth + 1) - depth * math.log(depth))


def probe_deviation(relative_variance: float, dim: int, num_probes: int) -> float:
    r"""$\sqrt{2\,(1 + v)/(k n)}$: relative standard deviation of $\|J\|_F^2$ estimated by $k$ Gaussian probes.

    Each probe is one backward pass with a random cotangent $u$ and gives $\|J^T u\|^2$.

    Args:
        relative_variance: $v = \mathrm{Var}[s^2]/E[s^2]^2$ of the Jacobian.
        dim: $n$, its number of outputs.
        num_probes: $k$.

    Returns:
        The relative standard deviation.

    Raises:
        UsageError: if the variance is negative, or `dim` or `num_probes` is below 1.

    Example:
        >>> round(probe_deviation(0.0, dim=200, num_probes=1), 3)
        0.1

    Source: Girard 1989; Hutchinson 1990 (stochastic estimates of a trace).
    """
    require_at_least("probe_deviation", "relative_variance", relative_variance, 0.0)
    require_at_least("probe_deviation", "dim", dim, 1)
    require_at_least("probe_deviation", "num_probes", num_probes, 1)
    return math.sqrt(2 * (1 + relative_variance) / (num_probes * dim))
