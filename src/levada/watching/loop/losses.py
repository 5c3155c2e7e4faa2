"""The loss, seen where every training loop shows it: as the scalar that `backward` begins at."""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, final

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from levada.probe.recorder import tensors as tensors_in
from levada.watching.loop.constant import ConstantLoss
from levada.watching.loop.markers import Markers, State
from levada.watching.loop.own import OwnPasses, running
from levada.watching.loop.roots import gradients_given, retains, scalars_of
from levada.watching.loop.telling import warn
from levada.watching.loop.tracing import symbolic, uncompiled
from levada.watching.loop.uncleared import Piles

__all__ = ["HELD", "Losses", "graph_task", "in_backward"]

HELD: Final = 2**16
"""Losses that wait for a sample; of more, the first are let go."""

_APART = 256  # losses of micro-batches that are kept apart: a loop that never makes a step adds to them for ever
_NEAR = 64  # nodes of a graph, from the loss on, among which that of the scaler is looked for
_KEY: Final = "levada.scaler"
_graph_task = getattr(torch._C, "_current_graph_task_id", None)  # private: without it, recomputation is not recognised


def graph_task() -> int:
    """Return the number of the backward pass that autograd is running in this thread, -1 if none is."""
    return -1 if _graph_task is None else int(_graph_task())


def in_backward() -> bool:
    """Return whether autograd is running a backward pass in this thread, where checkpoints compute again."""
    return _graph_task is not None and _graph_task() >= 0


class Heard(Protocol):
    """Who hears of backward passes and of a scaler."""

    updates: int

    def before_backward(self) -> None:
        """Hear of a backward pass that this model's thread is about to begin, of whichever model."""

    def restart(self) -> None:
        """Hear, before one, that the gradients of this step were cleared."""

    def learned(self, roots: Sequence[Tensor]) -> None:
        """Hear, after one, that it was this model's, and at which scalars it began, before its loss is counted."""

    def ended(self) -> None:
        """Hear, after one within which an optimizer stepped, that its loss was counted."""

    def skip(self, optimizer: Any) -> None:
        """Hear that a scaler did not let an optimizer step."""


@final
class Losses:
    """The losses of one model's steps, on their device.

    The loss of a step is the number whose gradient the update uses: the sum of what its backward passes began at, each
    times the gradient that was given for it, if one was. A backward pass belongs to the models whose gradients it
    changed. When it finds cleared gradients, what came before it is forgotten: the update will not use it.

    Args:
        model: whose gradients tell.
        optimizers: those that the watch was given.
        heard: who hears of what is seen.
        parts: by what the gradients of a step are divided when all are there.
        scaler: what scales the loss, if that was told; else the one that made the scalar which `backward` begins at.
        spent: called with the seconds of each look.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Any] = (),
        *,
        heard: Heard,
        parts: Callable[[], int],
        scaler: Any = None,
        spent: Callable[[float], None],
    ) -> None:
        self.heard, self.spent = heard, spent
        self.piles = Piles(optimizers)
        self.own = OwnPasses()
        self._parts = parts
        self._scaler = scaler
        self._told = scaler is not None
        self.markers = Markers(model, optimizers)
        self.model = weakref.ref(model)
        self._current: list[Tensor] = []
        self._odd: Tensor | None = None  # whether a loss that was left out was not finite
        self.ended: list[tuple[int, Tensor]] = []
        self.constant = ConstantLoss()
        # At what the backward pass that is running began, and what it was given there.
        self._running: tuple[list[weakref.ref[Tensor]], Sequence[Tensor | None]] = ([], ())
        self._claimed = False  # within it
        self._part = False  # of this step's backward passes the first were not heard

    def open(self) -> None:
        """See backward passes from now: those of the thread that runs the model, this one as far as is known."""
        self.own.open()
        with _lock:
            _watchers.append(self)
            _wrap()

    def close(self) -> None:
        """See no more of them."""
        self.own.close()
        with _lock:
            if self in _watchers:
                _watchers.remove(self)
            _unwrap()

    def pause(self) -> None:
        """Hear of no backward pass until `resume`."""
        self.own.paused = True

    def resume(self, *, within: bool = False) -> None:
        """Hear of them again; what the last update left is not that of the step before.

        Args:
            within: whether backward passes of the step that is under way may have gone by: its loss is not told.
        """
        self.own.paused = False
        self._current, self._part = [], within
        self.piles.forget()

    def current(self) -> Tensor | None:
        """Return the loss of the step that is under way; None where it is not known as a whole."""
        if not self._current or self._part:
            return None
        if len(self._current) == 1:
            return self._current[0]
        return torch.stack(self._current).sum() / self._parts()

    def left(self) -> Tensor | None:
        """Return the loss of a step whose gradients are there, and were not used or cleared."""
        return None if self.markers.cleared() and not self._sharded() else self.current()

    def guarded(self) -> bool:
        """Return whether the loop left out a step whose loss was not finite, and went on."""
        return self._odd is not None and bool(self._odd)

    def end(self, step: int) -> None:
        """End a step."""
        self.own.updated()
        self.piles.updated(self.markers.parameters)
        loss = self.current()
        if loss is not None:
            self.ended.append((step, loss))
            if len(self.ended) > HELD:  # samples are very rare, or come no more
                del self.ended[: HELD // 2]
        elif self.markers.chosen:  # the parameters may have been replaced
            self.markers.mark()
        self._current, self._part = [], False

    def stepped(self, optimizer: Any) -> None:
        """Hear that an optimizer has stepped.

        Args:
            optimizer: one of this model's.
        """
        self.piles.stepped(optimizer, self.markers.of)

    def take(self) -> tuple[list[int], list[Tensor]]:
        """Return steps and losses since this was called last."""
        steps, self.ended = self.ended, []
        return [step for step, _ in steps], [loss for _, loss in steps]

    def known(self, loss: Tensor | None, **others: Tensor | float | None) -> dict[str, Tensor | float]:
        """Return what a sample tells beside its losses, by names, as far as it is known.

        Args:
            loss: of the sampled step, if it was seen.
            others: numbers that others know.
        """
        constant, batch = (None, None) if loss is None else (self.constant.of(loss), self.constant.of(loss, batch=True))
        which, worst = self.piles.worst or (0, None)
        piled = worst.steps or None if worst is not None else None
        of = worst.of if worst is not None and (piled or worst.over) else None  # 0 where nothing is counted
        every = {"loss_scale": self.scale(), **others, "constant_loss": constant, "constant_of_batch": batch}
        every |= {"uncleared_steps": piled, "uncleared_of": of}
        every |= {"uncleared_optimizer": float(which) if piled and self.piles.several else None}
        return {name: value for name, value in every.items() if value is not None}

    def scale(self) -> Tensor | None:
        """Return what the loss is multiplied by, None if by nothing; without waiting for the device where possible."""
        scaler = self._scaler
        if scaler is None or not getattr(scaler, "is_enabled", lambda: True)():
            return None
        ready = getattr(scaler, "_get_scale_async", lambda: None)()  # private: get_scale waits for the device
        return ready if isinstance(ready, Tensor) else torch.tensor(float(scaler.get_scale()))

    def before(self, roots: Sequence[Tensor] = (), given: Sequence[Tensor | None] = ()) -> State:
        """Look at the gradients before a backward pass, and at the scalars at which it begins, times what is given."""
        self._running, self._claimed = ([*map(weakref.ref, roots)], given), False  # should it fail, its graph is let go
        self.heard.before_backward()
        state = self.markers.state()
        self.piles.before(first=not self._current)
        if self._current and self.markers.cleared() and not self._sharded():
            odd = ~torch.isfinite(torch.stack(self._current)).all()
            self._odd = odd if self._odd is None else self._odd | odd.to(self._odd.device)
            self.heard.restart()
            self.constant.restart()
            self.piles.cleared()
            self._current, self._part = [], False
        self.constant.see(roots)
        return state

    def after(self, state: State, roots: Sequence[Tensor], given: Sequence[Tensor | None]) -> None:
        """Keep the loss if the gradients changed."""
        claimed, self._claimed, self._running = self._claimed, False, ([], ())
        changed = self.markers.reached(state)
        self.piles.after(changed)
        if not (changed or claimed or self._sharded()):
            return
        self.heard.learned(roots)
        self.constant.learned()
        self.markers.keep(state, changed, first=not self._current, within=claimed)
        if claimed:
            self.heard.ended()
        else:
            self._count(roots, given)

    def claim(self) -> None:
        """Count the loss of the backward pass that is running: an optimizer of this model steps within it."""
        roots, given = [root for held in self._running[0] if (root := held()) is not None], self._running[1]
        if roots and not self._claimed:
            self._claimed = True
            self._count(roots, given)

    def _count(self, roots: Sequence[Tensor], given: Sequence[Tensor | None]) -> None:
        if not self._told:
            self._scaler = _scaler_of(roots[0])
        # All of it is detached, so that no gradient is switched off, which takes as long as the copy.
        loss = _part(roots[0], given[0])
        for root, gradient in zip(roots[1:], given[1:], strict=True):
            loss = loss + _part(root, gradient)
        scale = self.scale()
        kept = loss.clone() if scale is None else loss / scale.detach().to(loss.device, non_blocking=True)
        if len(self._current) >= _APART:
            self._current = [torch.stack(self._current).sum()]
        self._current.append(kept)

    def _sharded(self) -> bool:
        """Whether gradients may wait for the last micro-batch, and no other model could be meant."""
        return len(_watchers) == 1 and self.markers.sharded


def _part(root: Tensor, gradient: Tensor | None) -> Tensor:
    part = root.detach() if root.dim() == 0 else root.detach().reshape(())
    return part if gradient is None else part * gradient.detach().reshape(())


def _scaler_of(loss: Tensor) -> Any:
    """Return the gradient scaler that scaled what a loss was made from, or None.

    What is behind the scaling is a short way: a division, a mean, the sum of some losses.
    """
    if not _scalings:
        return None
    nodes, seen = deque([loss.grad_fn]), set[Any]()
    while nodes and len(seen) < _NEAR:
        node = nodes.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        scaler = _scalings.get(_metadata(node).get(_KEY))
        if scaler is not None:
            return scaler
        nodes.extend(following for following, _ in node.next_functions)
    return None


def _metadata(node: Any) -> dict[Any, Any]:
    return node.metadata  # type: ignore[no-any-return]


_watchers: Final[list[Losses]] = []
_lock: Final = threading.RLock()  # of what is wrapped, and who watches: loops may run in several threads
_scalings: Final[weakref.WeakValueDictionary[Any, Any]] = weakref.WeakValueDictionary()
_originals: Final[dict[tuple[Any, str], Any]] = {}


def _wrap() -> None:
    if _originals:
        return
    original = _originals[torch.autograd, "backward"] = torch.autograd.backward
    scale = _originals[GradScaler, "scale"] = GradScaler.scale
    step = _originals[GradScaler, "step"] = GradScaler.step

    @uncompiled
    @functools.wraps(original)
    def watched_backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        begun = time.perf_counter()
        heard = [watcher for watcher in tuple(_watchers) if watcher.own.called_here()]
        if not heard or in_backward() or symbolic():
            return original(tensors, *args, **kwargs)
        roots = scalars_of(tensors)
        given = gradients_given(roots, *args, **kwargs)
        states = [_try(watcher, watcher.before, roots, given) for watcher in heard]
        with running([watcher.own for watcher in heard], retains=retains(*args, **kwargs)):
            _spend(heard, begun)
            original(tensors, *args, **kwargs)
            begun = time.perf_counter()
        for watcher, state in zip(heard, states, strict=True) if roots else ():
            if state is not None:
                _try(watcher, watcher.after, state, roots, given)
        return _spend(heard, begun)

    @functools.wraps(scale)
    def watched_scale(self: GradScaler, outputs: Any) -> Any:
        result = scale(self, outputs)
        _scaled(self, result)
        return result

    @functools.wraps(step)
    def watched_step(self: GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        before = _updates()
        result = step(self, optimizer, *args, **kwargs)
        _skipped(before, optimizer)
        return result

    GradScaler.step = watched_step  # type: ignore[method-assign]
    torch.autograd.backward = watched_backward
    GradScaler.scale = watched_scale  # type: ignore[method-assign]


def _spend(heard: Sequence[Losses], begun: float) -> None:
    """Divide the time since among those who looked."""
    seconds = (time.perf_counter() - begun) / len(heard)
    for watcher in heard:
        watcher.spent(seconds)


@uncompiled
def _scaled(scaler: GradScaler, result: Any) -> None:
    """Keep what scaled a loss."""
    for scaled in tensors_in(result):
        if scaled.grad_fn is not None:  # the node holds a number, so that it keeps nothing alive
            _metadata(scaled.grad_fn)[_KEY] = id(scaler)
            _scalings[id(scaler)] = scaler


@uncompiled
def _updates() -> list[tuple[Losses, int]]:
    return [(watcher, watcher.heard.updates) for watcher in tuple(_watchers)]


@uncompiled
def _skipped(before: Sequence[tuple[Losses, int]], optimizer: Any) -> None:
    """Tell those whose model was not updated that a scaler has skipped this."""
    for watcher, updates in before:
        if watcher.heard.updates == updates:
            _try(watcher, watcher.heard.skip, optimizer)


def _try(watcher: Losses, look: Callable[..., Any], *args: Any) -> Any:
    """Return what looking gave; None if it raises, as this watcher sees no more losses then, and training goes on."""
    try:
        return look(*args)
    except Exception as error:
        watcher.close()
        warn(
            f"watch: the loss is seen no more, after {type(error).__name__}: {error}.", of=watcher.model(), stacklevel=3
        )
        return None


def _unwrap() -> None:
    if _watchers:
        return
    _scalings.clear()
    wrapped = [getattr(getattr(owner, name), "__wrapped__", None) is old for (owner, name), old in _originals.items()]
    if all(wrapped):  # else someone wrapped it again: it passes on, and the next watch uses it
        for (owner, name), old in _originals.items():
            setattr(owner, name, old)
        _originals.clear()
