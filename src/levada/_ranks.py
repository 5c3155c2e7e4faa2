"""Which of several processes this one is, asked without torch: where it was not imported, no group was begun."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["is_first", "is_one_of_several", "process_rank"]


def process_rank() -> int:
    """Return the rank of this process in torch.distributed; 0 where no group of processes was begun.

    Example:
        >>> process_rank()
        0
    """
    distributed = _begun()
    return int(distributed.get_rank()) if distributed is not None else 0


def is_first() -> bool:
    """Say whether this process is the one of several that speaks.

    Processes that a launcher started together are told apart by the variable RANK before they begin a group, and where
    they never do.

    Example:
        >>> is_first()
        True
    """
    if _begun() is not None:
        return process_rank() == 0
    told = os.environ.get("RANK", "")
    return not told.isdigit() or int(told) == 0


def is_one_of_several() -> bool:
    """Say whether torch.distributed knows of other processes."""
    distributed = _begun()
    return distributed is not None and int(distributed.get_world_size()) > 1


def _begun() -> Any:
    """Return torch.distributed if a group of processes was begun; else None."""
    distributed: Any = sys.modules.get("torch.distributed")
    # `is_available` is there first while the module is being imported.
    if distributed is None or not hasattr(distributed, "is_initialized") or not distributed.is_available():
        return None
    return distributed if distributed.is_initialized() else None
