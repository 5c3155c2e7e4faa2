"""Blocks whose units are all off, and blocks whose activation is at its ends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch

from levada.diagnose.finding import Finding
from levada.watching.measure.sample import Sample
from levada.watching.verdict.rules.depth import LARGE
from levada.watching.verdict.view import View, values_of

__all__ = ["dead_units", "saturated_activation", "squashed"]

# Of the zeros of an activation so many are healthy in sparse networks; above, so few units are left that none learns.
DEAD: Final = 0.999
# A run's own baseline of the units that are on, over what is left of them.
FEWER: Final = 10.0
# Units that are off for one kind of batch are so for some samples in a row; they are no cut, and told earlier.
SELDOM: Final = 0.02
# By then what was seen of them confirms itself: three samples in a row behind twelve or more with some on.
SURE: Final = 2e-3
# Of a gradient a tanh lets so little through, in the mean of its elements; a signal of variance 1 before it gives 0.6.
SLOPE: Final = 0.1
# Of its start, or of what a constant prediction has, the loss has come down by no more.
LITTLE: Final = 0.1
FROM_THE_START: Final = "it was so from the start"


def dead_units(view: View) -> Iterable[Finding]:
    """A block's activations are all but all zero, ten times fewer of them on than this run's own baseline.

    An error needs every one zero, a baseline with more, and no gradient for the weights of the block. Units that rest
    now and then, as those of a branch for one kind of input, are not dead before their habit explains it no more. Where
    all is zero, the gradient exactly so, and that is less likely by their habit than 0.002, the samples that this takes
    confirm it too.
    """
    share = view["zero_fraction"]
    on_before = 1 - view.anchor("zero_fraction")  # of samples on which not all was zero
    fewer = (1 - share) * FEWER <= on_before
    dead = (share == 1) | ((share >= DEAD) & fewer)
    if view.off is not None:
        dead &= view.off.chance < SELDOM
    hit = dead.nonzero().flatten().tolist()
    if not hit:
        return
    first, names = hit[0], view.blocks.names
    gradient = view["weight_gradient_rms"]
    stopped = bool(share[first] == 1) and bool(gradient[first] == 0)
    stepped, since = float(view.longest[first]), _before(view, first)
    rate = f", and its longest step was {stepped:.2g} of its weights: the learning rate may be why"
    yield Finding(
        rule="dead_units",
        severity="error" if stopped else "warn",
        status="fired",
        claim=(
            f"{_percent(float(share[first]))} of what the activations of {names[first]} give is zero"
            f"{'' if len(hit) == 1 else f', as at {len(hit) - 1} more blocks'}; {since}"
            f"{rate if stepped >= LARGE else ''}."
        ),
        where={"first": names[first], "last": names[first]},
        evidence={
            "zero_fraction": {names[i]: float(share[i]) for i in hit},
            "reference": since,
            "longest_step": stepped,
            "explained_by": "baseline" if since != FROM_THE_START else None,
            "held": _held(view, first) if stopped else 0,
            "tests": {"weight_gradient_rms": float(gradient[first])},
        },
        consequence=(
            "No gradient gets behind these units: training cannot repair them."
            if stopped
            else "The weights of those units learn on no input of these samples."
            if bool(share[first] == 1)
            else "The weights of those units learn on hardly any input."
        ),
        falsify="Look at more batches: a unit that is on for one input in a thousand is not dead.",
        source="Lu et al. 2019, arXiv 1903.06733",
    )


def saturated_activation(view: View) -> Iterable[Finding]:
    r"""Most blocks that end with a tanh are at its ends, and after 64 losses or more hardly anything was learned.

    The slope of $y = \tanh x$ is $1 - y^2$, so that its mean is 1 minus the block's mean square. It speaks if that is
    below a tenth at half of these blocks or more, on each of the last samples, and the loss has come below its start,
    or below that of a constant prediction, by less than a tenth of that. The last block is passed over, as one that
    gives what is asked for may well be at its ends.
    """
    known = frozenset.intersection(*(squashed(row, view.sites) for row in view.rows))
    slopes = torch.stack([1 - values_of(row, "signal_rms", view.sites).square() for row in view.rows]).amax(0)
    hit = [i for i in sorted(known) if float(slopes[i]) < SLOPE]
    loss = view.loss
    level = loss.start if math.isnan(loss.constant) else min(loss.start, loss.constant)
    if not hit or 2 * len(hit) < len(known) or loss.steps < 2 * loss.warm_up:
        return
    if level - loss.now > LITTLE * abs(level):
        return
    names, first = view.blocks.names, hit[0]
    before = 1 - float(view.anchor("signal_rms")[first]) ** 2
    yield Finding(
        rule="saturated_activation",
        severity="warn",
        status="fired",
        claim=(
            f"The tanh of {len(hit)} of {len(known)} blocks, of which {names[first]} is the first, is at its ends: its "
            f"slope has a mean of {float(slopes[hit].amax()):.2g} or less on the last {len(view.rows)} samples; and "
            f"after {loss.steps} steps the loss is {loss.now:.4g}, where it began at {loss.start:.4g}."
        ),
        where={"first": names[first], "last": names[hit[-1]]},
        evidence={
            "slope": {names[i]: float(slopes[i]) for i in hit},
            "slope_in_baseline": before,
            "reference": "0.6 for signals of variance 1 before a tanh",
            "explained_by": "theory",
            "tests": {"loss": {"start": loss.start, "best": loss.best, "now": loss.now, "constant": loss.constant}},
        },
        consequence="Those elements pass almost no gradient on: what is before them learns from the few others.",
        falsify="Divide the weights of these blocks by ten: if the loss falls no faster, it did no harm.",
        source="Glorot and Bengio 2010, section 3",
    )


def squashed(sample: Sample, sites: int) -> frozenset[int]:
    """Return the numbers of the blocks that end with a tanh, without the last block.

    Args:
        sample: of a run.
        sites: how many blocks there are.
    """
    return sample.tanh - {sites - 1}


def _held(view: View, block: int) -> int:
    """Return on how many samples in a row a block gave nothing and got no gradient, where that is no habit for sure."""
    if view.off is None or float(view.off.chance[block]) >= SURE:
        return 0
    return min(int(view.off.run[block]), int(view.silence.run[block]))


def _percent(share: float) -> str:
    """Return a share in percent: only what is all of it is 100 %."""
    return "100 %" if share == 1 else f"{min(100 * share, 99.99):.2f} %"


def _before(view: View, block: int) -> str:
    """Say how many of a block's units were off before: in its baseline, or on the last sample with some on."""
    usual = float(view.anchor("zero_fraction")[block])
    if usual == usual:
        return f"it was {usual:.1%} in this run's own baseline"
    last = math.nan if view.off is None else 1 - float(view.off.last[block])
    return f"it was {last:.1%} on the last sample before" if last == last else FROM_THE_START
