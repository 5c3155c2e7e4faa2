"""What an optimizer was told beside its rate: which parameters it holds, its weight decay, its momentum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from levada.diagnose.passes import Run
from levada.diagnose.rehearsal import STEPS, Course, rehearse
from levada.diagnose.update import Assumed, Factory, altered

__all__ = ["GREEDY", "Recipe", "recipe_of"]

# A step that takes away a two-hundredth of the weights halves them in 140; common recipes take 1e-6 to 2e-4.
GREEDY = 5e-3
# Decay that is added to the gradient, and this many times as large as it, is what the steps follow.
OUTWEIGHS = 10.0
# Of the square of what decay takes away, the part that lies along the weights where it only shrinks them.
ALONG = 0.9
WITHOUT, RULES = "some steps without weight decay", ("excessive_decay",)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of an optimizer.

    Attributes:
        left_out: parameters that have a gradient other than zero and that the optimizer does not hold.
        held: number of those that it holds.
        one_part: whether those that are left out are all of one child of the model, and it has others.
        shrinkage: share of the weights that decay alone takes away in a step; NaN where it is added to a gradient that
            the optimizer then rescales.
        outweighed: size of the decay that is added to the gradient over the gradient's; NaN where it is not added.
        momentum: share of the last step that is kept, the largest of all groups.
        courses: losses of a few steps, "decay" as it is and "none" without decay; made where it may matter.
    """

    left_out: tuple[str, ...] = ()
    held: int = 0
    one_part: bool = False
    shrinkage: float = math.nan
    outweighed: float = math.nan
    momentum: float = 0.0
    courses: Mapping[str, Course] = field(default_factory=dict)


def recipe_of(
    run: Run, factory: Factory, gradients: Mapping[str, Tensor | None], objective: Callable[[], Tensor]
) -> Recipe | None:
    """Return the settings of the optimizer that a factory builds, or None if nobody chose it.

    Args:
        run: the model, which comes back as it was.
        factory: builds the optimizer.
        gradients: by parameter.
        objective: runs the model on a batch and returns the loss, from the same random state each time.
    """
    if isinstance(factory, Assumed):
        return None
    learning = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    twins = {name: nn.Parameter(p.detach().clone()) for name, p in learning.items()}
    optimizer = factory(list(twins.values()))
    groups = optimizer.param_groups
    inside = {id(p) for group in groups for p in group["params"]}
    reached = [name for name in twins if (g := gradients.get(name)) is not None and bool((g.to_dense() != 0).any())]
    left_out = tuple(name for name in reached if id(twins[name]) not in inside)
    decays = [_number(group.get("weight_decay")) for group in groups]
    shrinkage = outweighed = 0.0
    if any(decays):
        shrinkage = _taken(learning, factory, gradients) / min(map(_kept, groups))
    if math.isnan(shrinkage):
        of = {id(p): gradients.get(name) for name, p in twins.items()}
        outweighed = max((_outweighed(g["params"], d, of) for g, d in zip(groups, decays, strict=True)), default=0.0)
    else:
        outweighed = math.nan
    courses: dict[str, Course] = {}
    steps = 2 * (STEPS + 1)
    if (shrinkage > GREEDY or outweighed > OUTWEIGHS) and run.pace.allows(WITHOUT, steps, steps, rules=RULES):
        for name, build in (("decay", factory), ("none", altered(factory, lambda group: {"weight_decay": 0.0}))):
            course = rehearse(run.model, objective, build, run.pace.deadline)
            if course is not None and course.complete:
                courses[name] = course
            elif course is not None:
                run.pace.leave_out(WITHOUT, RULES)
    momentum = max((_number(g.get("momentum")) for g in groups), default=0.0)
    inside_of = {name.partition(".")[0] for name in left_out}
    one_part = len(inside_of) == 1 and len({name.partition(".")[0] for name in reached} - inside_of) > 0
    one_part = one_part and all(name in left_out for name in reached if name.partition(".")[0] in inside_of)
    held = len(reached) - len(left_out)
    return Recipe(left_out, held, one_part, shrinkage, outweighed, momentum, courses)


def _number(value: object) -> float:
    """Return a setting that is a number; 0 for one that is not there, or is of another kind."""
    return float(value) if isinstance(value, int | float) else 0.0


def _taken(learning: Mapping[str, nn.Parameter], factory: Factory, gradients: Mapping[str, Tensor | None]) -> float:
    """Return the share of the weights that decay takes away in a step; NaN if what it takes is not in their direction.

    A step is made on copies with decay, and one without: the difference is what decay does, whatever the optimizer.
    """
    after = []
    for build in (factory, altered(factory, lambda group: {"weight_decay": 0.0})):
        copies = {name: nn.Parameter(p.detach().clone()) for name, p in learning.items()}
        for name, copy in copies.items():
            gradient = gradients.get(name)
            copy.grad = None if gradient is None else gradient.detach().clone().to(copy.dtype)
        optimizer = build(list(copies.values()))  # held, for a scheduler's hook on its step refers to it weakly
        optimizer.step()
        after.append(copies)
    inner = size = taken = 0.0
    for name, p in learning.items():
        away = (after[1][name].detach() - after[0][name].detach()).double()
        if bool((away != 0).any()):
            weight = p.detach().double()
            inner, size = inner + float((away * weight).sum()), size + float(weight.square().sum())
            taken += float(away.square().sum())
    if taken == 0.0:
        return 0.0
    share = inner / size if size > 0 else 0.0
    return share if share > 0 and share**2 * size > ALONG * taken else math.nan


def _kept(group: Mapping[str, object]) -> float:
    """Return what a step of momentum is multiplied by in the long run, as the divisor of one step."""
    momentum, dampening = _number(group.get("momentum")), _number(group.get("dampening"))
    return (1 - momentum) / (1 - dampening) if momentum < 1 and dampening < 1 else 1.0


def _outweighed(parameters: Iterable[nn.Parameter], decay: float, gradients: Mapping[int, Tensor | None]) -> float:
    pairs = [(p, g) for p in parameters if (g := gradients.get(id(p))) is not None]
    size = sum(float(g.to_dense().double().square().sum()) for _, g in pairs)
    weight = sum(float(p.detach().double().square().sum()) for p, _ in pairs)
    return decay * math.sqrt(weight / size) if size > 0 else 0.0
