"""A watch as a record sees it that goes on."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from levada.probe.trace import Site
from levada.runs.standing import Standing

if TYPE_CHECKING:
    from levada.watching.watch import Watch

__all__ = ["Since", "record_again"]


@final
class Since:
    """A watch as a record sees it that goes on: with the findings from now on."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._before = watch, list(watch.findings)

    @property
    def sites(self) -> Sequence[Site]:
        """The blocks."""
        return self._watch.sites

    @property
    def findings(self) -> list[Any]:
        """What was found since then."""
        known = set(map(id, self._before))
        return [finding for finding in self._watch.findings if id(finding) not in known]

    @property
    def overhead(self) -> float:
        """Measured share of the training time."""
        return self._watch.overhead

    @property
    def standing(self) -> Standing:
        """The verdict so far, and what it rests on."""
        return self._watch.standing

    @property
    def steps(self) -> int:
        """Number of completed steps."""
        return self._watch.steps

    @property
    def optimizers(self) -> Sequence[Any]:
        """Those whose steps end a step."""
        return self._watch.optimizers

    @property
    def judge(self) -> Any:
        """What applies the rules."""
        return self._watch.judge

    def turn_of(self, step: int) -> int | None:
        """Give which optimizers made a step, as `Watch.turn_of`."""
        return self._watch.turn_of(step)

    def ended_losses(self) -> Sequence[tuple[int, Tensor]]:
        """Give step and loss of what has ended since the last sample."""
        return self._watch.ended_losses()


def record_again(watch: Watch, listeners: MutableSequence[Any], folder: str | Path) -> None:
    """Go on with the record that the end of a watch has ended, from the findings that it holds.

    Args:
        watch: one that is entered again.
        listeners: its own; the record among them gives way to another.
        folder: of the record.
    """
    from levada.watching.record.recording import Recording

    place = next((i for i, one in enumerate(listeners) if isinstance(one, Recording)), None)
    if place is not None:  # else it raised, and that was said
        listeners[place] = Recording(folder, Since(watch), resume=True)
