"""Which examples a step sees: a function of seed and step, so that nothing need be kept to go on from any step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from levada._errors import UsageError, require_at_least

__all__ = ["Order", "mix", "share"]

_MASK: Final = 0xFFFF_FFFF
_ROUNDS: Final = 6


def mix(*numbers: int) -> int:
    """Return 63 bits that depend on all the numbers, in their order: a seed made of several.

    Args:
        numbers: such as seed, step and rank.

    Example:
        >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
        (True, False)

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014: the finaliser of SplitMix64.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E37_79B9_7F4A_7C15) & 0xFFFF_FFFF_FFFF_FFFF
        state = ((state ^ (state >> 30)) * 0xBF58_476D_1CE4_E5B9) & 0xFFFF_FFFF_FFFF_FFFF
        state = ((state ^ (state >> 27)) * 0x94D0_49BB_1331_11EB) & 0xFFFF_FFFF_FFFF_FFFF
        state ^= state >> 31
    return state >> 1


@final
@dataclass(frozen=True, slots=True)
class Order:
    """An endless order of `num` examples: every epoch has each example once, in an order of its own.

    Each epoch is a Feistel network keyed by seed and epoch, so that the example at any place is computed and no
    permutation is kept: a text of many gigabytes has as many windows.

    Args:
        num: number of examples.
        seed: of the order.

    Raises:
        UsageError: if there is no example.

    Example:
        >>> order = Order(5, seed=0)
        >>> sorted(order.examples(0, 5).tolist()), sorted(order.examples(5, 10).tolist())
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """

    num: int
    seed: int

    def __post_init__(self) -> None:
        require_at_least("Order", "the number of examples", self.num, 1)

    def examples(self, first: int, last: int) -> Tensor:
        """Return the examples at the places `first` to `last - 1` of the order, `(last - first,)`.

        Args:
            first: a place, from 0.
            last: the place after the last one.
        """
        parts = []
        for epoch in range(first // self.num, -(-last // self.num)):
            start = epoch * self.num
            parts.append(self._shuffled(torch.arange(max(first, start), min(last, start + self.num)) - start, epoch))
        return torch.cat(parts)

    def _shuffled(self, places: Tensor, epoch: int) -> Tensor:
        """Permute `range(num)`: the network permutes the next power of 4; what leaves the range goes round again."""
        half = max((self.num - 1).bit_length() + 1, 2) // 2
        keys = [mix(self.seed, epoch, number) & _MASK for number in range(_ROUNDS)]
        found = _feistel(places, half, keys)
        outside = found >= self.num
        while outside.any():
            found[outside] = _feistel(found[outside], half, keys)
            outside = found >= self.num
        return found


def _feistel(x: Tensor, half: int, keys: list[int]) -> Tensor:
    low = (1 << half) - 1
    left, right = x >> half, x & low
    for key in keys:
        left, right = right, left ^ (_scrambled(right ^ key) & low)
    return (left << half) | right


def _scrambled(x: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 for 32 bits."""
    x = x ^ (x >> 16)
    x = (x * 0x85EB_CA6B) & _MASK
    x = x ^ (x >> 13)
    x = (x * 0xC2B2_AE35) & _MASK
    return x ^ (x >> 16)


def share(batch_size: int, accumulate: int, rank: int, processes: int) -> tuple[int, int]:
    """Return which part of a batch a process takes, `(first, last)`; all parts are alike, and so are micro-batches.

    Args:
        batch_size: examples of a step.
        accumulate: micro-batches of each process.
        rank: the process.
        processes: their number.

    Raises:
        UsageError: if the examples cannot be dealt out evenly.

    Example:
        >>> share(12, 3, rank=1, processes=2)
        (6, 12)
    """
    if batch_size % (accumulate * processes):
        raise UsageError(
            f"train: data.batch_size must be a multiple of optimizer.accumulate times the number of processes, got "
            f"{batch_size}, {accumulate} and {processes}. Try {-(-batch_size // (accumulate * processes))} times "
            f"{accumulate * processes}."
        )
    size = batch_size // processes
    return rank * size, (rank + 1) * size
