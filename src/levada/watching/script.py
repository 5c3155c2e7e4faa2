"""Find the models that a script trains, and watch each from its second step on."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, final

from torch import nn
from torch.optim import Optimizer, optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from levada.watching.loop.owners import Trained, find_trained, held_by
from levada.watching.loop.telling import say
from levada.watching.loop.tracing import uncompiled

__all__ = ["Watches"]


class _Watch(Protocol):
    def close(self) -> None: ...


@final
class Watches:
    """Starts a watch on every model that is trained while this is open.

    An optimizer's first step shows it, when the step is over: the model is watched from its second step on. One that
    steps within the step of another, which holds the same parameters, is that one's part (as in SAM). What fails
    here is told on standard error, once in the same words, and training goes on: also where warnings are errors. A
    process that the script forks is not watched.

    Args:
        start: called with a model, its optimizers and the number of watches before; gives the watch, or None.

    Attributes:
        started: the watches.
        failures: how often something failed here.

    Example:
        >>> import torch
        >>> class Nothing:
        ...     def close(self) -> None: ...
        >>> model = nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with Watches(lambda model, optimizers, before: Nothing()) as watches:
        ...     for _ in range(2):
        ...         model(torch.ones(4)).sum().backward()
        ...         optimizer.step()
        >>> len(watches.started)
        1
    """

    def __init__(self, start: Callable[[nn.Module, Sequence[Optimizer], int], _Watch | None]) -> None:
        self.started: list[Any] = []
        self.failures = 0
        self._start = start
        self._seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._open: list[tuple[weakref.ref[nn.Module], Any]] = []
        self._hook: Any = None
        self._process = os.getpid()
        self._lock = threading.RLock()  # loops may run in several threads
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        self._hook = register_optimizer_step_post_hook(self._stepped)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was started; again is harmless."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if os.getpid() != self._process:  # what is forked has no part in it, nor in the lock
            return
        with self._lock:
            for _, watch in self._open:
                with self._failures_told("a watch could not be closed"):
                    watch.close()
            self._open.clear()

    @uncompiled
    def _stepped(self, stepped: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if stepped in self._seen or os.getpid() != self._process:
            return
        with self._lock, self._failures_told("a model could not be watched"):
            if stepped in self._seen or self._hook is None:  # another thread was here meanwhile
                return
            if (outer := _around(stepped)) is not None:  # whose step is over soon
                if outer in self._seen:
                    self._seen.add(stepped)
                return
            self._seen.add(stepped)
            trained = find_trained(stepped)
            if trained is None:
                raise LookupError(f"no module holds the parameters of {type(stepped).__name__}")
            self._seen.update(trained.optimizers)
            self._begin(trained)

    def _begin(self, trained: Trained) -> None:
        # A new optimizer of a model that is watched begins a new stretch of training: a watch of its own.
        for held, watch in list(self._open):
            if held() is trained.model or held() is None:
                watch.close()
                self._open.remove((held, watch))
        watch = self._start(trained.model, trained.optimizers, len(self.started))
        if watch is not None:
            self.started.append(watch)
            self._open.append((weakref.ref(trained.model), watch))

    @contextlib.contextmanager
    def _failures_told(self, what: str) -> Iterator[None]:
        """Let training go on whatever happens here."""
        try:
            yield
        except Exception as error:
            self.failures += 1
            told = f"levada run: {what}: {type(error).__name__}: {error}"
            if told not in self._told:
                self._told.add(told)
                say(told)  # no warning, whose place would be one of ours


def _around(stepped: Optimizer) -> Optimizer | None:
    """Return the optimizer within whose step one steps, if that holds as much and its hooks will be called."""
    held, frame = held_by(stepped), sys._getframe()
    while frame is not None:
        # torch's wrapper around `step`, which calls the hooks: a class that only looks like an optimizer has none.
        if frame.f_code.co_filename == optimizer.__file__ and frame.f_code.co_name == "wrapper":
            other = frame.f_locals.get("self")
            if isinstance(other, Optimizer) and other is not stepped and held <= held_by(other):
                return other
        frame = frame.f_back  # type: ignore[assignment]
    return None
