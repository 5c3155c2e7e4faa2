"""A claim: one sentence of one paper, a criterion fixed in advance, and what the results say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, final

from levada.study.results import Results

__all__ = ["LEAST_SEEDS", "Claim", "Outcome", "Statistic", "Status", "Undecided"]

Status: TypeAlias = Literal["held", "not held", "not decided"]

# With 4 against 4 a complete separation has exact two-sided p = .029, with 5 against 5 .008.
LEAST_SEEDS = 5


@final
@dataclass(frozen=True, slots=True)
class Statistic:
    """A test statistic on the seeds.

    Attributes:
        name: the test, with its alternative.
        value: the statistic.
        p: its exact p-value, if the test has one.
        low: lower end of an interval, if it is one.
        high: upper end.
    """

    name: str
    value: float
    p: float | None = None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set."""
        fields = {"name": self.name, "value": self.value, "p": self.p, "low": self.low, "high": self.high}
        return {key: value for key, value in fields.items() if value is not None}


@final
@dataclass(frozen=True, slots=True)
class Undecided:
    """What a claim's `decide` returns in place of yes or no where the results, though whole, cannot say.

    Attributes:
        reason: what they lack, such as "the largest depth is 402, and the statement is about 1,202".
    """

    reason: str


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """What the results say about a claim.

    Attributes:
        status: "held", "not held", or "not decided".
        numbers: what was measured, by name: a number, or one per seed.
        seeds: the seeds it rests on.
        statistic: a test on the seeds, where one applies.
        reason: why the claim is not decided.
    """

    status: Status
    numbers: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    statistic: Statistic | None = None
    reason: str = ""


@final
@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence of one paper, with the criterion that decides it.

    Attributes:
        name: short name, unique in its study.
        statement: the sentence.
        criterion: what must be measured for the sentence to hold, with numbers.
        source: authors, year, arXiv id, section.
        decide: results -> (whether the criterion is met or `Undecided`, numbers, statistic or None).
        needs: the configurations that it rests on: those with these fields, a tuple being alternatives.
        paper_value: what the paper reports.
        correction: what is true instead, where the sentence is wrong or says too much.

    Example:
        >>> from levada.study import Cell
        >>> cell = Cell({"depth": 2}, range(5))
        >>> grown = {cell.key(seed): {"ratio": 2.0 + seed} for seed in cell.seeds}
        >>> claim = Claim("grows", "It grows.", "ratio > 1 in every seed", "nobody",
        ...               lambda r: (min(r.column("ratio")) > 1, {"ratio": r.column("ratio")}, None))
        >>> claim.test(Results([cell], grown)).status
        'held'
        >>> claim.test(Results([Cell({"depth": 2}, range(2))], grown)).reason
        'a claim is decided with 5 seeds or more, and this run has 2'
    """

    name: str
    statement: str
    criterion: str
    source: str
    decide: Callable[[Results], tuple[bool | Undecided, Mapping[str, Any], Statistic | None]]
    needs: Mapping[str, Any] = field(default_factory=dict)
    paper_value: str = ""
    correction: str = ""

    def test(self, results: Results) -> Outcome:
        """Decide the claim; "not decided" where a result that it needs failed or is missing, or seeds are too few.

        Args:
            results: what was measured so far, and what should have been.

        Returns:
            The outcome.
        """
        cells = [cell for cell in results.cells if _has(cell.config, self.needs)]
        own = Results(cells, results.values, results.failures)
        reason = _obstacle(own)
        if reason:
            return Outcome("not decided", seeds=own.seeds, reason=reason)
        met, numbers, statistic = self.decide(own)
        if isinstance(met, Undecided):
            return Outcome("not decided", numbers, own.seeds, statistic, met.reason)
        return Outcome("held" if met else "not held", numbers, own.seeds, statistic)

    def to_event(self, outcome: Outcome) -> dict[str, Any]:
        """Return the fields of the event "claim" that records `outcome`."""
        return {
            "name": self.name,
            "statement": self.statement,
            "criterion": self.criterion,
            "status": outcome.status,
            "reason": outcome.reason,
            "numbers": dict(outcome.numbers),
            "seeds": list(outcome.seeds),
            "statistic": None if outcome.statistic is None else outcome.statistic.to_dict(),
            "correction": self.correction,
            "paper_value": self.paper_value,
            "source": self.source,
        }


def _has(config: Mapping[str, Any], needs: Mapping[str, Any]) -> bool:
    return all(
        config.get(key) in wanted if isinstance(wanted, tuple) else config.get(key) == wanted
        for key, wanted in needs.items()
    )


def _obstacle(results: Results) -> str:
    """What keeps a claim from being decided, or nothing."""
    if not results.cells:
        return "no configuration of this run measures it"
    wanted = [cell.key(seed) for cell in results.cells for seed in cell.seeds]
    failed = [key for key in wanted if key in results.failures and key not in results.values]
    if failed:
        errors = list(dict.fromkeys(results.failures[key] for key in failed))
        more = f" (errors of {len(errors)} kinds; this is the first)" if len(errors) > 1 else ""
        noun = "result" if len(wanted) == 1 else "results"
        return f"{len(failed)} of {len(wanted)} {noun} failed: {errors[0]}{more}"
    fewest = min(_num_seeds(results, config) for config in results.configs)
    if fewest < LEAST_SEEDS:
        return f"a claim is decided with {LEAST_SEEDS} seeds or more, and this run has {fewest}"
    missing: Sequence[str] = results.missing()
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"a result is missing: {missing[0]}{more}"
    return ""


def _num_seeds(results: Results, config: Mapping[str, Any]) -> int:
    return len({seed for cell in results.cells if cell.config == config for seed in cell.seeds})
