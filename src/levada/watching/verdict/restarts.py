"""Whether a loss is up as it was after every restart of the learning rate so far, from all of which it came back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from levada.watching.verdict.baseline import LossBaseline

__all__ = ["Restarts", "is_up"]

GIVEN_BACK: Final = 0.5  # share of what was learned by which a loss is above its best
# So many times its best is far above it, where that is such a share of what was learned.
TENFOLD, FIFTIETH = 10.0, 0.02
KEPT: Final = 0.25  # share of what was learned, of which nothing is left if it is gone
_SMOOTH: Final = 8  # losses over which one is averaged
_MORE: Final = 2.0  # so much higher, and for so much longer, than before is no habit


def is_up(loss: LossBaseline, level: float) -> bool:
    """Return whether a loss is far above the best of a run.

    Args:
        loss: of the run.
        level: of its last few.
    """
    rise = level - loss.best
    return rise >= GIVEN_BACK * loss.scale or (rise >= FIFTIETH * loss.scale and level >= TENFOLD * loss.best > 0)


@final
class Restarts:
    """Follows the loss behind each rise of the learning rate, as in cosine annealing with warm restarts.

    A restart raises the loss for a while. Where that came back from each one before, a loss that is up behind another
    is no sign of harm, as long as it is not twice as high as then, nor up for twice as long, and a quarter of what was
    learned is left.

    Example:
        >>> restarts, losses = Restarts(), LossBaseline(warm_up=8)
        >>> for step in range(330):
        ...     losses.add(step, loss := 2.0 if step < 30 else 1.0 if 20 < step % 100 < 60 else 0.01)
        ...     restarts.see(step, loss, losses, [(99, 100), (199, 200), (299, 300)][: step // 100])
        >>> restarts.explain(losses)
        True
    """

    def __init__(self) -> None:
        self._at: int | None = None  # the last restart
        self._last, self._mean = 0, 0.0
        self._peak, self._up = 0.0, 0  # since then
        self._highest, self._longest = 0.0, 0  # of those before, from which the loss came back
        self._returned = False  # from where the last one took it, if for a moment
        self._broken = False  # whether it did not come back from one

    def see(self, step: int, loss: float, losses: LossBaseline, rises: Sequence[tuple[int, int]]) -> None:
        """Take the loss of a step.

        Args:
            step: its number.
            loss: its loss.
            losses: of the run, this one included.
            rises: steps at which the rate had at least doubled, each behind the one heard before it.
        """
        self._last = step
        self._mean += (loss - self._mean) / _SMOOTH
        risen = next((by for _, by in reversed(rises) if by <= step), None)
        if risen is None or not losses.ready:
            return
        if risen != self._at:
            if self._at is not None:
                self._broken |= self._up > 0 and not self._returned
                if self._up:
                    self._highest, self._longest = max(self._highest, self._peak), max(self._longest, self._up)
            self._at, self._peak, self._up, self._returned = risen, 0.0, 0, False
        up = is_up(losses, self._mean)
        self._peak = max(self._peak, self._mean)
        self._up = step - risen if up else self._up
        self._returned |= self._up > 0 and not up

    def explain(self, losses: LossBaseline) -> bool:
        """Return whether a loss that is up now is so by the habit of the restarts before.

        Args:
            losses: of the run.
        """
        most = losses.start - KEPT * losses.scale
        if self._at is None or self._broken or not self._longest or self._mean > most:
            return False
        return self._peak <= _MORE * self._highest and self._last - self._at <= _MORE * self._longest
