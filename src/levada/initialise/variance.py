"""Initialisations that fix the variance of independent weights."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, nn

from levada._errors import UsageError, require_at_least
from levada.initialise._weights import gauss_, glorot_, weights
from levada.theory import ActivationLike, critical_point

__all__ = ["critical", "gaussian", "glorot", "he", "pytorch_default"]


@torch.no_grad()
def pytorch_default(module: nn.Module, *, generator: Generator | None = None) -> nn.Module:
    """Draw again what PyTorch draws: `W` and `b` from `U(-1/sqrt(fan_in), 1/sqrt(fan_in))`.

    The variance of a weight is `1 / (3 fan_in)`, a sixth of what a rectifier needs: a deep plain ReLU network loses a
    factor `sqrt(1/6) = 0.408` of its signal and of its gradient in every layer. It is the scheme that Glorot and
    Bengio wrote to replace.

    Args:
        module: changed in place: every Linear, Conv1d-3d and MultiheadAttention (which PyTorch draws otherwise: its
            input projections as Glorot's, its biases zero).
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if there is nothing to set.

    Example:
        >>> linear = pytorch_default(torch.nn.Linear(100, 1000), generator=torch.Generator().manual_seed(0))
        >>> round(3 * 100 * linear.weight.var().item(), 2)
        1.0

    Source: torch.nn.Linear; the scheme is discussed by Glorot and Bengio, 2010, AISTATS, PMLR 9.
    """
    for weight in weights(module, "pytorch_default"):
        attention = isinstance(weight.module, nn.MultiheadAttention)
        if attention and not weight.site.endswith("output"):
            # A packed matrix of shape (3 dim, dim) is drawn as one, so it fans out to 3 dim.
            packed = weight.module.in_proj_weight is not None
            bound = math.sqrt(6 / (weight.fan_in + (3 if packed else 1) * weight.fan_out))
        else:
            bound = 1 / math.sqrt(weight.fan_in)
        weight.value.uniform_(-bound, bound, generator=generator)
        if weight.bias is not None and attention:
            weight.bias.zero_()
        elif weight.bias is not None:
            weight.bias.uniform_(-bound, bound, generator=generator)
    return module


@torch.no_grad()
def glorot(module: nn.Module, *, gain: float = 1.0, generator: Generator | None = None) -> nn.Module:
    """Balance forward and backward variance: `W ~ U(-a, a)`, `a = gain sqrt(6 / (fan_in + fan_out))`; `b = 0`.

    Args:
        module: changed in place: every Linear, Conv1d-3d and MultiheadAttention.
        gain: factor on every weight.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if there is nothing to set.

    Example:
        >>> linear = glorot(torch.nn.Linear(100, 500), generator=torch.Generator().manual_seed(0))
        >>> round(300 * linear.weight.var().item(), 2), linear.bias.abs().max().item()
        (1.0, 0.0)

    Source: Glorot and Bengio, 2010, AISTATS, PMLR 9 ("normalized initialization").
    """
    for weight in weights(module, "glorot"):
        glorot_(weight, gain, generator)
    return module


@torch.no_grad()
def he(
    module: nn.Module,
    *,
    negative_slope: float = 0.0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    generator: Generator | None = None,
) -> nn.Module:
    """Keep the variance through rectifiers: `W ~ N(0, 2 / ((1 + a^2) fan))`; `b = 0`.

    Args:
        module: changed in place: every Linear, Conv1d-3d and MultiheadAttention.
        negative_slope: slope `a` of the activation below zero: 0 for ReLU, 1 for none.
        mode: "fan_in" keeps the signal's variance, "fan_out" the gradient's.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if `mode` is neither of these, or there is nothing to set.

    Example:
        >>> linear = he(torch.nn.Linear(100, 500), generator=torch.Generator().manual_seed(0))
        >>> round(100 * linear.weight.var().item(), 1)
        2.0

    Source: He, Zhang, Ren and Sun, 2015, arXiv 1502.01852.
    """
    if mode not in ("fan_in", "fan_out"):
        raise UsageError(f'he: mode must be "fan_in" or "fan_out", got {mode!r}.')
    for weight in weights(module, "he"):
        fan = weight.fan_in if mode == "fan_in" else weight.fan_out
        gauss_(weight, 2 / ((1 + negative_slope**2) * fan), generator)
    return module


@torch.no_grad()
def gaussian(
    module: nn.Module,
    *,
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
    generator: Generator | None = None,
) -> nn.Module:
    """Draw the random network of mean-field theory: `W ~ N(0, weight_variance / fan_in)`, `b ~ N(0, bias_variance)`.

    Args:
        module: changed in place: every Linear, Conv1d-3d and MultiheadAttention.
        weight_variance: variance of a weight times its fan-in.
        bias_variance: variance of a bias.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if a variance is negative, or there is nothing to set.

    Example:
        >>> seeded = torch.Generator().manual_seed(0)
        >>> linear = gaussian(torch.nn.Linear(100, 500), weight_variance=16.0, generator=seeded)
        >>> round(100 * linear.weight.var().item())
        16

    Source: Poole, Lahiri, Raghu, Sohl-Dickstein and Ganguli, 2016, arXiv 1606.05340.
    """
    require_at_least("gaussian", "weight_variance", weight_variance, 0.0)
    require_at_least("gaussian", "bias_variance", bias_variance, 0.0)
    return _draw(module, "gaussian", weight_variance, bias_variance, generator)


def _draw(
    module: nn.Module, owner: str, weight_variance: float, bias_variance: float, generator: Generator | None
) -> nn.Module:
    for weight in weights(module, owner):
        gauss_(weight, weight_variance / weight.fan_in, generator, bias_variance)
    return module


def critical(
    module: nn.Module,
    *,
    activation: ActivationLike = "relu",
    variance: float = 1.0,
    generator: Generator | None = None,
) -> nn.Module:
    """Draw Gaussian weights and biases at the edge of chaos, where the gradient keeps its size.

    With `z ~ N(0, q)`: `weight_variance = 1 / E[phi'(z)^2]`, so that a layer changes the gradient's norm by a factor
    of 1, and `bias_variance = q - weight_variance E[phi(z)^2]`, so that the signal's variance stays at `q`.

    Args:
        module: changed in place: every Linear, Conv1d-3d and MultiheadAttention.
        activation: the function `phi` between the weights: a name, an elementwise callable, or, where the slope of a
            callable jumps elsewhere than at zero, a `levada.theory.Activation` that says where.
        variance: the variance `q` of the pre-activations to stay at. A rectifier has a critical point at every `q`.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if `variance` is not positive, there is no critical point at it, or there is nothing to set.

    Example:
        >>> linear = critical(torch.nn.Linear(100, 500), generator=torch.Generator().manual_seed(0))
        >>> round(100 * linear.weight.var().item()), linear.bias.abs().max().item()
        (2, 0.0)

    Source: Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, 2017, arXiv 1611.01232.
    """
    if not variance > 0:
        raise UsageError(f"critical: variance must be positive, got {variance}. For tanh near 0 use gaussian.")
    try:
        point = critical_point(activation, variance)
    except UsageError as error:
        raise UsageError(f"critical, at the variance q = {variance:g}: {error}") from error
    # A homogeneous activation leaves exactly 0 here, but for rounding.
    bias_variance = point.bias_variance if point.bias_variance > 1e-9 * variance else 0.0
    return _draw(module, "critical", point.weight_variance, bias_variance, generator)
