r"""How far back a recurrent network remembers: time scales of a gate, horizons, and the bias that sets them."""

from __future__ import annotations

import math
import sys

from levada._errors import UsageError, require_at_least

__all__ = ["carried_gradient", "chrono_bias", "gate_time_scale", "memory_horizon", "time_scale"]


def time_scale(carry: float) -> float:
    r"""$\tau = -1/\ln \rho$: steps after which a memory carried by the factor $\rho$ per step has fallen to $1/e$.

    Args:
        carry: $\rho$: spectral radius of a linear recurrence, or the value of a forget gate.

    Returns:
        A number of steps; `inf` if nothing is lost (carry of 1 or more).

    Raises:
        UsageError: if the carry is negative.

    Example:
        >>> round(time_scale(0.9), 2)
        9.49

    Source: Bengio, Simard, Frasconi 1994; Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063.
    """
    require_at_least("time_scale", "carry", carry, 0.0)
    if carry == 0:
        return 0.0
    return math.inf if carry >= 1 else -1 / math.log(carry)


def gate_time_scale(bias: float) -> float:
    r"""$\tau = -1/\ln\sigma(b) = 1/\ln(1 + e^{-b})$: the memory of an LSTM cell whose forget gate sees only its bias.

    Args:
        bias: $b$, the sum of all biases of the forget gate (`torch.nn.LSTM` has two).

    Returns:
        A number of steps.

    Example:
        >>> [round(gate_time_scale(bias), 3) for bias in (0.0, 1.0, 3.0)]
        [1.443, 3.192, 20.581]

    Source: Gers, Schmidhuber, Cummins 2000; Tallec and Ollivier 2018, arXiv 1804.11188.
    """
    # log1p(exp(-b)) without overflow, for biases of both signs
    loss = math.log1p(math.exp(-abs(bias))) + max(-bias, 0.0)
    return 1 / loss if loss > 0 else math.inf


def memory_horizon(carry: float, threshold: float = 1e-3) -> float:
    r"""$k = \ln\epsilon / \ln\rho$: steps after which the gradient has fallen to $\epsilon$ of its size.

    Args:
        carry: $\rho$, the factor per step.
        threshold: $\epsilon$.

    Returns:
        A number of steps; `inf` if nothing is lost.

    Raises:
        UsageError: if the carry is negative, or the threshold not between 0 and 1.

    Example:
        >>> round(memory_horizon(3**-0.5), 1)       # torch.nn.RNN as it is initialised
        12.6
    """
    if not 0 < threshold < 1:
        raise UsageError(f"memory_horizon: threshold must be between 0 and 1, got {threshold}.")
    return -math.log(threshold) * time_scale(carry)


def carried_gradient(carry: float, gain: float, steps: int) -> float:
    r"""Return what a memory keeps of a gradient where each unit carries itself on, and random weights mix all of them.

    With $J = a I + g W$ and $W$ of independent elements of variance $1/n$,

    $$\frac{1}{n}\,\mathbb E\,\lVert J^k \rVert_F^2 \to \sum_{j=0}^{k} \binom{k}{j}^2 a^{2(k-j)} g^{2j},$$

    whose root grows or falls as $(a + g)^k$ in the end, and not as $a^k$: most of an LSTM's memory beyond
    $\sigma(b)^k$ comes back through its recurrent weights. Near a state of zero, where tanh has slope 1 and gates their
    biases' values, with recurrent weights of gain $\rho$ (torch draws $3^{-1/2}$):

    - a plain tanh cell has $a = 0$ and $g = \rho$;
    - a leaky one of rate $\alpha$ has $a = 1 - \alpha$ and $g = \alpha \rho$, a residual one $a = 1$ and $g = \rho$;
    - an LSTM of forget bias $b$ has $a = \sigma(b)$ and $g = \rho / 4$: its input and output gate are half open;
    - a GRU has $a = 1/2$ and $g = \rho / 4$: so are its update and its reset gate.

    Where it grows, states leave zero and the slopes fall: it is then a bound.

    The limit is that of wide layers at a given k, and says little unless k is much smaller than n: over many steps rare
    eigenvalues beyond the circle of radius $g$ around $a$ carry most of the sum, which then differs from one draw to
    the next. Of 2,000 draws with $n = 64$, $a = 0$ and $g = 3^{-1/2}$ the median is 1.00 times the law at k = 8, 1.1
    times at 16, 8 times at 64, and 6,600 times at 200.

    Args:
        carry: $a$.
        gain: $g$.
        steps: $k$.

    Returns:
        The root of the sum; `inf` where it is larger than the largest float.

    Raises:
        UsageError: if an argument is negative.

    Example:
        >>> round(carried_gradient(0.0, 0.5, 3), 3), round(carried_gradient(0.5, 0.0, 3), 3)
        (0.125, 0.125)
        >>> round(carried_gradient(0.731, 3**-0.5 / 4, 40) / 0.731**40)     # an LSTM of forget bias 1
        469

    Source: the sum is Vandermonde's, of the powers of a Ginibre matrix, $\mathbb E\lVert W^j\rVert_F^2 \to n$, and
    mixed terms that vanish (Ginibre 1965); the law for $a = 0$ is Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063.
    """
    require_at_least("carried_gradient", "carry", carry, 0.0)
    require_at_least("carried_gradient", "gain", gain, 0.0)
    require_at_least("carried_gradient", "steps", steps, 0)

    if steps and math.inf in (carry, gain):
        return math.inf

    def log_power(base: float, exponent: int) -> float:
        if exponent == 0:
            return 0.0
        return exponent * math.log(base) if base > 0 else -math.inf

    # In logarithms: binomial coefficients of 1,000 steps overflow.
    logs = [
        2 * (math.lgamma(steps + 1) - math.lgamma(j + 1) - math.lgamma(steps - j + 1))
        + 2 * (log_power(carry, steps - j) + log_power(gain, j))
        for j in range(steps + 1)
    ]
    most = max(logs)
    if most == -math.inf:
        return 0.0
    log_root = (most + math.log(math.fsum(math.exp(log - most) for log in logs))) / 2
    return math.exp(log_root) if log_root < math.log(sys.float_info.max) else math.inf


def chrono_bias(horizon: float) -> float:
    r"""$b = \ln(T - 1)$: the forget bias with $\sigma(b) = 1 - 1/T$, so that memory lasts about $T$ steps.

    Args:
        horizon: $T$, in steps.

    Returns:
        The bias (for `torch.nn.LSTM`, the sum of its two).

    Raises:
        UsageError: if the horizon is not above 1.

    Example:
        >>> round(gate_time_scale(chrono_bias(100.0)), 1)
        99.5

    Source: Tallec and Ollivier 2018, arXiv 1804.11188.
    """
    if not horizon > 1:
        raise UsageError(f"chrono_bias: horizon must be above 1 step, got {horizon}.")
    return math.log(horizon - 1)
