"""Where networks are trained."""

from __future__ import annotations

import torch

__all__ = ["preferred_device"]


def preferred_device() -> torch.device:
    """Return the current accelerator of CUDA where there is one, else the processor.

    Example:
        >>> preferred_device().type in ("cpu", "cuda")
        True
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
