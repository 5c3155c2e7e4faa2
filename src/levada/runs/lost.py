"""What damage takes of a run: which file, which series, which steps; the same words wherever it is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from levada.runs.frames import MAGIC, Damage
from levada.runs.manifest import LOG

__all__ = ["ALL", "TOLD", "Lost", "between", "lost_of", "lost_of_log", "step_of"]

ALL: Final = "all series"
TOLD: Final = "what it told"  # of a log


@final
@dataclass(frozen=True, slots=True)
class Lost:
    """What is missing, or known in less detail only.

    Attributes:
        message: what is wrong, without a full stop.
        file: that it is wrong with.
        series: which of a file's, "all series" if it is all of them.
        steps: which, in words; "" if it may be any.

    Example:
        >>> lost = Lost("full-000001-0.parquet cannot be read", "full-000001-0.parquet", ALL, "steps 0 to 380")
        >>> lost.taken
        'all series, steps 0 to 380'
        >>> str(lost)
        'full-000001-0.parquet: all series, steps 0 to 380'
    """

    message: str
    file: str
    series: str
    steps: str

    @property
    def taken(self) -> str:
        """Which series and steps; "" if it is not known which steps."""
        return f"{self.series}{' ' if self.series == TOLD else ', '}{self.steps}" if self.steps else ""

    def __str__(self) -> str:
        return f"{self.file}: {self.taken or f'{self.series}, at steps that are not known'}"


def lost_of(damages: Iterable[Damage], steps: Mapping[int, Sequence[int]]) -> list[Lost]:
    """Say what damages of signals take, as far as the samples around them tell.

    Args:
        damages: of a rank's signals.
        steps: of each segment that can be read, its samples' steps.

    Example:
        >>> torn = Damage("checksum", 0, 40, "its checksum differs", 2, 1, "tail-000002.log")
        >>> [str(lost) for lost in lost_of([torn], {1: [0, 20], 2: [40, 80]})]
        ['tail-000002.log: all series, after step 40 and before step 80']
    """
    return [Lost(one.message, one.file, one.series or ALL, _steps(one, steps)) for one in damages]


def _steps(damage: Damage, steps: Mapping[int, Sequence[int]]) -> str:
    if not damage.segment:
        return ""
    own = steps.get(damage.segment)
    if own and damage.sample is None:
        return f"steps {min(own):,} to {max(own):,}"
    cut = damage.sample or 0
    before = [step for number, found in steps.items() if number < damage.segment for step in found]
    after = [step for number, found in steps.items() if number > damage.segment for step in found]
    before, after = [*before, *(own or ())[:cut]], [*(own or ())[cut:], *after]
    return between(before[-1] if before else None, after[0] if after else None)


def between(before: int | None, after: int | None) -> str:
    """Say between which steps something is lost; "" if neither is known.

    Where the run went on from an earlier step meanwhile, the first behind it is none that is larger.

    Args:
        before: the last step before it.
        after: the first behind it.

    Example:
        >>> between(20, 60), between(None, 60), between(None, None)
        ('after step 20 and before step 60', 'before step 60', '')
        >>> between(380, 200)
        'after step 380, or, as the run went on from an earlier step, before step 200'
    """
    if before is not None and after is not None and after <= before:
        return f"after step {before:,}, or, as the run went on from an earlier step, before step {after:,}"
    ends = [f"{word} step {step:,}" for word, step in (("after", before), ("before", after)) if step is not None]
    return " and ".join(ends)


def lost_of_log(events: Sequence[Mapping[str, Any]], damage: Damage | None, name: str = LOG) -> list[Lost]:
    """Say what is missing of a log: of what was damaged and mended, and of what is damaged now.

    Args:
        events: those that can be read.
        damage: what keeps the log from being read to its end.
        name: of the log.

    Example:
        >>> damage = Damage("checksum", 40, 9, "its checksum differs")
        >>> [str(lost) for lost in lost_of_log([{"type": "loss", "steps": [0, 1], "values": [2.0, 1.0]}], damage)]
        ['events.log: what it told after step 1']
    """
    found = []
    for i, event in enumerate(events):
        # A file's first bytes say what it is, and tell of no step.
        if event.get("type") == "repaired" and (event.get("at"), event.get("num_bytes")) != (0, len(MAGIC)):
            moved = str(event.get("moved_to") or name)
            steps = between(step_of(reversed(events[:i]), -1), step_of(events[i + 1 :], 0))
            found.append(Lost(f"{moved} was damaged, and is moved aside", moved, TOLD, steps))
    if damage is not None:
        steps = between(step_of(reversed(events), -1), None)
        found.append(Lost(f"{name}: {damage.message}", name, TOLD, steps))
    return found


def step_of(events: Iterable[Mapping[str, Any]], place: int) -> int | None:
    """Give the step of the first of these events that has one; of several steps, that at `place`.

    Args:
        events: in the order in which they are to be asked.
        place: of several steps.
    """
    for event in events:
        steps = event.get("steps")
        step = steps[place] if isinstance(steps, list) and steps else event.get("step")
        if isinstance(step, int):
            return step
    return None
