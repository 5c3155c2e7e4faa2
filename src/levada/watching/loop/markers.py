"""A few parameters whose gradients tell which backward passes are a model's, and whether they were cleared since."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias, final

from torch import nn

from levada.watching.loop.uncleared import state_of

__all__ = ["Markers", "State"]

_EACH: Final = 2  # parameters that are looked at from each end of those of an optimizer which a loss reached
_WAITING: Final = 64  # of an optimizer that no loss has reached yet, while others' are known

State: TypeAlias = list[tuple[int, list[tuple[nn.Parameter, tuple[int, int]]]]]
"""By optimizer: parameters, and what tells their gradients from other ones."""


@final
class Markers:
    """Parameters whose gradients are looked at around each backward pass: a few of each optimizer.

    The first pass that changes gradients of an optimizer's parameters chooses among them, two from each end of those
    that it changes. Those that no optimizer holds are chosen where it changes no others: nothing clears theirs. Each
    optimizer has its own, as those that take turns have passes of their own, during which the parameters of the others
    may be frozen: the two of a GAN, with `toggle_optimizer` of Lightning.

    Args:
        model: whose parameters they are.
        optimizers: of the watch; a parameter that none holds counts as one of the first.

    Example:
        >>> import torch
        >>> model = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))
        >>> optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
        >>> markers = Markers(model, optimizers)
        >>> for part in (*model, *model):
        ...     state = markers.state()
        ...     part(torch.ones(1)).sum().backward()
        ...     reached = markers.reached(state)
        ...     markers.keep(state, reached, first=True, within=False)
        ...     print(len(reached), len(markers.parameters))
        1 4
        1 4
        1 4
        1 4
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Any]) -> None:
        self._model, self._optimizers = model, optimizers
        self._looked: dict[int, list[nn.Parameter]] = {}
        self._waiting: set[int] = set()  # optimizers that no loss has reached since `mark`
        self._reached: set[int] = set()  # those that this step's backward passes reached
        self._known: list[tuple[nn.Parameter, tuple[int, int]]] = []  # after the last of them
        self.mark()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are looked at: all that may be chosen, before any is."""
        return [p for those in self._looked.values() for p in those]

    def of(self, optimizer: int) -> list[nn.Parameter]:
        """Return those of one optimizer.

        Args:
            optimizer: its number, from 0.
        """
        return self._looked.get(optimizer, [])

    @property
    def chosen(self) -> bool:
        """Whether some were chosen."""
        return len(self._waiting) < len(self._looked)

    @property
    def sharded(self) -> bool:
        """Whether their gradients may wait for the last micro-batch."""
        return any(hasattr(p, "placements") for p in self.parameters)

    def mark(self, parameters: Iterable[nn.Parameter] | None = None) -> None:
        """Choose anew: the next backward pass tells which gradients it changes.

        Args:
            parameters: the model's, where somebody has just looked.
        """
        found = self._model.parameters() if parameters is None else parameters
        self._looked = {}
        if len(self._optimizers) < 2:
            self._looked[0] = [p for p in found if p.requires_grad]
        else:
            held = {id(p): i for i, each in enumerate(self._optimizers) for g in each.param_groups for p in g["params"]}
            for p in found:  # what is frozen now may learn when its turn comes
                self._looked.setdefault(held.get(id(p), 0), []).append(p)
        self._waiting = set(self._looked)

    def state(self) -> State:
        """Return the gradients as they are before a backward pass."""
        return [
            (i, [(p, (0, 0) if (g := p.grad) is None else (id(g), g._version)) for p in those])
            for i, those in self._looked.items()
        ]

    def reached(self, state: State) -> dict[int, list[nn.Parameter]]:
        """Return, by optimizer, a few parameters whose gradients a backward pass has changed.

        Args:
            state: as it was before.
        """
        return {i: found for i, before in state if (found := _first_changed(before))}

    def keep(self, state: State, reached: dict[int, list[nn.Parameter]], *, first: bool, within: bool) -> None:
        """Choose among what a backward pass of this model has changed, and keep how it left the gradients.

        Args:
            state: as it was before.
            reached: what it changed.
            first: whether it is the first one of a step.
            within: whether optimizers step within it, and may leave no gradient to look at.
        """
        if self._waiting and (reached or within):
            self._choose(state, reached, within=within)
        looked = self._looked
        if len(looked) == 1:
            self._reached = set(looked)
        else:
            self._reached = {*reached, *(() if first else self._reached)} & set(looked) or set(looked)
        self._known = [(p, state_of(p.grad)) for i in sorted(self._reached) for p in looked[i]]

    def cleared(self) -> bool:
        """Return whether the gradients that this step made were taken away, or filled with zeros, since its last pass.

        Waits for the device if someone wrote to them.
        """
        left = [(p.grad, then) for p, then in self._known if p.grad is not None]
        if any(state_of(gradient) == then for gradient, then in left):
            return False
        return not any(bool(gradient.any()) for gradient, _ in left)

    def _choose(self, state: State, reached: dict[int, list[nn.Parameter]], *, within: bool) -> None:
        new = set(reached) if within else self._waiting.intersection(reached)
        ends = self._ends({i: before for i, before in state if i in new}) if new else {}
        if within:
            every = [p for found in ends.values() for p in found] or self.parameters[:_EACH]
            every = [*every[:_EACH], *every[-_EACH:]]
            self._looked, self._waiting = {0: list({id(p): p for p in every}.values())}, set()
            return
        for i in ends:
            self._looked[i] = list({id(p): p for p in ends[i]}.values())
        self._waiting -= new
        for i in self._waiting:
            those = self._looked[i]
            self._looked[i] = those[:: -(-len(those) // _WAITING)]

    def _ends(self, state: dict[int, list[tuple[nn.Parameter, tuple[int, int]]]]) -> dict[int, list[nn.Parameter]]:
        """Return, by optimizer, parameters from both ends of those whose gradients have changed; held ones, if any."""
        held = {id(p) for each in self._optimizers for g in each.param_groups for p in g["params"]}
        ends = {}
        for i, before in state.items():
            for known in ([(p, then) for p, then in before if id(p) in held], before):
                if found := _first_changed(known):
                    ends[i] = [*found, *_first_changed(reversed(known))]
                    break
        return ends


def _first_changed(state: Iterable[tuple[nn.Parameter, tuple[int, int]]]) -> list[nn.Parameter]:
    """Return the first parameters whose gradients are others than they were."""
    found = []
    for p, then in state:
        if state_of(p.grad) != then:
            found.append(p)
            if len(found) == _EACH:
                break
    return found
