"""The random numbers of the explorer's page: with them a network of PyTorch starts from the weights of the page.

Philox4x32-10: four words are a function of a counter (128 bits) and a key (64 bits). The key is the seed; the counter's
low half counts blocks of four words, its high half is a hash (FNV-1a, from two starts) of the name of what is drawn. So
a layer has the same numbers whatever stands beside it, and in whatever order they are drawn.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch

from levada._errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

__all__ = ["INITIALISATIONS", "normal", "precision", "start", "uniform"]

INITIALISATIONS: Final = ("pytorch_default", "he", "glorot", "orthogonal", "gaussian")
_WORD: Final = 0xFFFFFFFF
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_HASHED: Final = (0x811C9DC5, 0x050C5D1F)
_PROJECTED: Final = 0.006  # deviation of the projections of identity hyper-connections, as they are released
_STREAMS: Final = {"first": "stem", "last": "head"}  # of the linear layers before and after a stack, on the page


def uniform(seed: int, name: str, count: int) -> Tensor:
    """Draw numbers from the uniform distribution on [0, 1), of 53 bits each.

    Args:
        seed: from 0 to 2^53 - 1.
        name: of what they are for, as `layers.7.branch.linear`: each name has a sequence of its own.
        count: how many, from the beginning of that sequence.

    Shape:
        `(count,)`, in float64.

    Example:
        >>> uniform(3, "batches", 2).equal(uniform(3, "batches", 5)[:2])
        True
    """
    words = _words(seed, name, (count + 1) // 2).view(-1, 2)
    return (((words[:, 0] >> 5) * 2**26 + (words[:, 1] >> 6)).double() / 2**53)[:count]


def normal(seed: int, name: str, count: int) -> Tensor:
    """Draw standard normal numbers, by the method of Box and Muller: two of two uniform ones.

    Args:
        seed: from 0 to 2^53 - 1.
        name: of what they are for: each name has a sequence of its own.
        count: how many, from the beginning of that sequence.

    Shape:
        `(count,)`, in float64.

    Example:
        >>> bool(normal(0, "batches", 10_000).std().sub(1).abs() < 0.03)
        True
    """
    pairs = uniform(seed, name, 2 * ((count + 1) // 2)).view(-1, 2)
    radius, angle = (-2 * (1 - pairs[:, 0]).log()).sqrt(), 2 * math.pi * pairs[:, 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1).flatten()[:count]


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Build modules in a precision: one that is cast later keeps what float32 made of its constants.

    Args:
        dtype: of the parameters that are made inside.

    Example:
        >>> with precision(torch.float64):
        ...     layer = torch.nn.Linear(2, 2)
        >>> layer.weight.dtype
        torch.float64
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def start(
    network: nn.Module,
    seed: int,
    init: str = "pytorch_default",
    *,
    gain: float = 1.0,
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
) -> nn.Module:
    """Give a network the weights that the explorer's page draws for it.

    Of the branches, `W = gain W_0` with `W_0` and the biases from `init`; gates, projections and the linear layers
    before and after the stack start as they do on the page. What starts from a constant stays as it is.

    Args:
        network: a module whose `stack` is a `levada.Stack` of `levada.blocks.FullyConnected`, with linear layers
            `first` and `last` or without.
        seed: the page's.
        init: how weights of branches start; one of `INITIALISATIONS`.
        gain: what they are multiplied by.
        weight_variance: fan_in times the variance of a weight, for `gaussian`.
        bias_variance: the variance of a bias, for `gaussian`.

    Raises:
        UsageError: if there is no such initialisation.

    Example:
        >>> import levada
        >>> from levada.blocks import FullyConnected
        >>> network = torch.nn.Module()
        >>> network.stack = levada.Stack(FullyConnected, levada.Residual, dim=8, depth=2)
        >>> before = start(network, 0).stack.layers[1].branch.linear.weight.clone()
        >>> start(network, 0, gain=2.0).stack.layers[1].branch.linear.weight.equal(2 * before)
        True
    """
    if init not in INITIALISATIONS:
        raise UsageError(f"start: init must be one of {', '.join(INITIALISATIONS)}, got {init!r}.")
    from levada import IdentityHyperConnection

    given: Any = {"gain": gain, "weight_variance": weight_variance, "bias_variance": bias_variance}
    stack: Any = network.stack
    released = isinstance(stack.layers[0].connection, IdentityHyperConnection)
    with torch.no_grad():
        for name, module in stack.named_modules():
            if name.endswith(".branch.linear"):
                _linear(module, seed, name, init, **given)
            elif isinstance(module, torch.nn.Linear):  # a gate, whose bias is its connection's
                _linear(module, seed, name, "pytorch_default", biased=False)
            elif released and hasattr(module, "projection"):
                numbers = normal(seed, f"{name}.projection", module.projection.numel())
                module.projection.copy_(_PROJECTED * numbers.view_as(module.projection))
        for name, own in _STREAMS.items():
            if hasattr(network, name):
                _linear(getattr(network, name), seed, own, "pytorch_default")
    return network


def _linear(
    linear: Any,
    seed: int,
    name: str,
    init: str,
    *,
    gain: float = 1.0,
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
    biased: bool = True,
) -> None:
    """Fill weights, then biases, from one sequence."""
    weight, bias = linear.weight, linear.bias if biased else None
    fan_out, fan_in = weight.shape
    size, count = weight.numel(), weight.numel() + (0 if bias is None else bias.numel())
    if init == "orthogonal":
        numbers = _orthogonal(seed, name, fan_out, fan_in).flatten()
        scale = gain
    elif init in ("he", "gaussian"):
        numbers = normal(seed, name, count)
        scale = gain * math.sqrt((2 if init == "he" else weight_variance) / fan_in)
    else:
        numbers = 2 * uniform(seed, name, count) - 1
        scale = gain * (1 / math.sqrt(fan_in) if init == "pytorch_default" else math.sqrt(6 / (fan_in + fan_out)))
    weight.copy_((scale * numbers[:size]).view_as(weight))
    if bias is None:
        return
    if init == "gaussian":
        bias.copy_(math.sqrt(bias_variance) * numbers[size:])
    elif init == "pytorch_default":
        bias.copy_(numbers[size:] / math.sqrt(fan_in))
    else:
        bias.zero_()


def _orthogonal(seed: int, name: str, rows: int, columns: int) -> Tensor:
    """Gaussian vectors, made orthonormal one after the other: QR with a positive diagonal of R."""
    count, size = sorted((rows, columns))
    q, r = torch.linalg.qr(normal(seed, name, count * size).view(count, size).T)
    vectors: Tensor = q * r.diagonal().sign()
    return vectors.T if rows < columns else vectors


def _words(seed: int, name: str, blocks: int) -> Tensor:
    """`(blocks, 4)` words of 32 bits."""
    at = torch.arange(blocks)
    counter = [at & _WORD, at >> 32, *(torch.full_like(at, _hash(name, value)) for value in _HASHED)]
    key = [seed & _WORD, seed >> 32]
    for _ in range(10):
        (high0, low0), (high1, low1) = (_product(m, counter[2 * i]) for i, m in enumerate(_MULTIPLIERS))
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(k + weyl) & _WORD for k, weyl in zip(key, _WEYL, strict=True)]
    return torch.stack(counter, 1)


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a product of words, by halves of b: no sum leaves 63 bits."""
    upper, lower = a * (b >> 16), a * (b & 0xFFFF)
    return (upper + (lower >> 16)) >> 16, (((upper & 0xFFFF) << 16) + lower) & _WORD


def _hash(name: str, value: int) -> int:
    for letter in name:
        value = ((value ^ ord(letter)) * 0x01000193) & _WORD
    return value
