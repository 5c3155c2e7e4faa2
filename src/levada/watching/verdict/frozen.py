"""Parameters that were trained and are not any more, as they ask for no gradient or their rate is 0."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada.diagnose.finding import Finding
from levada.probe.trace import Site
from levada.watching.loop.places import original, plain_name
from levada.watching.steps.unoptimised import some_of
from levada.watching.verdict.view import rests

__all__ = ["RULE", "Frozen"]

RULE: Final = "frozen_parameters"
UPDATES: Final = 64  # that pass a parameter over before it is told
_ASKS: Final = attrgetter("requires_grad")
# Share of all updates after which a training in which nothing moves is no end of a schedule, which is at 0 for a few.
ENTIRE: Final = 0.2
_EACH: Final = 64  # parameters of which the flags are read in each update; of more they are in some updates


@dataclass(slots=True, eq=False)
class _Stopped:
    """A parameter that is no more trained."""

    held: weakref.ref[nn.Parameter]
    still: bool  # its rate is 0; else it asks for no gradient
    step: int  # the first at which it was seen so
    after: int  # the last at which it was not
    update: int
    numbers: Tensor


@final
class Frozen:
    """Follows which parameters of the optimizers are trained: those that ask for a gradient, at a rate that is not 0.

    Of those that were and are not any more, 64 numbers each are kept, and compared once 64 updates have passed them
    over. If they have not changed, this is told, with the step. What was never trained, as layers that are thawed one
    after the other, and what rests for fewer updates, as the two models of a GAN, is not; nor is what was thawed after
    it was told once. To freeze parameters is mostly meant, so this only gives facts.

    It is a warning where none of all that the optimizers hold is trained any more, over a fifth of all updates and 64
    at least, and gradients still come for what is at a rate of 0: as of a schedule that ended long before the training.

    Attributes:
        found: what holds now.
        thawed: whether parameters begin to be trained with this update that never were, more than 64 updates after the
            first: nothing that was seen before tells of them.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> optimizer, looking = torch.optim.SGD(model.parameters(), lr=0.1), Frozen()
        >>> for step in range(100):
        ...     _ = model[0].requires_grad_(step < 20)
        ...     changed = looking.before_update(step, model, [optimizer], ())
        >>> looking.found.evidence["step"], looking.found.evidence["parameters"]
        (20, ['0.weight', '0.bias'])
    """

    def __init__(self) -> None:
        self.found: Finding | None = None
        self.thawed = False
        self._updates = 0
        self._last = -1  # the step of the last look
        # What is held, as others may take its place, and whether it is trained.
        self._flags: list[int] = []
        self._count = 0
        self._moving = False  # whether any of it is
        self._trained: dict[int, weakref.ref[nn.Parameter]] = {}
        self._stopped: dict[int, _Stopped] = {}
        self._told: list[int] = []
        self._entire = False  # whether it was told of all that the optimizers hold
        self._over: set[int] = set()  # told once, or moved by something else

    def before_update(
        self, step: int, model: nn.Module | None, optimizers: Sequence[Any], sites: Sequence[Site]
    ) -> bool:
        """Look at what the optimizers are about to move.

        Args:
            step: its number.
            model: the model, if it is at hand.
            optimizers: those that are known.
            sites: the blocks in the order in which they run, as far as they are known.

        Returns:
            Whether what is found has changed.
        """
        self._updates += 1
        self.thawed = False
        if model is None or not optimizers or (self._updates - 1) % (1 + self._count // _EACH):
            return False
        groups = [(group, rests(group)) for each in optimizers for group in each.param_groups]
        flags: list[int] = []  # of each group the ids and whether it is trained: this is done before every update
        self._count = 0
        for group, still in groups:
            held = group["params"]
            self._count += len(held)
            flags += map(id, held)
            flags += repeat(False, len(held)) if still else map(_ASKS, held)
        if flags != self._flags:
            self._flags = flags
            self._change(step, groups)
        self._last = step
        if not self._stopped and not self._told:
            return False
        due = [key for key, one in self._stopped.items() if self._updates - one.update >= UPDATES]
        for key in set(due) - set(self._told):
            known = self._stopped[key].held()
            if known is None or not torch.equal(self._stopped[key].numbers, some_of(known.detach())):
                del self._stopped[key]  # something else moves it
                self._over.add(key)
        now = [key for key in due if key in self._stopped]
        entire = bool(now) and (self._entire or self._gradients(now)) if self._all(now) else False
        if now == self._told and entire == self._entire:
            return False
        self._told, self._entire = now, entire
        stopped = [self._stopped[key] for key in now]
        self.found = _finding(stopped, model, sites, entire=entire) if now else None
        return True

    def _all(self, now: Sequence[int]) -> bool:
        """Whether nothing else that the optimizers hold is trained, for longer than a schedule ends."""
        if not now or self._over or self._moving or len(now) < len(self._stopped):
            return False
        since = max(self._stopped[key].update for key in now)
        return self._updates - since >= max(UPDATES, ENTIRE * self._updates)

    def _gradients(self, now: Sequence[int]) -> bool:
        """Whether gradients come for some of those that are at a rate of 0: the loop goes on as if they learned."""
        held = (one.held() for one in map(self._stopped.__getitem__, now) if one.still)
        return any(p is not None and p.grad is not None and bool(some_of(p.grad).any()) for p in held)

    def _change(self, step: int, groups: Sequence[tuple[Any, bool]]) -> None:
        """Take who is trained now, and who is not any more."""
        trained, self._trained = self._trained, {}
        stopped, self._stopped, self._moving = self._stopped, {}, False
        for group, still in groups:
            for p in group["params"]:
                key = id(p)
                if p.requires_grad and not still:
                    self._moving = True
                    self.thawed |= key not in trained and self._updates > UPDATES
                    self._trained[key] = weakref.ref(p)
                    self._over |= {key} & set(self._told)
                elif key in trained and trained[key]() is not None:
                    self._trained[key] = trained[key]
                    if key in stopped:
                        self._stopped[key] = stopped[key]
                    elif key not in self._over:
                        numbers = some_of(p.detach()).clone()
                        self._stopped[key] = _Stopped(trained[key], still, step, self._last, self._updates, numbers)
        self._over &= self._trained.keys()  # another parameter may come to have the id of one that is gone


def _finding(stopped: Sequence[_Stopped], model: nn.Module, sites: Sequence[Site], *, entire: bool) -> Finding | None:
    """Return what is told of parameters that are no more trained; None if none of them is the model's."""
    named = {id(p): plain_name(name) for name, p in original(model).named_parameters()}
    of = [(named[id(p)], one) for one in stopped if id(p := one.held()) in named]
    if not of:
        return None
    names = [name for name, _ in of]
    blocks = [site for site in sites if set(site.parameters) & set(names)]
    parts = [
        _part([(name, one) for name, one in of if one.still is still], len(named), still) for still in (False, True)
    ]
    claim = " ".join(part for part in parts if part)
    kept = "These parameters keep what they have, which is as it should be if they were frozen on purpose."
    if entire:
        claim = f"Nothing that an optimizer holds is trained any more, and gradients still come. {claim}"
        kept = "The model stays what it was then: a schedule may have fewer steps than the training."
    return Finding(
        rule=RULE,
        severity="warn" if entire else "info",
        status="fired",
        claim=claim,
        where={"first": blocks[0].name, "last": blocks[-1].name} if blocks else {},
        evidence={
            "step": min(one.step for _, one in of),
            "parameters": names[:20],
            "number": len(names),
            "at_rate_0": sum(one.still for _, one in of),
            "all": entire,
            "reference": "the optimizers' groups before, and what they asked for",
            "explained_by": "place",
            "tests": {"updates_since": UPDATES},
        },
        consequence=kept,
        falsify="Compare them with what they are some steps later: one that has changed shows this wrong.",
        source="torch.optim.Optimizer: a parameter without a gradient, or at a rate of 0, is left as it is",
    )


def _part(of: Sequence[tuple[str, _Stopped]], total: int, still: bool) -> str:
    """Say it of those that were stopped in one of both ways; "" if there are none."""
    if not of:
        return ""
    names, first = [name for name, _ in of], min((one for _, one in of), key=lambda one: one.step)
    named = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    since = f"step {first.step}" if first.step == first.after + 1 else f"a step from {first.after + 1} to {first.step}"
    since += ", or later," if any(one.step != first.step for _, one in of) else ""
    how = "are at a learning rate of 0" if still else "ask for no gradient (requires_grad is False)"
    return (
        f"Since {since} {len(names)} of {total} parameters ({named}) {how}: they were trained before, and are no more."
    )
