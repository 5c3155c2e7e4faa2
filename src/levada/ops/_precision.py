"""What autocast must leave alone."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

__all__ = ["full_precision"]


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which autocast does not lower the precision of products.

    Args:
        x: a tensor on the device in question.
    """
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
