"""Steps of the optimizer that are rounded away, too long, or too short."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from levada.diagnose.finding import Finding, Proposal
from levada.watching.loop.uncleared import LATEST, LEAST
from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.rules.depth import LARGE, NEGLIGIBLE, RISEN
from levada.watching.verdict.rules.replaced import DESCENT, lower, replaced
from levada.watching.verdict.view import MANY, View, at_rest, loss_falls, values_of

__all__ = [
    "AT_ONCE",
    "accumulated_gradients",
    "learning_rate_too_high",
    "learning_rate_too_low",
    "lost_update",
    "stays_up",
]

# If a tenth of the weights move by one spacing each, the update's root mean square is this share of the spacing.
KEPT: Final = math.sqrt(0.1)
# By as much the size of weights is rounded, as it is measured.
ROUNDED: Final = 1e-6
# How many gradients the buffer of a usual momentum, 0.9, adds up.
MOMENTUM: Final = 10.0
# At a rate that stays, a gradient that is left with a thousandth has found a place where it is small.
FADED: Final = 1e3
# Steps of a twentieth of the weights are above those in use, about a thousandth of them.
LONG: Final = 0.05
# Steps of a millionth: a hundred thousand of them, all in one direction, move the weights by a tenth.
SHORT: Final = 1e-6
# Shares of the loss by which it rose with the first updates, and by which it is above its start many steps later.
AT_ONCE, ABOVE = 0.1, 0.5
# Deviations of single losses by which a loss is below its first one for certain.
SCATTER: Final = 3.0
# Steps as large as the weights leave nothing of them.
WHOLE: Final = 1.0
# Of a quadratic whose least is 0, a step to the minimum along the gradient lowers the loss to first order by twice
# all of it; longer ones go beyond, and from four times on they climb.
BEYOND: Final = 2.0


def lost_update(view: View) -> Iterable[Finding]:
    r"""The optimizer's updates are below the spacing of the weights' numbers, so that nine tenths of them are lost.

    A block's measured update is the change of its weights, so that of lost ones only the rest is seen: with numbers a
    relative $\epsilon / 2$ apart, an update of less than $\sqrt{0.1} \, \epsilon / 2$ of the weights has moved less
    than a tenth of them. It speaks where that holds of most blocks that get a gradient, at a learning rate that is
    known, does not warm up, and has not decayed. What is no less than the optimizer's own step is not lost: weights may
    be rounded at random, or what is lost may be kept for the next step. Nor is what was a thousand times as much before
    at a rate that is still the same, with an optimizer that does not rescale. Nor are blocks that moved on one of the
    last samples, or between them while their updates were exactly 0, as something takes turns with them that the watch
    was not given: weights whose size changed by more than such small updates add up to, as norms differ by no more than
    the norm of the difference. An error needs an exact step that is smaller than the spacing, and a loss that does not
    fall. That step is the rate for an optimizer that rescales
    gradients; for others it is the rate times the gradient, with momentum up to ten times that, and nothing must have
    been learned, as a gradient may have become small.
    """
    ratio, gradient = view["update_ratio"], view["weight_gradient_rms"]
    resolution = view.blocks.resolution
    learning = (gradient > 0) & ratio.isfinite() & resolution.isfinite() & view.blocks.trainable
    lost = learning & (torch.fmax(_most(view), _moved_between(view)) < KEPT * resolution / 2)
    at = lost.nonzero().flatten()  # a list of many takes a fifth of a millisecond each time
    hit = at.tolist()
    if not hit or 2 * len(hit) < int(learning.sum()) or not view.rate_is_settled or at_rest(view):
        return
    names, weights = view.blocks.names, view["weight_rms"]
    exact, left = view.lr / float(weights[at].nanmedian()), float(ratio[at].median())
    if left >= exact if view.blocks.adaptive else bool((view.longest[at] >= FADED * ratio[at]).all()):
        return  # rounded at random, or with what is lost kept; or small because the gradient has become so
    if not view.blocks.adaptive:
        exact = MOMENTUM * view.lr * float((gradient[at] / weights[at]).nanmedian())
    small = exact < float(resolution[at].median()) / 2 and (view.blocks.adaptive or view.nothing_learned)
    yield Finding(
        rule="lost_update",
        severity="error" if small and loss_falls(view) is False else "warn",
        status="fired",
        claim=(
            f"The update moves the weights of {len(hit)} of {int(learning.sum())} blocks by "
            f"{float(ratio[at].median()):.2g} of themselves, and their numbers are about "
            f"{float(resolution[at].median()) / 2:.2g} apart: at most a tenth of the weights change at all."
        ),
        where={"first": names[hit[0]], "last": names[hit[-1]]},
        evidence={
            "update_ratio": float(ratio[at].median()),
            "reference": f"spacing of the weights' numbers, {float(resolution[at].median()):.2g} at 1",
            "lr": view.lr,
            "explained_by": "theory" if small else None,
            "tests": {"exact_step_over_weights": exact, "loss_falls": loss_falls(view)},
        },
        consequence="Most weights never move, however many steps of this size are made: each is rounded away.",
        falsify="Hold the weights in float32, cast for the forward pass: if the loss falls no faster, this is wrong.",
        source="IEEE 754 rounding to nearest; Micikevicius et al. 2018, arXiv 1710.03740 (float32 weights)",
    )


def _most(view: View) -> Tensor:
    """Return the largest update of each block on the last samples; NaN where none was measured."""
    rows = [values_of(row, "update_ratio", view.sites) for row in view.rows]
    return functools.reduce(torch.fmax, rows)


def _moved_between(view: View) -> Tensor:
    """Return by how much of themselves a step moved weights in the mean, where no sampled step did; else 0."""
    first, now, rests = view.rows[0], view.rows[-1], _most(view) == 0
    before, after = (values_of(row, "weight_rms", view.sites) for row in (first, now))
    share = ((after - before).abs() / after - ROUNDED).clamp(min=0) / max(now.step - first.step, 1)
    return torch.where(rests, share, 0.0)


def learning_rate_too_high(view: View) -> Iterable[Finding]:
    """Steps of a twentieth of the weights or more, and a loss that rises, or never fell.

    Where the loss never fell, the longest steps of the run count: later ones may be short beside weights that they blew
    up.

    An error needs steps of a tenth of the median block's weights, which explains why they do not follow a gradient that
    is local; steps below that earlier in the run, or none of its loss learned; and a loss above that of the start.
    Where the loss stays near its start it is information: a task may be hard, and first steps are long beside weights
    that are zero.

    Two more are warnings, of a loss that rose with the first updates and 128 steps or more later is not back. One is of
    a step as large as the weights, which leaves nothing of what they were drawn for. The other needs no step that is
    long beside the weights, as those that overshoot may move few of them: under an optimizer that does not rescale
    gradients the loss is half of its size above its start, and the rate times the squared gradient, by which a step
    that is short beside the curvature lowers the loss, is twice the loss or more: the step goes beyond the minimum.
    Where it is less, the same loss is information, as it is where only earlier steps were long, of less than a tenth
    of the weights: the task may have grown harder, as where a queue of negatives fills. Under an optimizer that
    rescales gradients, or without their size, neither is said, and the verdict stays unknown as long as it is so.

    Steps of ten times the weights are told at once, while the loss is no lower for them: as information, and as a
    warning where most blocks get no gradient any more, or the loss is ten times that of the start.

    And it is a warning if after 128 steps the loss is no lower than that of a prediction that is the same for every
    input, and a step was as large as the weights, or as a tenth of them while the first updates raised the loss.
    """
    ratio = view.longest if view.nothing_learned else view["update_ratio"]
    ratio = ratio[ratio.isfinite()]
    most = float(view.longest.nanmedian())
    gone = replaced(view, most)
    if gone is not None and (view.loss.steps < MANY or gone.severity == "warn"):
        yield gone
        return
    if not len(ratio) or not view.loss.ready:
        return
    moved = float(ratio.median())
    risen = view.given_back >= RISEN
    if moved < LONG and _thrown(view, most):
        yield _thrown_up(view, moved, most)
        return
    if view.stuck and (most >= WHOLE or (most >= LARGE and view.loss.thrown(AT_ONCE))):
        yield _constant(view, moved, most)
        return
    if moved < LONG or not (risen or view.nothing_learned) or _shrunk(view):
        return
    usual = view.anchor("update_ratio").nanmedian()
    names, loss = view.blocks.names, view.loss
    above = loss.now > loss.start if risen else loss.median > loss.start + 0.5 * loss.spread
    short = moved < LARGE and float(view["update_ratio"].nanmedian()) < LONG and not view.blocks.adaptive
    over = short and _promised(view) < BEYOND  # long no more, and none that overshoots: the task may have grown harder
    what = (
        f"the loss is {loss.now:.4g}, and was {loss.best:.4g} at its best"
        if risen
        else f"the loss has not come below its start, {loss.start:.4g}, in {loss.steps} steps"
    )
    yield Finding(
        rule="learning_rate_too_high",
        severity="error" if moved >= LARGE and above else "warn" if (risen or above) and not over else "info",
        status="fired",
        claim=(
            f"A step {'moved' if view.nothing_learned else 'moves'} the weights of the median block by {moved:.2g} of "
            f"themselves, and {what}."
        ),
        where={"first": names[0], "last": names[-1]},
        evidence={
            "update_ratio": moved,
            "baseline": float(usual),
            "lr": view.lr,
            "reference": "about 1e-3 of the weights per step",
            "explained_by": "theory" if moved >= LARGE else None,
            "tests": {"loss": {"start": loss.start, "best": loss.best, "now": loss.now}},
        },
        consequence="The steps overshoot: the loss rises or jumps about, and may end as no number.",
        falsify="Go back to before the rise and train at a tenth of the rate: if the loss rises too, this is wrong.",
        remedies=lower(view, moved),
        source=DESCENT,
    )


def _thrown(view: View, most: float) -> bool:
    """Whether the loss rose with the first updates, and many steps later is far above its start, or shattered."""
    loss = view.loss
    if loss.steps < MANY or not view.lr > 0:
        return False
    if most >= WHOLE:  # the start is one loss, which its batch may have made high
        back = max(0.5 * loss.spread, SCATTER * loss.jitter)
        return loss.thrown(ABOVE) and loss.start - loss.median <= back
    return not view.blocks.adaptive and stays_up(loss) and not math.isnan(_promised(view))


def stays_up(loss: LossBaseline) -> bool:
    """Whether the loss rose with the first updates, and is half of its size or more above its start.

    Steps that overshoot do that, and tasks that grow harder; under an optimizer that rescales gradients, and where the
    gradient's size is not known, nothing here tells which.

    Args:
        loss: of the steps so far.

    Example:
        >>> losses = LossBaseline()
        >>> for step in range(128):
        ...     losses.add(step, 4.0 if step else 1.0)
        >>> stays_up(losses)
        True
    """
    size = abs(loss.start)
    risen = loss.thrown(AT_ONCE) and loss.median - loss.start >= ABOVE * size
    return risen and loss.learned < 0.5 * size


def _promised(view: View) -> float:
    """Return by how much of the loss the gradient says that a step lowers it, at the median of the last samples."""
    shares = []
    for row in view.rows:
        rate, norm, loss = (float(row.scalars.get(name, math.nan)) for name in ("lr", "gradient_norm", "loss"))
        size = max(abs(loss), view.loss.median - view.loss.start)
        shares.append(rate * norm * norm / size if size > 0 else math.nan)
    known = sorted(share for share in shares if math.isfinite(share))
    return known[len(known) // 2] if known else math.nan


def _thrown_up(view: View, moved: float, most: float) -> Finding:
    names, loss, promised = view.blocks.names, view.loss, _promised(view)
    if most >= WHOLE:
        because = f" A step moved the weights of the median block by {most:.2g} of themselves."
    elif promised >= BEYOND:
        because = f" By its gradient a step would lower it by {promised:.2g} times all of it: it overshoots."
    else:
        because = f" By its gradient a step lowers it by {promised:.2g} of itself: nothing says that steps overshoot."
    blamed = most >= WHOLE or promised >= BEYOND
    return Finding(
        rule="learning_rate_too_high",
        severity="warn" if blamed else "info",
        status="fired",
        claim=(
            f"The loss rose with the first updates, from {loss.first:.4g} to a median of {loss.early:.4g} over the "
            f"first {loss.half} losses, and after {loss.steps} steps at a learning rate of {view.lr:.3g} the last "
            f"{loss.kept} have one of {loss.median:.4g}.{because}"
        ),
        where={"first": names[0], "last": names[-1]},
        evidence={
            "update_ratio": moved,
            "longest": most,
            "promised": promised,
            "lr": view.lr,
            "reference": "the loss of the untrained model",
            "explained_by": "theory" if blamed else None,
            "tests": {"loss": {"first": loss.first, "early": loss.early, "best": loss.best, "median": loss.median}},
        },
        consequence=(
            "The steps overshoot: the run is worse than the untrained model, and does not come back."
            if blamed
            else "None, if the task grew harder with the steps, as where a queue of negatives fills."
        ),
        falsify="Train from the start at a tenth of the rate: if the loss rises as far, this is wrong.",
        remedies=lower(view, max(moved, most if most >= WHOLE else 0.0)) if blamed else (),
        source=DESCENT,
    )


def _constant(view: View, moved: float, most: float) -> Finding:
    names, loss = view.blocks.names, view.loss
    return Finding(
        rule="learning_rate_too_high",
        severity="warn",
        status="fired",
        claim=(
            f"After {loss.steps} steps the loss, a median of {loss.recent:.4g} over the last {len(loss.latest)}, is "
            f"not clearly below that of a constant prediction, {loss.constant:.4g}. A step moved the weights of the "
            f"median block by {most:.2g} of themselves."
        ),
        where={"first": names[0], "last": names[-1]},
        evidence={
            "update_ratio": moved,
            "longest": most,
            "lr": view.lr,
            "constant_loss": loss.constant,
            "reference": "the targets of the sampled steps: their entropy, or their variance",
            "explained_by": "theory",
            "tests": {"loss": {"first": loss.first, "early": loss.early, "best": loss.best, "median": loss.median}},
        },
        consequence="The steps have left nothing of what the weights were drawn for: the model ignores its inputs.",
        falsify="Train from the start at a tenth of the rate: if the loss stays there too, this is wrong.",
        remedies=lower(view, most),
        source=DESCENT,
    )


def accumulated_gradients(view: View) -> Iterable[Finding]:
    """Again and again, gradients that an update had used already were added to, and used again.

    It is counted as `Uncleared` says, of several optimizers by each one's own steps, and told from eight of the last
    64 steps. It is an error where the loss suffers: it has given back a quarter of what was learned, or has not come
    below its start.
    """
    steps = int(float(view.sample.scalars.get("uncleared_steps", 0.0)))
    if steps < LEAST:
        return
    latest = int(min(view.step + 1, LATEST))  # a run that was recorded without it
    of = max(steps, int(float(view.sample.scalars.get("uncleared_of", latest))))
    names, loss = view.blocks.names, view.loss
    suffers = view.given_back >= RISEN or view.nothing_learned
    which = int(float(view.sample.scalars.get("uncleared_optimizer", 0.0)))
    own = f" of optimizer {which} of {view.blocks.optimizers}" if which else ""
    known = [step for step, _ in loss.latest]
    heard = " that were heard" if known and known[-1] - known[0] >= len(known) else ""
    yield Finding(
        rule="accumulated_gradients",
        severity="error" if suffers else "warn",
        status="fired",
        claim=(
            f"On {steps} of the last {of} steps{own}{heard}, up to step {view.step}, the gradients that the step "
            "before had used were still there when the next ones arrived, and were added to."
        ),
        where={"first": names[0], "last": names[-1]},
        evidence={
            "steps_with_old_gradients": steps,
            "of": of,
            "optimizer": which or None,
            "reference": "gradients that are zero or absent when the first of a step arrives",
            "explained_by": "place",
            "tests": {"loss": {"start": loss.start, "best": loss.best, "now": loss.now}},
        },
        consequence="The steps follow the sum of all gradients since these were last cleared, much of it out of date.",
        falsify="Print a gradient before each first backward pass of a step: if it is zero or None, this is wrong.",
        remedies=(Proposal("zero_grad", "optimizer.zero_grad()  # before loss.backward(), in every step"),),
        source="torch.Tensor.backward adds to .grad",
    )


def learning_rate_too_low(view: View) -> Iterable[Finding]:
    """Steps of less than a millionth of the weights, at a rate that neither warms up nor has decayed, and no fall.

    An error needs steps below 2^-24 of every block's weights, so that a hundred thousand of them move nothing, and a
    loss of which nothing was learned. A run that has learned is passed over: it may have converged.
    """
    ratio, gradient = view["update_ratio"], view["weight_gradient_rms"]
    known = (ratio.isfinite() & (gradient > 0)).nonzero().flatten()
    if not len(known) or not view.nothing_learned or not view.rate_is_settled or loss_falls(view) is not False:
        return
    most = float(ratio[known].amax())
    if most >= SHORT:
        return
    names = view.blocks.names
    yield Finding(
        rule="learning_rate_too_low",
        severity="error" if most < NEGLIGIBLE else "warn",
        status="fired",
        claim=(
            f"A step moves no block's weights by more than {most:.2g} of themselves at a learning rate of "
            f"{view.lr:.3g}, and in {view.loss.steps} steps the loss has not fallen."
        ),
        where={"first": names[int(known[0])], "last": names[int(known[-1])]},
        evidence={
            "update_ratio": most,
            "lr": view.lr,
            "reference": "about 1e-3 of the weights per step",
            "explained_by": "theory" if most < NEGLIGIBLE else None,
            "tests": {"loss": {"start": view.loss.start, "now": view.loss.now}},
        },
        consequence="The run ends where it began.",
        falsify="Train at a rate a thousand times as high: if the loss falls no faster, this is wrong.",
        source=DESCENT,
    )


def _shrunk(view: View) -> bool:
    """Whether the weights have become a tenth of what they were: then any step is long beside them."""
    return bool(view.rise_from_start("weight_rms").nanmedian() < -math.log2(10))
