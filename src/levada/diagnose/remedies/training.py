"""Remedies that change the training and leave the model as it is."""

from __future__ import annotations

from levada.diagnose.remedies.remedy import Patch, Subject

__all__ = ["clip", "hundredth", "tenth", "thousandth", "twentieth"]

# Rates within this factor of each other are one rate to a training.
SAME = 1.5


def thousandth(subject: Subject) -> Patch | None:
    """Set the learning rate so that the largest first step of a layer is a thousandth of its weights."""
    return _set(subject, 1e-3)


def hundredth(subject: Subject) -> Patch | None:
    """Set the learning rate so that the largest first step of a layer is a hundredth of its weights."""
    return _set(subject, 1e-2)


def twentieth(subject: Subject) -> Patch | None:
    """Set the learning rate so that the largest first step of a layer is a twentieth of its weights."""
    return _set(subject, 5e-2)


def tenth(subject: Subject) -> Patch:
    """Divide the learning rate by ten: where the first step is small, curvature may still throw out later ones."""
    del subject
    return _times(0.1)


def clip(subject: Subject) -> Patch | None:
    """Clip the gradient to a norm of 1."""
    del subject  # a gradient can be clipped in any training
    return Patch(step="import torch\ntorch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)")


def _set(subject: Subject, wanted: float) -> Patch | None:
    largest = subject.largest_update
    if largest is None or 1 / SAME < wanted / largest < SAME:
        return None
    return _times(wanted / largest)


def _times(factor: float) -> Patch:
    return Patch(optimizer=f'for group in optimizer.param_groups:\n    group["lr"] *= {float(f"{factor:.1g}"):g}')
