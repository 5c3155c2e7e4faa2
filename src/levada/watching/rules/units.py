"""Blocks that no gradient reaches, and blocks whose units are all off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from torch import Tensor

from levada.diagnose.finding import Finding
from levada.watching.rules.depth import LARGE
from levada.watching.view import View

__all__ = ["dead_units", "frozen_layers"]

# Of the zeros of an activation so many are healthy in sparse networks; above, so few units are left that none learns.
DEAD: Final = 0.999
# A run's own baseline of the units that are on, over what is left of them.
FEWER: Final = 10.0
# How likely so many zeros in a row may be by a block's own habit, as that of one that is drawn to rest.
BY_CHANCE: Final = 1e-4
# A gradient that underflowed came down by steps of depth; beside one as large as this, zero is a cut.
ALIVE: Final = 1e-20


def frozen_layers(view: View) -> Iterable[Finding]:
    """A block's trainable weights get a gradient of exactly zero, or none, while those of others get one.

    Blocks whose parameters ask for no gradient are passed over. If every block up to one gets nothing, the graph is cut
    at that one; the finding names it. An error needs a gradient that is exactly zero, other blocks' beside it that is
    not small, which excludes that it vanished, and weights that the optimizer's step does not move; it is a warning
    where something moves them all the same, as weight decay does, and where a gradient of zero is at the output of one
    block alone: a part of the loss may have no weight yet. Blocks with a learning rate of zero are passed over: a gate
    at zero, say, opens only when it may move. A block that rests now and then, by chance or because a router leaves it
    out, is none: its zeros must be more in a row than its own habit explains. One that no forward pass reached was not
    asked to learn.
    """
    gradient, update = view["weight_gradient_rms"], view["update_ratio"]
    learning = view.blocks.trainable & ~gradient.isnan() & ~view["signal_rms"].isnan()
    zero = learning & (gradient == 0) & (view.silence.chance < BY_CHANCE) & ~_dead_behind(view)
    if view.resting is not None:
        zero = zero & ~view.resting
    hit = [int(i) for i in zero.nonzero()]
    others = [int(i) for i in (learning & (gradient > 0)).nonzero()]
    if not hit or not others or float(gradient[others].amax()) < ALIVE:
        return
    names = view.blocks.names
    first_learning = int(learning.nonzero()[0])
    whole = hit == [i for i in range(hit[0], hit[-1] + 1) if bool(learning[i])] and hit[0] == first_learning
    after = [i for i in others if i > hit[-1]]
    if whole and after and float(view["gradient_rms"][hit[-1]].nan_to_num(0.0)) == 0.0:
        if float(gradient[after[0]]) < ALIVE:
            return  # it vanished by and by
        yield _cut(view, names[hit[-1]], [names[i] for i in hit], bool((update[hit] > 0).any()))
        return
    for i in hit:
        unasked = float(view["gradient_rms"][i].nan_to_num(0.0)) == 0.0
        yield _cut(view, names[i], [names[i]], bool(update[i] > 0), unasked)


def _cut(view: View, name: str, blocks: list[str], moved: bool, unasked: bool = False) -> Finding:
    span = name if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"
    return Finding(
        rule="frozen_layers",
        severity="warn" if moved or unasked else "error",
        status="fired",
        claim=(
            f"No gradient reaches the weights of {span}: it is exactly zero on the last "
            f"{int(view.silence.run[view.blocks.names.index(name)])} samples, though other blocks get one."
            + " Nor does one reach its output: what is computed of it has no weight in the loss, or is detached."
            * unasked
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
            "They do not learn until the loss asks for what they give."
            if unasked
            else "Only what needs no gradient moves them, as weight decay or momentum: they learn nothing."
            if moved
            else "They do not learn, whatever the optimizer."
        ),
        falsify="After loss.backward(), look at .grad of these parameters: one that is not zero shows this wrong.",
        source="torch.autograd: a tensor made under no_grad, by detach or from .data carries no gradient",
    )


def dead_units(view: View) -> Iterable[Finding]:
    """A block's activations are all but all zero, ten times fewer of them on than this run's own baseline.

    An error needs every one zero, a baseline with more, and no gradient for the weights of the block.
    """
    share = view["zero_fraction"]
    on_before = 1 - view.anchor("zero_fraction")
    fewer = (1 - share) * FEWER <= on_before
    hit = [int(i) for i in ((share == 1) | ((share >= DEAD) & fewer)).nonzero()]
    if not hit:
        return
    first, names = hit[0], view.blocks.names
    gradient = view["weight_gradient_rms"]
    stopped = bool(share[first] == 1) and bool(gradient[first] == 0)
    before, stepped = float(1 - on_before[first]), float(view.longest[first])
    since = f"it was {before:.1%} in this run's own baseline" if before == before else "it was so from the start"
    rate = f", and its longest step was {stepped:.2g} of its weights: the learning rate may be why"
    yield Finding(
        rule="dead_units",
        severity="error" if stopped else "warn",
        status="fired",
        claim=(
            f"{float(share[first]):.2%} of what the activations of {names[first]} give is zero"
            f"{'' if len(hit) == 1 else f', as at {len(hit) - 1} more blocks'}; {since}"
            f"{rate if stepped >= LARGE else ''}."
        ),
        where={"first": names[first], "last": names[first]},
        evidence={
            "zero_fraction": {names[i]: float(share[i]) for i in hit},
            "reference": since,
            "longest_step": stepped,
            "explained_by": "baseline" if bool(fewer[first]) else None,
            "tests": {"weight_gradient_rms": float(gradient[first])},
        },
        consequence=(
            "No gradient gets behind these units: training cannot repair them."
            if stopped
            else "The weights of those units learn on hardly any input."
        ),
        falsify="Look at more batches: a unit that is on for one input in a thousand is not dead.",
        source="Lu et al. 2019, arXiv 1903.06733",
    )


def _dead_behind(view: View) -> Tensor:
    """Return, per block, whether a block at or behind it gives nothing but zeros, which cuts the gradient."""
    dead = view["zero_fraction"] == 1
    return dead.flip(0).cummax(0).values.flip(0)
