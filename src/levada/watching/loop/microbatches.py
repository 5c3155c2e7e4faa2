"""The micro-batches of a pipeline's stage: when they begin, and how many of them are averaged at the end."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any, Final, final

from torch import nn

__all__ = ["MicroBatches"]


@final
class MicroBatches:
    """Hears of what a schedule of `torch.distributed.pipelining` does with a stage.

    It calls backward on the loss of each micro-batch as it is, and divides the parameters' gradients by their number
    when all are there: what a block sees is the gradient before that. Before its first step it runs a stage on made-up
    numbers, to learn shapes: that is not part of the step.

    Args:
        model: what the loop watches, as it is in the stage or inside of it.
        start: called before the first micro-batch of a step.

    Attributes:
        divided: by how many micro-batches the gradients were divided the last time.
        stages: which of several stages the model was seen to be: others hold other blocks. Empty without any.
        num_stages: how many there are.
    """

    def __init__(self, model: nn.Module, start: Callable[[], None]) -> None:
        self._model = model
        self._start = start
        self.divided, self.num_stages = 1, 0
        self.stages: tuple[int, ...] = ()
        self._started = False
        self._count = 1

    def open(self) -> None:
        """Hear from now, if there are pipelines; call it again when there may be one."""
        with _lock:
            if self not in _listeners:
                _listeners.append(self)
            _wrap()

    def close(self) -> None:
        """Hear no more."""
        with _lock:
            if self in _listeners:
                _listeners.remove(self)
            if not _listeners:
                _unwrap()

    def take(self) -> int:
        """End a step, and return by how many micro-batches its gradients were divided; 1 without a pipeline."""
        count, self._count, self._started = self._count, 1, False
        return count

    def forward_one_chunk(self, stage: nn.Module, index: int = 0, stages: int = 1) -> None:
        """Hear of the forward pass of a micro-batch through one of so many stages."""
        if (self._started and index in self.stages) or not self._is_ours(stage):
            return
        if stages > 1:
            self.stages, self.num_stages = tuple(sorted({*self.stages, index})), stages
        if not self._started:
            self._started = True
            self._start()

    def scale_grads(self, stage: nn.Module, count: int) -> None:
        """Hear of the division of a stage's gradients."""
        if self._is_ours(stage):
            self._count = self.divided = count

    def _is_ours(self, stage: nn.Module) -> bool:
        return any(module is self._model for module in stage.modules())


_lock: Final = threading.Lock()
_listeners: Final[list[MicroBatches]] = []
_wrapped: Final[list[tuple[type, str, Callable[..., Any]]]] = []


def _wrap() -> None:
    module = sys.modules.get("torch.distributed.pipelining.stage")  # if nothing has imported it, there are none
    if module is None or _wrapped:
        return
    for method in ("forward_one_chunk", "scale_grads"):
        for owner in module.PipelineStage.__mro__:
            if method in vars(owner):
                original = vars(owner)[method]
                setattr(owner, method, _telling(method, original))
                _wrapped.append((owner, method, original))
                break


def _telling(method: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        for listener in tuple(_listeners):
            if method == "forward_one_chunk":
                listener.forward_one_chunk(self.submod, getattr(self, "stage_index", 0), getattr(self, "num_stages", 1))
            else:
                listener.scale_grads(self.submod, *args, *kwargs.values())
        return original(self, *args, **kwargs)

    return told


def _unwrap() -> None:
    while _wrapped:
        owner, method, original = _wrapped.pop()
        if getattr(vars(owner).get(method), "__wrapped__", None) is original:
            setattr(owner, method, original)
