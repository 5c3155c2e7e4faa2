"""Partial Jacobian norms: how much of the input of each block arrives at the output, from random cotangents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, require_at_least
from levada._numbers import student_quantile
from levada.probe.cotangent import cotangent_rms
from levada.probe.linearisation import tracked
from levada.probe.recorder import first_floating
from levada.probe.untouched import first_batch, run_once, untouched

__all__ = ["PartialJacobianNorms", "partial_jacobian_norms"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class PartialJacobianNorms:
    r"""$\log_{10}$ of $\frac{1}{N_l} E\,\|\partial h_L/\partial h_l\|_F^2$ for every boundary $l$ up to the output $L$.

    Logarithms, because at depth the numbers leave the range of a float.

    Attributes:
        blocks: names, in order of execution.
        log10: shape `(blocks,)`; -inf where nothing arrives, NaN where a boundary has no graph.
        low: lower end of the 95 % interval over cotangents, at this batch.
        high: its upper end.
        probes: number of cotangents.
    """

    blocks: tuple[str, ...]
    log10: Tensor
    low: Tensor
    high: Tensor
    probes: int

    @property
    def factors(self) -> Tensor:
        """By what each block but the first multiplies the norm, going backwards: 1 is criticality.

        Shape `(blocks - 1,)`: entry `i` is that of block `i + 1`.
        """
        return 10.0 ** (self.log10[:-1] - self.log10[1:])


def partial_jacobian_norms(
    model: nn.Module, batch: Any = None, *, probes: int = 6, seed: int = 0
) -> PartialJacobianNorms:
    r"""Measure the partial Jacobian norm of every block boundary, by one backward pass for each random cotangent.

    $E_u \|J_l^T u\|^2 = \|J_l\|_F^2$ for $u \sim N(0, 1)$ at the output: one cotangent gives all boundaries at once.
    The interval is Student's, over cotangents.

    Args:
        model: any module; parameters, buffers, gradients and random states stay as they were.
        batch: inputs, as `levada.check` takes them.
        probes: number of cotangents; 4 to 8 are enough, since a layer averages over its units.
        seed: of cotangents and forward pass.

    Returns:
        The norms, with their interval.

    Raises:
        UsageError: if the model or the batch cannot be used, or `probes` is below 2.
        MeasurementError: if the output has no graph, or is not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.eye(64)), net[1].weight.data.copy_(0.1 * torch.eye(64))
        >>> found = partial_jacobian_norms(net, torch.ones(8, 64))
        >>> found.blocks, [round(factor, 6) for factor in found.factors.tolist()]
        (('0', '1'), [0.01])

    Source: Doshi, He, Gromov 2021, arXiv 2111.12143 (the norms, and their test of criticality).
    """
    require_at_least("partial_jacobian_norms", "probes", probes, 2, "One cotangent has no interval.")
    first = first_batch(model, batch, "partial_jacobian_norms")
    with untouched(model, seed), tracked(model, first) as (followed, _):

        def run() -> Any:
            outputs = run_once(model, followed, "partial_jacobian_norms")
            output = first_floating(outputs)
            if output is not None and not bool(torch.isfinite(output.detach()).all()):
                raise MeasurementError(
                    f"partial_jacobian_norms: the output of {type(model).__name__} is not finite at this batch, so "
                    "that no gradient means anything. Look for the first block whose output is not finite."
                )
            return outputs

        execution, logs = cotangent_rms(model, run, draws=probes, seed=seed)
    squares = 2 * logs
    top = torch.where(squares.amax(0).isfinite(), squares.amax(0), 0.0)
    scaled = 10.0 ** (squares - top)
    mean = scaled.mean(0)
    half = student_quantile(probes - 1) * scaled.std(0) / math.sqrt(probes)
    names = tuple(site.name for site in execution.sites)
    low = (mean - half).clamp_min(0).log10() + top
    return PartialJacobianNorms(names, mean.log10() + top, low, (mean + half).log10() + top, probes)
