"""What `fix` proposes: the best remedy, or that with another one on top of it, and what is said of the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from levada.diagnose.causes import errors, fired
from levada.diagnose.course import Clock, Spent, copied
from levada.diagnose.finding import Finding, Proposal
from levada.diagnose.remedies import Remedy, Subject, calls
from levada.diagnose.repaired import Fix, Outcome
from levada.diagnose.rounds import LEAST_TRIALS, Checked, Round
from levada.diagnose.verify import Trial, Trials, compared

__all__ = ["SPENT", "Second", "chosen", "second"]

SPENT = "The budget was spent before everything was tried."
# Times that of the first check, which a check of what the second round repairs may take.
CHECK = 1.5


@final
@dataclass(frozen=True, slots=True)
class Second:
    """What became of a second round.

    Attributes:
        pair: the best remedy and another one, against the model as it is; None if no other helps on top of it.
        checked: its check; None without one.
        trials: all that was tried, each against the best remedy alone, but the pair.
        judged: what both sides were judged by, in words, if that is not what the first round was judged by.
        spent: whether time ran out.
    """

    pair: Trial | None = None
    checked: Checked | None = None
    trials: tuple[Trial, ...] = ()
    judged: str = ""
    spent: bool = False


def second(first: Round, best: Trial) -> Second:
    """Try, on top of the best remedy, what answers the findings that it leaves.

    The pair is proposed only if it verifiably beats the best remedy alone and brings no error that this does not leave.

    Args:
        first: the round that chose it.
        best: what was chosen.
    """
    report, made = first.checks[best.name].report, first.made
    reasons = [*fired(report)]
    reasons += [] if _learns(best, made.floor) else ["no_progress"]
    reasons += [] if best.steady else ["learning_rate_too_high"]
    base = first.remedy(best)
    others = {name: remedy for name, remedy in first.remedies.items() if remedy is not base}
    left = first.clock.left - CHECK * first.before.seconds
    if left <= 0 or not any(remedy.causes & set(reasons) for remedy in others.values()):
        return Second()
    on_top = _on_top(first, best, base, Clock(left))
    trial_round = Round(on_top, others, first.how, first.clock, report, named=lambda name: f"{best.name} + {name}")
    trials = trial_round.run(reasons)
    order = trial_round.best(trials)
    winner = next((t for t in order if t.steady or not best.steady), None)
    judged = on_top.judged if on_top.measure != made.measure else ""
    pair = None if winner is None else _pair(first, trial_round, best, winner)
    told = [_on(best, t, judged if pair is None else "") for t in trials if pair is None or t.name != pair.name]
    checked = None if pair is None else trial_round.checks[pair.name]
    return Second(pair, checked, tuple(told), judged, trial_round.spent)


def _on_top(first: Round, best: Trial, base: Remedy, clock: Clock) -> Trials:
    made, checked = first.made, first.checks[best.name]
    model = copied(made.repaired(checked.patch))
    batches = [made.training.fitted(batch, model) for batch in made.training.batches]
    loss, seed = checked.patch.adjust(made.training.loss), first.how.get("seed", 0)
    onto = Subject(model, checked.report, checked.facts, batches, calls(model, batches[0]), seed, loss)
    trials = Trials(
        made.model,
        made.training,
        made.subject,
        seeds=made.seeds,
        steps=made.steps,
        clock=clock,
        done=made.done,
        base=(base, onto),
    )
    trials.measure, trials.judged, trials.floor = made.measure, made.judged, made.floor
    return trials


def _pair(first: Round, trial_round: Round, best: Trial, winner: Trial) -> Trial | None:
    """Compare a pair, which beats the best remedy alone, with the model as it is."""
    made, on_top = first.made, trial_round.made
    made.measure, made.judged, made.floor, made.clock = on_top.measure, on_top.judged, on_top.floor, on_top.clock
    try:
        before = [made.baseline(seed) for seed in winner.seeds]
    except Spent:
        return None
    report = trial_round.checks[winner.name].report
    gain = f"{winner.effect:+.2f} [{winner.low:+.2f}, {winner.high:+.2f}]"
    against = compared(winner, before, None, winner.seeds, made.floor)
    return replace(
        against,
        causes=tuple(dict.fromkeys((*best.causes, *winner.causes))),
        size=max(best.size, winner.size),
        does=f"{best.does} {winner.does}",
        said=f"helps more than {best.name} alone, by {gain}; no new error",
        left=tuple(rule for rule in fired(first.before) if rule in fired(report)),
    )


def _on(best: Trial, trial: Trial, judged: str) -> Trial:
    by = f", by {judged}" if judged else ""
    return replace(trial, proposed=False, said=f"on top of {best.name}{by}: {trial.said}")


def _void(trial: Trial) -> Trial:
    """Take back what was said of a trial that was judged by a loss that is at fault."""
    return replace(trial, proposed=False, said=f"by the loss that is replaced: {trial.said}")


def chosen(first: Round, order: Sequence[Trial], trials: Sequence[Trial], more: Second) -> Fix:
    """Return what is proposed, and what became of everything.

    Args:
        first: the first round.
        order: what it proposes, the best first.
        trials: all of its trials.
        more: the second round.
    """
    made = first.made
    rest = sorted([t for t in trials if not t.proposed], key=lambda t: math.inf if t.effect is None else -t.effect)
    if more.pair is not None and more.judged:
        order, rest = [_void(t) for t in order], [_void(t) for t in rest]
    everything = (*([more.pair] if more.pair else []), *order, *rest, *more.trials)
    notes = ((SPENT,) if first.spent or more.spent else ()) + _advice(first, trials)
    proposed = [t for t in everything if t.proposed]
    told = tuple(_proposing(f, proposed, everything) for f in first.before.findings)
    before = replace(first.before, findings=told)
    if not proposed:
        unsure = first.spent and not any(len(t.seeds) >= LEAST_TRIALS for t in trials)
        outcome: Outcome = "unknown" if unsure else "not repaired"
        return Fix(outcome, None, "", before, None, everything, notes=notes, judged=made.judged)
    best = proposed[0]
    checked = more.checked or first.checks[best.name]
    gone = not best.left and not errors(checked.report)
    outcome = "repaired" if gone and best.steady and _learns(best, made.floor) else "helps"
    return Fix(
        outcome,
        made.repaired(checked.patch),
        best.patch,
        before,
        checked.report,
        everything,
        checked.patch,
        notes=notes,
        judged=made.judged,
    )


def _learns(trial: Trial, floor: float) -> bool:
    """Return whether the loss that is left is below that of outputs of zero, where that is known."""
    return float(trial.after["loss"]) < floor or not floor


def _advice(first: Round, trials: Sequence[Trial]) -> tuple[str, ...]:
    """Say of which findings nothing was tried: there is the advice of the check, and no more."""
    answered = {cause for trial in trials if trial.effect is not None for cause in trial.causes}
    notes = []
    for finding in first.before.findings:
        if finding.status != "fired" or finding.severity == "info" or finding.rule in answered:
            continue
        advice = "; ".join(p.patch.strip() if "\n" not in p.patch.strip() else p.name for p in finding.remedies)
        notes.append(
            f"{finding.rule}: no remedy applies, so nothing was tried. "
            + (f"The check's advice, which is not verified: {advice}" if advice else finding.claim)
        )
    return tuple(dict.fromkeys(notes))


def _proposing(finding: Finding, order: Sequence[Trial], trials: Sequence[Trial]) -> Finding:
    """Give a finding the remedies that were verified, and of its own those that were not tried."""
    if finding.status != "fired":
        return finding
    verified = tuple(
        Proposal(
            trial.name,
            trial.patch,
            {"loss": trial.before["loss"]},
            {"loss": trial.after["loss"], "effect": {"value": trial.effect, "low": trial.low, "high": trial.high}},
            verified=True,
        )
        for trial in order
        if finding.rule in trial.causes
    )
    tried = {t.name for t in trials if t.effect is not None}
    return replace(finding, remedies=(*verified, *(p for p in finding.remedies if p.name not in tried)))
