"""Parameters that get gradients and stand still, because no optimizer holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada.diagnose.finding import Finding
from levada.probe.trace import Site
from levada.watching.places import original, plain_name
from levada.watching.reading import plain

__all__ = ["Unoptimised"]

RULE: Final = "unoptimised_parameters"
# Updates over which a parameter stands still, and of these the least before which it had a gradient: an optimizer that
# is not known to the watch may step more rarely than the others.
UPDATES, HAD = 200, 20
_EVERY: Final = 16  # updates between two looks at the optimizers' groups
_LOOKED: Final = 32  # numbers of a parameter that are compared, from its beginning


@final
class Unoptimised:
    """Finds, once, parameters that ask for a gradient, get one, are in no known optimizer, and do not change.

    What another optimizer moves, one that the watch was not given, does not stand still, whoever steps it. What is
    frozen by leaving it out of the optimizer, as a body below a head that is trained alone, is not told from what was
    forgotten: it is information. It is a warning where the last block is among it, whose gradient no other needs.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> optimizer, looking = torch.optim.SGD(model[0].parameters(), lr=0.1), Unoptimised()
        >>> for step in range(201):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     found = looking.before_update(step, model, [optimizer], ())
        ...     optimizer.step()
        >>> found.claim.partition(":")[0], found.evidence["parameters"]
        ('2 of 4 parameters get a gradient and are in no optimizer', ['1.weight', '1.bias'])
    """

    def __init__(self) -> None:
        self._members: tuple[Any, ...] = ()
        self._left: dict[str, nn.Parameter] = {}
        self._seen: dict[str, tuple[int, Tensor]] = {}
        self._had: dict[str, int] = {}
        self._updates = self._calls = 0
        self._over = False
        self._told: list[str] = []

    @property
    def mended(self) -> bool:
        """Whether what was told is held by an optimizer now."""
        return bool(self._told) and not any(name in self._left for name in self._told)

    def before_update(
        self, step: int, model: nn.Module | None, optimizers: Sequence[Any], sites: Sequence[Site]
    ) -> Finding | None:
        """Look at those parameters before an update, while gradients are there.

        Args:
            step: its number.
            model: the model, if it is at hand.
            optimizers: those that are known.
            sites: the blocks in the order in which they run, as far as they are known.
        """
        if model is None or not optimizers:
            return None
        if self._calls % _EVERY == 0:
            members = tuple(len(group["params"]) for each in optimizers for group in each.param_groups)
            if members != self._members:
                self._begin(model, optimizers)
                self._members, self._over = members, False
        self._calls += 1
        if self._over or not self._left:
            return None
        for name, parameter in self._left.items():
            self._had[name] += parameter.grad is not None
        self._updates += 1
        return self._tell(step, model, sites) if self._updates > UPDATES else None

    def _begin(self, model: nn.Module, optimizers: Sequence[Any]) -> None:
        held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
        named = original(model).named_parameters()
        self._left = {plain_name(n): p for n, p in named if p.requires_grad and id(p) not in held}
        self._seen = {name: (p._version, _begin_of(p)) for name, p in self._left.items()}
        self._had = dict.fromkeys(self._left, 0)
        self._updates = 0

    def _tell(self, step: int, model: nn.Module, sites: Sequence[Site]) -> Finding | None:
        """Look once whether they stood still, and have a gradient that is not zero."""
        self._over = True
        names = [
            name
            for name, parameter in self._left.items()
            if self._had[name] >= HAD and parameter.requires_grad and parameter.grad is not None
            if parameter._version == self._seen[name][0] and torch.equal(_begin_of(parameter), self._seen[name][1])
            if bool(plain(parameter.grad).any())
        ]
        self._told = names
        if not names:
            return None
        blocks = [site for site in sites if set(site.parameters) & set(names)]
        last = bool(blocks) and blocks[-1] is sites[-1] and len(blocks) < len(sites)
        total = sum(p.requires_grad for p in original(model).parameters())
        return Finding(
            rule=RULE,
            severity="warn" if last else "info",
            status="fired",
            claim=(
                f"{len(names)} of {total} parameters get a gradient and are in no optimizer: {names[0]} is the first. "
                f"They have not moved for {UPDATES} updates."
            ),
            where={"first": blocks[0].name, "last": blocks[-1].name} if blocks else {},
            evidence={
                "step": step,
                "parameters": names[:20],
                "number": len(names),
                "reference": "the optimizers that the watch was given, and whether something else moves them",
                "explained_by": "place",
                "tests": {"stood_still_for": UPDATES, "last_block": last},
            },
            consequence="These parameters keep what they start with.",
            falsify="If they are meant to stand still, requires_grad_(False) on them says so, and this is wrong.",
            source="torch.optim.Optimizer: a step changes the parameters of its groups",
        )


def _begin_of(parameter: nn.Parameter) -> Tensor:
    return plain(parameter.detach()).reshape(-1)[:_LOOKED].clone()
