"""The initialisation that looks at data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.initialise._weights import weights
from levada.initialise.isometry import orthogonal

__all__ = ["lsuv"]


@torch.no_grad()
def lsuv(
    module: nn.Module,
    batch: Tensor | tuple[Any, ...],
    *,
    tolerance: float = 0.02,
    num_passes: int = 10,
    generator: Generator | None = None,
) -> nn.Module:
    """Give every weight's output unit variance on a batch: orthogonal weights, then `W <- W / std(W x)` in turn.

    A forward pass scales each weight when its input is there, the ones before it being scaled already, and goes on with
    the scaled output; passes repeat until no variance is further from 1 than `tolerance`: one is enough, and a second
    one to see it, unless a module is used more than once. The passes run in the mode that the module is in; buffers
    (the running statistics of batch normalisation) are as before, and no hook is left.

    Args:
        module: changed in place: every Linear and Conv1d-3d.
        batch: its input, or a tuple of its inputs.
        tolerance: largest distance of a variance from 1.
        num_passes: how many forward passes at most.
        generator: where the random numbers of the orthogonal weights come from.

    Returns:
        The module.

    Raises:
        UsageError: if the batch does not reach a weight, an output does not vary or is not finite, or `num_passes` do
            not reach `tolerance`. The weights are changed then.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
        >>> x = 100 * torch.randn(50, 8)
        >>> bool((lsuv(net, x)(x).var(correction=0) - 1).abs() < 0.02)
        True

    Source: Mishkin and Matas, 2016, arXiv 1511.06422.
    """
    require_at_least("lsuv", "num_passes", num_passes, 1)
    found = weights(module, "lsuv")
    packed = next((w for w in found if isinstance(w.module, nn.MultiheadAttention)), None)
    if packed is not None:
        raise UsageError(f"lsuv: the outputs inside of an nn.MultiheadAttention cannot be seen, got {packed.site}.")
    orthogonal(module, generator=generator)
    args = batch if isinstance(batch, tuple) else (batch,)
    variances: dict[str, list[float]] = {}
    handles = [w.module.register_forward_hook(_scale(w.site, variances, tolerance), with_kwargs=True) for w in found]
    buffers = [
        (owner, n, b, b.clone()) for owner in module.modules() for n, b in owner._buffers.items() if b is not None
    ]
    try:
        for _ in range(num_passes):
            variances.update({w.site: [] for w in found})
            module(*args)
            unseen = [site for site, values in variances.items() if not values]
            if unseen:
                raise UsageError(f"lsuv: the batch must reach every weight, but does not reach {', '.join(unseen)}.")
            worst = max(variances, key=lambda site: _distance(variances[site]))
            if _distance(variances[worst]) <= tolerance:
                return module
    finally:
        for handle in handles:
            handle.remove()
        for owner, name, buffer, value in buffers:
            owner._buffers[name] = buffer.copy_(value)
    raise UsageError(
        f"lsuv: {num_passes} passes did not bring every variance within {tolerance} of 1; {worst} has "
        f"{variances[worst]}. Raise num_passes or tolerance, or use a module once."
    )


def _distance(variances: list[float]) -> float:
    return max(abs(v - 1) for v in variances)


def _scale(site: str, variances: dict[str, list[float]], tolerance: float) -> Callable[..., Tensor]:
    """Make a hook that records the variance of an output and, where it is not 1, scales the weight and goes on."""

    def hook(module: nn.Linear, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        variance = out.double().var(correction=0).item()
        if not (math.isfinite(variance) and variance > 0):
            raise UsageError(
                f"lsuv: an output must vary and be finite to be scaled, but {site} has variance {variance}."
            )
        variances[site].append(variance)
        if abs(variance - 1) <= tolerance:
            return out
        module.weight /= math.sqrt(variance)
        return module.forward(*args, **kwargs)

    return hook
