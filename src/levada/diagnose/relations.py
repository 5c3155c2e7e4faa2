r"""How the inputs of a batch lie to each other at every block: effective rank, correlation, and tokens of one input.

The effective rank is the participation ratio $(\operatorname{tr} G)^2 / \operatorname{tr} G^2$ of the Gram matrix $G$
of the signal minus its mean over the batch: $r$ for $r$ equal eigenvalues. It is at most the smaller of the batch less
one and the width, and never more than what the inputs of the block bring along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from levada.probe import Execution
from levada.probe.attention import token_similarity
from levada.probe.recorder import Recorder
from levada.probe.taps import Plan, Taps, Target, plan_from

__all__ = ["COLLAPSED", "WIDE", "Lookout", "Relation", "collapse", "effective_rank", "relation"]

# One direction, and a little of a second.
COLLAPSED = 1.5
# Where batch, width and inputs allow fewer directions, one is not far from all.
WIDE = 4.0

# Rows of a batch that are compared, and elements of a row: more would cost time and tell nothing new.
MOST_ROWS, MOST_ELEMENTS = 64, 1 << 16
# Inputs whose cosines are kept for a picture.
MOST_SHOWN = 12
# Roundings, relative to the signal's size, below which a difference between inputs is none.
NOISE = 64.0


@dataclass(frozen=True, slots=True)
class Relation:
    """How inputs, and tokens of one input, lie to each other at one boundary.

    Attributes:
        rank: effective rank of the differences between inputs; NaN if there are none above rounding.
        low: the smallest of the ranks of the batch and of its two halves.
        high: the largest.
        attainable: largest rank that batch and width allow.
        correlation: mean cosine between two inputs.
        tokens: root mean square of the difference between the tokens of one input, over the signal's; NaN without
            tokens.
        cosine: mean cosine between two tokens of one input; NaN without tokens.
        cosines: between the differences of the first inputs from the mean of the batch; empty if there are none.
    """

    rank: float
    low: float
    high: float
    attainable: int
    correlation: float
    tokens: float = math.nan
    cosine: float = math.nan
    cosines: tuple[tuple[float, ...], ...] = ()


def effective_rank(rows: Tensor) -> float:
    """Return the participation ratio of the differences between rows.

    Args:
        rows: float64, `(batch, features)`.

    Example:
        >>> effective_rank(torch.eye(4).double()), effective_rank(torch.arange(4.0).double()[:, None])
        (3.0, 1.0)
    """
    apart = rows - rows.mean(0)
    gram = apart @ apart.T
    square = float(gram.square().sum())
    return float(gram.trace()) ** 2 / square if square > 0 else math.nan


def relation(signal: Tensor, *, tokens: bool = False) -> Relation | None:
    """Return how the inputs lie to each other, or None for a single one or a signal that is not finite.

    Args:
        signal: `(batch, ...)`.
        tokens: whether dimension 1 of a signal of three counts tokens.

    Example:
        >>> found = relation(torch.eye(4))
        >>> found.rank, found.attainable, found.correlation
        (3.0, 3, 0.0)
    """
    if signal.dim() < 2 or len(signal) < 2 or signal.layout is not torch.strided:
        return None
    rows = signal.detach()[:MOST_ROWS].flatten(1)
    stride = -(-rows.shape[1] // MOST_ELEMENTS)
    rows = rows[:, ::stride].double()
    if not bool(torch.isfinite(rows).all()):
        return None
    total = float(rows.square().sum())
    count, width = rows.shape
    mean = float(rows.sum(0).square().sum())
    correlation = (mean - total) / (count - 1) / total if total > 0 else math.nan
    whole = min(count - 1, width)
    apart = math.sqrt(max(0.0, total - mean / count) / total) if total > 0 else 0.0
    of_tokens = _between_tokens(signal, tokens), token_similarity(signal) if tokens else math.nan
    if apart <= NOISE * torch.finfo(signal.dtype).eps:
        return Relation(math.nan, math.nan, math.nan, whole, correlation, *of_tokens)
    rank = effective_rank(rows)
    ranks = [rank, *(effective_rank(half) for half in ((rows[::2], rows[1::2]) if count >= 8 else ()))]
    known = [r for r in ranks if not math.isnan(r)] or [math.nan]
    return Relation(rank, min(known), max(known), whole, correlation, *of_tokens, _cosines(rows))


def collapse(names: Sequence[str], relations: Mapping[str, Relation], start: float) -> tuple[int, float] | None:
    """Return the first block that is wide and at which inputs differ along one direction; None without any.

    Args:
        names: of the blocks with a relation, in order, without the head.
        relations: by block.
        start: effective rank of the inputs.

    Returns:
        Its index, and the rank before it, at a narrow block too.
    """
    for index, name in enumerate(names):
        here = relations[name]
        if here.attainable >= WIDE and here.high <= COLLAPSED:
            return index, start if index == 0 else relations[names[index - 1]].rank
    return None


def _cosines(rows: Tensor) -> tuple[tuple[float, ...], ...]:
    apart = torch.nn.functional.normalize((rows - rows.mean(0))[:MOST_SHOWN], dim=1)
    return tuple(tuple(row) for row in (apart @ apart.T).tolist())


def _between_tokens(signal: Tensor, tokens: bool) -> float:
    if not tokens or signal.dim() != 3 or signal.shape[1] < 2:
        return math.nan
    values = signal.detach()[:MOST_ROWS].double()
    size = float(values.square().sum())
    return math.sqrt(float((values - values.mean(1, keepdim=True)).square().sum()) / size) if size > 0 else math.nan


@final
class Lookout:
    """Runs a model and looks at the boundaries of its blocks, at a few hooks' cost.

    Args:
        model: the model.
        recorder: after a recorded pass of it.
        execution: the blocks found in that pass.
    """

    def __init__(self, model: nn.Module, recorder: Recorder, execution: Execution) -> None:
        self._model = model
        numbers = {n for n in execution.output_of.values() if n >= 0}
        self._plan: Plan = plan_from(recorder, execution, {n: [Target(n, True, None, True)] for n in numbers})
        self._names = {number: site for site, number in execution.output_of.items()}

    def look(self, run: Callable[[], Any], see: Callable[[str, Tensor], None]) -> Any:
        """Return what `run` returns, after telling of each boundary that its first pass comes by.

        Args:
            run: calls the model.
            see: is given the block's name and the tensor.
        """
        taps = Taps(self._model, self._plan, _Once(self._names, see))
        taps.attach()
        try:
            return run()
        finally:
            taps.detach()


class _Once:
    """Tells of the first pass."""

    def __init__(self, names: Mapping[int, str], see: Callable[[str, Tensor], None]) -> None:
        self._names, self._see = names, see
        self._passes = 0

    def begin(self) -> bool:
        """Look at the first pass."""
        self._passes += 1
        return self._passes == 1

    def end(self, completed: bool) -> None:
        """Nothing is held."""

    def see(self, target: Target, tensor: Tensor) -> None:
        """Pass a boundary on."""
        self._see(self._names[target.site], tensor)

    def see_again(self, target: Target, tensor: Tensor) -> None:
        """Pass over what is computed outside of a pass."""
