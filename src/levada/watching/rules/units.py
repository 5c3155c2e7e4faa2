"""Blocks that no gradient reaches, and blocks whose units are all off."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from levada.diagnose.finding import Finding, Severity
from levada.watching.places import original, plain_name
from levada.watching.reading import plain
from levada.watching.rules.depth import LARGE
from levada.watching.sample import Sample
from levada.watching.silence import BY_CHANCE
from levada.watching.view import View, at_rest, loss_falls, values_of

__all__ = ["dead_units", "frozen_layers", "saturated_activation", "squashed"]

# Of the zeros of an activation so many are healthy in sparse networks; above, so few units are left that none learns.
DEAD: Final = 0.999
# A run's own baseline of the units that are on, over what is left of them.
FEWER: Final = 10.0
# Units that are off for one kind of batch are so for some samples in a row; they are no cut, and told earlier.
SELDOM: Final = 0.02
# By then what was seen of them confirms itself: three samples in a row behind twelve or more with some on.
SURE: Final = 2e-3
# A gradient that underflowed came down by steps of depth; beside one as large as this, zero is a cut.
ALIVE: Final = 1e-20
# Of a gradient a tanh lets so little through, in the mean of its elements; a signal of variance 1 before it gives 0.6.
SLOPE: Final = 0.1
# Of its start, or of what a constant prediction has, the loss has come down by no more.
LITTLE: Final = 0.1
FROM_THE_START: Final = "it was so from the start"


def frozen_layers(view: View) -> Iterable[Finding]:
    """A block's trainable weights get a gradient of exactly zero, or none, while those of others get one.

    Blocks whose parameters ask for no gradient, or that no optimizer moves, are passed over. If every block up to one
    gets nothing, the graph is cut at that one; the finding names it. An error needs such a cut, a gradient that is
    exactly zero, other blocks' beside it that is not small, which excludes that it vanished, and weights that the
    optimizer's step does not move; it is a warning where something moves them all the same, as weight decay does. One
    block alone without a gradient may be a head whose task has a rest: it is a warning if it had a gradient before and
    is not part of the graph now, and information if it never had one, or if the gradient that arrives is zero, as with
    a term of the loss that has weight 0. It is information too if none of the blocks that get a gradient had one
    before, as where a probe follows a pretraining. A block that rests now and then, by chance or because a router
    leaves it out, is none: its zeros must be more in a row than its own habit explains. Nor is one whose weights move
    between the samples. One that no forward pass reached was not asked to learn: that it once was is information.

    If no block gets any gradient, while the loss is neither at rest nor falls, that is said of them all; if no loss was
    seen either, as none of the backward passes was this model's, it is a warning where no block ever had one. It is
    information where parameters outside of those blocks get one, or may: a probe of what they learned, in a part of
    the model that did not run when the blocks were found.
    """
    yield from _asked_no_more(view)
    gradient, update = view["weight_gradient_rms"], view["update_ratio"]
    learning = view.blocks.trainable & ~gradient.isnan() & ~view["signal_rms"].isnan()
    zero = learning & (gradient == 0) & (view.silence.chance < BY_CHANCE) & ~_dead_around(view)
    zero &= ~_moved_between(view)
    hit = zero.nonzero().flatten().tolist()
    others = (learning & (gradient > 0)).nonzero().flatten().tolist()
    if hit and not others and len(hit) == int(learning.sum()):
        yield from _nothing_arrives(view, hit)
    if not hit or not others or float(gradient[others].amax()) < ALIVE:
        return
    names = view.blocks.names
    first_learning = int(learning.nonzero()[0])
    whole = hit == [i for i in range(hit[0], hit[-1] + 1) if bool(learning[i])] and hit[0] == first_learning
    after = [i for i in others if i > hit[-1]]
    if whole and after and float(view["gradient_rms"][hit[-1]].nan_to_num(0.0)) == 0.0:
        if float(gradient[after[0]]) < ALIVE:
            return  # it vanished by and by
        apart, moved = _apart(view, hit), bool((update[hit] > 0).any())
        meant = apart is False or _follow(view, others, hit)
        severity: Severity = "info" if meant else "warn" if moved else "error"
        yield _cut(view, names[hit[-1]], [names[i] for i in hit], moved, severity, apart, others)
        return
    for i in hit:
        apart = _apart(view, [i])
        told = bool(view.silence.ever[i]) and apart is not False and not _follow(view, others, [i])
        yield _cut(view, names[i], [names[i]], bool(update[i] > 0), "warn" if told else "info", apart, others)


def _asked_no_more(view: View) -> Iterable[Finding]:
    """Blocks that learned, and are reached by no forward pass that makes a graph on any of the last samples."""
    signals = torch.stack([values_of(row, "signal_rms", view.sites) for row in view.rows])
    gone = view.blocks.trainable & view.silence.ever & (view.silence.chance < BY_CHANCE)
    hit = (gone & signals.isnan().all(0)).nonzero().flatten().tolist()
    if not hit or bool(signals[-1].isnan().all()):
        return
    names = [view.blocks.names[i] for i in hit]
    span = names[0] if len(names) == 1 else f"{len(names)} blocks, {names[0]} to {names[-1]},"
    verb = "learns" if len(names) == 1 else "learn"
    yield Finding(
        rule="frozen_layers",
        severity="info",
        status="fired",
        claim=(
            f"{span} {verb} no more: no gradient the last {int(view.silence.run[hit].amin())} times it was looked at, "
            f"and on the last {len(view.rows)} samples no forward pass that makes a graph."
        ),
        where={"first": names[0], "last": names[-1]},
        evidence={
            "blocks": names,
            "held": len(view.rows),  # samples that show it: no more are asked for once they do
            "reference": "they had a gradient before",
            "explained_by": "place",
        },
        consequence="Nothing is wrong if they are left out, or run under torch.no_grad, on purpose.",
        falsify="Look at requires_grad of their outputs in a training step: one that is true shows this wrong.",
        source="torch.autograd: what runs under no_grad makes no graph",
    )


def _nothing_arrives(view: View, hit: list[int]) -> Iterable[Finding]:
    names, loss = view.blocks.names, view.loss
    moves, ever = bool((view["update_ratio"][hit] > 0).any()), bool(view.silence.ever[hit].any())
    unseen = not loss.steps  # no backward pass came by the model's weights or outputs
    if (moves or ever) if unseen else (not loss.ready or loss_falls(view) is not False or at_rest(view)):
        return
    never = not unseen and view.nothing_learned and not moves and not ever
    others = _others_learn(view, hit)
    severity: Severity = "info" if others is not False else "error" if never else "warn"
    what = "no loss was seen that depends on them" if unseen else f"the loss, {loss.now:.4g}, does not fall"
    seen = "none" if unseen else {"start": loss.start, "best": loss.best, "now": loss.now}
    besides = "" if others is False else " Other parameters get one." if others else " Of others it is not known."
    yield Finding(
        rule="frozen_layers",
        severity=severity,
        status="fired",
        claim=(
            f"No gradient reaches the weights of {'any block' if others is False else f'{len(hit)} blocks'}: it was "
            f"exactly zero in all {len(hit)} the last {int(view.silence.run[hit].amin())} times they were looked at, "
            f"and {what}.{besides}"
        ),
        where={"first": names[hit[0]], "last": names[hit[-1]]},
        evidence={
            "weight_gradient_rms": 0.0,
            "blocks": [names[i] for i in hit],
            "reference": "a gradient that is exactly zero",
            "explained_by": "theory",
            "tests": {"weights_move": moves, "loss": seen},
        },
        consequence=(
            "The run ends where it is: nothing of the loss reaches what is trained, or all of it underflows."
            if others is False
            else "Nothing is wrong if they are meant to rest, as under a probe of what they learned."
        ),
        falsify="After loss.backward(), look at .grad of the parameters: one that is not zero shows this wrong.",
        source="torch.autograd: a tensor made under no_grad, by detach or from .data carries no gradient",
    )


def _follow(view: View, others: list[int], hit: list[int]) -> bool:
    """Return whether others had no gradient before those blocks had their last: one training has followed another."""
    silence = view.silence
    return bool(silence.ever[hit].all()) and int(silence.heard[others].amax()) <= int(silence.run[hit].amin())


def _others_learn(view: View, hit: list[int]) -> bool | None:
    """Return whether a parameter outside of these blocks has a gradient that is not zero; None if it may have had."""
    if view.model is None:
        return False
    names = {name for i in hit for name in view.blocks.sites[i].parameters}
    asking = [(name, p) for name, p in original(view.model).named_parameters() if p.requires_grad]
    others = [p for name, p in asking if plain_name(name) not in names]
    if any(p.grad is not None and bool(plain(p.grad).any()) for p in others):
        return True
    return None if others and all(p.grad is None for _, p in asking) else False


def _apart(view: View, hit: list[int]) -> bool | None:
    """Return whether autograd left blocks out: their parameters have no gradient at all, where others have one.

    A gradient of zeros came by way of the loss, so that the graph is whole. None if that cannot be seen any more.
    """
    if view.model is None:
        return None
    names = {name for i in hit for name in view.blocks.sites[i].parameters}
    here, elsewhere = False, False
    for name, parameter in original(view.model).named_parameters(remove_duplicate=False):
        if parameter.grad is not None:
            here |= plain_name(name) in names
            elsewhere |= plain_name(name) not in names
    return False if here else True if elsewhere else None


def _moved_between(view: View) -> Tensor:
    """Return, per block, whether its weights differ between samples though no sampled step moved them.

    They learn on steps that are not sampled, as the heads of tasks that take turns.
    """
    before, now = (values_of(row, "weight_rms", view.sites) for row in (view.rows[0], view.rows[-1]))
    steps = torch.stack([values_of(row, "update_ratio", view.sites).nan_to_num(0.0) for row in view.rows])
    return (steps.amax(0) == 0) & ((before - now).abs() > 0)


def _cut(
    view: View, name: str, blocks: list[str], moved: bool, severity: Severity, apart: bool | None, others: list[int]
) -> Finding:
    if _follow(view, others, [view.blocks.names.index(one) for one in blocks]):
        why = ", which had none before: one training has followed another, as a probe of what they learned."
    elif apart:
        why = ": on these steps the loss does not depend on it."
    elif apart is False:
        back = view["gradient_rms"][[view.blocks.names.index(one) for one in blocks]]
        it, gives = ("it", "it gives") if len(blocks) == 1 else ("them", "they give")
        what = (
            f"a gradient came back to what {gives}, so that it was lost inside of {it}, as behind a gate that is zero, "
            "or set to zero between the backward pass and the update."
            if bool((back > 0).all())
            else f"what was given to {it} was zero on these steps, or what came back to {it}, or the gradient was set "
            "to zero before the update."
        )
        why = f". Autograd reached {it}: {what}"
    else:
        why = "."
    span = name if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"
    return Finding(
        rule="frozen_layers",
        severity=severity,
        status="fired",
        claim=(
            f"No gradient reaches the weights of {span}: it was exactly zero the last "
            f"{int(view.silence.run[view.blocks.names.index(name)])} times it was looked at, though others get one"
            f"{'.' if severity == 'error' else why}"
        ),
        where={"first": name, "last": name},
        evidence={
            "weight_gradient_rms": 0.0,
            "blocks": blocks,
            "reference": "the other blocks' gradient on the same steps",
            "explained_by": "place",
            "tests": {"weights_move": moved, "parameters_ask_for_a_gradient": view.blocks.known or "not known"},
        },
        consequence=(
            "Only what needs no gradient moves them, as weight decay or momentum: they learn nothing."
            if moved
            else "They do not learn on these steps, whatever the optimizer."
        ),
        falsify="After loss.backward(), look at .grad of these parameters: one that is not zero shows this wrong.",
        source="torch.autograd: a tensor made under no_grad, by detach or from .data carries no gradient",
    )


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


def _dead_around(view: View) -> Tensor:
    """Return, per block, whether dead units account for weights without a gradient.

    A block that gives nothing but zeros cuts the gradient of itself and of those before it; the weights of the one
    after it, which reads zeros, have none either.
    """
    dead = view["zero_fraction"] == 1
    before = torch.cat([dead.new_zeros(1), dead[:-1]])
    return dead.flip(0).cummax(0).values.flip(0) | before
