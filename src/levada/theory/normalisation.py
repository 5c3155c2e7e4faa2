r"""Batch normalisation at initialisation: plain networks explode, residual ones grow as a power of depth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from levada._errors import UsageError, require_at_least
from levada.theory.activation import ActivationLike, as_activation
from levada.theory.moments import first_moment, second_moment, slope_second_moment

__all__ = ["batch_norm_gradient_gain", "batch_norm_residual_gradient"]


def _spread(activation: ActivationLike) -> float:
    variance = second_moment(activation, 1.0) - first_moment(activation, 1.0) ** 2
    if not variance > 0:
        raise UsageError(
            f"batch normalisation needs an activation that varies; {as_activation(activation).name} does not."
        )
    return variance


def batch_norm_gradient_gain(activation: ActivationLike = "relu") -> float:
    r"""$\sqrt{E[\phi'^2] / \mathrm{Var}[\phi]}$ at $q = 1$: gradient factor per plain layer $\phi(\mathrm{BN}(Wh))$.

    Normalisation divides by the standard deviation over the batch, which the weights and the spread of $\phi$ set; the
    weights' scale cancels. For ReLU it is $\sqrt{\pi/(\pi-1)}$. Holds for large batches and widths.

    Args:
        activation: name or callable.

    Returns:
        The factor per layer, going towards the input: above 1, the gradient explodes.

    Raises:
        UsageError: if the activation is constant.

    Example:
        >>> round(batch_norm_gradient_gain("relu"), 4), round(math.sqrt(math.pi / (math.pi - 1)), 4)
        (1.2112, 1.2112)

    Source: Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz 2019, arXiv 1902.08129.
    """
    return math.sqrt(slope_second_moment(activation, 1.0) / _spread(activation))


def batch_norm_residual_gradient(
    depth: int, activation: ActivationLike = "relu", weight_variance: float = 2.0, branch_layers: int = 1
) -> Tensor:
    r"""Gradient at each boundary of pre-activation residual blocks, over that at the output.

    A block adds $k$ layers $W\phi(\mathrm{BN}(\cdot))$. Each adds the same variance $c = \sigma_w^2 \mathrm{Var}[\phi]$
    over the batch to the stream, so that the branch of block $l$ divides its gradient by a growing $v_l = 1 + l c$:

    $$\chi_l = 1 + \frac{\sigma_w^2 E[\phi'^2]}{v_l} \left(\frac{E[\phi'^2]}{\mathrm{Var}[\phi]}\right)^{k-1}$$

    and the product over the depth is a power of it, not an exponential.

    Args:
        depth: number of blocks.
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        branch_layers: $k$.

    Returns:
        Root mean square relative to the output; float64, shape `(depth + 1,)`, the input's first, ends in 1.

    Raises:
        UsageError: if `depth` or `branch_layers` is below 1, or the variance is not positive.

    Example:
        >>> growth = [batch_norm_residual_gradient(depth)[0].item() for depth in (1000, 2000, 4000)]
        >>> round(growth[1] / growth[0], 2), round(growth[2] / growth[1], 2)      # a power law: equal ratios
        (1.66, 1.66)

    Source: De and Smith 2020, arXiv 2002.10444 (the stream outgrows its branches).
    """
    require_at_least("batch_norm_residual_gradient", "depth", depth, 1)
    require_at_least("batch_norm_residual_gradient", "branch_layers", branch_layers, 1)
    require_at_least("batch_norm_residual_gradient", "weight_variance", weight_variance, 1e-300)
    slope, spread = slope_second_moment(activation, 1.0), _spread(activation)
    stream = 1 + weight_variance * spread * torch.arange(depth, dtype=torch.float64, device="cpu")
    logs = torch.log1p(weight_variance * slope * (slope / spread) ** (branch_layers - 1) / stream) / 2
    return torch.cat([logs, logs.new_zeros(1)]).flip(0).cumsum(0).flip(0).exp()
