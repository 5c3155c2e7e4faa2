r"""Lyapunov exponents of a recurrence: how fast nearby states part, by repeated QR decompositions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from levada._errors import MeasurementError, UsageError, require_at_least
from levada.probe.recurrence import Recurrence

__all__ = ["LyapunovExponents", "lyapunov_exponents"]

# Blocks of steps whose scatter gives the standard error: long enough to be nearly independent of each other.
BLOCKS = 10


@final
@dataclass(frozen=True, slots=True, eq=False)
class LyapunovExponents:
    """The largest exponents, per step.

    Attributes:
        values: the largest first; float64, of shape `(count,)`.
        errors: standard error of each over blocks of steps, and over rows; NaN of fewer than two.
        drift: what the second half of the steps gives, less the first: near zero where it has converged.
        steps: how many steps were averaged.
    """

    values: Tensor
    errors: Tensor
    drift: Tensor
    steps: int


def lyapunov_exponents(
    recurrence: Recurrence, *, count: int = 1, warmup: int | None = None, rows: int = 4, seed: int = 0
) -> LyapunovExponents:
    r"""Return the largest Lyapunov exponents along the states that a recurrence goes through.

    $$J_t Q_t = Q_{t+1} R_{t+1}, \qquad \lambda_i = \frac1T \sum_t \ln (R_t)_{ii}, \qquad
    J_t = \partial h_{t+1} / \partial h_t$$

    A largest exponent above zero says that gradients grow over long times, on average by $e^{\lambda}$ each step, and
    that the network is chaotic; far below zero that it forgets.

    Args:
        recurrence: as `recurrences` finds them.
        count: how many exponents.
        warmup: steps that only turn the directions; a tenth of all if None.
        rows: rows of the batch to follow.
        seed: of the first directions.

    Cost:
        `count` products of a Jacobian with a vector at each step and row.

    Raises:
        UsageError: if `count` is not between 1 and the size of the state, or no step is left after the warm-up.
        MeasurementError: if the cell's operations have no second derivative.

    Example:
        >>> from levada.probe import recurrences
        >>> rnn = torch.nn.RNN(1, 4, bias=False)
        >>> _ = rnn.weight_hh_l0.data.copy_(torch.diag(torch.tensor([0.9, 0.5, 0.2, 0.1])))
        >>> found, _ = recurrences(rnn, lambda: rnn(torch.zeros(50, 1, 1)))
        >>> [round(value, 2) for value in lyapunov_exponents(found[0], count=2).values.exp().tolist()]
        [0.9, 0.5]

    Source: Benettin, Galgani, Giorgilli and Strelcyn 1980; Vogt, Puelma Touzel, Shlizerman and Lajoie 2020, arXiv
    2006.14123.
    """
    require_at_least("lyapunov_exponents", "count", count, 1)
    require_at_least("lyapunov_exponents", "rows", rows, 1)
    size = sum(s.shape[-1] for s in recurrence.initial)
    ends = recurrence.steps if recurrence.lengths is None else int(recurrence.lengths.min())
    warmup = ends // 10 if warmup is None else warmup
    if count > size:
        raise UsageError(f"lyapunov_exponents: count must be at most the size of the state, {size}, got {count}.")
    if not 0 <= warmup < ends:
        raise UsageError(f"lyapunov_exponents: warmup must leave a step of {ends}, got {warmup}.")
    state = recurrence.initial
    rows = min(rows, len(state[0]))
    q = torch.randn(rows, size, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q = torch.linalg.qr(q.to(state[0].device, state[0].dtype)).Q
    logs = []
    for t in range(ends):
        state, pushed = _pushed(recurrence, t, state, q)
        q, r = torch.linalg.qr(pushed)
        logs.append(r.diagonal(dim1=-2, dim2=-1).abs().double().cpu().log())
    return _averaged(torch.stack(logs[warmup:]))


def _pushed(recurrence: Recurrence, t: int, state: tuple[Tensor, ...], q: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the next state, and `J_t q` for the first rows.

    `u -> J^T u` is linear, so that its own transpose, a second backward pass, is `J`.
    """
    rows, _, count = q.shape
    try:
        with torch.enable_grad():
            given = tuple(s.detach().requires_grad_() for s in state)
            after = recurrence.step(t, given)
            dual = [torch.zeros_like(s, requires_grad=True) for s in after]
            back = torch.autograd.grad(after, given, dual, create_graph=True, materialize_grads=True)
            live = [i for i, g in enumerate(back) if g.requires_grad]
            sizes = [s.shape[-1] for s in state]
            columns = []
            for column in range(count):
                parts = [
                    torch.cat([p, p.new_zeros(len(s) - rows, p.shape[-1])])
                    for p, s in zip(torch.split(q[..., column], sizes, -1), state, strict=True)
                ]
                moved = torch.autograd.grad(
                    [back[i] for i in live], dual, [parts[i] for i in live], retain_graph=True, materialize_grads=True
                )
                columns.append(torch.cat(moved, -1)[:rows])
    except (RuntimeError, NotImplementedError) as error:
        raise MeasurementError(
            f"lyapunov_exponents: {recurrence.site} must have a second derivative, and has none: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    return tuple(s.detach() for s in after), torch.stack(columns, -1)


def _averaged(logs: Tensor) -> LyapunovExponents:
    """Average logarithms of shape `(steps, rows, count)`."""
    values = logs.mean((0, 1))
    blocks = torch.stack([block.mean(0) for block in logs.chunk(min(BLOCKS, len(logs)))]).flatten(0, 1)
    errors = blocks.std(0) / math.sqrt(len(blocks)) if len(blocks) > 1 else torch.full_like(values, torch.nan)
    half = len(logs) // 2
    drift = logs[half:].mean((0, 1)) - logs[:half].mean((0, 1)) if half else torch.full_like(values, torch.nan)
    order = values.argsort(descending=True)
    return LyapunovExponents(values[order], errors[order], drift[order], len(logs))
