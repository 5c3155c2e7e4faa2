"""Remedies that change the training and leave the model as it is."""

from __future__ import annotations

from levada.diagnose.remedies.remedy import Patch, Subject

__all__ = ["clip", "lower_rate", "lowest_rate", "raise_rate", "raise_rate_far"]

# A step of a hundredth of the weights is about as large as a first step can safely be; a thousandth is usual.
SAFE, USUAL = 1e-2, 1e-3
# A first step this far below the usual one is not what keeps a network from learning.
SMALL = 0.3


def lower_rate(subject: Subject) -> Patch | None:
    """Lower the learning rate so that no layer's first step is more than a hundredth of its weights."""
    return _lowered(subject, SAFE)


def lowest_rate(subject: Subject) -> Patch | None:
    """Lower the learning rate so that no layer's first step is more than a thousandth of its weights."""
    return _lowered(subject, USUAL)


def raise_rate(subject: Subject) -> Patch | None:
    """Raise the learning rate until the largest first step is a thousandth of the weights."""
    return _raised(subject, USUAL)


def raise_rate_far(subject: Subject) -> Patch | None:
    """Raise the learning rate until the largest first step is a hundredth of the weights."""
    return _raised(subject, SAFE)


def clip(subject: Subject) -> Patch | None:
    """Clip the gradient to a norm of 1."""
    del subject  # a gradient can be clipped in any training
    return Patch(
        step="import torch\ntorch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)",
    )


def _lowered(subject: Subject, wanted: float) -> Patch | None:
    largest = subject.largest_update
    if largest is None:
        return None
    # Where the first step is small and the training diverges all the same, the curvature is what it does not fit.
    factor = wanted / largest if largest > wanted else wanted / SAFE * 0.1
    return _times(factor)


def _raised(subject: Subject, wanted: float) -> Patch | None:
    largest = subject.largest_update
    return None if largest is None or largest > SMALL * wanted else _times(wanted / largest)


def _times(factor: float) -> Patch:
    return Patch(optimizer=f'for group in optimizer.param_groups:\n    group["lr"] *= {float(f"{factor:.1g}"):g}')
