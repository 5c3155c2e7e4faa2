"""The blocks and the parameters of a watched model, in the order in which they run."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import final

from torch import nn

from levada.probe.trace import Site
from levada.stacking import parameters_of
from levada.watching.loop.places import Place, find_places, in_order, listed, original, plain_name
from levada.watching.loop.telling import warn
from levada.watching.measure.parameters import ParameterNorms, is_sharded, pairs

__all__ = ["Structure"]


@final
class Structure:
    """What of a model is measured.

    Args:
        model: as the loop calls it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sites: tuple[Site, ...] = ()
        self.places: list[Place] = []
        self.order: list[int] = []
        self.tanh: frozenset[int] = frozenset()
        self.parameters: tuple[nn.Parameter, ...] = ()
        self._sharded = False  # whether one of them is
        self._missed: set[int] = set()
        self._renewed = False
        self.where = pairs((), {})
        self.read()

    @property
    def outdated(self) -> bool:
        """Whether the model was changed in the step that was to tell its blocks."""
        return not self.sites and self._is_other(listed(original(self.model)))

    def _is_other(self, parameters: tuple[nn.Parameter, ...]) -> bool:
        return [*map(id, parameters)] != [*map(id, self.parameters)]

    def read(self) -> bool:
        """Look at the model's tree, and return whether its parameters are others than the last time."""
        inner = original(self.model)
        parameters = listed(inner)
        if not self._is_other(parameters) and not self._renewed:
            return False
        places = find_places(self.model)
        if self.sites and [place.name for place in places] != [place.name for place in self.places]:
            warn(
                "watch: the model has other blocks now than in the first sampled step. Those that are new are not "
                "measured, and those that are gone are NaN. Close this watch and make another to see them.",
                of=self.model,
                stacklevel=2,
            )
        else:
            self.places = places
        self.parameters, self._renewed = parameters, False
        self._sharded = any(map(is_sharded, parameters))
        self._measure(parameters)
        return True

    def renew(self) -> list[int]:
        """Measure the parameters that the model has now, if some were replaced since the step began.

        Its blocks are found again with the next `read`.

        Returns:
            Rows of those that came since and have no gradient: whether the loss has one for them is not known.
        """
        found = self._now()
        if not self._is_other(found) and not self._renewed:
            return []
        self._renewed = True
        self._measure(found)
        before = {*map(id, self.parameters)}
        return [row for row, p in enumerate(self.norms.parameters) if id(p) not in before and p.grad is None]

    def gone(self) -> list[int]:
        """Return the rows of parameters that the model has no more."""
        now = [*map(id, self._now())]
        if now == [*map(id, self.norms.parameters)]:
            return []
        found = {*now}
        return [row for row, p in enumerate(self.norms.parameters) if id(p) not in found]

    def _now(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters; sharded ones as they were read, since others take their place in a pass."""
        return self.parameters if self._sharded else listed(original(self.model))

    def _measure(self, parameters: Sequence[nn.Parameter]) -> None:
        self._names = {id(p): plain_name(name) for name, p in parameters_of(original(self.model))}
        self.norms = ParameterNorms((self._names[id(p)], p) for p in parameters)
        self._locate()

    def run(
        self, called: Sequence[int], calls: Mapping[int, tuple[int, ...]], tanh: Collection[int] = frozenset()
    ) -> None:
        """Take what ran in a sampled step: the first one tells the blocks and their order.

        Args:
            called: the blocks in the order of their first call, as taps saw it.
            calls: the shapes of their outputs.
            tanh: those whose output a tanh has made.
        """
        if not self.sites:
            self._first(called, calls)
        else:
            self._miss(calls)
        self.tanh = frozenset(order for order, i in enumerate(self.order) if i in tanh)

    def _first(self, called: Sequence[int], calls: Mapping[int, tuple[int, ...]]) -> None:
        seen = [i for i in called if i >= 0]
        self.order = in_order(self.places, seen) if seen else list(range(len(self.places)))
        places = [self.places[i] for i in self.order]
        owned = [tuple(dict.fromkeys(self._names[id(p)] for p in place.parameters())) for place in places]
        self.sites = tuple(
            Site(place.name, order, place.kind, calls.get(i, ()), names)
            for order, (i, place, names) in enumerate(zip(self.order, places, owned, strict=True))
        )
        self._locate()

    def _locate(self) -> None:
        """Find which rows of the parameters belong to which site."""
        if not self.sites:  # lazy parameters have no shape yet
            return
        matrices = {self._names[id(p)] for p in self.norms.parameters if p.dim() >= 2}
        at: dict[str, list[int]] = {}
        for site in self.sites:
            for name in matrices.intersection(site.parameters):
                at.setdefault(name, []).append(site.order)
        self.where = pairs(self.norms.names, at)

    def _miss(self, calls: Mapping[int, tuple[int, ...]]) -> None:
        """Say, once for each, which blocks run that did not in the first sampled step."""
        known = self._missed.union(self.order)
        new = [i for i in calls if i not in known]
        if not new:
            return
        self._missed.update(new)
        names = ", ".join(self.places[i].name for i in new[:3]) + (f" and {len(new) - 3} more" if new[3:] else "")
        warn(
            f"watch: {names} did not run in the first sampled step, and does now. It is not measured. Close this watch "
            "and make another to see it.",
            of=self.model,
            stacklevel=2,
        )
