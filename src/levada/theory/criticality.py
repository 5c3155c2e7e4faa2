r"""Depth scales, the depth that can be trained, and the critical line between order and chaos."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

from levada._errors import UsageError, require_at_least
from levada.theory.activation import Activation, ActivationLike, as_activation
from levada.theory.correlation import correlation_fixed_point
from levada.theory.moments import second_moment, second_moment_slope, slope_second_moment
from levada.theory.variance import require_variances, variance_fixed_point

__all__ = [
    "CriticalPoint",
    "DepthScales",
    "critical_point",
    "critical_weight_variance",
    "depth_scales",
    "trainable_depth",
]


@final
@dataclass(frozen=True, slots=True)
class DepthScales:
    r"""Numbers of layers over which something changes by a factor $e$; `inf` at criticality.

    Attributes:
        variance: $\xi_q = 1/|\ln V'(q^*)|$, of the variance's approach to its fixed point.
        correlation: $\xi_c = 1/|\ln \sigma_w^2 E[\phi'(u_1)\phi'(u_2)]|$ at $c^*$, of what two inputs' signals forget.
        gradient: $\xi_\nabla = 1/|\ln \chi_1|$, of the squared gradient.
        chi: $\chi_1$ at $q^*$.
        fixed_correlation: $c^*$.
        q: $q^*$.
    """

    variance: float
    correlation: float
    gradient: float
    chi: float
    fixed_correlation: float
    q: float


def _scale(factor: float) -> float:
    if factor == 0:
        return 0.0
    logarithm = abs(math.log(abs(factor)))
    return 1 / logarithm if logarithm > 1e-12 else math.inf


def depth_scales(
    activation: ActivationLike, weight_variance: float, bias_variance: float, q0: float = 1.0
) -> DepthScales:
    r"""$\xi_q$, $\xi_c$ and $\xi_\nabla$ of a wide random network.

    Where the variance itself diverges they are the depths over which variance and gradient *grow* by $e$.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.
        q0: variance to start from.

    Returns:
        The depth scales, in layers.

    Raises:
        UsageError: if a variance is negative.

    Example:
        >>> scales = depth_scales("tanh", 1.0, 0.05)
        >>> round(scales.chi, 6), round(scales.correlation, 3)
        (0.759032, 3.627)

    Source: Schoenholz, Gilmer, Ganguli, Sohl-Dickstein 2017, arXiv 1611.01232.
    """
    variance = variance_fixed_point(activation, weight_variance, bias_variance, q0)
    correlation = correlation_fixed_point(activation, weight_variance, bias_variance, variance.q)
    chi_one = weight_variance * slope_second_moment(activation, variance.q)
    return DepthScales(
        variance=_scale(variance.rate),
        correlation=_scale(correlation.slope),
        gradient=_scale(chi_one),
        chi=chi_one,
        fixed_correlation=correlation.correlation,
        q=variance.q,
    )


def trainable_depth(activation: ActivationLike, weight_variance: float, bias_variance: float) -> float:
    r"""$6\,\xi_c$: beyond about this depth, plain networks of this initialisation did not train.

    An empirical multiple of the correlation's depth scale, not a law: the experiments behind it are fully connected
    tanh networks under plain stochastic gradient descent.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.

    Returns:
        A number of layers; `inf` at criticality.

    Raises:
        UsageError: if a variance is negative.

    Example:
        >>> round(trainable_depth("tanh", 1.0, 0.05), 1)
        21.8
        >>> trainable_depth("relu", 2.0, 0.0)
        inf

    Source: Schoenholz et al. 2017, arXiv 1611.01232.
    """
    return 6 * depth_scales(activation, weight_variance, bias_variance).correlation


class CriticalPoint(NamedTuple):
    """Variances with a chi of exactly 1 at `q`; `rate` above 1 means that the variance leaves that `q`."""

    weight_variance: float
    bias_variance: float
    rate: float


def critical_point(activation: ActivationLike, q: float) -> CriticalPoint:
    r"""The initialisation with $q^* = q$ and $\chi_1 = 1$.

    $$\sigma_w^2 = \frac{1}{E[\phi'(\sqrt q z)^2]}, \qquad \sigma_b^2 = q - \sigma_w^2\, E[\phi(\sqrt q z)^2]$$

    Args:
        activation: name or callable.
        q: the variance of pre-activations wanted.

    Returns:
        The two variances, and the rate $V'(q)$: below 1 the variance returns to `q` by itself.

    Raises:
        UsageError: if no bias variance, which cannot be negative, makes `q` a fixed point.

    Example:
        >>> point = critical_point("tanh", q=1.0)
        >>> round(point.weight_variance, 6), round(point.bias_variance, 6)
        (2.153303, 0.150965)

    Source: Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232.
    """
    known = as_activation(activation)
    require_at_least("critical_point", "q", q, 0.0)
    slope = slope_second_moment(known, q)
    if slope == 0:
        raise UsageError(f"critical_point: {known.name} has no slope at q={q:g}, so no weight variance makes chi 1.")
    weight_variance = 1 / slope
    bias_variance = q - weight_variance * second_moment(known, q)
    if bias_variance < -1e-12 * max(q, 1e-300):
        raise UsageError(
            f"critical_point: {known.name} has no critical point at q={q:g}: weight variance {weight_variance:g} makes "
            f"chi 1, and would need bias variance {bias_variance:g}. Use a larger q, or an activation with phi(0) = 0."
        )
    return CriticalPoint(weight_variance, max(bias_variance, 0.0), weight_variance * second_moment_slope(known, q))


def critical_weight_variance(activation: ActivationLike, bias_variance: float) -> float:
    r"""The $\sigma_w^2$ with $\chi_1 = 1$ at the given $\sigma_b^2$: between vanishing and exploding gradients.

    Follows the critical line $q \mapsto (\sigma_w^2, \sigma_b^2)$ of `critical_point` to the first $q$ of this bias
    variance that the network returns to ($V'(q) \le 1$).

    Args:
        activation: name or callable.
        bias_variance: variance of one bias.

    Returns:
        The weight variance (times fan_in).

    Raises:
        UsageError: if the bias variance is negative, or no stable critical point has it. GELU, SiLU and mish have none
            without bias: their gain grows with the variance, so that any signal either dies out or grows.

    Example:
        >>> round(critical_weight_variance("tanh", 0.05), 3)
        1.761
        >>> round(critical_weight_variance("relu", 0.0), 12)      # He et al. 2015
        2.0

    Source: Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232.
    """
    require_variances("critical_weight_variance", 0.0, bias_variance)
    known = as_activation(activation)
    small, large = slope_second_moment(known, 1e-6), slope_second_moment(known, 1e6)
    if abs(small - large) < 1e-12 * small:  # linear, ReLU, leaky ReLU: chi does not depend on q
        return 1 / small

    def excess(q: float) -> float:
        return q - second_moment(known, q) / slope_second_moment(known, q) - bias_variance

    if abs(excess(0.0)) < 1e-15 and _is_stable(known, 1e-3):
        return 1 / slope_second_moment(known, 0.0)
    near = 1e-9
    while near < 1e9:
        far = near * 2**0.5
        if excess(near) <= 0 < excess(far):
            q = _bisected(excess, near, far)
            if _is_stable(known, q):
                return 1 / slope_second_moment(known, q)
        near = far
    raise UsageError(
        f"critical_weight_variance: {known.name} has no stable critical point at bias variance {bias_variance:g}: "
        "wherever chi is 1, the variance leaves. Use a larger bias variance, normalisation or a residual connection."
    )


def _is_stable(activation: Activation, q: float) -> bool:
    return second_moment_slope(activation, q) <= slope_second_moment(activation, q) * (1 + 1e-9)


def _bisected(excess: Callable[[float], float], low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    return (low + high) / 2
