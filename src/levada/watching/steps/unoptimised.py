"""Parameters that get gradients and stand still, because no optimizer holds them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada.diagnose.finding import Finding, Proposal
from levada.probe.trace import Site
from levada.watching.loop.places import listed, original, plain_name
from levada.watching.measure.reading import plain
from levada.watching.measure.transfer import OnItsWay

__all__ = ["RULE", "Unoptimised", "some_of"]

RULE: Final = "unoptimised_parameters"
UPDATES: Final = 200  # over which a parameter stands still
_EVERY: Final = 16  # updates between two looks
_HAD: Final = 3  # looks at which it had a gradient
_MOST: Final = 256  # parameters that are looked at
_NUMBERS: Final = 64  # of a parameter, and of its gradient


@dataclass(slots=True, eq=False)
class _Still:
    """A parameter that no optimizer holds, as it was when it was last seen to move."""

    held: weakref.ref[nn.Parameter]
    since: int  # the update before which it was first seen so
    version: int
    numbers: Tensor | None = None
    had: int = 0  # looks at which it had a gradient since then, each time another
    gradient: weakref.ref[Tensor] | None = None  # of the last look
    written: int = 0  # its version then

    def another(self) -> Tensor | None:
        """Return its gradient, if that is another than at the last look: what lies there from before tells nothing."""
        p = self.held()
        gradient = None if p is None else p.grad
        known, written = self.gradient, self.written
        self.gradient = None if gradient is None else weakref.ref(gradient)
        self.written = 0 if gradient is None else gradient._version
        if gradient is None or (known is not None and known() is gradient and written == self.written):
            return None
        return gradient

    @property
    def zero(self) -> bool:
        return self.numbers is not None and not bool(self.numbers.any())


@final
class Unoptimised:
    """Follows parameters that ask for a gradient, get one, are in no known optimizer, and do not change.

    Every 16 updates the model's parameters are compared with those of the optimizers, so that one which is exchanged,
    unfrozen, or given to an optimizer later is met as it is then. Of those that no optimizer holds 64 numbers each are
    compared with what they were, of 256 parameters at most; the numbers are not waited for. What something else moves,
    an optimizer that the watch was not given or the loop itself, does not stand still, and is not told of again once it
    moved after it was told.

    Leaving parameters out of the optimizer may be meant, so this only gives facts. One case is a warning: a parameter
    that is zero closes a block, as the scale of a ReZero branch does, that an optimizer trains, and the gradient of the
    block's weights is exactly zero each time. They are to learn, and cannot before the gate opens.

    Attributes:
        found: what holds now.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> optimizer, looking = torch.optim.SGD(model[0].parameters(), lr=0.1), Unoptimised()
        >>> for step in range(250):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     changed = looking.before_update(step, model, [optimizer], ())
        ...     optimizer.step()
        >>> looking.found.severity, looking.found.evidence["parameters"]
        ('info', ['1.weight', '1.bias'])
    """

    def __init__(self) -> None:
        self.found: Finding | None = None
        self._still: dict[str, _Still] = {}
        self._updates = 0
        self._sent: tuple[OnItsWay, list[_Still], list[int], int] | None = None
        self._told: dict[str, _Still] = {}
        self._gates: tuple[str, ...] = ()  # of those that were told
        self._moved: set[str] = set()  # after they were told

    @property
    def followed(self) -> int | None:
        """Updates so far; None where an optimizer holds every parameter, so that nothing is to be followed."""
        return self._updates if self._still or not self._updates else None

    def gets(self, parameters: Iterable[Any]) -> bool:
        """Return whether one of these is followed, and was seen to have a gradient since it last moved.

        Args:
            parameters: any.
        """
        those = {id(p) for p in parameters}
        return any(still.had and id(still.held()) in those for still in self._still.values())

    def before_update(
        self,
        step: int,
        model: nn.Module | None,
        optimizers: Sequence[Any],
        sites: Sequence[Site],
        starved: Callable[[], Collection[str]] = tuple,
    ) -> bool:
        """Look at those parameters before an update, while gradients are there.

        Args:
            step: its number.
            model: the model, if it is at hand.
            optimizers: those that are known.
            sites: the blocks in the order in which they run, as far as they are known.
            starved: names the blocks that an optimizer trains and whose weights had a gradient of exactly zero, too
                often for chance.

        Returns:
            Whether what is found has changed.
        """
        if model is None or not optimizers:
            return False
        due = self._updates % _EVERY == 0
        self._updates += 1
        if self._sent is None and due:
            self._follow(model, optimizers)
            self._send()
        if self._sent is not None and self._sent[0].ready():
            self._read()
        elif not due:
            return False
        return self._tell(step, model, sites, starved)

    def _follow(self, model: nn.Module, optimizers: Sequence[Any]) -> None:
        held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
        inner = original(model)
        if all(id(p) in held or not p.requires_grad for p in listed(inner)):  # as a rule: names take their time
            self._still = {}
            return
        those = [(n, p) for n, p in inner.named_parameters() if p.requires_grad and id(p) not in held]
        # Evenly, and the same ones again while the same are left out.
        some = [those[i * len(those) // _MOST] for i in range(_MOST)] if len(those) > _MOST else those
        before, self._still = self._still, {}
        for name, p in ((plain_name(n), p) for n, p in some if not nn.parameter.is_lazy(p)):
            known = before.get(name)
            same = known is not None and known.held() is p
            self._still[name] = still = known if known and same else _Still(weakref.ref(p), self._updates, p._version)
            if still is not known:
                still.another()

    def _send(self) -> None:
        """Copy some numbers of each parameter and of its gradient to the host."""
        pieces: list[Tensor] = []
        sizes: list[int] = []
        those: list[_Still] = []
        for still in self._still.values():
            p = still.held()
            if p is None:
                continue
            if p._version != still.version:
                still.version, still.since, still.had, still.numbers = p._version, self._updates, 0, None
            those.append(still)
            for some in (some_of(p.detach()), some_of(still.another())):
                pieces.append(some)
                sizes.append(some.numel())
        if sum(sizes):
            device = next(piece.device for piece in pieces if piece.numel())
            wide = torch.float32 if device.type == "mps" else torch.float64
            flat = torch.cat([piece.to(device, wide, non_blocking=True) for piece in pieces])
            self._sent = OnItsWay(flat), those, sizes, self._updates

    def _read(self) -> None:
        assert self._sent is not None
        way, those, sizes, at = self._sent
        self._sent = None
        pieces = torch.split(way.host(), sizes)
        for still, numbers, gradient in zip(those, pieces[::2], pieces[1::2], strict=True):
            if still.numbers is None or not torch.equal(numbers, still.numbers):
                still.since = at if still.numbers is not None else still.since
                still.numbers, still.had = numbers, 0
            still.had += bool(gradient.any())

    def _tell(self, step: int, model: nn.Module, sites: Sequence[Site], starved: Callable[[], Collection[str]]) -> bool:
        stands = {
            name: still
            for name, still in self._still.items()
            if self._updates - still.since >= UPDATES and still.had >= _HAD and name not in self._moved
        }
        closed = _closed(stands, sites, starved()) if stands else {}
        if stands == self._told and tuple(closed) == self._gates:
            return False
        self._moved |= {name for name, still in self._told.items() if self._still.get(name) is still} - set(stands)
        self._told, self._gates = stands, tuple(closed)
        total = sum(p.requires_grad for p in original(model).parameters())
        self.found = _finding(step, list(stands), total, len(self._still), sites) if stands else None
        if self.found is not None and closed:
            self.found = _closing(self.found, closed)
        return True


def _closed(stands: dict[str, _Still], sites: Sequence[Site], starved: Collection[str]) -> dict[str, list[str]]:
    """Return, by parameter that is zero and stands still, the starved blocks that it closes.

    They are its own block, or all of them where it is in none, and no larger than one scale for each block.
    """
    inside = {name for site in sites for name in site.parameters}
    found: dict[str, list[str]] = {}
    for name, still in stands.items():
        p = still.held()
        if p is None or not still.zero or (name not in inside and p.numel() > len(sites)):
            continue
        those = [
            site.name for site in sites if site.name in starved and (name in site.parameters or name not in inside)
        ]
        if those and not p.any():  # some of its numbers were zero, and now all are looked at
            found[name] = those
    return found


def some_of(tensor: Tensor | None) -> Tensor:
    """Return 64 numbers at most that are spread evenly over a tensor, of its own memory.

    Args:
        tensor: any; none if it is None.

    Example:
        >>> some_of(torch.arange(128))[:3].tolist()
        [0, 2, 4]
    """
    if tensor is None:
        return torch.empty(0)
    value = plain(tensor)
    value = value._values() if value.layout is torch.sparse_coo else value
    value = torch.view_as_real(value) if value.is_complex() else value
    # In the order of the memory, so that nothing is copied.
    flat = value.permute(sorted(range(value.dim()), key=value.stride, reverse=True)).reshape(-1)
    return flat[:: max(1, -(-flat.numel() // _NUMBERS))]


def _finding(step: int, names: Sequence[str], total: int, looked: int, sites: Iterable[Site]) -> Finding:
    blocks = [site for site in sites if set(site.parameters) & set(names)]
    named = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Finding(
        rule=RULE,
        severity="info",
        status="fired",
        claim=(
            f"{len(names)} of {total} parameters ({named}) got a gradient and did not change in the last {UPDATES} "
            "updates; no optimizer that stepped meanwhile holds them."
        ),
        where={"first": blocks[0].name, "last": blocks[-1].name} if blocks else {},
        evidence={
            "step": step,
            "parameters": list(names[:20]),
            "number": len(names),
            "reference": "the optimizers that the watch was given, and whether something else moves them",
            "explained_by": "place",
            "tests": {"stood_still_for": UPDATES, "looked_at": looked},
        },
        consequence="These parameters keep what they start with.",
        falsify="If they are meant to stand still, requires_grad_(False) on them says so, and this is over.",
        source="torch.optim.Optimizer: a step changes the parameters of its groups",
    )


def _closing(finding: Finding, closed: dict[str, list[str]]) -> Finding:
    """Return the same, of parameters that close blocks which are to learn."""
    blocks = list(dict.fromkeys(block for those in closed.values() for block in those))
    gates = list(closed)
    named = ", ".join(gates[:3]) + (f" and {len(gates) - 3} more" if len(gates) > 3 else "")
    one = len(gates) == 1
    span = blocks[0] if len(blocks) == 1 else f"{len(blocks)} blocks ({blocks[0]} to {blocks[-1]})"
    patch = (
        'held = {id(p) for group in optimizer.param_groups for p in group["params"]}\n'
        "gates = [p for p in model.parameters() if p.requires_grad and id(p) not in held and not p.any()]\n"
        'optimizer.add_param_group({"params": gates, "weight_decay": 0.0})'
    )
    return replace(
        finding,
        severity="warn",
        claim=(
            f"{named} {'is' if one else 'are'} zero, got a gradient and did not change in the last {UPDATES} updates: "
            f"no optimizer that stepped meanwhile holds {'it' if one else 'them'}. So the weights of {span}, which an "
            "optimizer trains, get a gradient of exactly zero."
        ),
        where={"first": blocks[0], "last": blocks[-1]},
        evidence={**finding.evidence, "gates": gates[:20], "closed": blocks[:20], "explained_by": "theory"},
        consequence="What stands behind a factor of zero gives nothing and learns nothing, and the factor cannot move.",
        remedies=(Proposal("add to the optimizer", patch),),
    )
