r"""How alike two inputs stay: the correlation map of a wide random network, and its fixed point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from levada.theory.activation import ActivationLike, as_activation
from levada.theory.moments import (
    correlated_moment,
    correlated_slope_moment,
    second_moment,
    slope_second_moment,
)
from levada.theory.variance import require_variances, variance_fixed_point

__all__ = ["CorrelationFixedPoint", "correlation_fixed_point", "correlation_map"]

# Stand for the limits of variance 0 and infinity, inside the range in which products of moments are finite.
_LEAST, _MOST = 1e-100, 1e30


def correlation_map(
    activation: ActivationLike,
    weight_variance: float,
    bias_variance: float,
    correlation: float,
    q: float | None = None,
) -> float:
    r"""$c' = \dfrac{\sigma_w^2\, E[\phi(u_1)\phi(u_2)] + \sigma_b^2}{\sigma_w^2\, E[\phi(u)^2] + \sigma_b^2}$.

    Here $u_1 = \sqrt q z_1$ and $u_2 = \sqrt q (c z_1 + \sqrt{1-c^2} z_2)$ are the two inputs' pre-activations.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.
        correlation: $c$, of this layer's pre-activations.
        q: their variance; left out, the fixed point.

    Returns:
        The correlation of the next layer's pre-activations.

    Raises:
        UsageError: if a variance is negative or the correlation outside [-1, 1].

    Example:
        >>> round(correlation_map("relu", 2.0, 0.0, correlation=0.0), 6)      # 1 / pi
        0.31831

    Source: Poole, Lahiri, Raghu, Sohl-Dickstein, Ganguli 2016, arXiv 1606.05340.
    """
    require_variances("correlation_map", weight_variance, bias_variance)
    known = as_activation(activation)
    if q is None:
        q = variance_fixed_point(known, weight_variance, bias_variance).q
    q = min(max(q, _LEAST), _MOST)
    same = weight_variance * second_moment(known, q) + bias_variance
    if same == 0:
        return correlation  # no signal: nothing changes
    both = weight_variance * correlated_moment(known, q, correlation) + bias_variance
    return min(max(both / same, -1.0), 1.0)


@final
@dataclass(frozen=True, slots=True)
class CorrelationFixedPoint:
    r"""Where the correlation of two different inputs ends.

    Attributes:
        correlation: $c^*$; 1 when all inputs become alike (order), below 1 when they are driven apart (chaos).
        slope: $\sigma_w^2 E[\phi'(u_1)\phi'(u_2)]$ there; at $c^* = 1$ it is $\chi_1$.
        q: the variance at which it was found.
    """

    correlation: float
    slope: float
    q: float


def correlation_fixed_point(
    activation: ActivationLike, weight_variance: float, bias_variance: float, q: float | None = None
) -> CorrelationFixedPoint:
    r"""The stable $c^* \in [0, 1]$ of the correlation map.

    The map is a power series in $c$ with coefficients that are not negative, so it is convex on $[0, 1]$ with the
    fixed point 1: if its slope there is at most 1 there is no other; else Newton's method from 0 rises to $c^* < 1$.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.
        q: variance of the pre-activations; left out, the variance fixed point.

    Returns:
        The fixed point and the slope there.

    Raises:
        UsageError: if a variance is negative.

    Example:
        >>> correlation_fixed_point("tanh", 1.0, 0.05).correlation
        1.0
        >>> chaos = correlation_fixed_point("tanh", 4.0, 0.05)
        >>> chaos.correlation < 0.5 and chaos.slope < 1
        True

    Source: Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232.
    """
    require_variances("correlation_fixed_point", weight_variance, bias_variance)
    known = as_activation(activation)
    if q is None:
        q = variance_fixed_point(known, weight_variance, bias_variance).q
    inside = min(max(q, _LEAST), _MOST)
    same = weight_variance * second_moment(known, inside) + bias_variance
    at_one = weight_variance * slope_second_moment(known, inside)
    # Off a variance fixed point the correlation's slope is chi q / V(q): ReLU that grows still orders its inputs.
    if same == 0 or at_one * inside / same <= 1 + 1e-12:
        return CorrelationFixedPoint(1.0, at_one, q)
    correlation = 0.0
    for _ in range(100):
        excess = (weight_variance * correlated_moment(known, inside, correlation) + bias_variance) / same - correlation
        slope = weight_variance * inside / same * correlated_slope_moment(known, inside, correlation)
        step = excess / (1 - slope) if slope < 1 else math.inf
        # Rounding ends the monotone climb; a slope of 1 means that c* has met the fixed point at 1.
        if step <= 1e-15 or correlation + step >= 1:
            break
        correlation += step
    return CorrelationFixedPoint(correlation, weight_variance * correlated_slope_moment(known, inside, correlation), q)
