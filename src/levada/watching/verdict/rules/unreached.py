"""Blocks that no gradient reaches, and weights that the gradient of their own layer never gets to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

from levada.diagnose.finding import Finding, Proposal, Severity
from levada.watching.loop.places import original, plain_name
from levada.watching.measure.reading import plain
from levada.watching.steps.silence import BY_CHANCE
from levada.watching.verdict.severed import PASSES
from levada.watching.verdict.view import View, at_rest, loss_falls, values_of

__all__ = ["frozen_layers"]

# A gradient that underflowed came down by steps of depth; beside one as large as this, zero is a cut.
ALIVE: Final = 1e-20


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
    between the samples. Blocks whose zeros began together, and of which the same is known, are one finding. One that no
    forward pass reached was not asked to learn: that it once was is information.

    If no block gets any gradient, while the loss is neither at rest nor falls, that is said of them all; if no loss was
    seen either, as none of the backward passes was this model's, it is a warning where no block ever had one. It is
    information where parameters outside of those blocks get one, or may: a probe of what they learned, in a part of
    the model that did not run when the blocks were found.

    Weights that never had a gradient, though their layer has shown that it should bring them one (`Severed`), are a
    warning of their own, also where other weights of the block learn: so it is behind `sign`, `round` or a comparison.
    """
    yield from _asked_no_more(view)
    yield from _severed(view)
    gradient, update = view["weight_gradient_rms"], view["update_ratio"]
    learning = view.blocks.trainable & ~gradient.isnan() & ~view["signal_rms"].isnan()
    zero = learning & (gradient == 0) & (view.silence.chance < BY_CHANCE) & ~_dead_around(view)
    zero &= ~_moved_between(view) & ~_wholly_severed(view)
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
    for same in _begun_together(view, hit):
        apart = _apart(view, same)
        told = bool(view.silence.ever[same].any()) and apart is not False and not _follow(view, others, same)
        moved = bool((update[same] > 0).any())
        yield _cut(view, names[same[0]], [names[i] for i in same], moved, "warn" if told else "info", apart, others)


def _severed(view: View) -> Iterable[Finding]:
    """Weights that never had a gradient, though their layer computes with them and gets one."""
    if not view.severed:
        return
    names, number = list(view.severed), len(view.severed)
    blocks = [site.name for site in view.blocks.sites if set(site.parameters) & set(names)]
    there = blocks or names
    named = ", ".join(names[:3]) + (f" and {number - 3} more" if number > 3 else "")
    which, them, layers = ("weight", "it", "its layer") if number == 1 else ("weights", "them", "their layers")
    through = sorted(set(filter(None, view.severed.values())))
    functions = [f"{' and '.join(through)}, of which the gradient is zero"] if through else []
    if not all(view.severed.values()):
        functions.append("a function that autograd does not follow, as a comparison, argmax, detach() or .data")
    yield Finding(
        rule="frozen_layers",
        severity="warn",
        status="fired",
        claim=(
            f"The {which} {named} never had a gradient other than zero, though one comes back to what {layers} "
            f"{'makes' if number == 1 else 'make'} of {them}: between lies {', or '.join(functions)}. "
            "A straight-through gradient is missing."
        ),
        where={"first": there[0], "last": there[-1]},
        evidence={
            "weight_gradient": 0.0,
            "parameters": names[:20],
            "number": number,
            "blocks": blocks,
            "lost_in": dict(list(view.severed.items())[:20]),
            "held": PASSES,  # updates that have shown it: no sample needs to confirm it
            "reference": "the gradient of what is made of them, on the same steps",
            "explained_by": "theory",
            "tests": {"updates": PASSES},
        },
        consequence="They stay as they were drawn, or decay: what learns are the other parameters alone.",
        falsify="After loss.backward(), look at .grad of these parameters: one that is not zero shows this wrong.",
        remedies=(
            Proposal(
                "straight_through",
                "x = x + (quantised(x) - x).detach()  # for x = quantised(x), a weight or what is made of it",
            ),
        ),
        source="Bengio et al. 2013, arXiv 1308.3432",
    )


def _wholly_severed(view: View) -> Tensor:
    """Return, per block, whether all of its weights that ask for a gradient are told of by themselves."""
    result, gone = torch.zeros(view.sites, dtype=torch.bool), set(view.severed)
    if not gone or view.model is None:
        return result
    named = original(view.model).named_parameters(remove_duplicate=False)
    asking = {plain_name(name) for name, p in named if p.requires_grad and p.dim() > 1}
    for i, site in enumerate(view.blocks.sites):
        weights = asking & set(site.parameters)
        result[i] = bool(weights) and weights <= gone
    return result


def _begun_together(view: View, hit: list[int]) -> list[list[int]]:
    """Return blocks without a gradient, those together whose zeros began together and of which the same is known."""
    silence, groups = view.silence, dict[tuple[object, ...], list[int]]()
    for i in hit:
        known = bool(view["gradient_rms"][i] > 0), bool(view["update_ratio"][i] > 0), _apart(view, [i])
        groups.setdefault((int(silence.run[i]), int(silence.heard[i]), *known), []).append(i)
    return list(groups.values())


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
    span, at = blocks[0], [view.blocks.names.index(one) for one in blocks]
    if len(blocks) > 1:
        entire = at == [*range(at[0], at[-1] + 1)]
        more = f"{', '.join(blocks[:3])}{f' and {len(blocks) - 3} more' if len(blocks) > 3 else ''}"
        span = f"{blocks[0]} to {blocks[-1]}" if entire else f"{len(blocks)} blocks ({more})"
    return Finding(
        rule="frozen_layers",
        severity=severity,
        status="fired",
        claim=(
            f"No gradient reaches the weights of {span}: it was exactly zero the last "
            f"{int(view.silence.run[view.blocks.names.index(name)])} times it was looked at, though others get one"
            f"{'.' if severity == 'error' else why}"
        ),
        where={"first": name, "last": blocks[-1]},
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


def _dead_around(view: View) -> Tensor:
    """Return, per block, whether dead units account for weights without a gradient.

    A block that gives nothing but zeros cuts the gradient of itself and of those before it; the weights of the one
    after it, which reads zeros, have none either.
    """
    dead = view["zero_fraction"] == 1
    before = torch.cat([dead.new_zeros(1), dead[:-1]])
    return dead.flip(0).cummax(0).values.flip(0) | before
