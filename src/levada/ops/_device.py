"""Where kernels run."""

from __future__ import annotations

import contextlib
import functools
import warnings
from typing import Final

import torch
from torch import Tensor

__all__ = ["TYPES", "as_float32", "on", "past_limit"]

TYPES: Final = {torch.float32, torch.bfloat16, torch.float16}
"""Of streams that kernels take: float64 they leave to the reference."""


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the surroundings in which kernels run on a device.

    Args:
        device: of the tensors that they are given; a CPU where Triton interprets.
    """
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def as_float32(x: Tensor) -> Tensor:
    """Return numbers as kernels take coefficients: float32, one behind the other, outside of any graph."""
    return x.detach().to(torch.float32).contiguous()


@functools.cache  # which makes the warning the only one of its kind
def past_limit(what: str, most: str) -> None:
    """Warn once that the reference runs in place of a kernel.

    Args:
        what: was asked for.
        most: what kernels take, as in "at most 16".
    """
    warnings.warn(
        f"{what}: the kernels for a GPU take {most}. The reference runs, by plain operations, which is slow.",
        RuntimeWarning,
        stacklevel=3,
    )
