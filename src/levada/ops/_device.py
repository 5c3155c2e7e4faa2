"""Where kernels run."""

from __future__ import annotations

import contextlib

import torch

__all__ = ["on"]


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the surroundings in which kernels run on a device.

    Args:
        device: of the tensors that they are given; a CPU where Triton interprets.
    """
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
