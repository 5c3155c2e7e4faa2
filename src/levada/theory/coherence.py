r"""Gradients in residual streams whose activations have a mean: signal and gradient share directions, and that adds up.

Mean-field theory takes a gradient to be independent of the weights it passes. In a residual stream it is not quite: a
block's output $\phi(z)$ stays in every later state $h_j$, the gradient that comes back has a component along those
states, and $W = z h^\top / |h|^2 + (\text{a fresh Gaussian on } h^\perp)$ given the forward pass $z = W h$, so that
$W^\top$ carries the component back onto $h$. Per neuron $i$ and block $k$, going down from the loss,

$$g_l(i) = \sum_{k \ge l} \alpha_k h_k(i) + \xi_k(i), \qquad
  \alpha_k = \frac{\sigma_w^2}{v_k} E[z_k \phi'(z_k) g_{k+1}], \quad v_k = \sigma_w^2 q_k + \sigma_b^2,$$

with independent Gaussians $\xi_k$ of variance $\sigma_w^2 E[\phi'(z_k)^2 g_{k+1}^2]$. All means follow from Gaussian
moments of $\phi$. For ReLU without biases it conserves $h_l \cdot g_l$, as homogeneity demands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from levada._errors import UsageError, require_at_least
from levada.theory.activation import Activation, ActivationLike, as_activation
from levada.theory.quadrature import normal_mean
from levada.theory.variance import require_variances

__all__ = ["coherent_residual_gradient"]


def coherent_residual_gradient(
    activation: ActivationLike,
    weight_variance: float,
    bias_variance: float,
    depth: int,
    q0: float = 1.0,
    m0: float = 0.0,
    alignment: float = 0.0,
) -> Tensor:
    r"""Gradient at each boundary of blocks $h + \phi(W h + b)$, relative to the output.

    The loss enters by the alignment of its gradient with the last state: for a linear classifier of ten classes it is
    of order 1/dim, and grows on the way down as the state shrinks faster than the gradient grows.

    Args:
        activation: name or callable.
        weight_variance: fan_in times the variance of one weight.
        bias_variance: variance of one bias.
        depth: number of blocks.
        q0: mean square of the input.
        m0: mean of the input over neurons.
        alignment: share of the output gradient's energy that lies along the output state.

    Returns:
        Root mean square relative to the output; float64, shape `(depth + 1,)`, the input's first, ends in 1.

    Raises:
        UsageError: if a variance is negative, the depth below 1, or the alignment outside [0, 1].

    Example:
        >>> blind = coherent_residual_gradient("relu", 2.0, 0.0, depth=20)
        >>> aligned = coherent_residual_gradient("relu", 2.0, 0.0, depth=20, alignment=0.01)
        >>> round(blind[0].item()), round(aligned[0].item())        # 2^10, and six times as much
        (1024, 6698)

    Source: derived here, with the conditioning of Gaussian weights on a forward pass as in Yang 2020, arXiv 2006.14548.
    """
    require_variances("coherent_residual_gradient", weight_variance, bias_variance)
    require_at_least("coherent_residual_gradient", "depth", depth, 1)
    if not 0 <= alignment <= 1:
        raise UsageError(f"coherent_residual_gradient: alignment is a share, between 0 and 1, got {alignment}.")
    known = as_activation(activation)
    blocks, q, m = [], q0, m0
    for _ in range(depth):
        v = weight_variance * q + bias_variance
        moments = _moments(known, v)
        blocks.append((q, m, v, moments))
        q, m = q + 2 * m * moments["f"] + moments["ff"], m + moments["f"]
    # Of the gradient g above a block: sum of alpha_k, mean and mean square over neurons.
    beta = math.sqrt(alignment / q)
    mean, square = beta * m, 1.0
    squares = [square]
    for q, m, v, e in reversed(blocks):
        # g = rest + beta phi(z), the rest independent of z.
        rest = mean - beta * e["f"]
        rest_square = square - 2 * beta * e["f"] * rest - beta**2 * e["ff"]
        alpha = weight_variance / v * (beta * e["zdf"] + rest * e["zd"]) if v > 0 else 0.0
        through = rest_square * e["dd"] + 2 * beta * rest * e["ddf"] + beta**2 * e["ddff"]
        square += 2 * alpha * (q * beta + m * (mean - m * beta)) + alpha**2 * q + weight_variance * through
        mean, beta = mean + alpha * m, beta + alpha
        squares.append(square)
    return torch.tensor(squares[::-1], dtype=torch.float64, device="cpu").sqrt()


def _moments(known: Activation, v: float) -> dict[str, float]:
    """Means of products of z, f = phi(z) and d = phi'(z) for z of variance v."""
    deviation = math.sqrt(max(v, 1e-200))
    centres = (0.0, *(kink / deviation for kink in known.kinks if abs(kink) < 12 * deviation))

    def product(letters: str, u: Tensor) -> Tensor:
        value = torch.ones_like(u)
        for letter in letters:
            value = value * (u if letter == "z" else known.value(u) if letter == "f" else known.slope(u))
        return value

    def expect(letters: str) -> float:
        return normal_mean(lambda x: product(letters, deviation * x), centres, min(1.0, 1 / deviation))

    return {letters: expect(letters) for letters in ("f", "ff", "dd", "zd", "zdf", "ddf", "ddff")}
