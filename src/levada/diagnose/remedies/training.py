"""Remedies that change the training and leave the model as it is."""

from __future__ import annotations

from levada.diagnose.remedies.remedy import Patch, Subject

__all__ = ["all_parameters", "clip", "hundredth", "momentum", "tenth", "thousandth", "twentieth", "weight_decay"]

# Rates within this factor of each other are one rate to a training.
SAME = 1.5


def thousandth(subject: Subject) -> Patch | None:
    """Change the learning rate by a factor, so that the largest first step of a layer is 0.001 of its weights."""
    return _set(subject, 1e-3)


def hundredth(subject: Subject) -> Patch | None:
    """Change the learning rate by a factor, so that the largest first step of a layer is 0.01 of its weights."""
    return _set(subject, 1e-2)


def twentieth(subject: Subject) -> Patch | None:
    """Change the learning rate by a factor, so that the largest first step of a layer is 0.05 of its weights."""
    return _set(subject, 5e-2)


def tenth(subject: Subject) -> Patch:
    """Change the learning rate by a factor of 0.1: a first step may be small, and curvature throw out later ones."""
    return _times(0.1, subject)


def clip(subject: Subject) -> Patch | None:
    """Clip the gradient to a norm of 1."""
    del subject  # a gradient can be clipped in any training
    return Patch(step="import torch\ntorch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)")


def all_parameters(subject: Subject) -> Patch | None:
    """Give the optimizer the parameters that it does not hold."""
    recipe = subject.facts.recipe
    if recipe is None or not recipe.left_out:
        return None
    return Patch(
        optimizer="held = {id(p) for group in optimizer.param_groups for p in group['params']}\n"
        "left_out = [p for p in model.parameters() if p.requires_grad and id(p) not in held]\n"
        "optimizer.add_param_group({'params': left_out})"
    )


def weight_decay(subject: Subject) -> Patch:
    """Train without weight decay."""
    del subject
    return Patch(optimizer="for group in optimizer.param_groups:\n    group['weight_decay'] = 0.0")


def momentum(subject: Subject) -> Patch:
    """Set the momentum to 0.9."""
    del subject
    return Patch(optimizer="for group in optimizer.param_groups:\n    group['momentum'] = 0.9")


def _set(subject: Subject, wanted: float) -> Patch | None:
    largest = subject.largest_update
    if largest is None or 1 / SAME < wanted / largest < SAME:
        return None
    return _times(wanted / largest, subject)


def _times(factor: float, subject: Subject) -> Patch:
    factor, lr = float(f"{factor:.1g}"), subject.facts.lr
    rates = "" if lr is None else f": {lr:g} becomes {lr * factor:.3g}"
    return Patch(
        optimizer=f'for group in optimizer.param_groups:\n    group["lr"] *= {factor:g}',
        says=f"The learning rate times {factor:g}{rates}.",
    )
