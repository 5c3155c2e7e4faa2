r"""Depth separation: a sawtooth that depth makes cheap, and the bounds that make it expensive for shallow networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from levada._errors import require_at_least

__all__ = ["crossing_bound", "most_pieces", "sawtooth", "sawtooth_layers", "seldom_fitted"]


def sawtooth(x: Tensor, folds: int) -> Tensor:
    r"""$t^{\circ k}(x)$ of the tent $t(x) = 1 - |1 - 2x|$ on $[0, 1]$: $2^{k-1}$ teeth of $2^k$ linear pieces.

    At $i / 2^k$ it is 0 for even $i$ and 1 for odd $i$. Every operation is exact for dyadic $x$ of few bits.

    Args:
        x: numbers between 0 and 1.
        folds: $k$.

    Shape:
        `(...)` -> `(...)`.

    Returns:
        The sawtooth.

    Raises:
        UsageError: if `folds` is negative.

    Example:
        >>> sawtooth(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), folds=2).tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0]

    Source: Telgarsky 2016, arXiv 1602.04485.
    """
    require_at_least("sawtooth", "folds", folds, 0)
    for _ in range(folds):
        x = 1 - (1 - 2 * x).abs()
    return x


def sawtooth_layers(folds: int) -> list[tuple[Tensor, Tensor]]:
    r"""The rectified network that is the sawtooth on $[0, 1]$: two units a layer, $t(x) = 2[x]_+ - 4[x - 1/2]_+$.

    It has $k$ hidden layers and $6k + 1$ weights and biases, for $2^k$ pieces.

    Args:
        folds: $k$.

    Shape:
        Weights are `(out, in)` and biases `(out,)`, float64; the last layer is linear.

    Returns:
        (weight, bias) of each layer.

    Raises:
        UsageError: if `folds` is below 1.

    Example:
        >>> x = torch.tensor([[0.0], [0.25], [0.5]], dtype=torch.float64)
        >>> for weight, bias in (layers := sawtooth_layers(2))[:-1]:
        ...     x = (x @ weight.T + bias).relu()
        >>> (x @ layers[-1][0].T + layers[-1][1]).flatten().tolist()
        [0.0, 1.0, 0.0]
    """
    require_at_least("sawtooth_layers", "folds", folds, 1)
    mix = torch.tensor([[2.0, -4.0]], dtype=torch.float64, device="cpu")
    split = torch.ones(2, 1, dtype=torch.float64, device="cpu")
    shift = torch.tensor([0.0, -0.5], dtype=torch.float64, device="cpu")
    last = (mix, torch.zeros(1, dtype=torch.float64, device="cpu"))
    return [(split, shift), *[(split @ mix, shift)] * (folds - 1), last]


def most_pieces(widths: Sequence[int]) -> int:
    r"""$\prod_l (m_l + 1)$, the most linear pieces of a rectified network of one input and one output.

    On each piece the $m_l$ units of the next layer are affine, and each has at most one kink there. One hidden layer
    of $m$ units has at most $m + 1$ pieces.

    Args:
        widths: $m_l$, units of each hidden layer.

    Returns:
        The bound.

    Raises:
        UsageError: if a width is below 1.

    Example:
        >>> most_pieces([99]), most_pieces([9] * 11)
        (100, 100000000000)
    """
    for width in widths:
        require_at_least("most_pieces", "width", width, 1)
    return math.prod(width + 1 for width in widths)


def crossing_bound(pieces: int, points: int) -> float:
    r"""Least share of errors of a continuous function of $t$ linear pieces on $n$ points whose labels alternate.

    $$\frac12\Big(1 - \frac{t + 1}{n}\Big)$$

    A piece crosses the threshold once at most, so that the answer is constant on at most $t + 1$ runs of points; a run
    of $j$ points has at least $(j - 1)/2$ errors. Telgarsky's lemma, $\frac12(1 - 2\,\mathrm{Cr}(g)/\mathrm{Cr}(f))$
    with $\mathrm{Cr}(g) = t + 1$ and $\mathrm{Cr}(f) = n$, holds for any function $f$ and is weaker here.

    Args:
        pieces: $t$.
        points: $n$.

    Returns:
        The bound; 0 where there are pieces enough.

    Raises:
        UsageError: if a number is below 1.

    Example:
        >>> crossing_bound(pieces=9, points=1000)
        0.495

    Source: Telgarsky 2016, arXiv 1602.04485, lemma 3.1 (the argument).
    """
    require_at_least("crossing_bound", "pieces", pieces, 1)
    require_at_least("crossing_bound", "points", points, 1)
    return max(0, points - pieces - 1) / (2 * points)  # rounded once: a share of errors may equal it


def seldom_fitted(parameters: int, bits: int, points: int) -> float:
    r"""$2^{pb - n}$: the share of labellings that networks of $p$ parameters of $b$ bits fit, however deep, is no more.

    There are $2^{pb}$ such networks of one architecture and $2^n$ labellings of $n$ points: for nearly all functions
    no depth saves more than the bits of a parameter. Separation of depths is about few functions.

    Args:
        parameters: $p$.
        bits: $b$, of a parameter: 32 for float32.
        points: $n$.

    Returns:
        The bound; 1 where it says nothing.

    Raises:
        UsageError: if a number is below 1.

    Example:
        >>> seldom_fitted(parameters=30, bits=32, points=1000) == 2.0**-40
        True
    """
    for name, value in (("parameters", parameters), ("bits", bits), ("points", points)):
        require_at_least("seldom_fitted", name, value, 1)
    return 1.0 if parameters * bits >= points else math.ldexp(1.0, parameters * bits - points)
