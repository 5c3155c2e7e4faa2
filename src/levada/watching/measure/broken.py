"""Which parameters, buffers and gradients of a model hold NaN or Inf."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from levada.watching.loop.places import original, plain_name
from levada.watching.measure.reading import plain

__all__ = ["broken_buffers", "broken_gradients", "broken_parameters"]


def broken_parameters(model: nn.Module) -> Mapping[str, str]:
    """Return the parameters that hold NaN or Inf, with which of them.

    Args:
        model: the model.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> _ = model.bias.data.fill_(torch.inf)
        >>> dict(broken_parameters(model))
        {'bias': 'Inf'}
    """
    named = original(model).named_parameters()
    return _broken((name, parameter) for name, parameter in named if not nn.parameter.is_lazy(parameter))


def broken_buffers(model: nn.Module) -> Mapping[str, str]:
    """Return the buffers that hold NaN or Inf, with which of them.

    What holds nothing but -Inf beside its numbers may be a mask. Running statistics that a module updates are passed
    over: the pass that is not finite has just written them, and its output does not depend on them.

    Args:
        model: the model.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())
        >>> for norm in model:
        ...     _ = norm.running_mean.fill_(torch.nan)
        >>> dict(broken_buffers(model))
        {'1.running_mean': 'NaN'}
    """
    modules = [(name, module) for name, module in original(model).named_modules() if not _updates(module)]
    named = ((plain_name(f"{name}.{own}".lstrip(".")), b) for name, m in modules for own, b in m._buffers.items())
    those = {name: plain(b) for name, b in named if b is not None and b.is_floating_point()}
    broken = _broken(those.items())
    return {name: kind for name, kind in broken.items() if kind == "NaN" or bool(torch.isposinf(those[name]).any())}


def _updates(module: nn.Module) -> bool:
    """Whether a module updates the running statistics that it holds, and does not use them."""
    return module.training and isinstance(module, nn.modules.batchnorm._NormBase)


def broken_gradients(model: nn.Module) -> Mapping[str, str]:
    """Return the parameters whose gradient holds NaN or Inf, with which of them.

    Args:
        model: the model.
    """
    return _broken((name, p.grad) for name, p in original(model).named_parameters() if p.grad is not None)


def _broken(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    found = {}
    for name, tensor in tensors:
        local = plain(tensor.detach())
        local = local._values() if local.is_sparse else local
        if local.is_meta or bool(torch.isfinite(local).all()):
            continue
        found[plain_name(name)] = "NaN" if bool(torch.isnan(local).any()) else "Inf"
    return found
