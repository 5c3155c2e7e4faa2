"""What the loss does with the model's outputs, tested on the loss alone: no forward pass of the model is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from levada._errors import UsageError
from levada.diagnose.answers import CERTAIN, Answers, all_pairs, answers
from levada.diagnose.loss import Loss, class_dim, floating_outputs, main_output
from levada.inputs import Batch

__all__ = ["Objective", "examine"]

# Sums of probabilities in half precision are one to within this.
ROUNDING = 64.0
# Sums in another order differ by less, relative to the loss.
SAME = 1e-5
# Ends of the range of what an output can be, by the function that makes it.
_RANGES = {
    "sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hardtanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "softplus": (0.0, math.inf),
}


@dataclass(frozen=True, slots=True)
class Objective:
    """How the loss answers to outputs that are put in by hand; None where a test was not made.

    Attributes:
        attached: whether the loss has a graph that reaches the outputs; None if the outputs have none themselves.
        moves: whether other outputs give another loss.
        reads_targets: whether other classes as targets give another loss.
        classes: number of classes, of integer targets or of probabilities as targets.
        sums_to_one: whether every output is a distribution over the classes.
        shift: change of the loss when 1 is added to every output of a row: 0 for what takes a softmax itself, -1 for a
            negative log-likelihood.
        normaliser: root mean square of log sum exp over the classes; 0 for log-probabilities.
        floor: loss of the best distributions that there are, certain and right.
        floor_of_logits: loss of large logits, certain and right.
        broadcast: shapes of outputs and targets, if together they make something larger than either.
        crosstalk: whether the gradient at one row changes with the target of another.
        pairs: of those shapes, the error over all pairs that the loss is, empty if it is a sum over the outputs of
            another, the same whichever row a target stands in; None if it is neither.
        produced_by: name of the function that made the output, if its range has an end.
        reach: that range.
        outside: share of the targets outside of it.
        loss_within: loss of the targets brought into it.
        row_sums: largest distance from one of the sum of a row of floating targets of the outputs' shape.
        below: share of those targets outside [0, 1].
        loss_extreme: loss of outputs that are large towards each target's side.
        answers: which outputs the loss rewards, and what it cannot tell apart.
        of_zeros: loss of outputs of zero.
        of_prior: least loss of outputs that are the same for every row and say how the targets are spread: zeros, the
            logarithms of the classes' shares or the targets' mean, and of shares between 0 and 1 their log-odds.
    """

    attached: bool | None = None
    moves: bool | None = None
    reads_targets: bool = False
    classes: int = 0
    sums_to_one: bool = False
    shift: float | None = None
    normaliser: float | None = None
    floor: float | None = None
    floor_of_logits: float | None = None
    broadcast: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    crosstalk: bool = False
    pairs: str | None = None
    produced_by: str = ""
    reach: tuple[float, float] = (-math.inf, math.inf)
    outside: float = 0.0
    loss_within: float | None = None
    row_sums: float | None = None
    below: float = 0.0
    loss_extreme: float | None = None
    answers: Answers = field(default_factory=Answers)
    of_zeros: float | None = None
    of_prior: float | None = None


def examine(loss: Loss, outputs: Any, batch: Batch, last: str) -> Objective:
    """Put other outputs into the loss and see what it gives.

    Args:
        loss: the loss.
        outputs: what the model returned, with its graph.
        batch: the batch, for the targets.
        last: name of the function that made the main output.
    """
    given = loss(outputs, batch)
    told = Objective()
    if any(t.requires_grad for t in floating_outputs(outputs)):
        told = replace(told, attached=given.requires_grad)
    if loss.name == "output" or not batch.has_targets or not (loss.takes_tensor or isinstance(outputs, Tensor)):
        return told
    out = main_output(outputs).detach()

    def value(other: Tensor, targets: Any = batch.targets) -> float:
        return float(loss(other, replace(batch, targets=targets)))

    try:
        with torch.no_grad():
            if out.numel() == 0 or value(out) != value(out):  # random, or NaN: it is equal to itself never
                return told
            told = replace(told, moves=_moves(value, out), of_zeros=value(torch.zeros_like(out)))
            told = _classes(told, value, out, batch.targets)
            told = replace(told, of_prior=_prior(value, out, batch.targets))
            told = _range(told, value, out, batch.targets, last)
            if told.moves:
                right = _right(out, batch.targets)
                told = replace(told, answers=answers(value, out, batch.targets, last, right, told.reads_targets))
        return _broadcast(told, loss, out, batch)
    except (UsageError, RuntimeError, ValueError, TypeError, IndexError):
        return told  # it takes no outputs but those of the model: what was seen before stays


def _moves(value: Callable[..., float], out: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
    size = float(out.double().square().mean().sqrt()) or 1.0
    here = value(out)
    return any(value(other) != here for other in (out + size * noise, -out, torch.zeros_like(out), 10 * size * noise))


def _classes(told: Objective, value: Callable[..., float], out: Tensor, targets: Any) -> Objective:
    """Test what takes one class, or one distribution over the classes, for each row."""
    if not isinstance(targets, Tensor):
        return told
    if targets.is_floating_point():
        if targets.shape != out.shape or out.dim() < 2:
            return told
        sums = float((targets.double().sum(1) - 1).abs().max())
        below = float(((targets < 0) | (targets > 1)).double().mean())
        extreme = value((CERTAIN * 10 * (targets.to(out.dtype) - 0.5).sign()).to(out.dtype)) if below else None
        told = replace(told, row_sums=sums, below=below, loss_extreme=extreme)
    found = _right(out, targets)
    if found is None:
        return told
    dim, right = found
    sums = float((out.double().sum(dim) - 1).abs().max())
    distributed = bool((out >= 0).all()) and sums <= ROUNDING * torch.finfo(out.dtype).eps
    here = value(out)
    normaliser = float(out.double().logsumexp(dim).square().mean().sqrt())
    told = replace(told, classes=out.shape[dim], sums_to_one=distributed, shift=value(out + 1) - here)
    rolled = value(out, targets.roll(1, 0)) != here or value(out, targets.flip(0)) != here
    told = replace(told, normaliser=normaliser, reads_targets=rolled)
    if distributed:
        told = replace(told, floor=value(right), floor_of_logits=value(CERTAIN * right))
    return told


def _right(out: Tensor, targets: Any) -> tuple[int, Tensor] | None:
    """Return the dimension of the classes, and one where the right class is; None if the targets are no classes."""
    if not isinstance(targets, Tensor) or targets.is_complex():
        return None
    if targets.is_floating_point():
        if targets.shape != out.shape or out.dim() < 2 or bool(((targets < 0) | (targets > 1)).any()):
            return None
        sums = float((targets.double().sum(1) - 1).abs().max())
        return (1, targets.to(out.dtype)) if sums <= ROUNDING * torch.finfo(out.dtype).eps else None
    dim = class_dim(out, targets)
    if dim is None:
        return None
    count = out.shape[dim]
    known = (targets >= 0) & (targets < count)
    right = torch.nn.functional.one_hot(targets.long().clamp(0, count - 1), count) * known.unsqueeze(-1)
    return dim, right.movedim(-1, dim).to(out.dtype)


def _prior(value: Callable[..., float], out: Tensor, targets: Any) -> float | None:
    """Return the loss of outputs that know how often each class comes, or the targets' mean, and nothing of the inputs.

    Means between 0 and 1 may be frequencies, of which a loss of logits takes the log-odds. An output of zeros counts
    beside them, for a loss that takes none of these.
    """
    found = _right(out, targets)
    if found is not None:
        dim, right = found
        shares = right.double().mean([d for d in range(out.dim()) if d != dim], keepdim=True)
        shares = shares / shares.sum()
        known = [shares.clamp(min=1e-6).log(), shares.logit(1e-6)]
    elif isinstance(targets, Tensor) and targets.is_floating_point() and targets.shape == out.shape and len(out) > 1:
        shares = targets.double().mean(0, keepdim=True)
        within = bool(((targets >= 0) & (targets <= 1)).all())
        known = [shares, shares.logit(1e-6)] if within else [shares]
    else:
        return None
    losses = [value(best.to(out.dtype).expand_as(out)) for best in known] + [value(torch.zeros_like(out))]
    return min((loss for loss in losses if math.isfinite(loss)), default=None)


def _range(told: Objective, value: Callable[..., float], out: Tensor, targets: Any, last: str) -> Objective:
    """Test targets that are numbers against what the last function can give."""
    comparable = isinstance(targets, Tensor) and targets.is_floating_point() and targets.numel() == out.numel()
    if last not in _RANGES or not comparable:
        return told
    low, high = _RANGES[last]
    slack = 0.05 * (high - low) if math.isfinite(high - low) else 0.05 * float(targets.double().std(correction=0))
    share = float(((targets < low - slack) | (targets > high + slack)).double().mean())
    told = replace(told, produced_by=last, reach=(low, high), outside=share)
    if share:
        within = targets.clamp(low, high).reshape(out.shape).to(out.dtype)
        told = replace(told, loss_within=value(within))
    return told


def _broadcast(told: Objective, loss: Loss, out: Tensor, batch: Batch) -> Objective:
    """Test whether outputs and targets of unlike shapes are compared row by row."""
    targets = batch.targets
    if not isinstance(targets, Tensor) or not targets.is_floating_point() or targets.shape == out.shape:
        return told
    try:
        together = torch.broadcast_shapes(out.shape, targets.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return told
    if math.prod(together) <= max(out.numel(), targets.numel()) or len(out) < 2 or targets.dim() < 1:
        return told
    other = targets.clone()
    other[0] = other[0] + 1 + targets.double().std(correction=0).to(targets.dtype)
    slopes = []
    for given in (targets, other):
        leaf = out.clone().requires_grad_()
        slopes.append(torch.autograd.grad(loss(leaf, replace(batch, targets=given)), leaf)[0])
    shapes = tuple(out.shape), tuple(targets.shape)
    told = replace(told, broadcast=shapes, crosstalk=bool((slopes[0][1:] != slopes[1][1:]).any()))
    return replace(told, pairs=_pairs(loss, out, batch, targets)) if told.crosstalk else told


def _pairs(loss: Loss, out: Tensor, batch: Batch, targets: Tensor) -> str | None:
    """Test whether the loss is an error over all pairs; a correlation or an order of rows has crosstalk as well."""

    def value(other: Tensor, asked: Tensor = targets) -> float:
        return float(loss(other, replace(batch, targets=asked)))

    with torch.no_grad():
        here = value(out)
        for moved in (targets.roll(1, 0), targets.flip(0)):
            if not abs(value(out, moved) - here) <= SAME * abs(here):
                return None
        return all_pairs(value, out, targets)
