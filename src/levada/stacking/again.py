"""The layers as they are written, as they were in a forward pass: for what recorded operations cannot differentiate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from levada.stacking.recording import RecordingError

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
        settings: what the layers are, by which their recording was found.
        ask: returns what they are now, or raises RecordingError where they are no longer alike.
        buffers: of all layers, by module and name.
        written: whether a forward pass writes into them.
        read: whether the backward pass needs them.
        device: type of the device.
        lock: held while they run.
    """

    def __init__(
        self,
        run: Callable[[Any, Sequence[Tensor]], Any],
        settings: Any,
        ask: Callable[[], Any],
        buffers: Sequence[tuple[nn.Module, str]],
        written: Sequence[bool],
        read: Sequence[bool],
        device: str,
        lock: contextlib.AbstractContextManager[Any],
    ) -> None:
        self.lock = lock
        self.run, self.settings, self.ask, self.names = run, settings, ask, buffers
        self.cast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        self.buffers: list[Tensor | None] = [module._buffers[name] for module, name in buffers]
        pairs = zip(self.buffers, written, strict=True)
        self.read = read
        self.before = [None if b is None or not changes else b.clone() for b, changes in pairs]
        self.versions: list[int] = []

    def note_versions(self) -> None:
        """Take the buffers as they are after the forward pass for what its backward pass needs."""
        self.versions = [_version(b) for b in self.buffers]

    def require_buffers(self, needed: Sequence[bool] | None = None) -> None:
        """Raise if a buffer was changed in place after the forward pass.

        Args:
            needed: which are; by default those that the backward pass reads.

        Raises:
            RuntimeError: if one of these was.
        """
        noted = zip(self.names, self.buffers, self.versions, needed or self.read, strict=True)
        for (module, name), buffer, version, asked in noted:
            if asked and _version(buffer) != version:
                raise RuntimeError(
                    f"Stack: buffer {name!r} of a {type(module).__name__} is needed for gradients as it was in the "
                    f"forward pass, and was changed in place: it is at version {_version(buffer)}, expected {version}. "
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
        try:
            same = self.ask() == self.settings
        except RecordingError:
            same = False
        if not same:
            raise RuntimeError(
                "Stack: gradients of gradients, and of many outputs at once, run stacked layers again as they were in "
                "the forward pass, and a setting, module or hook of theirs is another one now. Change it afterwards, "
                "or call arrange(stacked=False) before."
            )
        self.require_buffers([old is None for old in self.before])
        device, kind, enabled = self.cast
        with self._buffers_as_before(), torch.autocast(device, dtype=kind, enabled=enabled):
            return self.run(state, parameters)

    @contextlib.contextmanager
    def _buffers_as_before(self) -> Iterator[None]:
        """Let the layers find copies of their buffers: what a branch counts, it counts once."""
        now = [module._buffers[name] for module, name in self.names]
        try:
            for (module, name), held, old in zip(self.names, self.buffers, self.before, strict=True):
                given = held if old is None else old
                module._buffers[name] = None if given is None else given.clone()
            yield
        finally:
            for (module, name), held in zip(self.names, now, strict=True):
                module._buffers[name] = held


def _version(buffer: Tensor | None) -> int:
    return 0 if buffer is None or buffer.is_inference() else buffer._version
