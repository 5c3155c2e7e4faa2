"""Remedies that change the loss: how it is scaled, which way it falls, and what it compares with what."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from levada.diagnose.loss import Loss, class_dim
from levada.diagnose.objective import Objective
from levada.diagnose.remedies.remedy import Patch, Subject, adjusted

__all__ = ["log_softmax", "pairs", "scale", "sign", "standard"]

# A likelihood falls by exactly what is added to its log-probabilities, and is none if it does not.
AGREEMENT = 1e-3
# Two losses are one, times a number, if their ratio is the same for all outputs to within this.
PROPORTIONAL, PROPORTIONAL_IN_HALF = 1e-4, 2e-2
# A mean over rows or over rows and outputs, and a weight of a tenth, are a choice.
CHOSEN = 10.0
_ERRORS = {"squared": "mse_loss", "absolute": "l1_loss", "smooth absolute": "smooth_l1_loss"}


@dataclass(frozen=True, slots=True)
class _Standard:
    """A loss of torch.nn.functional, for targets of one kind.

    Attributes:
        name: its name there.
        code: code that makes `loss` that function.
        words: what it is called.
    """

    name: str
    code: str
    words: str


def standard(subject: Subject) -> Patch | None:
    """Take the loss that such targets are learned with: cross-entropy of classes, squared error of numbers."""
    told, out = subject.facts.objective, subject.outputs
    if told is None or out is None or subject.loss is None or not _useless(told, subject, out):
        return None
    known = _recognised(subject, out) if told.attached is False else None
    if known is not None:
        kind, factor = known
        if not 1 / CHOSEN < factor < CHOSEN:
            return None
        says = f"The loss is {kind.words} without a graph: the same with its graph."
    else:
        usual = next(_kinds(out, subject.batches[0].targets), None)
        if usual is None:
            return None
        kind = usual
        says = f"The loss is {kind.words}."
    return Patch(loss=kind.code, says=says, judged=f"{kind.words}, which is the repaired loss")


def _useless(told: Objective, subject: Subject, out: Tensor) -> bool:
    """Return whether the loss says nothing of which output is right, or no number."""
    if told.attached is False or told.moves is False:
        return True
    if told.answers.across is not None or told.answers.numbers is not None:
        return True
    return bool(torch.isfinite(out).all()) and not math.isfinite(_value(subject, out))


def log_softmax(subject: Subject) -> Patch | None:
    """Give a negative log-likelihood log-probabilities: a log-softmax of what it was given as they are."""
    told, out = subject.facts.objective, subject.outputs
    if told is None or out is None or told.shift is None or abs(told.shift + 1) > AGREEMENT or not told.classes:
        return None
    dim = class_dim(out, subject.batches[0].targets)
    if dim is None:
        return None
    taken = f"outputs.log_softmax({dim})"
    if told.sums_to_one:
        taken = "outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()"
    return Patch(
        loss=_around(f"given({taken}, targets)", "import torch\n" if told.sums_to_one else ""),
        judged="the negative log-likelihood of normalised outputs, which is the repaired loss",
    )


def sign(subject: Subject) -> Patch | None:
    """Turn the sign of a loss that falls without end the more wrong the outputs are, unless ascent is meant."""
    told = subject.facts.objective
    if told is None or told.answers.falling is None:
        return None
    return Patch(
        loss="# If ascent is meant (unlearning, an adversary), leave the loss as it is.\n"
        + _around("-given(outputs, targets)"),
        judged="the loss with its sign turned, which is the repaired loss",
    )


def pairs(subject: Subject) -> Patch | None:
    """Compare each output with its own target, where all are compared with all by broadcasting."""
    told, out = subject.facts.objective, subject.outputs
    targets = subject.batches[0].targets
    if told is None or out is None or not isinstance(targets, Tensor) or targets.numel() != out.numel():
        return None
    name = _ERRORS.get(told.pairs or told.answers.pairs)
    if name is None:
        return None
    reshaped = "outputs" if out.shape == targets.shape else "outputs.reshape(targets.shape)"
    return Patch(
        loss=_function(f"functional.{name}({reshaped}, targets)"),
        judged=f"{name} of each output and its own target, which is the repaired loss",
    )


def scale(subject: Subject) -> Patch | None:
    """Multiply a loss that is a standard one but for a factor, so that it is a mean over the rows."""
    out = subject.outputs
    found = None if out is None or subject.loss is None else _recognised(subject, out)
    if found is None:
        return None
    kind, factor = found
    if 1 / CHOSEN < factor < CHOSEN or factor <= 0:
        return None
    return Patch(
        loss=_around(f"{1 / factor:.4g} * given(outputs, targets)"),
        says=f"The loss is {factor:.3g} times {kind.words}: times {1 / factor:.4g} it is that mean.",
        judged="the rescaled loss, which is the repaired one",
    )


def _around(value: str, head: str = "") -> str:
    # A default argument holds the loss that was there, also when another change names its own one `given`.
    return f"{head}def loss(outputs, targets, given=loss):\n    return {value}"


def _function(value: str) -> str:
    return f"from torch.nn import functional\ndef loss(outputs, targets):\n    return {value}"


def _kinds(out: Tensor, targets: object) -> Iterator[_Standard]:
    """Yield the losses of torch that take such outputs and targets, the usual one first."""
    if not isinstance(targets, Tensor) or targets.is_complex():
        return
    given = "outputs" if out.dtype not in (torch.float16, torch.bfloat16) else "outputs.float()"
    if not targets.is_floating_point():
        dim = class_dim(out, targets)
        if dim is not None and out.dim() > 1 and targets.dtype != torch.bool:
            given = given if dim == 1 else f"{given}.movedim({dim}, 1)"
            value = f"functional.cross_entropy({given}, targets{'' if targets.dtype == torch.int64 else '.long()'})"
            yield _Standard("cross_entropy", _function(value), "cross-entropy")
        return
    if targets.numel() != out.numel():
        return
    given = given if out.shape == targets.shape else f"{given}.reshape(targets.shape)"
    numbers = [("mse_loss", "mean squared error"), ("l1_loss", "mean absolute error"), ("smooth_l1_loss", "smooth L1")]
    binary = ("binary_cross_entropy_with_logits", "binary cross-entropy of logits")
    yes_or_no = bool(((targets == 0) | (targets == 1)).all()) and bool((out < 0).any())
    for name, words in [binary, *numbers] if yes_or_no else numbers:
        yield _Standard(name, _function(f"functional.{name}({given}, targets)"), words)


def _recognised(subject: Subject, out: Tensor) -> tuple[_Standard, float] | None:
    """Return the standard loss that the given one is, times one number, for these outputs and for others."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
    half = out.dtype in (torch.float16, torch.bfloat16)
    for kind in _kinds(out, subject.batches[0].targets):
        assert subject.loss is not None
        other = adjusted(subject.loss, kind.code)
        factors = []
        for outputs in (out, noise, out + 2 * noise):
            with torch.no_grad():
                size = float(other(outputs, subject.batches[0]))
            factors.append(_value(subject, outputs) / size if size else math.nan)
        apart = max(factors) - min(factors)
        if apart <= (PROPORTIONAL_IN_HALF if half else PROPORTIONAL) * abs(max(factors)):  # never true of NaN
            return kind, sum(factors) / len(factors)
    return None


def _value(subject: Subject, outputs: Tensor) -> float:
    loss: Loss | None = subject.loss
    assert loss is not None
    with torch.no_grad():
        return float(loss(outputs, subject.batches[0]))
