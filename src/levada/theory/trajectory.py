r"""Signals and gradients layer by layer, from a given input: what a finite depth shows before any fixed point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from levada._errors import require_at_least
from levada.theory.activation import ActivationLike, as_activation
from levada.theory.correlation import correlation_map
from levada.theory.moments import correlated_slope_moment, first_moment, second_moment, slope_second_moment
from levada.theory.variance import require_variances, variance_map

__all__ = ["Trajectory", "gradient_correlation", "propagate", "propagate_correlation", "propagate_residual"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    r"""What happens to variance and gradient along the depth.

    Attributes:
        q: variance at each of the `depth + 1` boundaries, the input's first.
        chi: factor of each of the `depth` layers on the squared gradient, going towards the input.

    Example:
        >>> plain = propagate("relu", 1 / 3, 0.0, depth=20)
        >>> f"{plain.cumulative[0]:.3e}"
        '1.654e-08'
    """

    q: Tensor
    chi: Tensor

    @property
    def gradient_gain(self) -> Tensor:
        r"""$\sqrt{\chi_l}$, the factor of each layer on the gradient's root mean square; shape `(depth,)`."""
        return self.chi.sqrt()

    @property
    def log_cumulative(self) -> Tensor:
        """Natural logarithm of `cumulative`, which does not underflow; shape `(depth + 1,)`."""
        logs = torch.cat([self.chi.log() / 2, self.chi.new_zeros(1)])
        return logs.flip(0).cumsum(0).flip(0)

    @property
    def cumulative(self) -> Tensor:
        """Gradient's root mean square at each boundary over that at the output; shape `(depth + 1,)`, ends in 1."""
        return self.log_cumulative.exp()


def _trajectory(variances: list[float], gains: list[float]) -> Trajectory:
    return Trajectory(
        torch.tensor(variances, dtype=torch.float64, device="cpu"),
        torch.tensor(gains, dtype=torch.float64, device="cpu"),
    )


def propagate(
    activation: ActivationLike, weight_variance: float, bias_variance: float, depth: int, q0: float = 1.0
) -> Trajectory:
    r"""$q_{l+1} = V(q_l)$ and $\chi_l = \sigma_w^2 E[\phi'(\sqrt{q_l} z)^2]$ for `depth` layers $W\phi(\cdot) + b$.

    The boundaries are pre-activations: `cumulative[0]` is the gradient at the first pre-activation over that at the
    last. For blocks of linear layer and then activation, fed with inputs of mean square $s$, start from
    $q_0 = \sigma_w^2 s + \sigma_b^2$: then `gradient_gain[l]` is the factor across block `l`.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.
        depth: number of layers.
        q0: variance of the first pre-activation.

    Returns:
        The trajectory.

    Raises:
        UsageError: if a variance is negative or the depth below 1.

    Example:
        >>> deep = propagate("tanh", 1 / 3, 0.0, depth=50)
        >>> abs(deep.gradient_gain[-1] - 3**-0.5) < 1e-12     # the signal has died out, so tanh is linear
        tensor(True)

    Source: Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232.
    """
    require_variances("propagate", weight_variance, bias_variance)
    require_at_least("propagate", "depth", depth, 1)
    known = as_activation(activation)
    variances, gains = [q0], []
    for _ in range(depth):
        gains.append(weight_variance * slope_second_moment(known, variances[-1]))
        variances.append(variance_map(known, weight_variance, bias_variance, variances[-1]))
    return _trajectory(variances, gains)


def propagate_residual(
    activation: ActivationLike,
    weight_variance: float,
    bias_variance: float,
    depth: int,
    q0: float = 1.0,
    multiplier: float | Callable[[int], float] = 1.0,
    activation_first: bool = True,
) -> Trajectory:
    r"""The same for residual blocks $h + \alpha (W\phi(h) + b)$, or $h + \alpha\,\phi(W h + b)$.

    $$q_{l+1} = q_l + \alpha_l^2 V(q_l), \qquad \chi_l = 1 + \alpha_l^2 \sigma_w^2 E[\phi'^2]$$

    With the activation last, its mean adds up coherently: with $\mu_l = E[\phi]$ and the stream's mean $m_l$,
    $q_{l+1} = q_l + \alpha_l^2 E[\phi^2] + 2 \alpha_l m_l \mu_l$. A mean that is not zero (ReLU, not tanh) also makes
    the gradient's own mean grow coherently, an effect of order 1/width that deep narrow networks show: there $\chi_l$
    is a lower bound.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.
        depth: number of blocks.
        q0: mean square of the stream at the input.
        multiplier: $\alpha$, one number or a function of the block's index from 0.
        activation_first: the first form (pre-activation), or the second.

    Returns:
        The trajectory, at the block boundaries.

    Raises:
        UsageError: if a variance is negative or the depth below 1.

    Example:
        >>> he = propagate_residual("relu", 2.0, 0.0, depth=50)
        >>> f"{he.q[-1]:.3e}"                                  # 2^50
        '1.126e+15'
        >>> scaled = propagate_residual("relu", 2.0, 0.0, depth=50, multiplier=50**-0.5)
        >>> round(scaled.q[-1].item(), 4)                      # (1 + 1/50)^50, near e
        2.6916

    Source: Yang and Schoenholz 2017, arXiv 1712.08969; Hayou et al. 2021, arXiv 2010.12859.
    """
    require_variances("propagate_residual", weight_variance, bias_variance)
    require_at_least("propagate_residual", "depth", depth, 1)
    known = as_activation(activation)
    variances, gains, mean = [q0], [], 0.0
    for layer in range(depth):
        alpha, q = multiplier(layer) if callable(multiplier) else multiplier, variances[-1]
        inside = q if activation_first else weight_variance * q + bias_variance
        gains.append(1 + alpha**2 * weight_variance * slope_second_moment(known, inside))
        branch = second_moment(known, inside)
        if activation_first:
            variances.append(q + alpha**2 * (weight_variance * branch + bias_variance))
        else:
            shift = first_moment(known, inside)
            variances.append(q + alpha**2 * branch + 2 * alpha * mean * shift)
            mean += alpha * shift
    return _trajectory(variances, gains)


def propagate_correlation(
    activation: ActivationLike,
    weight_variance: float,
    bias_variance: float,
    depth: int,
    correlation: float = 0.0,
    q0: float = 1.0,
) -> Tensor:
    r"""Correlation of two inputs' pre-activations at each of `depth + 1` boundaries.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.
        depth: number of layers.
        correlation: $c_0$, at the first pre-activation.
        q0: variance of the first pre-activation.

    Returns:
        Float64 tensor of shape `(depth + 1,)`.

    Raises:
        UsageError: if a variance is negative, the depth below 1 or the correlation outside [-1, 1].

    Example:
        >>> c = propagate_correlation("relu", 2.0, 0.0, depth=400)
        >>> bool(abs((1 - c[400]) * 400**2 / (9 * torch.pi**2 / 2) - 1) < 0.1)    # 1 - c tends to 9 pi^2 / (2 l^2)
        True

    Source: Poole et al. 2016, arXiv 1606.05340.
    """
    require_variances("propagate_correlation", weight_variance, bias_variance)
    require_at_least("propagate_correlation", "depth", depth, 1)
    known = as_activation(activation)
    correlations, q = [correlation], q0
    for _ in range(depth):
        correlations.append(correlation_map(known, weight_variance, bias_variance, correlations[-1], q))
        q = variance_map(known, weight_variance, bias_variance, q)
    return torch.tensor(correlations, dtype=torch.float64, device="cpu")


def gradient_correlation(
    activation: ActivationLike,
    weight_variance: float,
    bias_variance: float,
    depth: int,
    correlation: float = 0.0,
    q0: float = 1.0,
) -> Tensor:
    r"""Cosine between the input gradients of two inputs, after 0 to `depth` layers: how gradients shatter.

    $$\prod_{l} \frac{E[\phi'(u_1)\phi'(u_2)]}{E[\phi'(u)^2]} \quad\text{at } (q_l, c_l)$$

    for networks with the same gradient at their output.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.
        depth: number of layers.
        correlation: $c_0$ of the two inputs' first pre-activations.
        q0: variance of the first pre-activation.

    Returns:
        Float64 tensor of shape `(depth + 1,)`; entry `l` is for a network of `l` layers.

    Raises:
        UsageError: if a variance is negative, the depth below 1 or the correlation outside [-1, 1].

    Example:
        >>> [round(cosine, 4) for cosine in gradient_correlation("relu", 2.0, 0.0, depth=2).tolist()]
        [1.0, 0.5, 0.3016]

    Source: Balduzzi et al. 2017, arXiv 1702.08591 (the phenomenon); Schoenholz et al. 2017, arXiv 1611.01232.
    """
    known = as_activation(activation)
    correlations = propagate_correlation(known, weight_variance, bias_variance, depth, correlation, q0).tolist()
    cosines, q = [1.0], q0
    for c in correlations[:-1]:
        cosines.append(cosines[-1] * correlated_slope_moment(known, q, c) / slope_second_moment(known, q))
        q = variance_map(known, weight_variance, bias_variance, q)
    return torch.tensor(cosines, dtype=torch.float64, device="cpu")
