"""What hooks take that return at once: they are all of a watch in a pause, and nothing is there to compare with."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, final

from torch import nn

__all__ = ["Asleep"]

_TIMES: Final = 15  # measurements that count, and pauses in a row that are measured
_SELDOM: Final = 16  # then one in so many is
_any_global: Callable[[], bool] = getattr(nn.modules.module, "_has_any_global_hook", lambda: True)  # private


@final
class Asleep:
    """Times hooks that see a pause: those of a model on a module that does nothing, against one without hooks.

    They are called once for each measurement, where the code is as cold as in a training: in a row they take half. The
    wrapped `backward` is not among them. Where someone has hooks on all modules, those would hear of it: nothing is
    measured then.

    Args:
        called: the hook before a pass, that takes keyword arguments.
        behind: the hooks behind one, the last of which is always called.
        step: those before and behind an optimizer's step.

    Example:
        >>> def hook(*_): pass
        >>> asleep = Asleep(hook, (hook, hook), (hook, hook))
        >>> asleep.measure()
        >>> 0 <= asleep.seconds(passes=1, steps=1) < 1
        True
    """

    def __init__(
        self,
        called: Callable[..., None],
        behind: tuple[Callable[..., None], Callable[..., None]],
        step: tuple[Callable[..., Any], Callable[..., Any]],
    ) -> None:
        self._bare, self._hooked = nn.Identity(), nn.Identity()
        self._hooked.register_forward_pre_hook(called, with_kwargs=True, prepend=True)
        self._hooked.register_forward_hook(behind[0])
        self._hooked.register_forward_hook(behind[1], always_call=True)
        self._step = step
        self._passes: deque[float] = deque(maxlen=_TIMES)
        self._steps: deque[float] = deque(maxlen=_TIMES)
        self._count = -1

    @property
    def due(self) -> bool:
        """Whether this pause is to be measured; it counts them."""
        self._count += 1
        return (self._count < _TIMES or not self._count % _SELDOM) and not _any_global()

    def measure(self) -> None:
        """Call each hook once."""
        before, after = self._step
        begun = time.perf_counter()
        self._bare(None)
        bare = time.perf_counter()
        self._hooked(None)
        hooked = time.perf_counter()
        before(self, (self,), {})
        after(self, (self,), {})
        self._steps.append(time.perf_counter() - hooked)
        self._passes.append(max(hooked - bare - (bare - begun), 0.0))

    def seconds(self, *, passes: int, steps: int) -> float:
        """Return what they took in a pause; 0 before anything was measured.

        Args:
            passes: forward passes in it.
            steps: of optimizers.
        """
        if not self._steps:
            return 0.0
        return passes * statistics.median(self._passes) + steps * statistics.median(self._steps)
