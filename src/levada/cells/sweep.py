"""One layer over time: a cell forwards and, maybe, one backwards; rows stop at their length."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from levada.cells.cell import Cell, State, detach
from levada.probe.recurrence import Recurrence, longest_chain

__all__ = ["Lengths", "Sweep"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """Lengths of a batch's rows, the longest first.

    Attributes:
        values: the lengths; None where nobody may look at them, and rows are in the order that they came in.
        order: which row comes where.
        back: its inverse.
        steps: `values` as a tensor on the batch's device.
    """

    values: tuple[int, ...] | None
    order: Tensor
    back: Tensor
    steps: Tensor

    @classmethod
    def of(cls, values: Sequence[int], device: torch.device) -> Lengths:
        """Sort lengths."""
        order = sorted(range(len(values)), key=lambda i: -values[i])
        ordered = tuple(values[i] for i in order)
        index = torch.tensor(order, dtype=torch.long, device=device)
        return cls(ordered, index, index.argsort(), torch.tensor(ordered, dtype=torch.long, device=device))

    @classmethod
    def unseen(cls, values: Tensor, steps: int, device: torch.device) -> Lengths:
        """Take lengths as they come, each at least 1 and at most `steps`."""
        index = torch.arange(len(values), device=device)
        return cls(None, index, index, values.to(device).clamp(1, steps))

    def padding(self, steps: int) -> Tensor:
        """Return where a row is over, `(steps, batch, 1)`."""
        return (torch.arange(steps, device=self.steps.device)[:, None] >= self.steps)[..., None]

    def reversal(self, steps: int) -> Tensor:
        """Return the index `(steps, batch, 1)` that reverses each row, from its own last step, and leaves padding."""
        t = torch.arange(steps, device=self.steps.device)[:, None]
        return torch.where(t < self.steps, self.steps - 1 - t, t)[..., None]


@final
class Sweep(nn.Module):
    """One layer of a `Recurrent`: cells that go over a sequence, in one direction or in both.

    Args:
        cells: one, or one for each direction.
        layer: index of the layer, which says which of the states are its own.
        dropout: probability with which a number of the input is dropped, in training.
        truncate: steps after which the gradient is cut; None never cuts.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, directions * dim)`, and the last state of each direction.
    """

    def __init__(self, cells: Sequence[Cell], *, layer: int = 0, dropout: float = 0.0, truncate: int | None = None):
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.layer = layer
        self.truncate = truncate

    def forward(
        self, x: Tensor, states: tuple[State, ...] | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Run the cells.

        Args:
            x: the sequence; rows by length, the longest first, if there are lengths.
            states: of all layers, in their order and by direction in each; zeros if left out.
            lengths: of the rows.
        """
        if self.dropout is not None:
            x = self.dropout(x)
        outputs, last = [], []
        for direction, (cell, state) in enumerate(zip(self, self._own(states), strict=True)):
            turn = _turned if direction else _as_it_is
            out, after = self._run(cell, turn(x, lengths), state, lengths)
            outputs.append(turn(out, lengths))
            last.append(after)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1), tuple(last)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)  # type: ignore[arg-type]

    def _own(self, states: tuple[State, ...] | None) -> Sequence[State | None]:
        count = len(self.cells)
        return [None] * count if states is None else states[self.layer * count : (self.layer + 1) * count]

    def _run(self, cell: Cell, x: Tensor, state: State | None, lengths: Lengths | None) -> tuple[Tensor, State]:
        """Run a cell piece by piece: within one, the same rows go on and no gradient is cut."""
        steps, batch = x.shape[:2]
        if not batch or (lengths is None and self.truncate is None):
            return cell.run(x, state)
        outputs, over, start = [], [], 0
        state = cell.begin(batch, device=x.device, dtype=x.dtype) if state is None else state
        values = (steps,) * batch if lengths is None else lengths.values
        if values is None:
            assert lengths is not None
            return self._held(cell, x, state, lengths.steps)
        for stop, rows in _pieces(values, self.truncate):
            if rows < len(state[0]):
                over.append(tuple(s[rows:] for s in state))
                state = tuple(s[:rows] for s in state)
            if self.truncate is not None and start and not start % self.truncate:
                state = detach(state)
            out, state = cell.run(x[start:stop, :rows], state)
            outputs.append(nn.functional.pad(out, (0, 0, 0, batch - rows)))
            start = stop
        y = nn.functional.pad(torch.cat(outputs), (0, 0, 0, 0, 0, steps - start))
        return y, tuple(torch.cat(parts) for parts in zip(state, *reversed(over), strict=True))

    def _held(self, cell: Cell, x: Tensor, state: State, stops: Tensor) -> tuple[Tensor, State]:
        """Run all steps of all rows, each of which holds its state from its stop on, whatever that is."""
        outputs = []
        for t in range(len(x)):
            cut = self.truncate is not None and t and not t % self.truncate
            _, after = cell.run(x[t : t + 1], detach(state) if cut else state)
            on, pairs = t < stops, zip(after, state, strict=True)
            state = tuple(torch.where(on.view(-1, *(1,) * (new.ndim - 1)), new, old) for new, old in pairs)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def recurrences_of_calls(
        self, name: str, calls: Sequence[tuple[tuple[Any, ...], dict[str, Any], Any]], rows: int
    ) -> list[Recurrence] | str:
        """Return each direction as a recurrence, for `levada.probe`, or why that cannot be done.

        Of several calls those are taken together that go on where the one before ended; of a gradient that is cut, the
        last piece.

        Args:
            name: of this module.
            calls: arguments, keyword arguments and output of each.
            rows: of the batch, at most.
        """
        bound = [(self._bound(*args, **kwargs), output) for args, kwargs, output in calls]
        chain = longest_chain(bound, _goes_on, lambda call: len(call[0][0]))
        _, states, lengths = chain[0][0]
        x, y = torch.cat([call[0][0] for call in chain]), torch.cat([call[1][0] for call in chain])
        own = self._own(states)
        place = [name] if len(self.cells) == 1 else [f"{name}[forward]", f"{name}[backward]"]
        found = []
        for direction, (cell, first) in enumerate(zip(self, own, strict=True)):
            turn = _turned if direction else _as_it_is
            followed = _Followed(cell, turn(x, lengths), first, lengths, rows, self.truncate)
            if self.dropout is None or not self.training:
                out = turn(y[..., direction * cell.dim : (direction + 1) * cell.dim], lengths)
                if not followed.agrees(out[:, :rows]):
                    return "step by step, its weights do not give what it returns"
            found.append(followed.recurrence(place[direction], name))
        return found

    @staticmethod
    def _bound(
        x: Tensor, states: tuple[State, ...] | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, tuple[State, ...] | None, Lengths | None]:
        return x, states, lengths


_Called = tuple[tuple[Tensor, tuple[State, ...] | None, Lengths | None], tuple[Tensor, tuple[State, ...]]]


def _goes_on(before: _Called, after: _Called) -> bool:
    """Whether a call was given the very states that the one before returned; rows that end do not go on."""
    (_, _, lengths), (_, last) = before
    (_, states, others), _ = after
    if states is None or lengths is not None or others is not None:
        return False
    given = [s for state in states for s in state]
    return all(any(g is s for g in given) for state in last for s in state)


@final
class _Followed:
    """A cell at the inputs that it was given, step by step, in double precision, with states as matrices."""

    def __init__(
        self, cell: Cell, x: Tensor, state: State | None, lengths: Lengths | None, rows: int, truncate: int | None
    ) -> None:
        self.cell = _doubled(cell)
        self.kind = type(self.cell).__name__
        dtype = next(self.cell.parameters()).dtype
        x = x[:, :rows].detach()
        x = x if lengths is None else x.masked_fill(lengths.padding(len(x))[:, :rows], 0.0)
        first = cell.begin(x.shape[1], device=x.device, dtype=dtype) if state is None else state
        with torch.no_grad():
            self.read = self.cell.project(x.to(dtype))
        self.shapes = [(-1, *shape) for shape in cell.state_shapes]
        self.initial = tuple(s[:rows].detach().to(dtype).flatten(1) for s in first)
        self.lengths = None if lengths is None else lengths.steps[:rows]
        # rows of different lengths end in different pieces: no piece is the last of all
        self.start = 0 if truncate is None or lengths is not None else (len(x) - 1) // truncate * truncate

    def _shaped(self, state: State) -> State:
        return tuple(s.view(shape) for s, shape in zip(state, self.shapes, strict=True))

    def step(self, t: int, state: State) -> State:
        after = tuple(s.flatten(1) for s in self.cell.step(self.read[t], self._shaped(state)))
        if self.lengths is None:
            return after
        on = (t < self.lengths)[:, None]
        return tuple(torch.where(on, new, old) for new, old in zip(after, state, strict=True))

    def carry(self, t: int, state: State) -> Tensor:
        factor = self.cell.carry(self.read[t], self._shaped(state))
        assert factor is not None
        return factor

    @torch.no_grad()
    def agrees(self, y: Tensor, steps: int = 8) -> bool:
        """Whether the first steps give what the layer gave."""
        state, near = self.initial, max(1e-3, 4 * torch.finfo(y.dtype).eps)
        for t in range(min(steps, len(y))):
            state = self.step(t, state)
            on = slice(None) if self.lengths is None else t < self.lengths
            if not torch.allclose(state[0][on], y[t].to(state[0].dtype)[on], rtol=near, atol=near):
                return False
        return True

    @torch.no_grad()
    def recurrence(self, site: str, module: str) -> Recurrence:
        state = self.initial
        for t in range(self.start):
            state = self.step(t, state)
        known = self.cell.carry(self.read[0], self._shaped(state)) is not None

        def later(function: Any) -> Any:
            return lambda t, state: function(t + self.start, state)

        steps, carry = len(self.read) - self.start, later(self.carry) if known else None
        gate = self.cell.gate if known else ""
        return Recurrence(site, module, self.kind, state, steps, later(self.step), carry, gate, self.lengths)


def _doubled(cell: Cell) -> Cell:
    """Return a copy in double precision, in which every weight is a tensor of its own."""
    double = copy.deepcopy(cell).requires_grad_(False)
    for module in double.modules():
        if parametrize.is_parametrized(module):
            # not `remove_parametrizations`: it takes the attribute off a class that the copy shares with the original
            held = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
            module.__class__ = type(module).__bases__[0]
            del module.parametrizations
            for name, value in held.items():
                module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))
    return double.to(torch.float32 if next(cell.parameters()).device.type == "mps" else torch.float64)


def _as_it_is(x: Tensor, lengths: Lengths | None) -> Tensor:
    return x


def _turned(x: Tensor, lengths: Lengths | None) -> Tensor:
    """Reverse each row from its last step."""
    return x.flip(0) if lengths is None else x.gather(0, lengths.reversal(len(x)).expand_as(x))


def _pieces(values: tuple[int, ...], truncate: int | None) -> list[tuple[int, int]]:
    """Return the step after the last, and the number of rows, of each stretch with the same rows and without a cut."""
    stops = sorted({*values, *range(truncate or values[0], values[0], truncate or 1)})
    return [(stop, sum(value >= stop for value in values)) for stop in stops]
