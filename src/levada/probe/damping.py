r"""Where an adaptive optimizer's eps, and not the size of the gradient, says how far a step goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from levada.stacking import LayerSlice

__all__ = ["damped", "eps_fraction"]


def damped(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> tuple[int, int] | None:
    r"""Count the elements whose step the optimizer's eps makes smaller.

    Adam steps by $\eta\,\hat m / (\sqrt{\hat v} + \epsilon)$: an element with $\sqrt{\hat v} < \epsilon$ moves by less
    than half of what it would with $\epsilon = 0$, and a gradient is not rescaled there but harmlessly small no more.

    Args:
        optimizer: after at least one step. Known are those that keep `exp_avg_sq` (Adam and its kin), `square_avg`
            (RMSprop, and Adadelta with its eps under the root) or `sum` (Adagrad).
        parameter: one of its parameters.

    Returns:
        Elements with $\sqrt{\hat v} < \epsilon$, and elements that ever had a gradient; None where it has no such
        state.

    Example:
        >>> p = nn.Parameter(torch.zeros(4))
        >>> p.grad = torch.tensor([1.0, 1e-9, 1e-30, 0.0])   # the square of the third is no float32
        >>> adam = torch.optim.Adam([p])
        >>> adam.step()
        >>> damped(adam, p)
        (2, 3)

    Source: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1; torch.optim.
    """
    held = parameter.source if isinstance(parameter, LayerSlice) else parameter
    group = next((g for g in optimizer.param_groups if any(p is held for p in g["params"])), None)
    eps = group.get("eps") if group is not None else None
    if group is None or not isinstance(eps, int | float) or not eps > 0:  # of Adafactor it is a pair
        return None
    second = _second_moment(optimizer.state.get(held, {}) if held is not None else {}, group)
    if second is None:
        return None
    square, correction, limit = second
    if isinstance(parameter, LayerSlice):
        square = square[parameter.layer]
    gradient = parameter.grad
    with torch.no_grad():
        reached = square > 0
        if gradient is not None and gradient.layout is torch.strided and gradient.shape == square.shape:
            reached = reached | (gradient != 0)
        root = square.to(torch.promote_types(square.dtype, torch.float32)).sqrt() / math.sqrt(correction)
        return int(((root < limit) & reached).sum()), int(reached.sum())


def _second_moment(state: Mapping[str, Any], group: Mapping[str, Any]) -> tuple[Tensor, float, float] | None:
    """Return the second moment, what divides it, and what its root is compared with."""
    eps = float(group["eps"])
    for key in ("max_exp_avg_sq", "exp_avg_sq"):
        if isinstance(state.get(key), Tensor) and "betas" in group and "step" in state:
            return state[key], 1 - float(group["betas"][1]) ** float(state["step"]), eps
    square = state.get("square_avg")
    if isinstance(square, Tensor):
        if "acc_delta" in state:
            return square, 1.0, math.sqrt(eps)
        mean = state.get("grad_avg")
        return (square - mean.square()).clamp_min(0.0) if isinstance(mean, Tensor) else square, 1.0, eps
    return (state["sum"], 1.0, eps) if isinstance(state.get("sum"), Tensor) else None


def eps_fraction(counts: Mapping[str, tuple[int, int]], names: Iterable[str]) -> float:
    """Return the share of the elements with a gradient whose step eps makes smaller; NaN where none is known.

    Args:
        counts: what `damped` returned, by parameter.
        names: of the parameters.

    Example:
        >>> eps_fraction({"a": (1, 4), "b": (1, 4)}, ["a", "b"])
        0.25
    """
    known = [counts[name] for name in names if name in counts]
    total = sum(count for _, count in known)
    return sum(below for below, _ in known) / total if total else math.nan
