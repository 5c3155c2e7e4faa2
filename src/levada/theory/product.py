r"""Products of many layers at finite width: what is left of a signal where infinite width says that all is kept."""

from __future__ import annotations

from typing import NamedTuple, final

import torch

from levada._errors import require_at_least

__all__ = ["DriftOfNorm", "OrthogonalTanh", "gaussian_drift", "orthogonal_tanh"]


@final
class DriftOfNorm(NamedTuple):
    """Mean and standard deviation of the logarithm of a norm's ratio, in nats."""

    mean: float
    deviation: float


def gaussian_drift(depth: int, dim: int) -> DriftOfNorm:
    r"""$\ln(\|W_L \cdots W_1 x\| / \|x\|)$ for square Gaussian weights of variance $1/n$.

    $$\text{mean} = \tfrac{L}{2}\left(\psi(\tfrac n2) - \ln \tfrac n2\right) \approx -\frac{L}{2n}, \qquad
    \text{variance} = \tfrac{L}{4}\,\psi'(\tfrac n2) \approx \frac{L}{2n}$$

    The mean square is kept exactly, at any width: it is a mean over ever rarer, ever larger values. What one network
    shows is the typical value, and that vanishes once the depth is some times the width. Exact for every width, for
    the signal and, backwards, for the gradient; also of nonlinear networks where their signals are small.

    Args:
        depth: number of layers, $L$.
        dim: width, $n$.

    Returns:
        Mean and standard deviation, in nats.

    Raises:
        UsageError: if `depth` or `dim` is below 1.

    Example:
        >>> drift = gaussian_drift(1000, 32)
        >>> round(drift.mean, 2), round(drift.deviation, 2)
        (-15.79, 4.02)

    Source: Cohen and Newman 1984 (the exponent of such products, from the law of chi squared).
    """
    require_at_least("gaussian_drift", "depth", depth, 1)
    require_at_least("gaussian_drift", "dim", dim, 1)
    half = torch.tensor(dim / 2, dtype=torch.float64)
    mean = depth / 2 * (torch.digamma(half) - half.log())
    return DriftOfNorm(float(mean), float((depth / 4 * torch.polygamma(1, half)).sqrt()))


@final
class OrthogonalTanh(NamedTuple):
    """Ratio of root mean squares: the last state's to the first's, and the first gradient's to the last's."""

    signal: float
    gradient: float


def orthogonal_tanh(depth: int, dim: int, mean_square: float) -> OrthogonalTanh:
    r"""What a plain tanh network with orthogonal weights leaves of a small signal and of its gradient.

    A layer takes $\tfrac23 E[x^4]$ from the mean square $q$, and an orthogonal matrix makes of $x$ a direction for
    which $E[x^4] = 3 q^2 n / (n + 2)$. With $c = n / (n + 2)$ the recursion $q' = q - 2 c q^2$ gives

    $$\frac{q_L}{q_0} \approx \frac1S, \qquad S = 1 + 2 c q_0 L$$

    Directions are kept. So a gradient across the state shrinks as the state does, one along it by $S^{-3/2}$, and one
    in a random direction on average by

    $$\frac{\|\partial/\partial h_0\|^2}{\|\partial/\partial h_L\|^2} \approx
    \frac1S \left(1 - \frac{1 - S^{-2}}{n}\right)$$

    A mean square of $1 / (2L)$ reaches the end of any depth with 0.71 of its size. To first order in $q_0$.

    Args:
        depth: number of layers, $L$.
        dim: width, $n$.
        mean_square: $q_0$, of the first state.

    Returns:
        The two ratios.

    Raises:
        UsageError: if `depth` or `dim` is below 1, or `mean_square` negative.

    Example:
        >>> found = orthogonal_tanh(10_000, 32, 1 / 20_000)
        >>> round(found.signal, 3), round(found.gradient, 3)
        (0.718, 0.709)

    Source: derived here; for wide layers the recursion is that of Schoenholz et al. 2017, arXiv 1611.01232, at the
    critical point, to first order.
    """
    require_at_least("orthogonal_tanh", "depth", depth, 1)
    require_at_least("orthogonal_tanh", "dim", dim, 1)
    require_at_least("orthogonal_tanh", "mean_square", mean_square, 0.0)
    spent = 1 + 2 * dim / (dim + 2) * mean_square * depth
    return OrthogonalTanh(spent**-0.5, ((1 - (1 - spent**-2) / dim) / spent) ** 0.5)
