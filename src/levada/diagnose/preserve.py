"""Leave a model, its gradients and every source of random numbers as they were, also after an error."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from levada.inputs import Batch, each_tensor

__all__ = ["given_copies_if_edited", "preserve"]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


@contextmanager
def preserve(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed every random number generator, and on leaving undo whatever happened to the model and to them.

    Parameters, buffers, gradients, `requires_grad`, mode and hooks come back as the same objects with the same bits;
    so do the states of the generators of torch (all devices in use), numpy and Python. Hooks that forward itself adds
    stay, like the attributes by which it knows that it added them: without those hooks it would not run again.

    Args:
        model: the model to protect.
        seed: seed inside the context.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> with preserve(model, seed=0):
        ...     _ = model(torch.randn(8, 2))
        >>> int(model.num_batches_tracked), model.running_mean.tolist()
        (0, [0.0, 0.0])
    """
    modules = [_ModuleState(module) for module in dict.fromkeys(model.modules())]
    devices = sorted(
        {p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None}
    )
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    python_state = random.getstate()
    with torch.random.fork_rng(devices):
        try:
            random.seed(seed)
            if numpy is not None:
                numpy.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            for state in modules:
                state.restore()
            random.setstate(python_state)
            if numpy is not None:
                numpy.random.set_state(numpy_state)


@contextmanager
def given_copies_if_edited(model: nn.Module, batch: Batch) -> Iterator[list[Tensor]]:
    """Find whether a forward pass inside edits its inputs; then put these back, and give later passes copies.

    `preserve` takes the hook that makes the copies away again.

    Args:
        model: what runs inside.
        batch: what it runs on.

    Returns:
        The inputs that were edited; empty until the context ends.
    """
    edited: list[Tensor] = []
    states = [_TensorState(tensor) for tensor in batch.tensors()]
    try:
        yield edited
    finally:
        changed = [state for state in states if not _same_bits(state.tensor, state.bits)]
        for state in changed:
            state.restore()
        edited.extend(state.tensor for state in changed)
        if changed and _copies_given not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(_copies_given, prepend=True, with_kwargs=True)


def _copies_given(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return each_tensor(args, Tensor.clone), each_tensor(kwargs, Tensor.clone)


class _TensorState:
    """A tensor, its bits, and its gradient."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.bits = tensor.detach().clone()
        self.requires_grad = tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.grad_bits = None if self.grad is None else self.grad.detach().clone()

    def restore(self) -> None:
        with torch.no_grad():
            if not _same_bits(self.tensor, self.bits):
                self.tensor.copy_(self.bits)
            if self.tensor.is_leaf:
                self.tensor.requires_grad_(self.requires_grad)
                self.tensor.grad = self.grad
            if self.grad is not None and self.grad_bits is not None and not _same_bits(self.grad, self.grad_bits):
                self.grad.copy_(self.grad_bits)


class _ModuleState:
    """What a module holds itself, without its children."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.training = module.training
        self.tables: dict[str, dict[Any, Any]] = {
            name: dict(getattr(module, name)) for name in ("_parameters", "_buffers", *_HOOKS) if hasattr(module, name)
        }
        held = [*self.tables["_parameters"].values(), *self.tables["_buffers"].values()]
        self.tensors = [_TensorState(t) for t in held if isinstance(t, Tensor)]

    def restore(self) -> None:
        self.module.training = self.training
        own = {key for key, hook in self.module._forward_pre_hooks.items() if hook is _copies_given}
        for name, saved in self.tables.items():
            table = getattr(self.module, name)
            if name in _HOOKS:
                saved = saved | {key: hook for key, hook in table.items() if key not in saved and key not in own}
            # Writing an unchanged table would invalidate what a compiler has guarded.
            if list(table) != list(saved) or any(table[key] is not value for key, value in saved.items()):
                table.clear()
                table.update(saved)
        for state in self.tensors:
            state.restore()


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # NaN must equal itself, and -0 must not equal 0: compare bytes.
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_sparse or a.is_quantized or a.numel() == 0:
        return a.numel() == 0
    return torch.equal(a.detach().contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
