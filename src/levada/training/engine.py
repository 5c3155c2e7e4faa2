"""One step as the training loop knows it: a batch goes in, gradients are left, the loss comes out."""

from __future__ import annotations

from typing import Any, Protocol, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from levada.training.pipeline import Pipeline

__all__ = ["Engine", "Staged", "WholeNetwork", "cross_entropy"]


class Engine(Protocol):
    """What computes a step, whichever way the network is spread over processes.

    Attributes:
        module: what this process holds of the network.
        replica: which part of a batch it is given.
        replicas: into how many parts batches are dealt out.
    """

    module: nn.Module
    replica: int
    replicas: int

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Add the gradient of the loss over the whole batch to this process's parameters.

        Args:
            inputs: this process's part of the batch.
            targets: the same of its targets.

        Returns:
            The mean loss over the whole batch, the same in every process.
        """

    def clip(self, limit: float) -> Tensor:
        """Scale the gradient down to a norm.

        Args:
            limit: the largest norm of the gradient of all parameters of all processes; infinity leaves it.

        Returns:
            The norm before that.
        """

    def evaluate(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over a batch in evaluation mode, the same in every process.

        Args:
            inputs: this process's part.
            targets: the same of its targets.
        """

    def settle(self) -> None:
        """Make equal what each process measures by itself, such as running statistics."""


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats, in float32.

    Args:
        scores: `(..., outputs)`.
        targets: `(...)`, the right outputs' numbers.

    Example:
        >>> cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64))
        tensor(1.3863)
    """
    return functional.cross_entropy(scores.float().flatten(0, -2), targets.flatten())


@final
class WholeNetwork:
    """The network as a whole in every process: alone, as copies (DDP) or with its parameters in shards (FSDP2).

    Args:
        model: as `levada.training.parallelise` returns it.
        accumulate: micro-batches of a step.
        bfloat16: whether the forward pass runs in bfloat16 by autocast.
        replica: which part of a batch it is given.
        replicas: number of processes.
    """

    def __init__(
        self, model: nn.Module, *, accumulate: int = 1, bfloat16: bool = False, replica: int = 0, replicas: int = 1
    ) -> None:
        self.module = model
        self.replica, self.replicas = replica, replicas
        self._accumulate, self._bfloat16 = accumulate, bfloat16

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Run the micro-batches forward and backward; gradients are exchanged in the last one."""
        losses = []
        parts = zip(inputs.chunk(self._accumulate), targets.chunk(self._accumulate), strict=True)
        for number, (x, wanted) in enumerate(parts, start=1):
            self._exchange(number == self._accumulate)
            loss = self._loss(x, wanted)
            # Of the loss itself, not of a part of it: who looks on sees the loss at the root.
            torch.autograd.backward(loss, loss.new_tensor(1 / self._accumulate))
            losses.append(loss.detach())
        return self._mean(torch.stack(losses).mean())

    def clip(self, limit: float) -> Tensor:
        """Scale the gradient down to a norm; of sharded parameters it is the norm of the whole ones."""
        norm: Any = nn.utils.clip_grad_norm_(self.module.parameters(), limit)
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over a batch in evaluation mode."""
        self.module.eval()
        try:
            return self._mean(self._loss(inputs, targets))
        finally:
            self.module.train()

    @torch.no_grad()
    def settle(self) -> None:
        """Average running statistics over the processes."""
        for buffer in self.module.buffers() if self.replicas > 1 else ():
            if buffer.is_floating_point():
                buffer.copy_(self._mean(buffer))

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._bfloat16):
            scores = self.module(inputs)
        return cross_entropy(scores, targets)

    def _exchange(self, wanted: bool) -> None:
        module: Any = self.module
        if hasattr(module, "set_requires_gradient_sync"):  # FSDP2
            module.set_requires_gradient_sync(wanted)
        elif isinstance(module, nn.parallel.DistributedDataParallel):
            module.require_backward_grad_sync = wanted

    def _mean(self, value: Tensor) -> Tensor:
        if self.replicas > 1:
            total = value.double()
            dist.all_reduce(total)
            value = (total / self.replicas).to(value.dtype)
        return value


@final
class Staged:
    """The network in stages, one or several in each process, through which micro-batches pass.

    Args:
        pipeline: the stages; its loss is `cross_entropy`.
        bfloat16: whether the forward pass runs in bfloat16 by autocast.
    """

    replica, replicas = 0, 1  # every process is given the whole batch

    def __init__(self, pipeline: Pipeline, *, bfloat16: bool = False) -> None:
        self.module: nn.Module = pipeline.module
        self._pipeline, self._bfloat16 = pipeline, bfloat16

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Send the micro-batches through the stages, forward and backward."""
        with self._autocast(inputs):
            return self._pipeline.step(inputs, targets)

    def clip(self, limit: float) -> Tensor:
        """Scale the gradients of all stages by one factor."""
        return self._pipeline.clip_gradients(limit)

    def evaluate(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over a batch in evaluation mode."""
        self.module.eval()
        try:
            with self._autocast(inputs):
                return self._pipeline.evaluate(inputs, targets)
        finally:
            self.module.train()

    def settle(self) -> None:
        """Do nothing: what a stage measures, no other process does."""

    def _autocast(self, inputs: Tensor) -> torch.autocast:
        return torch.autocast(inputs.device.type, torch.bfloat16, enabled=self._bfloat16)
