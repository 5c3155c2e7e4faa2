"""What the processes of a watched run say together of its blocks, of which each may hold a part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, final

from levada.runs.findings import findings_of, first_of, gravity, process_name, said_of, superseded
from levada.runs.standing import CONTINUED, Standing

__all__ = ["MAX_RANKS", "Recorded", "Stage", "Together"]

OVERFLOW: Final = "numerical_overflow"
_FOLLOWS: Final = "follows"
MAX_RANKS: Final = 64  # whose signals are opened; stages of a pipeline may be more than are drawn of one of them


class Recorded(Protocol):
    """What is read of a run: its ranks, and of each the signals as `levada.runs.Signals` gives them."""

    path: Path

    @property
    def ranks(self) -> Sequence[int]:
        """The processes that wrote signals."""

    def parts(self, rank: int = 0) -> Sequence[str]:
        """Name what one kept beside the signals of its blocks."""

    def signals(self, rank: int = 0, part: str = "") -> Any:
        """Give the signals of one, or a part that it kept beside them."""

    def losses(self) -> list[tuple[int, float]]:
        """Give the loss of each step, as far as it is known."""

    def losses_by_optimizer(self) -> dict[str, list[tuple[int, float]]]:
        """Give the losses of each optimizer, where those that take turns have losses of their own; else nothing."""

    def events(self, *, rank: int = 0) -> Iterator[dict[str, Any]]:
        """Give what a process says."""


@final
@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage of a pipeline measured.

    Attributes:
        signals: of its process, as `levada.runs.Signals` gives them.
        name: gives a block's name among those of all stages.
        adaptive: whether its optimizer rescales gradients.
    """

    signals: Any
    name: Callable[[str], str]
    adaptive: bool


# Of all stages in their order, the run's losses and its number of steps: findings, and what has judged them.
OverDepth: TypeAlias = Callable[
    [Sequence[Stage], Sequence[tuple[int, float]], int], tuple[list[dict[str, Any]], Standing]
]


@final
@dataclass(frozen=True, slots=True)
class _Process:
    """What one process says: `said` is the last event with the rules that judged its blocks."""

    rank: int
    findings: Sequence[Mapping[str, Any]]
    said: Mapping[str, Any] | None = None
    stages: tuple[int, ...] = ()
    num_stages: int = 0
    adaptive: bool = True

    @property
    def name(self) -> str:
        return process_name(self.rank, self.stages, self.num_stages)


@final
class Together:
    """The findings and the verdict of a run, of all its processes.

    Each process has judged the blocks that it holds, and kept what it found. Of those that hold the same blocks the
    first speaks, and another one only of what the first did not find. Of what is not finite the process speaks that
    met it at the earliest step: the next update spreads it to all, and what they say of it is told as what followed.

    Args:
        run: the run.
        events: of its first process.
        over_depth: judges what no stage of a pipeline sees alone; without it that is not judged.

    Attributes:
        signals: rank -> what it measured: of many processes evenly chosen ones, and one for each stage.
        holders: ranks that together hold all blocks, in the order of a pipeline's stages.
        replicas: ranks that hold the same blocks as the first, the first among them.
        findings: what stands, the worst first, then what is over; each names its process where several hold blocks.
    """

    def __init__(
        self, run: Recorded, events: Sequence[Mapping[str, Any]], *, over_depth: OverDepth | None = None
    ) -> None:
        first = first_of(events)
        ends = (event for event in reversed(events) if event.get("type") in ("end", CONTINUED))
        last: Mapping[str, Any] = next(ends, {})
        self._ended, self._left = last.get("steps"), last.get("left")  # from which no other process goes on
        others = [(rank, list(run.events(rank=rank))) for rank in run.ranks if rank]
        self._of = {rank: _process(rank, told, first) for rank, told in [(0, events), *others] if told or not rank}
        staged = {one.stages: one.rank for one in reversed(self._of.values()) if one.stages}
        most = min(len(run.ranks), MAX_RANKS)
        even = {run.ranks[i * (len(run.ranks) - 1) // max(most - 1, 1)] for i in range(most)}
        ranks = sorted(even | {rank for rank in staged.values() if rank in run.ranks})
        self.signals: dict[int, Any] = {rank: run.signals(rank) for rank in ranks}
        self.holders = [staged[stages] for stages in sorted(staged)] or self._by_name()
        self.replicas = self._replicas()
        names = [str(site["name"]) for rank in self.holders for site in self._sites(rank)]
        self._alike = len(set(names)) < len(names)
        self.findings = self._together()
        self._over: Standing | None = None
        if over_depth is not None and len(self.holders) > 1 and self._of[0].stages and not self._missing():
            self._judge(over_depth, run.losses())

    def _sites(self, rank: int) -> Sequence[Mapping[str, Any]]:
        return self.signals[rank].sites if rank in self.signals else ()

    def _by_name(self) -> list[int]:
        found, seen = list[int](), set[str]()
        for rank in self.signals:
            names = {str(site["name"]) for site in self._sites(rank)}
            if names and not seen & names:
                found.append(rank)
                seen |= names
        return found

    def _replicas(self) -> list[int]:
        if not self.signals:
            return []
        first = next(iter(self.signals))
        own = self._of[first].stages if first in self._of else ()
        alike = (rank for rank in self.signals if self._sites(rank) == self._sites(first))
        return [rank for rank in alike if rank not in self._of or self._of[rank].stages == own]

    def site(self, rank: int, name: str) -> str:
        """Name a block: with its process, where blocks of two have the same name.

        Args:
            rank: of the process.
            name: as the process has it.
        """
        return f"{name} of process {rank}" if self._alike else name

    def _together(self) -> list[dict[str, Any]]:
        stand, over, known = list[dict[str, Any]](), list[dict[str, Any]](), set[tuple[Any, ...]]()
        every = [(process, one) for process in self._of.values() for one in process.findings]
        met = [(onset, process.rank, process, one) for process, one in every if (onset := _onset(one)) is not None]
        earliest = min(met, key=lambda each: each[:2], default=None)
        if earliest is not None:
            known.add(self._case(*earliest[2:]))
        for process, found in every:
            first, one = earliest is not None and found is earliest[3], found
            if earliest is not None and (onset := _onset(found)) is not None and onset[0] > earliest[0][0]:
                one = _followed(found, earliest[2], earliest[0][0])
            case = self._case(process, one)
            if (process.rank or case[1] == OVERFLOW) and case in known and not first:
                continue
            known.add(case)
            (over if one.get("status") == "clear" else stand).append(self._told(one, process))
        return [*sorted(stand, key=gravity), *over]

    def _case(self, process: _Process, one: Mapping[str, Any]) -> tuple[Any, ...]:
        """Give what is the same for a finding of another process that says nothing new."""
        holds = process.stages or (process.rank if process.rank in self.holders[1:] else 0)
        where = one.get("where")
        place = "" if _FOLLOWS in one else f"{(where if isinstance(where, Mapping) else {}).get('first')}"
        ended = one.get("over") if one.get("status") == "clear" else None
        return holds, f"{one.get('rule')}", place, f"{one.get('severity')}", f"{one.get('status')}", f"{ended}"

    def _judge(self, over_depth: OverDepth, losses: Sequence[tuple[int, float]]) -> None:
        """Judge all stages together; of what a stage has found by itself nothing is told again."""
        parts = [Stage(self.signals[rank], partial(self.site, rank), self._of[rank].adaptive) for rank in self.holders]
        found, self._over = over_depth(parts, losses, self.steps(losses))
        known = {one.get("rule") for one in self.findings if one.get("status") == "fired"}
        told = [
            {**one, "claim": f"{one['claim']} Told of all stages together.", "process": "all stages"}
            for one in found
            if one["rule"] not in known
        ]
        stand = [one for one in self.findings if one.get("status") != "clear"]
        over = [one for one in self.findings if one.get("status") == "clear"]
        self.findings = [*sorted([*stand, *told], key=gravity), *over]

    def _told(self, one: Mapping[str, Any], process: _Process) -> dict[str, Any]:
        """Name the process in a finding, where there are several to choose from."""
        if not process.rank and len(self.holders) < 2:
            return dict(one)
        held = one.get("where")
        where = held if isinstance(held, Mapping) else {}
        named = {key: self.site(process.rank, name) if isinstance(name, str) else name for key, name in where.items()}
        claim = f"{one.get('claim') or ''} Told by {process.name}.".lstrip()
        return {**one, "claim": claim, "where": named, "process": process.name}

    @property
    def sampled(self) -> int | None:
        """The last sampled step; None without one."""
        return next((step for signals in self.signals.values() for step in signals.steps[-1:]), None)

    @property
    def last(self) -> tuple[int, float] | None:
        """Step and time of the last sample; None without one."""
        found = next((signals for signals in self.signals.values() if signals.steps), None)
        return None if found is None else (found.steps[-1], found.times[-1])

    def steps(self, losses: Sequence[tuple[int, float]]) -> int:
        """Give the number of steps that were made, as far as the record tells.

        Args:
            losses: of the run's steps.
        """
        seen = [step for step in (self.sampled, *(step for step, _ in losses[-1:])) if step is not None]
        made = [step + (step != self._left) for step in seen]  # an update that was left is none
        return max([0, *made, *([self._ended] if isinstance(self._ended, int) else [])])

    def standing(self, steps: int) -> Standing:
        """Give what the run may be called: as its processes said it last, with what holds by now.

        Args:
            steps: steps that were made.
        """
        sampled = self.sampled
        severities = [f"{one.get('severity')}" for one in self.findings if one.get("status", "fired") == "fired"]
        first = self._of[0]
        if len(self.holders) < 2 and not first.stages:
            return Standing.of(first.said, severities, sampled=sampled, steps=steps)
        every = [self._of[rank] for rank in self.holders if rank in self._of]
        said = {one.name: Standing.of(one.said, (), sampled=sampled, steps=steps) for one in every if one.said}
        if not said:
            return Standing.of(None, severities, sampled=sampled, steps=steps)
        told = replace(Standing.together(said, self._over), severities=tuple(severities))
        missing = self._missing()
        return told.withheld(missing) if missing else told

    def _missing(self) -> str:
        """Say how many blocks, or stages, no process has judged; "" if none."""
        judged = [rank for rank in self.holders if rank in self._of and self._of[rank].said is not None]
        if len(judged) < len(self.holders):
            blocks, total = (sum(len(self._sites(rank)) for rank in ranks) for ranks in (judged, self.holders))
            return f"only {blocks:,} of {total:,} blocks were judged"
        stages = {stage for rank in judged for stage in self._of[rank].stages}
        num_stages = max(self._of[rank].num_stages for rank in judged)
        return f"only {len(stages):,} of {num_stages:,} stages were judged" if len(stages) < num_stages else ""


def _onset(one: Mapping[str, Any]) -> tuple[int, int] | None:
    """Give the step of what is not finite, and whether its cause is not known; None of another finding."""
    evidence = one.get("evidence")
    known = evidence if isinstance(evidence, Mapping) else {}
    step = known.get("step")
    if one.get("rule") != OVERFLOW or one.get("severity") != "error" or one.get("status") == "clear":
        return None
    return (
        (step, known.get("tensor") not in ("inputs", "targets") and not one.get("where")) if type(step) is int else None
    )


def _followed(one: Mapping[str, Any], earliest: _Process, step: int) -> dict[str, Any]:
    """Give what another process says of what came to it later, as what followed."""
    claim = f"What followed what {earliest.name} met at step {step}: {one.get('claim') or ''}".rstrip()
    return {**one, "severity": "info", "claim": claim, _FOLLOWS: step}


def _process(rank: int, events: Sequence[Mapping[str, Any]], first: int) -> _Process:
    """Read what a process says. If it is not one of those that went on with the run last, that stands no more."""
    findings, said = findings_of(events), said_of(events)
    if rank and first_of(events) != first:
        return _Process(rank, [superseded(one, first) for one in findings])
    told = Standing.of(said, (), sampled=None, steps=0)
    return _Process(rank, findings, said, told.stages, told.num_stages, told.adaptive)
