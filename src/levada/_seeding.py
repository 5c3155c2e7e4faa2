"""Seeding at every pass: `torch.manual_seed` keeps a traceback for each kind of device that is not in use yet."""

from __future__ import annotations

import torch

__all__ = ["reseed"]


def reseed(seed: int) -> None:
    """Seed the generators of the devices in use, as often as one likes.

    `torch.manual_seed` formats the whole stack for each kind of device that this process has not begun to use, and
    keeps that text for good: the deeper the call, the longer it takes.

    Args:
        seed: as `torch.manual_seed` takes it.

    Example:
        >>> reseed(3)
        >>> first = torch.rand(2)
        >>> _ = torch.manual_seed(3)
        >>> bool((torch.rand(2) == first).all())
        True
    """
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type != "cuda":
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
