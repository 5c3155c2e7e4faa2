"""Cells whose gates do not see the state, so that a sequence is one linear scan: minGRU and minLSTM."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada.cells.blockwise import fits, scan_in_blocks
from levada.cells.cell import Cell, State
from levada.initialise import chrono as set_chrono
from levada.ops import linear_scan

__all__ = ["MinGRU", "MinLSTM"]


class _ScannedCell(Cell):
    """A cell of `h_t = a_t h_{t-1} + b_t`, where a and b are made of the input alone.

    Args:
        dim_in: width of the input.
        dim: width of h.
        positive: whether candidates are made positive.
        chrono: start with memories of 1 to so many steps.
    """

    blocks: ClassVar[int]
    """Number of gates and candidates, the candidate last: the weight has so many blocks of `dim` rows."""

    def __init__(self, dim_in: int, dim: int, *, positive: bool = False, chrono: float | None = None) -> None:
        super().__init__(dim_in, dim)
        self.positive = positive
        rows, bound = self.blocks * dim, 1 / math.sqrt(dim_in)
        self.weight_ih = nn.Parameter(torch.empty(rows, dim_in).uniform_(-bound, bound))
        self.bias_ih = nn.Parameter(torch.empty(rows).uniform_(-bound, bound))
        if chrono is not None:
            set_chrono(self, chrono)

    @abstractmethod
    def keep(self, gates: Sequence[Tensor]) -> Tensor:
        """Return the logit of the gate that keeps h; one minus the gate lets the candidate in."""

    @abstractmethod
    def pull_keep(self, by_logit: Tensor, gates: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        """Write the gradients by what `keep` was given, of the one by what it returned, to `outs`."""

    def project(self, x: Tensor) -> Tensor:
        """Return `W x + b`: the gates' logits and the candidate."""
        return functional.linear(x, self.weight_ih, self.bias_ih)

    def parts(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gate, one minus the gate, and the candidate, of the steps whose projection came.

        In float32 at least: bfloat16 has no gate between 1 - 1/256 and 1.
        """
        *gates, candidate = _full(projected).chunk(self.blocks, -1)
        logit = self.keep(gates)
        if self.positive:
            candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        # Not 1 - sigmoid(logit): where the gate is nearly open, that has lost what comes in.
        return logit.sigmoid(), (-logit).sigmoid(), candidate

    def pull(self, projected: Tensor, by_logit: Tensor, by_candidate: Tensor, out: Tensor) -> None:
        """Write the gradient by `projected`, of those by the gate's logit and by the candidate, to `out`."""
        *gates, candidate = projected.chunk(self.blocks, -1)
        *outs, last = out.chunk(self.blocks, -1)
        self.pull_keep(by_logit, gates, outs)
        if self.positive:
            below = candidate.sigmoid()
            by_candidate = torch.where(candidate >= 0, by_candidate, by_candidate * below * (1 - below))
        last.copy_(by_candidate)

    def recurrence(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b, which `levada.ops.linear_scan` takes, of the steps whose projection came."""
        gate, rest, candidate = self.parts(projected)
        return gate, rest * candidate

    def step(self, projected: Tensor, state: State) -> State:
        """Return the next h."""
        gate, value = self.recurrence(projected)
        return ((gate * state[0] + value).to(state[0].dtype),)

    def scan(self, projected: Tensor, initial: Tensor) -> Tensor:
        """Return each h."""
        return linear_scan(*self.recurrence(projected), initial).to(initial.dtype)

    def unroll(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run the whole sequence as one scan."""
        projected, (initial,) = self.project(x), state
        if fits(projected, initial):
            outputs = scan_in_blocks(self, projected, initial)
        else:
            outputs = self.scan(projected, initial)
        return outputs, (outputs[-1],)

    def carry(self, projected: Tensor, state: State) -> Tensor:
        """Return the gate that keeps h."""
        return self.parts(projected)[0]

    def extra_repr(self) -> str:
        """Say the widths, and whether candidates are positive."""
        return f"{super().extra_repr()}{', positive=True' if self.positive else ''}"

    @torch.no_grad()
    def _set_biases(self, *values: Tensor) -> bool:
        for block, value in enumerate(values):
            self.bias_ih[block * self.dim : (block + 1) * self.dim] = value
        return True


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@final
class MinGRU(_ScannedCell):
    r"""A GRU without a reset gate, whose update gate and candidate see the input alone.

    $$z_t = \sigma(W_z x_t + b_z), \qquad \tilde h_t = W_h x_t + b_h, \qquad
    h_t = (1 - z_t)\, h_{t-1} + z_t\, \tilde h_t$$

    A gradient along h is multiplied by $1 - z_t$ and by nothing else, so that it cannot explode. What a GRU decides by
    looking at its state, a stack of these decides a layer later. Sequences run as one `levada.ops.linear_scan`; with
    gates of either kind nothing needs logarithms, which the source takes to scan in parallel.

    Args:
        dim_in: width of the input.
        dim: width of h.
        positive: candidates are $g(W_h x_t + b_h) > 0$, with $g(x) = x + 0.5$ for $x \ge 0$ and $\sigma(x)$ below, as
            in the source's form in logarithms.
        chrono: start with memories of 1 to so many steps, as `levada.initialise.chrono` does.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, dim)`; the state is h, `(batch, dim)`. `weight_ih` is
        `(2 dim, dim_in)`, z before the candidate.

    Cost:
        `2 dim (dim_in + 1)` parameters.

    Raises:
        UsageError: if a width is below 1, or `chrono` not above 2 or not finite.

    Example:
        >>> cell = MinGRU(3, 5, chrono=100.0)
        >>> outputs, (h,) = cell.run(torch.randn(7, 2, 3))
        >>> outputs.shape, torch.equal(outputs[-1], h)
        (torch.Size([7, 2, 5]), True)

    Source: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi 2024, arXiv 2410.01201.
    """

    blocks: ClassVar[int] = 2
    gate = "update gate"

    def keep(self, gates: Sequence[Tensor]) -> Tensor:
        """Return the logit of $1 - z$."""
        return -gates[0]

    def pull_keep(self, by_logit: Tensor, gates: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        """Turn the gradient's sign."""
        torch.neg(by_logit, out=outs[0])

    def carry_bias(self, logit: Tensor) -> bool:
        """Set the update gate's bias."""
        return self._set_biases(-logit)


@final
class MinLSTM(_ScannedCell):
    r"""An LSTM without an output gate, whose gates see the input alone and sum to one.

    $$f_t = \sigma(W_f x_t + b_f), \quad i_t = \sigma(W_i x_t + b_i), \quad \tilde h_t = W_h x_t + b_h, \qquad
    h_t = \frac{f_t}{f_t + i_t} h_{t-1} + \frac{i_t}{f_t + i_t} \tilde h_t$$

    The two gates are divided by their sum so that the size of h does not depend on the length of the sequence. A
    gradient along h is multiplied by the first of them and by nothing else. Sequences run as one
    `levada.ops.linear_scan`.

    Args:
        dim_in: width of the input.
        dim: width of h.
        positive: candidates are $g(W_h x_t + b_h) > 0$, with $g(x) = x + 0.5$ for $x \ge 0$ and $\sigma(x)$ below, as
            in the source's form in logarithms.
        chrono: start with memories of 1 to so many steps, as `levada.initialise.chrono` does.

    Shape:
        `(steps, batch, dim_in) -> (steps, batch, dim)`; the state is h, `(batch, dim)`. `weight_ih` is
        `(3 dim, dim_in)`: f, i, then the candidate.

    Cost:
        `3 dim (dim_in + 1)` parameters.

    Raises:
        UsageError: if a width is below 1, or `chrono` not above 2 or not finite.

    Example:
        >>> cell = MinLSTM(3, 5, positive=True)
        >>> bool((cell.run(torch.randn(7, 2, 3))[0] > 0).all())
        True

    Source: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi 2024, arXiv 2410.01201.
    """

    blocks: ClassVar[int] = 3
    gate = "forget gate"

    def keep(self, gates: Sequence[Tensor]) -> Tensor:
        r"""Return the logit of $f / (f + i)$, which is $\ln f - \ln i$."""
        f, i = gates
        # softplus(-x) is -ln sigmoid(x), in two thirds of the time of logsigmoid; above its threshold it is cut to -x.
        return functional.softplus(-i, threshold=50) - functional.softplus(-f, threshold=50)

    def pull_keep(self, by_logit: Tensor, gates: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
        """Multiply by what each gate lacks to 1."""
        f, i = ((-gate).sigmoid_() for gate in gates)
        torch.mul(by_logit, f, out=outs[0])
        torch.mul(by_logit.neg_(), i, out=outs[1])

    def carry_bias(self, logit: Tensor) -> bool:
        """Set the forget gate's bias, and the input gate's to its negative."""
        return self._set_biases(logit, -logit)
