"""Which of several processes this one is."""

from __future__ import annotations

import os

from torch import distributed

__all__ = ["is_first", "is_one_of_several", "process_rank"]


def process_rank() -> int:
    """Return the rank of this process in torch.distributed; 0 where no group of processes was begun.

    Example:
        >>> process_rank()
        0
    """
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def is_first() -> bool:
    """Say whether this process is the one of several that speaks.

    Processes that a launcher started together are told apart by the variable RANK before they begin a group, and where
    they never do.

    Example:
        >>> is_first()
        True
    """
    if distributed.is_available() and distributed.is_initialized():
        return process_rank() == 0
    told = os.environ.get("RANK", "")
    return not told.isdigit() or int(told) == 0


def is_one_of_several() -> bool:
    """Say whether torch.distributed knows of other processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
