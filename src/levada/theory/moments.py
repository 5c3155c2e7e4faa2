r"""Gaussian moments of an activation: what a wide layer does to the size and the similarity of signals and gradients.

Everywhere $u = \sqrt q\, z$ with $z$ standard normal: a pre-activation of variance $q$. At $q = 0$ moments are the
limit $q \to 0^+$, at $q = \infty$ the limit $q \to \infty$.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from levada._errors import UsageError, require_at_least
from levada.theory.activation import Activation, ActivationLike, as_activation
from levada.theory.quadrature import normal_mean, pair_mean

__all__ = [
    "correlated_moment",
    "correlated_slope_moment",
    "curvature_moment",
    "first_moment",
    "second_moment",
    "second_moment_slope",
    "slope_fourth_moment",
    "slope_second_moment",
]

# Standing for the limits 0+ and infinity; far enough that every activation is on its tangent or its asymptotes.
_NEAR_ZERO = 1e-200
_NEAR_INFINITY = 1e30
_BOUNDED = 1e-6  # mean squared slope there of what has limits


def _finite(owner: str, q: float) -> float:
    require_at_least(owner, "q", q, 0.0, "It is the variance of the pre-activation.")
    return min(max(q, _NEAR_ZERO), _NEAR_INFINITY)


def _mean(activation: Activation, q: float, integrand: Callable[[Tensor], Tensor]) -> float:
    deviation = math.sqrt(q)
    centres = (0.0, *(kink / deviation for kink in activation.kinks if abs(kink) < 12 * deviation))
    return normal_mean(lambda z: integrand(deviation * z), centres, min(1.0, 1 / deviation))


def _at_zero(activation: Activation) -> float:
    return float(activation.value(torch.zeros(1, dtype=torch.float64, device="cpu")))


def first_moment(activation: ActivationLike, q: float) -> float:
    r"""$E[\phi(u)]$, the mean activation.

    Args:
        activation: name or callable.
        q: variance of the pre-activation.

    Returns:
        The mean.

    Raises:
        UsageError: if `q` is negative.

    Example:
        >>> round(first_moment("relu", 1.0), 6)     # 1 / sqrt(2 pi)
        0.398942
    """
    known = as_activation(activation)
    return _mean(known, _finite("first_moment", q), known.value) if q != 0 else _at_zero(known)


def second_moment(activation: ActivationLike, q: float) -> float:
    r"""$E[\phi(u)^2]$, the mean squared activation.

    Args:
        activation: name or callable.
        q: variance of the pre-activation.

    Returns:
        The second moment.

    Raises:
        UsageError: if `q` is negative.

    Example:
        >>> round(second_moment("tanh", 1.0), 6)
        0.394294
    """
    known = as_activation(activation)
    if q == 0:
        return _at_zero(known) ** 2
    last = _finite("second_moment", q)
    moment = _mean(known, last, lambda u: known.value(u).square())
    if q <= last:
        return moment
    share = _mean(known, last, lambda u: known.slope(u).square())  # of asymptotes, along which it goes on
    return moment if share < _BOUNDED else moment + share * (q - last)


def slope_second_moment(activation: ActivationLike, q: float) -> float:
    r"""$E[\phi'(u)^2]$, what an activation leaves of a squared gradient.

    Args:
        activation: name or callable.
        q: variance of the pre-activation.

    Returns:
        The second moment of the slope.

    Raises:
        UsageError: if `q` is negative.

    Example:
        >>> round(slope_second_moment("sigmoid", 1.0), 6)
        0.044836
        >>> round(slope_second_moment("sigmoid", 0.0), 12)     # (1/4)^2, the worst case
        0.0625
    """
    known = as_activation(activation)
    return _mean(known, _finite("slope_second_moment", q), lambda u: known.slope(u).square())


def slope_fourth_moment(activation: ActivationLike, q: float) -> float:
    r"""$E[\phi'(u)^4]$, which sets how far the singular values of a deep Jacobian spread.

    Args:
        activation: name or callable.
        q: variance of the pre-activation.

    Returns:
        The fourth moment of the slope.

    Raises:
        UsageError: if `q` is negative.

    Example:
        >>> round(slope_fourth_moment("relu", 3.0), 12)
        0.5
    """
    known = as_activation(activation)
    return _mean(known, _finite("slope_fourth_moment", q), lambda u: known.slope(u).pow(4))


def second_moment_slope(activation: ActivationLike, q: float) -> float:
    r"""$\frac{d}{dq} E[\phi(u)^2] = E[z\,\phi(u)\,\phi'(u)]/\sqrt q = E[\phi'(u)^2] + E[\phi''(u)\phi(u)]$.

    The middle form needs no second derivative, so that it holds across kinks; for small $q$ the last one is used, where
    the middle one would divide rounding errors by $\sqrt q$.

    Args:
        activation: name or callable.
        q: variance of the pre-activation.

    Returns:
        The derivative with respect to the variance.

    Raises:
        UsageError: if `q` is negative.

    Example:
        >>> round(second_moment_slope("erf", 1.0), 9) == round(4 / (3 * math.pi * math.sqrt(5)), 9)
        True
    """
    known, q = as_activation(activation), _finite("second_moment_slope", q)
    if q < 1e-6:
        return _mean(known, q, lambda u: known.slope(u).square() + known.curvature(u) * known.value(u))
    return _mean(known, q, lambda u: u * known.value(u) * known.slope(u)) / q


def curvature_moment(activation: ActivationLike, q: float) -> float:
    r"""$E[\phi''(u)\,\phi(u)]$; at a kink $\phi''$ counts as the point mass that the jump of $\phi'$ is.

    Args:
        activation: name or callable.
        q: variance of the pre-activation.

    Returns:
        The moment; negative where the activation saturates.

    Raises:
        UsageError: if `q` is negative.

    Example:
        >>> abs(curvature_moment("relu", 1.0)) < 1e-12
        True
    """
    return second_moment_slope(activation, q) - slope_second_moment(activation, q)


def correlated_moment(activation: ActivationLike, q: float, correlation: float) -> float:
    r"""$E[\phi(u_1)\,\phi(u_2)]$ for pre-activations of two inputs, each of variance $q$, with the given correlation.

    Args:
        activation: name or callable. ReLU, leaky ReLU and erf use their closed forms.
        q: variance of each pre-activation.
        correlation: $c$, between -1 and 1.

    Returns:
        The moment; at $c = 1$ it is `second_moment`.

    Raises:
        UsageError: if `q` is negative or the correlation is outside [-1, 1].

    Example:
        >>> round(correlated_moment("relu", 2.0, 0.0), 6)    # q / (2 pi)
        0.31831

    Source: Cho and Saul 2009 (ReLU); Williams 1997 (erf).
    """
    known, q = as_activation(activation), _finite("correlated_moment", q)
    return _pair(known, q, _correlation("correlated_moment", correlation), known.value, known.pair)


def correlated_slope_moment(activation: ActivationLike, q: float, correlation: float) -> float:
    r"""$E[\phi'(u_1)\,\phi'(u_2)]$: how alike the gradients of two inputs stay through an activation.

    Args:
        activation: name or callable.
        q: variance of each pre-activation.
        correlation: $c$, between -1 and 1.

    Returns:
        The moment; at $c = 1$ it is `slope_second_moment`.

    Raises:
        UsageError: if `q` is negative or the correlation is outside [-1, 1].

    Example:
        >>> correlated_slope_moment("relu", 1.0, 0.0)
        0.25
    """
    known, q = as_activation(activation), _finite("correlated_slope_moment", q)
    return _pair(known, q, _correlation("correlated_slope_moment", correlation), known.slope, known.slope_pair)


def _correlation(owner: str, correlation: float) -> float:
    if not -1.0 <= correlation <= 1.0:
        raise UsageError(f"{owner}: correlation must be between -1 and 1, got {correlation}.")
    return correlation


def _pair(
    activation: Activation,
    q: float,
    correlation: float,
    function: Callable[[Tensor], Tensor],
    closed: Callable[[float, float], float] | None,
) -> float:
    if closed is not None:
        return closed(q, correlation)
    if abs(correlation) == 1.0:
        return _mean(activation, q, lambda u: function(u) * function(correlation * u))
    deviation = math.sqrt(q)
    centres = (0.0, *(kink / deviation for kink in activation.kinks if abs(kink) < 12 * deviation))
    return pair_mean(lambda v: function(deviation * v), correlation, centres, min(1.0, 1 / deviation))
