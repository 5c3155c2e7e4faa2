"""Repairs in the terminal: what was tried, what it did, and the change to make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from levada._numbers import restore_numbers
from levada.report.words import plain

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["EFFECT", "causes", "effect", "headline", "judged", "print_fix"]

# As `levada.diagnose.verify.effect_of` computes it, seed by seed.
EFFECT: Final = (
    "The effect is how far the loss is lower with the remedy, as a share of the largest of three losses: before, "
    "after, and that of outputs of zero."
)
_COLOURS: Final = {
    "healthy": "green",
    "repaired": "green",
    "helps": "yellow",
    "not repaired": "red",
    "unknown": "magenta",
}


def headline(told: Mapping[str, Any]) -> str:
    """Write what came of a repair in one sentence: what the remedy did to the loss, and what is gone or left.

    Args:
        told: the JSON of `levada fix`.

    Example:
        >>> trial = {"name": "clip", "before": {"loss": 2.0}, "after": {"loss": 0.5}, "effect": 0.75}
        >>> told = {"outcome": "repaired", "remedy": "clip", "trials": [{**trial, "causes": ["exploding_gradient"]}]}
        >>> headline(told)
        'clip takes the loss from 2 to 0.5 (effect +0.75), and what it answers is gone: exploding_gradient.'
    """
    outcome, trials = str(told.get("outcome", "unknown")), restore_numbers(list(told.get("trials") or ()))
    best = trials[0] if trials and told.get("remedy") else None
    if outcome == "healthy":
        return "There is nothing to repair."
    if outcome == "not repaired":
        tried = any(trial.get("effect") is not None for trial in trials)
        return "Nothing that was tried helps." if tried else "Nothing was tried: no remedy answers what was found."
    if best is None or outcome not in ("repaired", "helps"):
        return "It is not known what would help." if outcome == "unknown" else f"{told.get('remedy')} helps."
    figures = f"{_loss(best['before']['loss'])} to {_loss(best['after']['loss'])} (effect {effect(best)})"
    text = f"{best['name']} takes the loss from {figures}"
    if outcome == "repaired":
        return f"{text}, and what it answers is gone: {', '.join(best.get('causes') or ())}."
    left = [f"{', '.join(best['left'])} still fires"] if best.get("left") else []
    left += [] if best.get("steady", True) else ["its loss spikes on the way"]
    left += [] if left else ["an error is left, or a loss above that of outputs of zero"]
    return f"{text}, and is not enough: {' and '.join(left)}."


def causes(told: Mapping[str, Any]) -> list[str]:
    """List what the remedies were to answer: rules that fired, and what a short training showed.

    Args:
        told: the JSON of `levada fix`.

    Example:
        >>> finding = {"rule": "dead_units", "status": "fired", "severity": "error"}
        >>> causes({"causes": ["dead_units", "no_progress"], "before": {"findings": [finding]}})
        ['dead_units (error)', 'no_progress (seen in training)']
    """
    findings = (told.get("before") or {}).get("findings") or ()
    fired = {f["rule"]: f["severity"] for f in findings if f.get("status") == "fired"}
    return [f"{cause} ({fired.get(cause, 'seen in training')})" for cause in told.get("causes") or ()]


def judged(told: Mapping[str, Any]) -> str:
    """Say which loss all losses are of, where it is not the one that was given; "" where it is.

    Args:
        told: the JSON of `levada fix`.
    """
    words = told.get("judged")
    return f"All losses, as it is and with a remedy, are those of one measure: {words}." if words else ""


def print_fix(told: Mapping[str, Any], console: Console) -> None:
    """Print one repair: what was tried and what it did, the outcome, and the change.

    Args:
        told: the JSON of `levada fix`.
        console: where to.

    Example:
        >>> from rich.console import Console
        >>> print_fix({"outcome": "healthy", "trials": [], "notes": []}, Console(width=80))
        healthy: There is nothing to repair.
    """
    outcome = str(told.get("outcome", "unknown"))
    trials = restore_numbers(list(told.get("trials") or ()))
    if trials:
        _print_trials(trials, console, judged(told))
    console.print(f"{outcome}: {headline(told)}", style=_COLOURS.get(outcome, ""), highlight=False)
    found = causes(told)
    if found:
        console.print(f"Found: {', '.join(found)}.", markup=False, highlight=False)
    if told.get("remedy") and trials and trials[0].get("does"):
        console.print(f"{told['remedy']}: {trials[0]['does']}", markup=False, highlight=False)
    for note in told.get("notes") or ():
        console.print(str(note), style="dim", highlight=False)
    patch = told.get("diff") or told.get("patch")
    if patch:
        console.print()
        # Never wrapped: it is to be copied.
        console.print(str(patch).rstrip("\n"), markup=False, highlight=False, soft_wrap=True)


def _print_trials(trials: list[dict[str, Any]], console: Console, measure: str) -> None:
    from rich.table import Table
    from rich.text import Text

    tried = [trial for trial in trials if trial.get("effect") is not None]
    if tried:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("remedy", no_wrap=True)
        for head in ("loss before", "after", "effect"):
            table.add_column(head, justify="right", no_wrap=True)
        table.add_column("")
        for trial in tried:
            table.add_row(
                Text(str(trial["name"]), "green" if trial.get("proposed") else ""),
                _loss(trial["before"]["loss"]),
                _loss(trial["after"]["loss"]),
                effect(trial),
                str(trial.get("said", "")),
            )
        console.print(table, highlight=False)
        console.print(EFFECT, style="dim", highlight=False)
        if measure:
            console.print(measure, style="dim", markup=False, highlight=False)
    for trial in trials:
        if trial.get("effect") is None:
            console.print(f"{trial['name']}: {trial.get('said')}", style="dim", markup=False, highlight=False)
    console.print()


def effect(trial: Mapping[str, Any]) -> str:
    """Write the effect of a trial with its interval.

    Example:
        >>> effect({"effect": 0.5, "low": 0.25, "high": 0.75}), effect({"effect": -0.001})
        ('+0.50 [+0.25, +0.75]', '+0.00')
    """
    low, high = trial.get("low"), trial.get("high")
    told = _signed(trial["effect"])
    return f"{told} [{_signed(low)}, {_signed(high)}]" if low is not None and high is not None else told


def _loss(value: float) -> str:
    return plain(value) if math.isfinite(value) else "inf"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # no minus before a zero
