"""The learning rate of a run: where it was raised, which a loss that jumps or is not finite may come of."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, final

from levada.diagnose.finding import Finding
from levada.watching.measure.sample import Sample

__all__ = ["Rates", "earlier_rise", "made_it_rise", "raised", "rise_in_words", "with_before"]

# A rate that at least doubles was set, and did not drift.
RAISED: Final = 2.0
# Steps before the loss rose in which a rate that was raised can have made it.
NEAR: Final = 20
UNSEEN: Final = 64  # where none of them was sampled since it rose
FAR: Final = 128  # steps before it, of which a rise is told, as that of a restart, and blamed for nothing
# Learning rates that are remembered where each differs from the one before.
REMEMBERED: Final = 64


@final
class Rates:
    """Follows the learning rate: as samples tell it, and at each step where it is known without waiting.

    Example:
        >>> rates = Rates()
        >>> rates.sampled(0, 0.1)
        >>> for step, rate in enumerate((0.1, 0.1, 0.05, 0.4, 0.4)):
        ...     rates.before_update(step, rate)
        >>> rates.changes, rates.rises, rates.now
        (((0, 0.1), (2, 0.05), (3, 0.4)), ((2, 3),), 0.4)
    """

    def __init__(self) -> None:
        self._changes: deque[tuple[int, float]] = deque(maxlen=REMEMBERED)
        self._rises: deque[tuple[int, int]] = deque(maxlen=REMEMBERED)
        self._last, self._at = math.nan, -1

    @property
    def changes(self) -> tuple[tuple[int, float], ...]:
        """Step and rate of each change that a sample showed, and of each rise with what was before it."""
        return tuple(self._changes)

    @property
    def rises(self) -> tuple[tuple[int, int], ...]:
        """Steps at which the rate had at least doubled, each behind the one that was heard before it."""
        return tuple(self._rises)

    @property
    def now(self) -> float:
        """The rate of the last step; as a sample told it last, where no step did; NaN if none did."""
        return self._changes[-1][1] if math.isnan(self._last) and self._changes else self._last

    def before_update(self, step: int, rate: float) -> None:
        """Take the rate of a step.

        Args:
            step: its number.
            rate: NaN if it is not known without waiting.
        """
        if rate >= RAISED * self._last > 0:
            self._rises.append((self._at, step))
            self.sampled(self._at, self._last)  # no sample may come between, or soon
            self.sampled(step, rate)
        self._last, self._at = rate, step

    def sampled(self, step: int, rate: float) -> None:
        """Take the rate that a sample tells.

        Args:
            step: its number.
            rate: NaN if it is not known.
        """
        if not math.isnan(rate) and (not self._changes or self._changes[-1][1] != rate):
            self._changes.append((step, rate))


def raised(
    rows: Sequence[Sample], rates: Sequence[tuple[int, float]], onset: int, rises: Sequence[tuple[int, int]] = ()
) -> dict[str, float | int] | None:
    """Return the last rise of the learning rate that was set rather than drifted, shortly before a step.

    Args:
        rows: the last samples.
        rates: step and rate of each change that a sample showed.
        onset: the step.
        rises: steps at which it had at least doubled, each behind the last whose rate was seen before it.

    Returns:
        {"from", "to", "after", "by"}: the rates, and the steps between which it rose: sampled ones, or others whose
        rate was seen, as a rule the very step and the one before it; None without.
    """
    for before, after in zip(reversed(rates[:-1]), reversed(rates[1:]), strict=True):
        earlier = [sample.step for sample in rows if sample.step < onset]
        if after[0] < (earlier[0] if earlier else onset):
            return None
        first = max((sample.step for sample in rows if sample.step < after[0]), default=before[0])
        if before[1] > 0 and after[1] >= RAISED * before[1] and first < onset:
            seen = [rise for rise in rises if first < rise[1] <= after[0]]
            first, by = seen[-1] if seen else (first, after[0])
            return {"from": before[1], "to": after[1], "after": first, "by": by}
    return None


def earlier_rise(
    rates: Sequence[tuple[int, float]], rises: Sequence[tuple[int, int]], onset: int
) -> dict[str, float | int] | None:
    """Return the last rise of the learning rate within 128 steps before a step, to be told of it; as `raised`.

    Args:
        rates: step and rate of each change that was seen.
        rises: steps at which it had at least doubled, each behind the last whose rate was seen before it.
        onset: the step.

    Example:
        >>> earlier_rise([(0, 0.1), (299, 0.001), (300, 0.1)], [(299, 300)], 334)
        {'from': 0.001, 'to': 0.1, 'after': 299, 'by': 300}
    """
    after, by = next(((after, by) for after, by in reversed(rises) if by < onset), (0, -FAR))
    if onset - by > FAR:
        return None
    before = [rate for step, rate in rates if step <= after]
    risen = [rate for step, rate in rates if after < step <= by]
    return {"from": before[-1], "to": risen[-1], "after": after, "by": by} if before and risen else None


def made_it_rise(rise: Mapping[str, Any] | None, rate: float, onset: int, *, seen: int | None = None) -> bool:
    """Return whether a rise of the rate came shortly before the loss rose, and the rate has not come back since.

    That of a warm-up has risen further, and says of no step that it was the one.

    Args:
        rise: from `raised`.
        rate: the present one.
        onset: the step at which the loss rose.
        seen: the last sampled step before it: of a rise behind that nobody saw what its steps did, and 64 steps count.

    Example:
        >>> rise = {"from": 0.1, "to": 3.0, "after": 249, "by": 250}
        >>> made_it_rise(rise, 3.0, 251), made_it_rise(rise, 3.0, 271)
        (True, False)
        >>> made_it_rise(rise, 4.0, 251), made_it_rise(rise, 0.1, 251)
        (False, False)
    """
    if rise is None or onset - rise["by"] > (UNSEEN if seen is not None and seen <= rise["after"] else NEAR):
        return False
    return bool(rise["from"] < rate <= rise["to"] * (1 + 1e-6))


def with_before(finding: Finding, jump: Mapping[str, Any] | None, rise: Mapping[str, Any] | None) -> Finding:
    """Return a finding of what is not finite with what came before it.

    Args:
        finding: of a step.
        jump: of the loss, from `Spikes.before`.
        rise: of the learning rate, from `raised`.
    """
    claim, evidence = finding.claim, dict(finding.evidence)
    if jump is not None:
        when = jump_in_words(jump["step"], jump.get("after"))
        claim += f" Before it the loss jumped, {when}, from {jump['from']:.4g} to {jump['to']:.4g} at most."
        evidence["loss_spike"] = jump
    if rise is not None:
        claim += f" {rise_in_words(rise)}"
        evidence["learning_rate"] = rise
    return replace(finding, claim=claim, evidence=evidence)


def jump_in_words(step: int, after: int | None) -> str:
    """Say when a loss jumped.

    Args:
        step: the first at which it was seen.
        after: the last that was heard before it, if it is not the one before.

    Example:
        >>> jump_in_words(250, None), jump_in_words(250, 190)
        ('at step 250', 'between steps 190 and 250')
    """
    return f"at step {step}" if after is None else f"between steps {after} and {step}"


def rise_in_words(found: Mapping[str, Any]) -> str:
    """Return a rise of the learning rate as a sentence.

    Args:
        found: from `raised`.

    Example:
        >>> rise_in_words({"from": 1e-3, "to": 1.0, "after": 249, "by": 250})
        'The learning rate rose from 0.001 to 1 at step 250.'
    """
    after, by = found["after"], found["by"]
    when = f"at step {by}" if by == after + 1 else f"between steps {after} and {by}"
    return f"The learning rate rose from {found['from']:.3g} to {found['to']:.3g} {when}."
