"""Skips in time: around any cell, a shorter way from the past to the present."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least, require_number
from levada.cells.cell import Cell, State, require_finite

__all__ = ["Dilated", "Leaky", "ResidualInTime"]

_LEAST = 1e-3  # the least that a gate is set to carry: one that is shut has no gradient


@final
class Dilated(Cell):
    r"""A cell that goes on from the state of $d$ steps ago: $s_t = \operatorname{cell}(x_t, s_{t-d})$.

    From one end of a sequence of $T$ steps to the other there are $T/d$ transitions instead of $T$; what one of them
    leaves of a gradient is left over $d$ steps. Between neighbours nothing is exchanged: stack layers of growing
    dilation, the first of 1.

    Args:
        cell: what is computed at each step.
        dilation: $d$.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, dim)`; the state is the cell's last, and behind it the $d - 1$ before,
        each tensor `(batch, d - 1, ...)`, the oldest first.

    Cost:
        The cell's: sequences run as $d$ times as many rows of $T/d$ steps. The state is $d$ times as large.

    Raises:
        UsageError: if the dilation is below 1.

    Example:
        >>> from levada.cells import GRU
        >>> cell = Dilated(GRU(3, 5), 4)
        >>> outputs, state = cell.run(torch.randn(9, 2, 3))
        >>> outputs.shape, [tuple(s.shape) for s in state]
        (torch.Size([9, 2, 5]), [(2, 5), (2, 3, 5)])

    Source: Chang et al. 2017, arXiv 1710.02224.
    """

    def __init__(self, cell: Cell, dilation: int) -> None:
        _require_cell("Dilated", cell)
        super().__init__(cell.dim_in, cell.dim)
        require_at_least("Dilated", "dilation", dilation, 1)
        self.cell = cell
        self.dilation = dilation
        self.gate = _effective(cell)

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The cell's shapes, and those of the states before."""
        shapes = self.cell.state_shapes
        return shapes if self.dilation == 1 else (*shapes, *((self.dilation - 1, *shape) for shape in shapes))

    def project(self, x: Tensor) -> Tensor:
        """Return what the cell needs."""
        return self.cell.project(x)

    def step(self, projected: Tensor, state: State) -> State:
        """Return the next state, and what comes to stand behind it."""
        newest, older = self._parted(state)
        if not older:
            return self.cell.step(projected, newest)
        after = self.cell.step(projected, tuple(s[:, 0] for s in older))
        return (*after, *(torch.cat([o[:, 1:], n[:, None]], 1) for o, n in zip(older, newest, strict=True)))

    def unroll(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run steps that are `dilation` apart as rows of their own, side by side."""
        d, (steps, batch, width) = self.dilation, x.shape
        newest, older = self._parted(state)
        queue = [torch.cat([o, n[:, None]], 1) for o, n in zip(older, newest, strict=True)] if older else None
        rows = newest if queue is None else tuple(q.transpose(0, 1).flatten(0, 1) for q in queue)  # the oldest first
        whole = steps - steps % d
        outputs = []
        if whole:
            out, rows = self.cell.unroll(x[:whole].reshape(whole // d, d * batch, width), rows)
            outputs.append(out.reshape(whole, batch, self.dim))
        if whole < steps:
            rest = (steps - whole) * batch
            out, last = self.cell.unroll(x[whole:].reshape(1, rest, width), tuple(s[:rest] for s in rows))
            outputs.append(out.reshape(steps - whole, batch, self.dim))
            rows = tuple(torch.cat([s[rest:], n]) for s, n in zip(rows, last, strict=True))
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        if queue is None:
            return y, rows
        queue = [s.reshape(d, batch, *s.shape[1:]).transpose(0, 1) for s in rows]
        return y, (*(q[:, -1] for q in queue), *(q[:, :-1] for q in queue))

    def carry(self, projected: Tensor, state: State) -> Tensor | None:
        """Return the cell's own factor, shared out over the steps that it reaches back: its `dilation`-th root."""
        newest, older = self._parted(state)
        factor = self.cell.carry(projected, tuple(s[:, 0] for s in older) if older else newest)
        return None if factor is None else factor ** (1 / self.dilation)

    def carry_bias(self, logit: Tensor) -> bool:
        """Set the cell's, which takes a step where these are `dilation`: to that power."""
        kept = self.dilation * nn.functional.logsigmoid(logit)  # ln of what the cell carries
        return self.cell.carry_bias(kept - (-torch.expm1(kept)).log())

    def extra_repr(self) -> str:
        """Say the dilation."""
        return f"dilation={self.dilation}"

    def _parted(self, state: State) -> tuple[State, State]:
        num = len(self.cell.state_shapes)
        return state[:num], state[num:]


class _Skip(Cell):
    """A cell whose state and inputs are those of the one that it is around."""

    def __init__(self, cell: Cell) -> None:
        _require_cell(type(self).__name__, cell)
        super().__init__(cell.dim_in, cell.dim)
        self.cell = cell
        self.gate = _effective(cell)

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The cell's."""
        return self.cell.state_shapes

    def project(self, x: Tensor) -> Tensor:
        """Return what the cell needs."""
        return self.cell.project(x)


@final
class Leaky(_Skip):
    r"""Units that go part of the way: $h_t = (1 - \alpha)\, h_{t-1} + \alpha \operatorname{cell}(x_t, h_{t-1})$.

    The skip carries $(1 - \alpha)^k$ of a gradient over $k$ steps past the cell: a memory of about $1/\alpha$ steps,
    fixed. What else the cell's state holds is left to the cell.

    Args:
        cell: what is computed at each step.
        rate: $\alpha$, above 0 and at most 1, where nothing is left of the skip.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, dim)`; the state is the cell's.

    Cost:
        The cell's, step by step.

    Raises:
        UsageError: if the rate is not in (0, 1].

    Example:
        >>> from levada.cells import RNN
        >>> cell = Leaky(RNN(3, 5), 0.25)
        >>> (h,) = cell(torch.randn(2, 3))
        >>> bool(h.abs().max() <= 0.25)
        True

    Source: Jaeger, Lukoševičius, Popovici and Siewert 2007; Bengio, Boulanger-Lewandowski and Pascanu 2013, arXiv
    1212.0901.
    """

    def __init__(self, cell: Cell, rate: float) -> None:
        super().__init__(cell)
        require_number("Leaky", "rate", rate)
        if not 0 < rate <= 1:
            raise UsageError(f"Leaky: rate must be above 0 and at most 1, got {rate}.")
        self.rate = rate

    def step(self, projected: Tensor, state: State) -> State:
        """Return the next state."""
        h, *rest = self.cell.step(projected, state)
        return (torch.lerp(state[0], h.to(state[0].dtype), self.rate), *rest)

    def carry(self, projected: Tensor, state: State) -> Tensor | None:
        """Return the factor of the skip and the cell together."""
        return _together(self.cell, self.cell.carry(projected, state), 1 - self.rate, self.rate)

    def carry_bias(self, logit: Tensor) -> bool:
        """Set the cell's so that it and the skip carry that much; a factor below the skip's own cannot be."""
        if len(self.cell.state_shapes) > 1:  # a memory beside h: the skip does not go around it
            return self.cell.carry_bias(logit)
        lost = (-logit).sigmoid() / self.rate  # what the cell lets go
        return self.cell.carry_bias(-lost.clamp_max(1 - _LEAST).logit())

    def extra_repr(self) -> str:
        """Say the rate."""
        return f"rate={self.rate}"


@final
class ResidualInTime(_Skip):
    r"""A residual connection from each step to the next: $h_t = h_{t-1} + \alpha \operatorname{cell}(x_t, h_{t-1})$.

    The identity carries a gradient over any number of steps. Nothing is forgotten but by the cell itself, so that h
    grows with the length of a sequence where the cell pushes one way: `scale` about 1 over that length keeps it.

    Args:
        cell: what is computed at each step.
        scale: $\alpha$.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, dim)`; the state is the cell's.

    Cost:
        The cell's, step by step.

    Raises:
        UsageError: if the scale is no finite number.

    Example:
        >>> from levada.cells import RNN
        >>> cell = ResidualInTime(RNN(3, 5), scale=0.0)
        >>> h = torch.randn(2, 5)
        >>> torch.equal(cell(torch.randn(2, 3), (h,))[0], h)
        True

    Source: He et al. 2016, arXiv 1512.03385, whose residual network with one block for all layers this is: Liao and
    Poggio 2016, arXiv 1604.03640.
    """

    def __init__(self, cell: Cell, scale: float = 1.0) -> None:
        super().__init__(cell)
        require_finite("ResidualInTime", "scale", scale)
        self.scale = scale

    def step(self, projected: Tensor, state: State) -> State:
        """Return the next state."""
        h, *rest = self.cell.step(projected, state)
        return (state[0] + self.scale * h, *rest)

    def carry(self, projected: Tensor, state: State) -> Tensor | None:
        """Return the factor of the skip and the cell together."""
        return _together(self.cell, self.cell.carry(projected, state), 1.0, self.scale)

    def extra_repr(self) -> str:
        """Say the scale."""
        return f"scale={self.scale}"


def _together(cell: Cell, factor: Tensor | None, keep: float, add: float) -> Tensor | None:
    """Return the factor on a unit's memory of `keep h + add cell(h)`.

    Independent weights add by their squares, a gate on the same unit by itself. A memory beside h, such as an LSTM's
    cell, is not what the skip goes around: of two memories side by side the longer counts.
    """
    if factor is None:
        return None
    if not cell.gate:
        return (keep**2 + (add * factor).square()).sqrt()
    if len(cell.state_shapes) > 1:
        return factor.clamp_min(keep)
    return keep + add * factor


def _effective(cell: Cell) -> str:
    return f"effective {cell.gate.removeprefix('effective ')}" if cell.gate else ""


def _require_cell(owner: str, cell: Callable[..., Any]) -> None:
    if not isinstance(cell, Cell):
        raise UsageError(f"{owner}: cell must be a Cell, such as levada.cells.GRU(3, 5), got {cell!r}.")
