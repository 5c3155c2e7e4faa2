"""What was found in a run, in order: told once it is confirmed, made worse, and taken back when it ends."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, final

from levada.diagnose.finding import Finding
from levada.runs.standing import PLACED
from levada.watching.steps.skipped import RULE as SKIPPED

__all__ = ["Ledger", "case_of"]

Key: TypeAlias = tuple[str, str]  # a rule and a place

APART: Final = 16  # times that what stands without samples is told in an entry of its own, then in the last of them
HISTORY: Final = 1024
OVER: Final = 1024  # findings that are over and are kept: a run of weeks may have more

_ORDER: Final = {"info": 0, "warn": 1, "error": 2}
_OUTSIDE: Final = ("inputs", "targets", "buffer", "weight")  # what is named before the update, and explains the rest


@dataclass(slots=True)
class _Case:
    """What a rule says of one place, and for how many samples in a row."""

    finding: Finding
    held: int = 0
    missed: int = 0
    at: int | None = None  # number of its finding, once it is told


@final
class Ledger:
    """Keeps the findings of a run.

    Args:
        confirm: samples in a row on which a finding must hold, or must not, to be told or taken back.
        ask: called with an error, of which a bundle is to be kept.

    Attributes:
        history: each telling, worsening and ending in turn, of the last thousand.
        count: how many findings were told, with those that are no longer kept.
        confirm: as given.
    """

    def __init__(self, confirm: int, ask: Callable[[Finding], None]) -> None:
        self._findings: dict[int, Finding] = {}  # in the order in which they were told
        self._over: deque[int] = deque()  # which of them are over, in the order in which they ended
        self.count = 0
        self.history: deque[Finding] = deque(maxlen=HISTORY)
        self.confirm = confirm
        self._ask = ask
        self._cases: dict[Key, _Case] = {}
        self._standing: dict[str, int] = {}  # number of the finding, by rule
        self._stood: dict[str, list[int]] = {}  # and those at which it stood before
        self._times: Counter[str] = Counter()

    @property
    def findings(self) -> list[Finding]:
        """Each as it stands now; of those that are over the last thousand."""
        return list(self._findings.values())

    def __contains__(self, key: Key) -> bool:
        """Return whether an error was told of it, than which nothing is worse."""
        case = self._cases.get(key)
        return case is not None and case.at is not None and self._findings[case.at].severity == "error"

    def last(self, key: Key) -> Finding | None:
        """Return what a rule said of a place last, while it does."""
        case = self._cases.get(key)
        return None if case is None else case.finding

    def stand(self, finding: Finding, *, renew: bool = False) -> None:
        """Tell a finding that is confirmed already, and does not depend on samples; or that it is another, or worse."""
        at = self._standing.get(finding.rule)
        if at is None:
            self._stand_anew(finding)
        elif renew or _worse(finding, self._findings[at]):
            told_at = self._findings[at].evidence["told_at"]
            self._findings[at] = replace(finding, evidence={**finding.evidence, "told_at": told_at})
            self._remember(self._findings[at])

    def _stand_anew(self, finding: Finding) -> None:
        stood = self._stood.setdefault(finding.rule, [])
        self._times[finding.rule] += 1
        if len(stood) < APART:
            stood.append(self._tell(finding))
        else:
            times = self._times[finding.rule]
            again = f"{finding.claim} It came {times:,} times so far."
            self._findings[stood[-1]] = replace(finding, claim=again, evidence={**finding.evidence, "times": times})
            self._remember(self._findings[stood[-1]])
        self._standing[finding.rule] = stood[-1]

    def over(self, rule: str, step: int) -> None:
        """Take back what stands without samples."""
        at = self._standing.pop(rule, None)
        if at is not None:
            self._clear(at, step)

    def hold(self, key: Key, finding: Finding, step: int, *, confirm: int | None = None, renew: bool = False) -> None:
        """Hear that a rule holds on a sample."""
        case = self._cases.setdefault(key, _Case(finding))
        case.finding, case.held, case.missed = finding, case.held + 1, 0
        if case.at is None and case.held >= (self.confirm if confirm is None else confirm):
            told = replace(finding, evidence={**finding.evidence, "told_at": step, "samples": case.held})
            case.at = self._tell(told)
        elif case.at is not None and (renew or _worse(finding, self._findings[case.at])):
            before = self._findings[case.at]
            told_at = {key: before.evidence[key] for key in ("told_at", "samples")}
            self._findings[case.at] = replace(finding, evidence={**finding.evidence, **told_at})
            if _worse(finding, before):
                self._remember(self._findings[case.at])

    def miss_others(self, held: Collection[Key], step: int, *, rules: Collection[str] = ()) -> None:
        """Hear that all rules hold no more, or that some of them, but those."""
        for key in [key for key in self._cases if key not in held and (not rules or key[0] in rules)]:
            case = self._cases[key]
            case.held, case.missed = 0, case.missed + 1
            if case.at is None:
                del self._cases[key]
            elif case.missed >= self.confirm or key[0] == "loss_spike":
                self._clear(case.at, step)
                del self._cases[key]

    def tell_at_once(self, finding: Finding) -> None:
        """Tell a finding that needs no other sample; that it is worse, or over; or its place, where known only now."""
        key, seen_at = (finding.rule, ""), finding.evidence["seen_at"]
        case = self._cases.get(key)
        if case is not None and case.at is not None and _worse(self._findings[case.at], finding):
            self.end(finding.rule, seen_at)  # what is left of it, as a mask, was there before
            case = None
        if case is None:
            told = replace(finding, evidence={**finding.evidence, "told_at": seen_at})
            self._cases[key] = _Case(finding, 1, 0, self._tell(told))
        elif case.at is not None and _worse(finding, self._findings[case.at]):
            told_at = self._findings[case.at].evidence["told_at"]
            case.finding = finding
            self._findings[case.at] = replace(finding, evidence={**finding.evidence, "told_at": told_at})
            self._remember(self._findings[case.at])
        elif case.at is not None and finding.where and not self._findings[case.at].where:
            before = self._findings[case.at].evidence
            # The same one, and now its block is known; where data, buffers or weights were not finite, that tells less.
            if finding.evidence["step"] == before["step"] and before["tensor"] not in _OUTSIDE:
                self._findings[case.at] = replace(finding, evidence={**finding.evidence, "told_at": before["told_at"]})
                self.history.append(self._findings[case.at])

    def end(self, rule: str, step: int) -> None:
        """Take back what was told at once."""
        case = self._cases.pop((rule, ""), None)
        if case is not None and case.at is not None:
            self._clear(case.at, step)

    def _tell(self, finding: Finding) -> int:
        number, self.count = self.count, self.count + 1
        self._findings[number] = finding
        self._remember(finding)
        return number

    def _remember(self, finding: Finding) -> None:
        self.history.append(finding)
        # Of a standstill the bundle is kept at once: no update comes, and then a good one.
        if finding.severity == "error" and finding.rule != SKIPPED:
            self._ask(finding)

    def _clear(self, at: int, step: int) -> None:
        finding = self._findings[at]
        evidence: dict[str, Any] = {**finding.evidence, "cleared_at": step}
        claim = f"{finding.claim} Cleared at step {step}."
        self._findings[at] = replace(finding, status="clear", claim=claim, evidence=evidence)
        self.history.append(self._findings[at])
        if at in self._over:  # it stood again
            self._over.remove(at)
        self._over.append(at)
        while len(self._over) > OVER:
            oldest = self._over.popleft()
            if self._findings[oldest].status == "clear":
                del self._findings[oldest]


def case_of(finding: Finding) -> str:
    """Name the case that a finding tells of: the same for each telling of it, though its block may be known only later.

    Args:
        finding: one that a ledger told; of others, their rule and place are a case.

    Example:
        >>> case_of(Finding("loss_spike", "warn", "fired", "a jump", evidence={"told_at": 20}))
        'loss_spike 20'
    """
    told_at = finding.evidence.get("told_at")
    place = finding.where.get("first", "") if told_at is None or finding.rule in PLACED else ""
    return " ".join(f"{part}" for part in (finding.rule, told_at, place) if part not in (None, ""))


def _worse(finding: Finding, told: Finding) -> bool:
    return _ORDER[finding.severity] > _ORDER[told.severity]
