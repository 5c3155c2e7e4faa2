"""Repairs in the terminal: what was tried, what it did, and the change to make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from levada._numbers import restore_numbers
from levada.report.words import plain

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SENTENCES", "effect", "print_fix"]

_COLOURS: Final = {
    "healthy": "green",
    "repaired": "green",
    "improved": "yellow",
    "not repaired": "red",
    "unknown": "magenta",
}
SENTENCES: Final[Mapping[str, str]] = {
    "healthy": "There is nothing to repair.",
    "repaired": "{remedy} helps, and a check of the repaired model shows no error.",
    "improved": "{remedy} helps, and is not enough: an error or a loss above that of zeros is left.",
    "not repaired": "Nothing that was tried helps.",
    "unknown": "It is not known what would help.",
}


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
        _print_trials(trials, console)
    sentence = SENTENCES.get(outcome, "").format(remedy=told.get("remedy"))
    console.print(f"{outcome}: {sentence}", style=_COLOURS.get(outcome, ""), highlight=False)
    for note in told.get("notes") or ():
        console.print(str(note), style="dim", highlight=False)
    patch = told.get("diff") or told.get("patch")
    if patch:
        console.print()
        # Never wrapped: it is to be copied.
        console.print(str(patch).rstrip("\n"), markup=False, highlight=False, soft_wrap=True)


def _print_trials(trials: list[dict[str, Any]], console: Console) -> None:
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
        console.print("The effect is a share of the loss: 0.9 leaves a tenth of it.", style="dim", highlight=False)
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
