"""Settings of an optimizer under which weights stand still, are taken away, or are never let go."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.diagnostics.learning_rate import unlearned
from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.probe.trace import Trace

__all__ = ["excessive_decay", "undamped_momentum", "unoptimised_parameters"]

# Without decay ten steps gain at least this many times as much, and at least this share of the loss.
MORE, NOTICEABLE = 2.0, 0.01


def unoptimised_parameters(trace: Trace) -> Iterable[Finding]:
    """The optimizer does not hold parameters that the loss has a gradient for: they stand still.

    It is a warning, as training a head alone on a pretrained body may be meant; then `requires_grad_(False)` says so,
    and saves their gradients. Where what is left out is one whole part of the model by itself, as the other network of
    a pair, it is information. Embeddings that a batch does not touch, and parameters that ask for no gradient, are
    passed over.

    Args:
        trace: of one check, or of a run.
    """
    recipe = facts_of(trace).recipe
    if recipe is None or not recipe.left_out:
        return
    first, number = recipe.left_out[0], len(recipe.left_out)
    sites = [s.name for s in trace.sites if set(s.parameters) & set(recipe.left_out)]
    yield Finding(
        rule="unoptimised_parameters",
        severity="info" if recipe.one_part else "warn",
        status="fired",
        claim=(
            f"The optimizer holds {recipe.held} of {recipe.held + number} parameters that have a gradient; {number} "
            f"stand still, {first} first."
        ),
        where={"first": sites[0], "last": sites[-1]} if sites else {},
        evidence={
            "parameters": list(recipe.left_out[:20]),
            "number": number,
            "held": recipe.held,
            "reference": "every parameter with a gradient other than zero",
        },
        consequence="These parameters keep what they start with.",
        falsify="If they are meant to stand still, requires_grad_(False) on them says so, and this is wrong.",
        remedies=(Proposal("all_parameters", "optimizer.add_param_group({'params': ...})  # those that are left out"),),
        source="torch.optim.Optimizer: a step changes the parameters of its groups",
    )


def excessive_decay(trace: Trace) -> Iterable[Finding]:
    """Weight decay takes the weights away faster than training can build them.

    Where decay acts on the weights, or on a gradient that is not rescaled, a step multiplies them by `1 - lr * decay /
    (1 - momentum)`, which is measured on two steps, with and without it. It is looked at from 1/200 per step on; common
    recipes take less than 1/5,000. Where it is added to a gradient that is then rescaled (Adam, RMSprop), it is looked
    at if it is ten times as large as the gradient, which then hardly counts; not in a model that has learned already,
    whose gradients are small. It speaks if ten steps without decay gain at least twice as much; an error needs weights
    that lose a tenth at each step, or a gradient that decay outweighs a hundredfold, and steps that gain less than a
    tenth of what those without decay do.

    Args:
        trace: of one check, or of a run.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101.
    """
    facts = facts_of(trace)
    recipe = facts.recipe
    if recipe is None or not {"decay", "none"} <= recipe.courses.keys():
        return
    if math.isnan(recipe.shrinkage) and not unlearned(facts):
        return  # beside the small gradients of a model that has learned, any decay is large
    full, free = recipe.courses["decay"], recipe.courses["none"]
    size = max(abs(free.losses[0]), facts.loss_constant or 0.0)
    if not (free.gain > NOTICEABLE * size and free.gain > MORE * full.gain):
        return
    large = recipe.shrinkage >= 0.1 or recipe.outweighed >= 100
    severity: Severity = "error" if large and full.gain < 0.1 * free.gain else "warn"
    what = (
        f"takes away {recipe.shrinkage:.1%} of the weights at each step"
        if not math.isnan(recipe.shrinkage)
        else f"is {recipe.outweighed:.3g} times as large as the gradient that it is added to"
    )
    names = trace.names()
    yield Finding(
        rule="excessive_decay",
        severity=severity,
        status="fired",
        claim=(
            f"Weight decay {what}: {len(full.losses) - 1} steps on one batch take the loss from {full.losses[0]:.4g} "
            f"to {full.end:.4g}, and to {free.end:.4g} without it."
        ),
        where={"first": names[0], "last": names[-1]},
        evidence={
            "shrinkage_per_step": None if math.isnan(recipe.shrinkage) else recipe.shrinkage,
            "decay_over_gradient": None if math.isnan(recipe.outweighed) else recipe.outweighed,
            "loss_with_decay": list(full.losses),
            "loss_without_decay": list(free.losses),
            "reference": "1e-6 to 2e-4 of the weights per step",
            "explained_by": "theory" if large else None,
            "tests": {"steps_on_one_batch": len(full.losses) - 1},
        },
        consequence="The weights shrink to what decay leaves, whatever the data says.",
        falsify="Train some hundred steps with this decay: if the loss falls as without it, this is wrong.",
        remedies=(
            Proposal(
                "weight_decay",
                "for group in optimizer.param_groups:\n    group['weight_decay'] = 0.0",
                {"loss": full.end},
                {"loss": free.end},
            ),
        ),
        source="Loshchilov and Hutter 2019, arXiv 1711.05101",
    )


def undamped_momentum(trace: Trace) -> Iterable[Finding]:
    """The optimizer keeps all of its last step, or more: `v = m v + g` with `m >= 1` never forgets a gradient.

    At `m = 1` the velocity is the sum of all gradients since the start, and near a minimum the weights swing about it
    for ever; beyond, it grows by itself. It is a setting, which no measurement confirms, and so a warning.

    Args:
        trace: of one check, or of a run.

    Source: Polyak 1964: heavy-ball iterations converge for `0 <= m < 1`.
    """
    recipe = facts_of(trace).recipe
    if recipe is None or recipe.momentum < 1:
        return
    names = trace.names()
    yield Finding(
        rule="undamped_momentum",
        severity="warn",
        status="fired",
        claim=f"The optimizer keeps {recipe.momentum:g} times its last step, so that no gradient is ever forgotten.",
        where={"first": names[0], "last": names[-1]},
        evidence={"momentum": recipe.momentum, "reference": "below 1; 0.9 is common", "explained_by": "theory"},
        consequence="The weights swing about a minimum and do not come to rest.",
        falsify="Train some hundred steps: if the loss comes to rest as with momentum 0.9, this is wrong.",
        remedies=(Proposal("momentum", "for group in optimizer.param_groups:\n    group['momentum'] = 0.9"),),
        source="Polyak 1964, USSR Computational Mathematics and Mathematical Physics 4 (5), 1 to 17",
    )
