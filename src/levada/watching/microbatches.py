"""How many micro-batches a pipeline averages after their gradients were made."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Final, final

from torch import nn

__all__ = ["MicroBatches"]


@final
class MicroBatches:
    """Hears of the number by which a pipeline's schedule divides the gradients of a stage.

    A schedule of `torch.distributed.pipelining` calls backward on the loss of each micro-batch as it is, and divides
    the parameters' gradients by their number when all are there. What a block sees is the gradient before that.

    Args:
        model: what the loop watches: a stage's module, in the stage as it is or wrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._count = 1

    def open(self) -> None:
        """Hear from now, if there are pipelines; call it again when there may be one."""
        if self not in _listeners:
            _listeners.append(self)
        _wrap()

    def close(self) -> None:
        """Hear no more."""
        if self in _listeners:
            _listeners.remove(self)
        if not _listeners:
            _unwrap()

    def take(self) -> int:
        """Return the number since this was called last; 1 without a pipeline."""
        count, self._count = self._count, 1
        return count

    def hear(self, stage: nn.Module, count: int) -> None:
        """Take the number of a stage's micro-batches, if the stage is ours."""
        if any(module is self._model for module in stage.modules()) or any(m is stage for m in self._model.modules()):
            self._count = count


_listeners: Final[list[MicroBatches]] = []
_wrapped: Final[list[tuple[type, Callable[..., None]]]] = []


def _wrap() -> None:
    module = sys.modules.get("torch.distributed.pipelining.stage")  # if nothing has imported it, there are none
    stage = getattr(module, "PipelineStage", None)
    owner = next((kind for kind in getattr(stage, "__mro__", ()) if "scale_grads" in vars(kind)), None)
    if owner is None or _wrapped:
        return
    original = owner.scale_grads

    @functools.wraps(original)
    def scale_grads(self: Any, grad_scale_factor: int) -> None:
        for listener in _listeners:
            listener.hear(self.submod, grad_scale_factor)
        original(self, grad_scale_factor)

    owner.scale_grads = scale_grads
    _wrapped.append((owner, original))


def _unwrap() -> None:
    while _wrapped:
        owner, original = _wrapped.pop()
        if getattr(owner.__dict__.get("scale_grads"), "__wrapped__", None) is original:
            owner.scale_grads = original  # type: ignore[attr-defined]
