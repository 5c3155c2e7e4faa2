r"""How far a stack of convolutions sees, which depth a lag needs, and how wide the part is that counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from levada._errors import UsageError, require_at_least

__all__ = ["depth_for_lag", "field_deviation", "receptive_field", "visible_lags"]


def receptive_field(
    kernel_sizes: Sequence[int], dilations: Sequence[int] | None = None, strides: Sequence[int] | None = None
) -> int:
    r"""$R = 1 + \sum_l (k_l - 1)\, d_l \prod_{i<l} s_i$: from the first to the last position that one output can see.

    Args:
        kernel_sizes: $k_l$, the input's side first.
        dilations: $d_l$; 1 if left out.
        strides: $s_l$; 1 if left out.

    Returns:
        A number of positions, those included that lie in a gap between dilated taps (see `visible_lags`).

    Raises:
        UsageError: if the lengths differ, or a number is below 1.

    Example:
        >>> receptive_field([2, 2, 2, 2], [1, 2, 4, 8]), receptive_field([3, 3, 3], strides=[2, 2, 1])
        (16, 15)

    Source: Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks", Distill.
    """
    kernels, rates = _checked("receptive_field", kernel_sizes, dilations, "dilation")
    _, steps = _checked("receptive_field", kernel_sizes, strides, "stride")
    field, jump = 1, 1
    for kernel, dilation, stride in zip(kernels, rates, steps, strict=True):
        field += (kernel - 1) * dilation * jump
        jump *= stride
    return field


def visible_lags(kernel_sizes: Sequence[int], dilations: Sequence[int] | None = None) -> tuple[int, ...]:
    r"""All $\sum_l j_l d_l$ with $0 \le j_l < k_l$: how many steps back a stack of causal convolutions looks.

    Skips over layers, as of residual and dense connections, add none: every causal convolution sees lag 0.

    Args:
        kernel_sizes: $k_l$.
        dilations: $d_l$; 1 if left out.

    Returns:
        The lags, sorted; `receptive_field` of them unless dilations that grow too fast leave gaps.

    Raises:
        UsageError: if the lengths differ, or a number is below 1.

    Example:
        >>> visible_lags([2, 2], [1, 2]), visible_lags([2, 2], [1, 3])
        ((0, 1, 2, 3), (0, 1, 3, 4))
    """
    kernels, rates = _checked("visible_lags", kernel_sizes, dilations, "dilation")
    seen = 1  # bit i: whether lag i is seen
    for kernel, dilation in zip(kernels, rates, strict=True):
        before = seen
        for tap in range(1, kernel):
            seen |= before << tap * dilation
    return tuple(lag for lag in range(seen.bit_length()) if seen >> lag & 1)


def depth_for_lag(lag: int, kernel_size: int, *, growth: int = 2, convolutions: int = 1) -> int:
    r"""Return the fewest layers of which one output sees `lag` steps back: $n$ with $m (k-1) \sum_{l<n} g^l \ge D$.

    $$g = 1: \; n = \lceil D / m(k-1) \rceil, \qquad g = 2: \; n = \lceil \log_2(D / m(k-1) + 1) \rceil$$

    Args:
        lag: $D$, in steps; 0 is the present one.
        kernel_size: $k$.
        growth: $g$: the dilation of layer $l$ is $g^l$; 1 for none.
        convolutions: $m$, in each layer, all with the layer's dilation.

    Returns:
        A number of layers.

    Raises:
        UsageError: if the lag is negative, the kernel smaller than 2, or the growth above $1 + m(k-1)$, which leaves
            gaps that no depth closes.

    Example:
        >>> [depth_for_lag(1000, 3, growth=growth) for growth in (1, 2)]
        [500, 9]

    Source: van den Oord et al. 2016, arXiv 1609.03499; Bai, Kolter and Koltun 2018, arXiv 1803.01271.
    """
    require_at_least("depth_for_lag", "lag", lag, 0)
    require_at_least("depth_for_lag", "kernel_size", kernel_size, 2, "One tap sees the present alone, at any depth.")
    require_at_least("depth_for_lag", "growth", growth, 1)
    require_at_least("depth_for_lag", "convolutions", convolutions, 1)
    reach = convolutions * (kernel_size - 1)
    if growth > 1 + reach:
        raise UsageError(
            f"depth_for_lag: growth must be at most 1 + convolutions * (kernel_size - 1) = {1 + reach}, got {growth}: "
            "dilations that grow faster leave lags that no depth sees. Use a smaller growth or a larger kernel."
        )
    if growth == 1:
        return -(-lag // reach)
    depth, seen, dilation = 0, 0, 1
    while seen < lag:  # in integers: a logarithm rounds at the very lags that matter
        depth, seen, dilation = depth + 1, seen + reach * dilation, dilation * growth
    return depth


def field_deviation(kernel_sizes: Sequence[int], dilations: Sequence[int] | None = None) -> float:
    r"""$\sigma = \sqrt{\sum_l d_l^2 (k_l^2 - 1) / 12}$: the width of the effective field, $\sqrt{n}$ for equal layers.

    The gradient that one output sends to the positions of the input, where every tap is the same, is the distribution
    of a sum of independent uniform numbers, one for each layer; $\sigma$ is its standard deviation, and many layers
    make it normal. Where weights are independent and of mean zero, so is the expected squared gradient.

    Args:
        kernel_sizes: $k_l$.
        dilations: $d_l$; 1 if left out.

    Returns:
        A number of positions.

    Raises:
        UsageError: if the lengths differ, or a number is below 1.

    Example:
        >>> [round(field_deviation([3] * depth), 3) for depth in (6, 24, 96)]
        [2.0, 4.0, 8.0]

    Source: Luo, Li, Urtasun and Zemel 2016, arXiv 1701.04128.
    """
    kernels, rates = _checked("field_deviation", kernel_sizes, dilations, "dilation")
    return math.sqrt(sum(d * d * (k * k - 1) for k, d in zip(kernels, rates, strict=True)) / 12)


def _checked(
    owner: str, kernel_sizes: Sequence[int], others: Sequence[int] | None, name: str
) -> tuple[list[int], list[int]]:
    kernels = list(kernel_sizes)
    beside = [1] * len(kernels) if others is None else list(others)
    if len(kernels) != len(beside):
        raise UsageError(
            f"{owner}: there must be one {name} for each kernel, got {len(beside)} for {len(kernels)} kernels."
        )
    for kernel, other in zip(kernels, beside, strict=True):
        require_at_least(owner, "a kernel size", kernel, 1)
        require_at_least(owner, f"a {name}", other, 1)
    return kernels, beside
