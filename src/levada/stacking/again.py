"""The layers as they are written, as they were in a forward pass: for what recorded operations cannot differentiate."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

__all__ = ["AsWritten", "is_wrapped", "transformed", "untransformed"]

_transform = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)


def transformed() -> bool:
    """Whether a function is transformed meanwhile, by `torch.func` or for derivatives forward."""
    return _transform() is not None or torch.autograd.forward_ad._current_level >= 0


def is_wrapped(x: Tensor) -> bool:
    """Whether a tensor stands for many, as `is_grads_batched` makes them.

    Args:
        x: any tensor.
    """
    return torch._C._functorch.is_legacy_batchedtensor(x) or torch._C._functorch.is_functorch_wrapped_tensor(x)


@contextlib.contextmanager
def untransformed() -> Iterator[None]:
    """Do what no transform has a part in, such as to draw once what all cotangents of a vmap share."""
    level = torch._C._vmapmode_increment_nesting()
    for _ in range(level):
        torch._C._vmapmode_decrement_nesting()
    try:
        with temporarily_clear_interpreter_stack():
            yield
    finally:
        for _ in range(level - 1):
            torch._C._vmapmode_increment_nesting()


@final
class AsWritten:
    """Runs the layers as they are written, if they are what they were in a forward pass.

    Args:
        run: from a state and the stacked parameters to the state after all layers.
        same: tells whether they are what they were.
        names: of all layers' buffers, by module.
        buffers: what these are now.
        written: whether a forward pass writes into those of a layer.
        read: whether the backward pass needs them.
        device: type of the device.
        lock: held while they run.
    """

    def __init__(
        self,
        run: Callable[[Any, Sequence[Tensor]], Any],
        same: Callable[[], bool],
        names: Sequence[tuple[nn.Module, str]],
        buffers: Sequence[Tensor | None],
        written: Sequence[bool],
        read: Sequence[bool],
        device: str,
        lock: contextlib.AbstractContextManager[Any],
    ) -> None:
        self.lock = lock
        self.run, self.same, self.names = run, same, names
        self.cast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        self.buffers, self.read = buffers, read
        places = [i for i, changes in enumerate(written) if changes and buffers[i] is not None]
        self.before = {i: _copy(buffers[i :: len(written)]) for i in places}
        self.versions: list[int] = []

    def note_versions(self) -> None:
        """Take the buffers as they are after the forward pass for what its backward pass needs."""
        self.versions = _versions(self.buffers)

    def require_buffers(self, needed: Sequence[bool] | None = None) -> None:
        """Raise if a buffer was changed in place after the forward pass.

        Args:
            needed: which of a layer's are; by default those that the backward pass reads.

        Raises:
            RuntimeError: if one of these was.
        """
        versions, asked = _versions(self.buffers), needed or self.read
        if versions == self.versions:
            return
        for i, ((module, name), version, noted) in enumerate(zip(self.names, versions, self.versions, strict=True)):
            if asked[i % len(asked)] and version != noted:
                raise RuntimeError(
                    f"Stack: buffer {name!r} of a {type(module).__name__} is needed for gradients as it was in the "
                    f"forward pass, and was changed in place: it is at version {version}, expected {noted}. "
                    "Change it after backward(), or put a new tensor in its place."
                )

    def __call__(self, state: Any, parameters: Sequence[Tensor]) -> Any:
        """Return the state after all layers.

        Args:
            state: before them.
            parameters: the stacked ones.

        Raises:
            RuntimeError: if the layers are no longer what they were.
        """
        with self.lock:
            return self._as_before(state, parameters)

    def _as_before(self, state: Any, parameters: Sequence[Tensor]) -> Any:
        if not self.same():
            raise RuntimeError(
                "Stack: gradients of gradients, and of many outputs at once, run stacked layers again as they were in "
                "the forward pass, and a setting, module or hook of theirs is another one now. Change it afterwards, "
                "or call arrange(stacked=False) before."
            )
        self.require_buffers([i not in self.before for i in range(len(self.read))])
        device, kind, enabled = self.cast
        with self._buffers_as_before(), torch.autocast(device, dtype=kind, enabled=enabled):
            return self.run(state, parameters)

    @contextlib.contextmanager
    def _buffers_as_before(self) -> Iterator[None]:
        """Let the layers find copies of their buffers: what a branch counts, it counts once."""
        now = [module._buffers[name] for module, name in self.names]
        try:
            step = len(self.read)
            for i, ((module, name), held) in enumerate(zip(self.names, self.buffers, strict=True)):
                given = self.before[i % step][i // step] if i % step in self.before else held
                module._buffers[name] = None if given is None else given.clone()
            yield
        finally:
            for (module, name), held in zip(self.names, now, strict=True):
                module._buffers[name] = held


def _versions(buffers: Sequence[Tensor | None]) -> list[int]:
    try:
        return [*map(_read_version, buffers)]
    except (AttributeError, RuntimeError):  # there is none of None, and of what was made in inference mode
        return [0 if b is None or b.is_inference() else b._version for b in buffers]


_read_version = operator.attrgetter("_version")


def _copy(buffers: Sequence[Any]) -> Any:
    """Return copies of one buffer of all layers: in one call, unless their strides would change."""
    return torch.stack([*buffers]) if buffers[0].is_contiguous() else [b.clone() for b in buffers]
