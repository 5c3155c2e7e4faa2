"""What a watched run may be called, by which of its rules have judged it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self, TypeAlias, final

from levada._names import CALLED

__all__ = ["CONTINUED", "EVENT", "OVER_DEPTH", "PLACED", "Standing", "Verdict"]

Verdict: TypeAlias = Literal["healthy", "warn", "error", "unknown"]
EVENT: Final = "judged"
"""The type of the event that keeps which rules have judged a run."""

CONTINUED: Final = "continued"
"""The type of the event with which another process goes on with a run: what stood before it stands no more."""

PLACED: Final = frozenset({"dead_units", "frozen_layers"})
"""Rules whose findings at two blocks are two faults; of the others one is told at a time."""

_ALARMS: Final[tuple[Verdict, ...]] = ("error", "warn")
_COUNTED: Final = (("samples", "sampled step", "s"), ("losses", "loss", "es"))
_TOLD: Final = 3  # reasons below a headline
_LISTS: Final = ("rules", "waiting", "few", "stages")
OVER_DEPTH: Final = frozenset({"exploding_gradient", "exploding_signal", "vanishing_gradient", "vanishing_signal"})
"""Rules that compare blocks over depth, of which a stage of a pipeline sees a part."""

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
        lacking: how many more "samples" and "losses" the last of them waits for, where that was counted.
        first: the first step that was watched: those before were another process's.
        stages: which stages of a pipeline this process holds, where it sees no others.
        num_stages: how many there are.
        own: what may be said of those stages alone, where this is withheld.
        adaptive: whether the optimizer rescales gradients; true where that is not known.
        reached: the last step between samples at which every trained block was seen to get a gradient; None without.

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
    lacking: Mapping[str, int] = field(default_factory=dict)
    first: int = 0
    stages: tuple[int, ...] = ()
    num_stages: int = 0
    own: Standing | None = None
    adaptive: bool = True
    reached: int | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst alarm that holds; "unknown" as long as a rule waits for more samples or steps, or none judged."""
        for alarm in _ALARMS:
            if alarm in self.severities:
                return alarm
        return "unknown" if self.waiting or not self.judged else "healthy"

    @property
    def alarmed(self) -> bool:
        """Whether an alarm holds."""
        return self.verdict in _ALARMS

    @property
    def called(self) -> str:
        """The verdict in words: "healthy" only as far as the run was seen.

        Example:
            >>> Standing((), ("loss_spike",), sampled=202, steps=600).called
            'healthy up to step 202 of 600'
            >>> Standing(("warn",), ("loss_spike",), sampled=202, steps=600).called
            'warning'
        """
        return f"{CALLED[self.verdict]}{self.until[1:]}" if self.verdict == "healthy" else CALLED[self.verdict]

    @property
    def basis(self) -> str:
        """What `called` rests on: as `counted`, without the step that it has said.

        Example:
            >>> Standing((), ("loss_spike",), sampled=202, steps=600, reached=580).basis
            '1 of 1 rules judged it; every trained block still had some gradient at step 580'
        """
        return self._counted("" if self.verdict == "healthy" else self.until)

    @property
    def counted(self) -> str:
        """How many rules have judged the run, up to which step it was seen, and how much more the others wait for.

        Behind that step, what was seen of gradients without a sample.

        Example:
            >>> Standing((), ("loss_spike",), {"dead_units": "no zeros were seen"}, sampled=20, steps=400).counted
            '1 of 2 rules judged it, up to step 20 of 400'
            >>> why = {"lost_update": "3 samples in a row are needed, and 1 is there"}
            >>> Standing((), ("loss_spike",), why, frozenset(why), 0, 1, why, {"samples": 2}).counted
            '1 of 2 rules judged it; 2 more sampled steps are needed'
            >>> Standing((), (), {"loss_spike": "no step was heard"}, sampled=20, steps=400).counted
            '0 of 1 rules judged it'
            >>> Standing().counted
            'which rules judged it is not known'
        """
        return self._counted(self.until)

    def _counted(self, until: str) -> str:
        rules = len(self.judged) + len(self.unjudged)
        if not rules:
            return "which rules judged it is not known"
        rest = "".join(f"; {text}" for text in (self.beyond, self.wanted) if text)
        return f"{len(self.judged)} of {rules} rules judged it{until if self.judged else ''}{rest}"

    @property
    def beyond(self) -> str:
        """What was seen of gradients after the last sample, where that was early; else "".

        Example:
            >>> Standing(sampled=202, steps=400, reached=388).beyond
            'every trained block still had some gradient at step 388'
            >>> Standing(sampled=390, steps=400, reached=395).beyond
            ''
        """
        if not self.until or self.sampled is None or self.reached is None or self.reached <= self.sampled:
            return ""
        return f"every trained block still had some gradient at step {self.reached:,}"

    @property
    def wanted(self) -> str:
        """How much more the rules wait for, if it is counted and they wait for nothing else; else ""."""
        if self.waiting - set(self.few):
            return ""
        some = ((self.lacking.get(key, 0), what, plural) for key, what, plural in _COUNTED)
        told = [f"{n:,} more {what}{'' if n == 1 else plural}" for n, what, plural in some if n]
        verb = "is" if sum(self.lacking.values()) == 1 else "are"
        return f"{' and '.join(told)} {verb} needed" if told else ""

    @property
    def until(self) -> str:
        """Up to which step a run was seen, if samples ended well before it did; else "".

        Example:
            >>> Standing(sampled=310, steps=400).until, Standing(sampled=310, steps=400, first=300).until
            (', up to step 310 of 400', ', up to step 310 of 400')
            >>> Standing(sampled=390, steps=400, first=300).until
            ''
        """
        early = self.sampled is not None and 0 <= self.sampled - self.first < SEEN * (self.steps - 1 - self.first)
        return f", up to step {self.sampled:,} of {self.steps:,}" if early else ""

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
            >>> few = {"lost_update": "3 are needed"}
            >>> Standing((), (), why, frozenset({"lost_update"}), 0, 1, few, {"samples": 2}).headline
            'Too few samples to judge: 2 more sampled steps are needed'
            >>> Standing((), (), why, frozenset({"loss_spike"}), 0, 1).headline
            'Not judged: no loss was seen'
            >>> Standing((), (), why, frozenset(why), 0, 1).headline, Standing(sampled=0, steps=1).headline
            ('Not judged: 3 are needed', 'The record does not say which rules judged it')
        """
        if why := self._why:
            return f"Not judged: {why[0].split(', ')[0].split('; ')[0]}"
        lacking = self.few or self.sampled is None
        short = "Too few samples to judge" + (f": {self.wanted}" if self.wanted else "")
        return short if lacking else "The record does not say which rules judged it"

    @property
    def elaborated(self) -> str:
        """The reasons of `headline` in full, where it leaves out some of it; else "".

        Example:
            >>> Standing(unjudged={"loss_spike": "no loss was seen"}).elaborated
            ''
            >>> Standing(unjudged={"loss_spike": "no loss was seen", "lost_update": "3 are needed"}).elaborated
            'no loss was seen; 3 are needed'
        """
        why = self._why
        told = "; ".join(why[:_TOLD]) + (f"; for {len(why) - _TOLD} more see the notes" if len(why) > _TOLD else "")
        return "" if not why or self.headline.endswith(told) else told

    @property
    def _why(self) -> list[str]:
        """The reasons why the verdict is "unknown", other than too few samples, the one of most rules first."""
        waiting = self.waiting - set(self.few)
        if not waiting and (self.waiting or not self.unjudged):
            return []
        rules = [rule for rule in self.unjudged if rule in waiting or not waiting]
        return [why for why, _ in Counter(self.unjudged[rule] for rule in rules).most_common()]

    def withheld(self, why: str, *, stages: Sequence[int] = (), num_stages: int = 0) -> Self:
        """Give the same of a run of which this is a part only: no rule has judged it, and what alarms does so.

        Args:
            why: that is so.
            stages: of a pipeline, which this part is; the record then keeps what they may be called.
            num_stages: of the pipeline.

        Example:
            >>> part = Standing((), ("loss_spike",)).withheld("one stage of two is seen", stages=[0], num_stages=2)
            >>> part.verdict, part.told
            ('unknown', '0 of 1 rules judged it. Not judged: loss_spike: one stage of two is seen.')
            >>> part.event()["rules"], part.event()["stages"]
            (['loss_spike'], [0])
        """
        rules = (*self.judged, *self.unjudged)
        return replace(
            self,
            judged=(),
            unjudged=dict.fromkeys(rules, why),
            waiting=frozenset(rules),
            few={},
            lacking={},
            stages=tuple(stages),
            num_stages=num_stages,
            own=self if stages else None,
        )

    @classmethod
    def together(cls, parts: Mapping[str, Self], over: Self | None = None) -> Self:
        """Give the standing of a run whose blocks several processes hold, each of which was judged by itself.

        A rule has judged the run if it judged a part and waits in none. What compares blocks over depth has not, as no
        process sees all of them, unless it was applied to the records of all.

        Args:
            parts: by a name of the process.
            over: what the rules that compare blocks over depth say of all parts; None if they were not asked.

        Example:
            >>> seen = Standing((), ("dead_units", "vanishing_gradient"))
            >>> both = Standing.together({"process 0": seen, "process 1": seen})
            >>> both.verdict, both.judged, both.reasons
            ('healthy', ('dead_units',), 'vanishing_gradient: each stage was judged by itself')
            >>> why = {"dead_units": "3 are needed"}
            >>> Standing.together({"process 0": seen, "process 1": Standing((), (), why, frozenset(why))}).reasons
            'dead_units: process 1: 3 are needed; vanishing_gradient: each stage was judged by itself'
        """
        every = list(parts.values())
        rules = dict.fromkeys(rule for part in every for rule in (*part.judged, *part.unjudged))
        judged, why, waiting, few = list[str](), dict[str, str](), set[str](), dict[str, str]()
        for rule in rules:
            if over is not None and rule in OVER_DEPTH:
                over._say(rule, judged, why, waiting, few)
                continue
            waits = {name: part for name, part in parts.items() if rule in part.waiting}
            if waits:
                waiting.add(rule)
                why[rule] = "; ".join(f"{name}: {part.unjudged.get(rule, '')}" for name, part in waits.items())
                if all(rule in part.few for part in waits.values()):
                    few[rule] = why[rule]
            elif rule in OVER_DEPTH and len(every) > 1:
                why[rule] = "each stage was judged by itself"
            elif any(rule in part.judged for part in every):
                judged.append(rule)
            else:
                why[rule] = next(part.unjudged[rule] for part in every if rule in part.unjudged)
        counted = {key: max(part.lacking.get(key, 0) for part in every) for key, *_ in _COUNTED}
        sampled = [part.sampled for part in every if part.sampled is not None]
        reached = [part.reached for part in every if part.reached is not None]
        return cls(
            severities=tuple(severity for part in every for severity in part.severities),
            judged=tuple(judged),
            unjudged=why,
            waiting=frozenset(waiting),
            sampled=min(sampled) if len(sampled) == len(every) else None,
            steps=max(part.steps for part in every),
            few=few,
            lacking=counted,
            first=max(part.first for part in every),
            reached=min(reached) if len(reached) == len(every) else None,
        )

    def _say(self, rule: str, judged: list[str], why: dict[str, str], waiting: set[str], few: dict[str, str]) -> None:
        """Add what this says of one rule."""
        if rule in self.judged:
            judged.append(rule)
            return
        why[rule] = self.unjudged.get(rule, "it was not asked")
        if rule in self.waiting:
            waiting.add(rule)
        if rule in self.few:
            few[rule] = self.few[rule]

    def event(self, *, counts: bool = True) -> dict[str, Any]:
        """Give the fields of the event that keeps this, without what other events tell.

        Args:
            counts: whether it says how many samples, steps or losses there are; what says so is true of one step only.
        """
        told = self.own or self
        stages = {"stages": list(self.stages), "num_stages": self.num_stages, "adaptive": told.adaptive}
        stages = stages if self.stages else {}
        return {
            "rules": list(told.judged),
            "unjudged": dict(told.unjudged) if counts else {**told.unjudged, **told.few},
            "waiting": sorted(told.waiting),
            "few": sorted(told.few),
            **({"lacking": dict(told.lacking)} if counts else {}),
            **({"reached": told.reached} if counts and told.reached is not None else {}),
            "first": told.first,
            **stages,
        }

    @classmethod
    def of(cls, event: Mapping[str, Any] | None, severities: Sequence[str], *, sampled: int | None, steps: int) -> Self:
        """Make one from a record: of a pipeline's stages, what may be said of them alone.

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
        said = event or {}
        why, lacking = (v if isinstance(v := said.get(key), Mapping) else {} for key in ("unjudged", "lacking"))
        unjudged = {str(rule): str(text) for rule, text in why.items()}
        rules, waiting, few, stages = (v if isinstance(v := said.get(key), list) else [] for key in _LISTS)
        first, num_stages = (v if isinstance(v := said.get(key), int) else 0 for key in ("first", "num_stages"))
        return cls(
            severities=tuple(severities),
            judged=tuple(map(str, rules)),
            unjudged=unjudged,
            waiting=frozenset(map(str, waiting)),
            sampled=sampled,
            steps=steps,
            few={str(rule): unjudged.get(str(rule), "") for rule in few},
            lacking={str(key): n for key, n in lacking.items() if isinstance(n, int)},
            first=first,
            stages=tuple(stage for stage in stages if isinstance(stage, int)),
            num_stages=num_stages,
            adaptive=said.get("adaptive") is not False,
            reached=reached if isinstance(reached := said.get("reached"), int) else None,
        )
