"""Forward passes that leave a model and the random numbers as they were."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.inputs import Batch, misfit, raised, read_batches, require_model
from levada.probe.recomputation import activations_kept

__all__ = ["first_batch", "run_once", "untouched"]


@contextlib.contextmanager
def untouched(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed every generator; what forward passes inside write to buffers goes to copies, which are thrown away.

    The buffers themselves are never written, so that a graph that was recorded inside stays good after it.

    Args:
        model: whose buffers are replaced, and put back at the end, also after an error.
        seed: inside the context.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with untouched(norm, seed=0):
        ...     _ = norm(torch.randn(8, 2))
        >>> norm.running_mean.tolist(), int(norm.num_batches_tracked)
        ([0.0, 0.0], 0)
    """
    tables = [(module._buffers, dict(module._buffers)) for module in dict.fromkeys(model.modules())]
    copies: dict[int, Tensor] = {}
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda and p.device.index is not None})
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    python_state = random.getstate()
    with torch.random.fork_rng(devices):
        try:
            for table, saved in tables:
                for name, buffer in saved.items():
                    if buffer is not None:
                        table[name] = copies.setdefault(id(buffer), buffer.detach().clone())
            random.seed(seed)
            if numpy is not None:
                numpy.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            with torch.inference_mode(False), activations_kept(model):
                yield
        finally:
            for table, saved in tables:
                table.clear()
                table.update(saved)
            for module, training in modes:
                module.training = training
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


def first_batch(model: nn.Module, batch: Any, owner: str) -> Batch:
    """Return the first batch of what the user gave, validated.

    Args:
        model: the model.
        batch: as `levada.check` takes it.
        owner: the function that asks, as the user typed it.

    Raises:
        UsageError: if model or batch cannot be used.
    """
    return read_batches(require_model(model, owner), batch, owner)[0]


def run_once(model: nn.Module, batch: Batch, owner: str) -> Any:
    """Call the model, and say what was given if it raises.

    Args:
        model: the model.
        batch: its inputs.
        owner: the function that asks, as the user typed it.

    Raises:
        UsageError: if the model does not run on the batch.
    """
    try:
        return model(*batch.args, **batch.kwargs)
    except Exception as error:
        raise UsageError(
            f"{owner}: the model must run on the batch; on inputs {batch.describe()} {type(model).__name__} raised "
            f"{raised(error)} {misfit(model, batch, error)}"
        ) from error
