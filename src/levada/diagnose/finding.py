"""A finding: what is wrong, where, on which evidence, how sure, and what would show it false."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from levada.probe.trace import Trace

__all__ = ["Diagnostic", "Finding", "Proposal", "Severity", "Status"]

Severity: TypeAlias = Literal["error", "warn", "info"]
Status: TypeAlias = Literal["fired", "clear", "unknown"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A repair, as a change that a person can make.

    Attributes:
        name: name of the remedy.
        patch: the change, in code.
        before: measured on the model as it is.
        after: what theory predicts (`verified=False`) or what was measured (`verified=True`) after the change.
        verified: whether the change was tried on this model and data.
    """

    name: str
    patch: str
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    verified: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """One verdict of one rule.

    Attributes:
        rule: the rule's name, e.g. "vanishing_gradient".
        severity: "error" only when a scale-free measurement, theory or a baseline, and a functional test agree.
        status: "fired", "clear", or "unknown" (then `claim` gives the reason).
        claim: one sentence with numbers.
        where: {"first": site, "last": site}, the first culprit and the span.
        evidence: value, interval, reference and where that comes from.
        consequence: what will not be learned.
        falsify: how to show that the finding is wrong, as a command or an experiment.
        remedies: repairs, the best first.
        source: authors, year, arXiv id.
        calibration: how often the rule is as severe as this where nothing is wrong: {"errors", "warnings", "of",
            "rate", "low", "high", "suite"}; empty if that was not measured.
        ruled_out: what else could have explained it, and was tested on this model and excluded, a sentence each.
        cost_ms: milliseconds of the passes and tests that the rule reads: {"total", "own", "shared"}, where `shared` is
            its part of those that other rules read too; empty if nothing was timed.
    """

    rule: str
    severity: Severity
    status: Status
    claim: str
    where: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    consequence: str = ""
    falsify: str = ""
    remedies: tuple[Proposal, ...] = ()
    source: str = ""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    ruled_out: tuple[str, ...] = ()
    cost_ms: Mapping[str, float] = field(default_factory=dict)


Diagnostic: TypeAlias = Callable[[Trace], Iterable[Finding]]
