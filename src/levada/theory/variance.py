r"""The size of signals and gradients in a wide random network: variance map, fixed point, gradient gain.

One layer is $z_l = W_l\,\phi(z_{l-1}) + b_l$, $W \sim N(0, \sigma_w^2/\mathrm{fan\_in})$, $b \sim N(0, \sigma_b^2)$;
`weight_variance` is $\sigma_w^2$, `bias_variance` is $\sigma_b^2$, and $q$ the variance of a pre-activation $z$.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

from levada._errors import require_at_least
from levada.theory.activation import ActivationLike, as_activation
from levada.theory.moments import second_moment, second_moment_slope, slope_second_moment

__all__ = [
    "InitialVariances",
    "VarianceFixedPoint",
    "chi",
    "default_variances",
    "gradient_gain",
    "require_variances",
    "variance_fixed_point",
    "variance_map",
]

_SLOW = 1e-3  # deviations need a thousand layers to fall by e
_ROUNDING = 1e-13
_LARGEST, _SMALLEST = 1e15, 1e-14


def require_variances(owner: str, weight_variance: float, bias_variance: float = 0.0) -> None:
    """Raise unless both variances are numbers that are not negative.

    Args:
        owner: the function that asks.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.

    Raises:
        UsageError: if a variance is negative or not a number.
    """
    hint = "It is fan_in * Var(W), for example 2 for He's initialisation and 1/3 for PyTorch's default."
    require_at_least(owner, "weight_variance", weight_variance, 0.0, hint)
    require_at_least(owner, "bias_variance", bias_variance, 0.0)


class InitialVariances(NamedTuple):
    """What an initialisation means to theory: `weight_variance` (times fan_in) and `bias_variance`."""

    weight_variance: float
    bias_variance: float


def default_variances(fan_in: int) -> InitialVariances:
    r"""What `nn.Linear` and `nn.Conv*` start with: $\sigma_w^2 = 1/3$, $\sigma_b^2 = 1/(3\,\mathrm{fan\_in})$.

    Both weights and biases are uniform in $\pm 1/\sqrt{\mathrm{fan\_in}}$.

    Args:
        fan_in: inputs of a unit (channels times kernel size for a convolution).

    Returns:
        The two variances.

    Raises:
        UsageError: if `fan_in` is below 1.

    Example:
        >>> import torch
        >>> layer, (weight_variance, _) = torch.nn.Linear(1024, 1024), default_variances(1024)
        >>> abs(1024 * layer.weight.var().item() - weight_variance) < 0.01
        True
    """
    require_at_least("default_variances", "fan_in", fan_in, 1)
    return InitialVariances(1 / 3, 1 / (3 * fan_in))


def variance_map(activation: ActivationLike, weight_variance: float, bias_variance: float, q: float) -> float:
    r"""$V(q) = \sigma_w^2\, E[\phi(\sqrt q\, z)^2] + \sigma_b^2$: the next layer's pre-activation variance.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.
        q: this layer's pre-activation variance.

    Returns:
        The next layer's.

    Raises:
        UsageError: if a variance is negative.

    Example:
        >>> round(variance_map("relu", 2.0, 0.0, q=3.0), 12)      # He: kept
        3.0

    Source: Poole, Lahiri, Raghu, Sohl-Dickstein, Ganguli 2016, arXiv 1606.05340.
    """
    require_variances("variance_map", weight_variance, bias_variance)
    return weight_variance * second_moment(activation, q) + bias_variance


@final
@dataclass(frozen=True, slots=True)
class VarianceFixedPoint:
    r"""Where the variance map leads.

    Attributes:
        q: $q^*$; 0 when the signal dies out, `inf` when it grows without bound.
        rate: $V'(q^*)$, the factor by which a small deviation changes per layer.
            Always above -1/2, so that layers never cycle.
        status: "converging"; "slow" ($V'$ within 0.001 of 1: no exponential approach); or "diverging".
    """

    q: float
    rate: float
    status: Literal["converging", "slow", "diverging"]


def variance_fixed_point(
    activation: ActivationLike, weight_variance: float, bias_variance: float, q0: float = 1.0
) -> VarianceFixedPoint:
    r"""The $q^* = V(q^*)$ that repeated layers lead to, from `q0`.

    For an increasing map, the iterates move monotonically to the first fixed point in the direction in which $q_0$
    moves; that one is bracketed, then bisected, so that slow convergence of the layers costs nothing here.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.
        q0: where to start; it matters where there are several fixed points (GELU, SiLU), or a continuum (He's ReLU).

    Returns:
        The fixed point, its rate and status.

    Raises:
        UsageError: if a variance is negative, or `q0` is not positive.

    Example:
        >>> fixed = variance_fixed_point("tanh", weight_variance=1.0, bias_variance=0.05)
        >>> round(fixed.q, 6), fixed.status
        (0.193593, 'converging')
        >>> variance_fixed_point("relu", weight_variance=3.0, bias_variance=0.0).status
        'diverging'

    Source: Poole et al. 2016, arXiv 1606.05340.
    """
    require_variances("variance_fixed_point", weight_variance, bias_variance)
    require_at_least("variance_fixed_point", "q0", q0, 1e-100, "Start from a positive variance, such as 1.")
    known = as_activation(activation)

    def excess(q: float) -> float:
        return weight_variance * second_moment(known, q) + bias_variance - q

    start = excess(q0)
    if abs(start) <= _ROUNDING * q0:
        q = q0
    elif start > 0:
        q = _first_root(excess, q0, 2**0.5)
    else:  # where no signal stays no signal, a root below _SMALLEST counts as 0
        q = _first_root(excess, q0, 2**-0.5, smallest=_SMALLEST if excess(0.0) == 0 else 0.0)
    rate = weight_variance * second_moment_slope(known, q)
    if math.isinf(q):
        return VarianceFixedPoint(q, rate, "diverging")
    return VarianceFixedPoint(q, rate, "slow" if abs(rate - 1) < _SLOW else "converging")


def _first_root(excess: Callable[[float], float], q0: float, step: float, smallest: float = 0.0) -> float:
    """First sign change of `excess` from `q0` in steps of a constant ratio; 0 or infinity if there is none."""
    direction = 1 if step > 1 else -1
    near, far = q0, q0 * step
    while direction * excess(far) > -_ROUNDING * far:  # rounding must not look like a change of sign
        near, far = far, far * step
        if far > _LARGEST:
            return math.inf
        if far < smallest:
            return 0.0
    low, high = min(near, far), max(near, far)
    while high - low > 1e-15 * high:
        middle = math.sqrt(low) * math.sqrt(high)
        if middle in (low, high):
            break
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.sqrt(low) * math.sqrt(high)


def chi(activation: ActivationLike, weight_variance: float, q: float) -> float:
    r"""$\chi(q) = \sigma_w^2\, E[\phi'(\sqrt q\, z)^2]$: what a layer does to a squared gradient.

    Below 1 gradients vanish with depth, above 1 they explode. At the fixed point $q^*$ it is the papers' $\chi_1$.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        q: variance of the pre-activation; `inf` gives the limit.

    Returns:
        The factor for the squared gradient.

    Raises:
        UsageError: if a variance is negative.

    Example:
        >>> round(chi("relu", 1 / 3, q=1.0), 6)      # PyTorch's default
        0.166667

    Source: Schoenholz, Gilmer, Ganguli, Sohl-Dickstein 2017, arXiv 1611.01232.
    """
    require_variances("chi", weight_variance)
    return weight_variance * slope_second_moment(activation, q)


def gradient_gain(
    activation: ActivationLike, weight_variance: float, bias_variance: float = 0.0, q: float | None = None
) -> float:
    r"""$\sqrt{\chi(q)}$: the factor on the gradient's root mean square per layer, going towards the input.

    It is for layers of equal width; a layer of `dim_in` inputs and `dim_out` outputs has
    $\sqrt{\chi\, \mathrm{dim_{out}} / \mathrm{dim_{in}}}$ per element.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias; matters only if `q` is not given.
        q: variance of the pre-activation; left out, the fixed point, that is, deep inside the network.

    Returns:
        The factor per layer.

    Raises:
        UsageError: if a variance is negative.

    Example:
        >>> round(gradient_gain("relu", *default_variances(256)), 6)
        0.408248
        >>> round(gradient_gain("sigmoid", 1.0), 3)               # less than the textbook's 1/4
        0.236

    Source: Schoenholz et al. 2017, arXiv 1611.01232.
    """
    require_variances("gradient_gain", weight_variance, bias_variance)
    if q is None:
        q = variance_fixed_point(activation, weight_variance, bias_variance).q
    return math.sqrt(chi(activation, weight_variance, q))
