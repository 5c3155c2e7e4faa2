"""What a watched run may be called, by which of its rules have judged it; and how its sampling is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final, Literal, Self, TypeAlias, final

__all__ = ["CONTINUED", "EVENT", "PLACED", "Standing", "Verdict", "sampling"]

Verdict: TypeAlias = Literal["healthy", "warn", "error", "unknown"]
EVENT: Final = "judged"
"""The type of the event that keeps which rules have judged a run."""

CONTINUED: Final = "continued"
"""The type of the event with which another process goes on with a run: what stood before it stands no more."""

PLACED: Final = frozenset({"dead_units", "frozen_layers"})
"""Rules whose findings at two blocks are two faults; of the others one is told at a time."""

_ALARMS: Final[tuple[Verdict, ...]] = ("error", "warn")
_LATEST: Final = 8  # distances between samples that are told
_LATE: Final = 2  # times the largest of them: what the last sample may be behind before that is told
SEEN: Final = 0.9  # of the steps: if the last sample was before, it is said up to where a run was seen


@final
@dataclass(frozen=True, slots=True)
class Standing:
    """Which rules have judged a watched run, why others have not, and what follows: the verdict, wherever it is told.

    Attributes:
        severities: of the findings that hold.
        judged: rules that would have spoken if there had been something.
        unjudged: rule -> why its silence says nothing.
        waiting: those of `unjudged` that more samples or steps may let speak; the others cannot speak of this run, as
            one about ReLU-like activations where there are none.
        sampled: the last sampled step; None without one.
        steps: steps that were made.
        few: of those that wait only for their number of samples, steps or losses, the reason without the present count,
            which is another with each sample.

    Example:
        >>> Standing((), ("loss_spike",), {"dead_units": "no zeros were seen"}).verdict
        'healthy'
        >>> Standing((), ("loss_spike",), {"dead_units": "2 samples"}, frozenset({"dead_units"})).verdict
        'unknown'
    """

    severities: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()
    unjudged: Mapping[str, str] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()
    sampled: int | None = None
    steps: int = 0
    few: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst alarm that holds; "unknown" as long as a rule waits for more samples or steps, or none judged."""
        for alarm in _ALARMS:
            if alarm in self.severities:
                return alarm
        return "unknown" if self.waiting or not self.judged else "healthy"

    @property
    def counted(self) -> str:
        """How many rules have judged the run, and up to which step it was seen.

        Example:
            >>> Standing((), ("loss_spike",), {"dead_units": "no zeros were seen"}, sampled=20, steps=400).counted
            '1 of 2 rules judged it, up to step 20'
            >>> Standing().counted
            'which rules judged it is not known'
        """
        rules = len(self.judged) + len(self.unjudged)
        if not rules:
            return "which rules judged it is not known"
        return f"{len(self.judged)} of {rules} rules judged it{self.until}"

    @property
    def until(self) -> str:
        """Up to which step a run was seen, if samples ended well before it did; else ""."""
        early = self.sampled is not None and self.sampled < SEEN * (self.steps - 1)
        return f", up to step {self.sampled:,}" if early else ""

    @property
    def reasons(self) -> str:
        """Why rules have not judged: each reason once, with its rules, those first that more samples help; or "".

        Example:
            >>> why = {"dead_units": "no zeros were seen", "lost_update": "1 sample", "loss_spike": "1 sample"}
            >>> Standing(unjudged=why, waiting=frozenset({"lost_update", "loss_spike"})).reasons
            'lost_update, loss_spike: 1 sample; dead_units: no zeros were seen'
        """
        grouped: dict[str, list[str]] = {}
        for rule, why in sorted(self.unjudged.items(), key=lambda one: one[0] not in self.waiting):
            grouped.setdefault(why, []).append(rule)
        return "; ".join(f"{', '.join(rules)}: {why}" for why, rules in grouped.items())

    @property
    def told(self) -> str:
        """All of it in two sentences.

        Example:
            >>> Standing((), ("loss_spike",), {"dead_units": "no zeros were seen"}).told
            '1 of 2 rules judged it. Not judged: dead_units: no zeros were seen.'
        """
        text = f"{self.counted[:1].upper()}{self.counted[1:]}."
        return f"{text} Not judged: {self.reasons}." if self.unjudged else text

    @property
    def headline(self) -> str:
        """In a few words, why the verdict is "unknown".

        Example:
            >>> why = {"lost_update": "3 are needed, and 1 is there", "loss_spike": "no loss was seen"}
            >>> Standing((), (), why, frozenset({"lost_update"}), 0, 1, {"lost_update": "3 are needed"}).headline
            'Too few samples to judge'
            >>> Standing((), (), why, frozenset({"loss_spike"}), 0, 1).headline
            'Not judged: no loss was seen'
            >>> Standing((), (), why, frozenset(why), 0, 1).headline, Standing(sampled=0, steps=1).headline
            ('Not judged: see the notes', 'The record does not say which rules judged it')
        """
        why = {self.unjudged.get(rule, "") for rule in self.waiting - set(self.few)}
        if len(why) > 1 or (self.unjudged and not self.waiting):
            return "Not judged: see the notes"
        if why:
            return f"Not judged: {next(iter(why))}"
        lacking = self.few or self.sampled is None
        return "Too few samples to judge" if lacking else "The record does not say which rules judged it"

    def withheld(self, why: str) -> Self:
        """Give the same of a run of which this is a part only: no rule has judged it, and what alarms does so.

        Args:
            why: that is so.

        Example:
            >>> Standing((), ("loss_spike",)).withheld("one stage of two was seen").told
            '0 of 1 rules judged it. Not judged: loss_spike: one stage of two was seen.'
        """
        rules = (*self.judged, *self.unjudged)
        return replace(self, judged=(), unjudged=dict.fromkeys(rules, why), waiting=frozenset(rules), few={})

    def event(self, *, counts: bool = True) -> dict[str, Any]:
        """Give the fields of the event that keeps this, without what other events tell.

        Args:
            counts: whether it says how many samples, steps or losses there are; what says so is true of one step only.
        """
        unjudged = dict(self.unjudged) if counts else {**self.unjudged, **self.few}
        return {
            "rules": list(self.judged),
            "unjudged": unjudged,
            "waiting": sorted(self.waiting),
            "few": sorted(self.few),
        }

    @classmethod
    def of(cls, event: Mapping[str, Any] | None, severities: Sequence[str], *, sampled: int | None, steps: int) -> Self:
        """Make one from a record.

        Args:
            event: the last of its type; None if there is none, so that nothing without a finding has a verdict.
            severities: of the findings that hold.
            sampled: the last sampled step; None without one.
            steps: steps that were made.

        Example:
            >>> kept = Standing((), ("loss_spike",)).event()
            >>> Standing.of(kept, [], sampled=0, steps=1).verdict, Standing.of(None, [], sampled=0, steps=1).verdict
            ('healthy', 'unknown')
        """
        rules, why, waiting, few = ((event or {}).get(key) for key in ("rules", "unjudged", "waiting", "few"))
        unjudged = {str(rule): str(text) for rule, text in why.items()} if isinstance(why, Mapping) else {}
        return cls(
            tuple(severities),
            tuple(map(str, rules)) if isinstance(rules, list) else (),
            unjudged,
            frozenset(map(str, waiting)) if isinstance(waiting, list) else frozenset(),
            sampled,
            steps,
            {str(rule): unjudged.get(str(rule), "") for rule in few} if isinstance(few, list) else {},
        )


def sampling(sampled: Sequence[int], steps: int) -> str:
    """Say how far apart the last samples are, by the steps that were sampled; and if none came for long since.

    Args:
        sampled: steps that were sampled, the latest of them at least.
        steps: steps that were made.

    Example:
        >>> sampling([0, 20, 40], 50), sampling(range(9), 9), sampling([0, 20, 63], 5000)
        ('sampled every 20 steps', 'sampled every step', 'sampled every 20 to 43 steps, the last 4,936 steps ago')
        >>> sampling([], 7), sampling([0], 7)
        ('no step was sampled', 'sampled once, at step 0')
    """
    if len(sampled) < 2:
        return f"sampled once, at step {sampled[0]:,}" if sampled else "no step was sampled"
    distances = [after - before for before, after in pairwise(sampled[-_LATEST - 1 :])]
    low, high = min(distances), max(distances)
    text = "every step" if high == 1 else f"every {high:,} steps" if low == high else f"every {low:,} to {high:,} steps"
    behind = steps - 1 - sampled[-1]
    return f"sampled {text}" + (f", the last {behind:,} steps ago" if behind > _LATE * high else "")
