"""The initialisation that looks at data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
    with _hooked({w.module: _scale(w.site, variances, tolerance) for w in found}), _buffers_kept(module):
        for _ in range(num_passes):
            variances.update({w.site: [] for w in found})
            module(*args)
            site, distance = _worst(variances)
            if distance <= tolerance:
                return module
    raise UsageError(
        f"lsuv: {num_passes} passes did not bring every variance within {tolerance} of 1; that of {site} is "
        f"{distance:.3g} from it. Raise num_passes or tolerance, or use a module once."
    )


@contextmanager
def _hooked(hooks: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    kept = [(owner, n, b, b.clone()) for owner in module.modules() for n, b in owner._buffers.items() if b is not None]
    try:
        yield
    finally:
        for owner, name, buffer, value in kept:
            owner._buffers[name] = buffer.copy_(value)


def _worst(variances: dict[str, list[float]]) -> tuple[str, float]:
    """Return the site whose variance was furthest from 1, and how far."""
    unseen = [site for site, values in variances.items() if not values]
    if unseen:
        raise UsageError(f"lsuv: the batch must reach every weight, but does not reach {', '.join(unseen)}.")
    distances = {site: max(abs(v - 1) for v in values) for site, values in variances.items()}
    return max(distances.items(), key=lambda item: item[1])


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
