"""Tokens by blocks, for what should stay in a processor's cache between one step and the next."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["blocks_of", "rows_of"]


def rows_of(state: Tensor, together: int) -> int:
    """Return how many tokens are taken at a time.

    Args:
        state: tokens first.
        together: elements that one thread takes.
    """
    return min(max(1, together * torch.get_num_threads() // state[0].numel()), len(state))


def blocks_of(state: Tensor, together: int) -> Iterator[slice]:
    """Yield the blocks of tokens.

    Args:
        state: tokens first.
        together: elements that one thread takes.
    """
    rows = rows_of(state, together)
    yield from (slice(start, min(start + rows, len(state))) for start in range(0, len(state), rows))
