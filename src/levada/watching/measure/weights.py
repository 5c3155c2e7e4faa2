"""What a step does to the weights: read around all of it, or around each optimizer's own where backward runs them."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import require_at_least
from levada.stacking import LayerSlice
from levada.watching.loop.telling import warn
from levada.watching.measure.parameters import COLUMNS, Packed, ParameterNorms
from levada.watching.measure.structure import Structure

__all__ = ["Weights"]

_GRADIENT, _UPDATE = COLUMNS.index("gradient"), COLUMNS.index("update")


@final
class Weights:
    """Reads weights, gradients and updates of a sampled step.

    Where optimizers step after the backward pass, all is read before the first of them, and again at the step's end.
    Where one steps within it, and clears what it used, no moment has all gradients: then each optimizer's parameters
    are read around its own step. What was not read is NaN, and so is what may have been cleared by someone else, and
    what an optimizer that rests has left from its own last step, with what the losses of others added to it; so is the
    update that it did not make, as one of exactly 0 would be one that is lost.

    Args:
        structure: of the model.
        optimizers: whose steps end a step.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(layer.weight)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        >>> weights = Weights(Structure(layer), [optimizer])
        >>> def step(parameter):
        ...     weights.before(optimizer, within=True, scaled=False)
        ...     optimizer.step()
        ...     weights.after(optimizer)
        ...     optimizer.zero_grad()
        >>> handle = layer.weight.register_post_accumulate_grad_hook(step)
        >>> (4.0 * layer(torch.ones(1))).backward()
        >>> packed = weights.take(learned=True)
        >>> packed.names, packed.values[0, 1].item(), packed.values[0, 2].item()
        (('weight',), 16.0, 4.0)
    """

    def __init__(self, structure: Structure, optimizers: Sequence[Any]) -> None:
        self._structure, self._optimizers = structure, optimizers
        self._copy_bytes = 2**30
        self._kept: dict[int, ParameterNorms] = {}  # by optimizer: which parameters' turn it is stays known
        self._told = False
        self._ever: Counter[int] = Counter()  # steps by optimizer so far
        self.clear()

    def steps_of(self, optimizer: Any) -> int:
        """Return how often an optimizer has stepped so far, or was kept from it by a scaler.

        Args:
            optimizer: one of them.
        """
        return self._ever[id(optimizer)]

    def clear(self) -> None:
        """Forget what was read."""
        self._read = False  # around the step as a whole
        self._stepped: set[int] = set()  # optimizers, since it was
        self._found: dict[int, weakref.ref[Tensor]] | None = None  # gradients that were there when the step began
        self._left: set[int] = set()  # rows of those that were there still when the first optimizer stepped
        self._blank: list[int] = []  # rows that came since the step began, and have no gradient
        self._open: dict[int, ParameterNorms] = {}  # by optimizer, while it steps
        self._apart: dict[int, Packed] = {}  # and when it has
        self._again: set[int] = set()  # rows of optimizers that stepped twice
        self._rows: dict[int, list[int]] = {}  # by what an optimizer holds

    @property
    def copy_bytes(self) -> int:
        """How much of the weights a sampled step may copy, in bytes, to measure the update: 1 GiB.

        Of larger models parameters take turns, a whole one at least on each sampled step, and the update of the others
        is NaN; 0 copies nothing and measures no update.
        """
        return self._copy_bytes

    @copy_bytes.setter
    def copy_bytes(self, most: int) -> None:
        require_at_least("watch.weights", "copy_bytes", most, 0)
        self._copy_bytes = most

    def begin(self) -> None:
        """Read the weights where no optimizer will say that it changes them; gradients are read after it."""
        if not self._optimizers and not self._read:
            self._before(gradients=False)
        if len(self._optimizers) > 1 and self._found is None:
            there = [(p, p.grad) for p in self._structure.parameters]
            self._found = {id(p): weakref.ref(gradient) for p, gradient in there if gradient is not None}

    def left(self) -> None:
        """Read the weights and gradients of a step whose update is not made."""
        self._before(updates=False)

    def before(self, optimizer: Any, *, within: bool, scaled: bool) -> None:
        """Read what an optimizer's step will change.

        Args:
            optimizer: one of them.
            within: whether it steps within a backward pass.
            scaled: whether a scaler divides the gradients of one optimizer after the other, each before its own step.
        """
        if self._read:
            return
        scale = getattr(optimizer, "grad_scale", None)
        if not (within or self._apart):
            self._before(scale, gradients=scale is not None or not scaled or len(self._optimizers) == 1)
            return
        key = id(optimizer)
        if not self._rows:
            self._structure.renew()
        rows = self._rows_of(optimizer)
        if key in self._open or key in self._apart:
            self._again.update(rows)
            return
        held, kept = [self._structure.norms.parameters[row] for row in rows], self._kept.get(key)
        if kept is None or [*map(id, kept.parameters)] != [*map(id, held)]:
            kept = self._kept[key] = self._norms_of(rows)
        kept.copy_bytes = self._copy_bytes
        kept.before(scale)
        self._open[key] = kept

    def count(self, optimizer: Any) -> None:
        """Count a step of an optimizer."""
        self._ever[id(optimizer)] += 1

    def after(self, optimizer: Any) -> None:
        """Read what its step has changed, if it is read apart; of one that a scaler skipped, nothing has."""
        self.count(optimizer)
        self._stepped.add(id(optimizer))
        norms = self._open.pop(id(optimizer), None)
        if norms is not None:
            self._apart[id(optimizer)] = norms.after()

    def take(self, *, learned: bool) -> Packed | None:
        """Return what was read, None if nothing was.

        Args:
            learned: whether the step's loss was seen.
        """
        if self._apart:
            return self._joined(learned=learned)
        if not self._read:
            return None
        packed = self._filled(self._structure.norms.after(), _UPDATE, self._structure.gone(), math.nan)
        unused = sorted(self._resting(self._optimizers))
        packed = replace(packed, unused=unused)
        packed.measured[unused, _UPDATE] = False  # an update that was not made is none of 0
        stale = self._left & self._resting(each for each in self._optimizers if id(each) in self._ever)
        packed.measured[sorted(stale), _GRADIENT] = False
        return self._filled(packed, _GRADIENT, self._blank, math.nan)

    def _resting(self, optimizers: Iterable[Any]) -> set[int]:
        """Return the rows of those optimizers that did not step, though others did."""
        rest = [each for each in optimizers if id(each) not in self._stepped] if self._stepped else []
        used = {row for each in self._optimizers if rest and id(each) in self._stepped for row in self._rows_of(each)}
        return {row for each in rest for row in self._rows_of(each)} - used

    def _before(self, *args: Any, **options: bool) -> None:
        self._stepped = set()
        self._blank = self._structure.renew()
        found = self._found or {}
        rows = enumerate(self._structure.norms.parameters)
        self._left = {i for i, p in rows if id(p) in found and found[id(p)]() is p.grad} if found else set()
        self._structure.norms.copy_bytes = self._copy_bytes
        self._structure.norms.before(*args, **options)
        self._read = True

    def _rows_of(self, optimizer: Any) -> list[int]:
        """Return the rows of the parameters that an optimizer holds, or that are slices of one."""
        if not self._rows:
            for row, p in enumerate(self._structure.norms.parameters):
                self._rows.setdefault(id(_whole(p)), []).append(row)
        held = (id(p) for group in optimizer.param_groups for p in group["params"])
        return [row for key in held for row in self._rows.get(key, ())]

    def _norms_of(self, rows: Iterable[int]) -> ParameterNorms:
        norms = self._structure.norms
        return ParameterNorms([(norms.names[row], norms.parameters[row]) for row in rows])

    def _joined(self, *, learned: bool) -> Packed:
        """Return what was read apart, and the rest, whose optimizers did not step, as it is now."""
        names, parameters = self._structure.norms.names, self._structure.norms.parameters
        row_of = {name: row for row, name in enumerate(names)}
        found = [row_of[name] for packed in self._apart.values() for name in packed.names if name in row_of]
        rest = sorted(set(range(len(names))) - set(found))
        left = self._norms_of(rest)
        left.before(updates=False)
        parts = [*self._apart.values(), left.after()]
        places = {row: place for place, row in enumerate([*found, *rest])}
        order = torch.tensor([places[row] for row in range(len(names))], dtype=torch.int64)
        device, dtype = parts[0].values.device, parts[0].values.dtype
        values = torch.cat([part.values.to(device, dtype, non_blocking=True) for part in parts])
        packed = Packed(
            names,
            values[order.to(device, non_blocking=True)],
            torch.cat([part.shards for part in parts])[order],
            torch.cat([part.measured for part in parts])[order],
        )
        known = {row for each in self._optimizers for row in self._rows_of(each)}
        others = [row for row in rest if row not in known and parameters[row].requires_grad]
        cleared = [row for row in others if parameters[row].grad is None]
        twice = {*self._again, *(row for row, times in Counter(found).items() if times > 1)}
        self._tell([names[row] for row in cleared], learned=learned)
        packed = self._filled(packed, _UPDATE, {*others, *twice, *self._structure.gone()}, math.nan)
        return self._filled(packed, _GRADIENT, {*cleared, *twice}, math.nan)

    def _filled(self, packed: Packed, column: int, rows: Iterable[int], value: float) -> Packed:
        """Return the same with a number in a column of those that learn: NaN makes NaN of what it is added to."""
        learn = [row for row in rows if packed.measured[row, 0] and self._structure.norms.parameters[row].requires_grad]
        if not learn:
            return packed
        values, measured = packed.values.clone(), packed.measured.clone()
        values[learn, column] = value
        measured[learn, column] = True
        return replace(packed, values=values, measured=measured)

    def _tell(self, cleared: Sequence[str], *, learned: bool) -> None:
        """Say once what cannot be known of optimizers that step within a backward pass."""
        if self._told or (learned and not cleared):
            return
        self._told = True
        what = (
            f"{len(cleared)} parameters ({cleared[0]} first) have no gradient behind it and are in no optimizer that "
            "the watch was given: their gradients and updates, and gradient_norm, are NaN. Give it all optimizers, in "
            "a list"
            if cleared
            else "the scalar at which it begins was not seen: the loss is not known, and rules that need one do not "
            "judge. Begin it with loss.backward()"
        )
        warn(f"watch: optimizers step within the backward pass, and {what}.", of=self._structure.model, stacklevel=2)


def _whole(parameter: nn.Parameter) -> nn.Parameter:
    """Return the stacked parameter that a layer's slice is part of; of others itself."""
    return (parameter.source or parameter) if isinstance(parameter, LayerSlice) else parameter
