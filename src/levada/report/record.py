"""What a watched run's page says of its record: whether it is still written, its kept steps, what the loop logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from levada._names import OWN_SCALARS
from levada.report.beside import line_figure
from levada.report.curve import loss_series
from levada.report.words import count, number, short
from levada.runs.bundles import BUNDLES, Kept, bundles_of, look_at, replayed
from levada.runs.ending import ended
from levada.runs.frames import Damage

__all__ = ["again", "bundle_notes", "bundles_in", "logged_facts", "logged_figures", "logged_in", "state_of"]

MAX_LOGGED: Final = 6  # names that the loop logged, of which each has a figure


def state_of(
    events: Sequence[Mapping[str, Any]], steps: int, *, held: bool | None, damage: Damage | None
) -> tuple[bool, str]:
    """Say whether all steps are known, and in a sentence whether the run ended, is being written, or was cut off.

    Args:
        events: of the run, those that can be read.
        steps: as many as it made by what can be read.
        held: whether a writer is at work in it; None where that is not known.
        damage: what keeps the log from being read to its end.

    Example:
        >>> state_of([{"type": "end"}], 40, held=False, damage=None)
        (True, 'The run ended after 40 steps.')
        >>> state_of([{"type": "end", "error": "ValueError: no"}], 40, held=False, damage=None)[1]
        'The run was stopped by an error after 40 steps: ValueError.'
        >>> state_of([], 1, held=True, damage=None)
        (False, 'The run is being written now, and has made at least 1 step.')
        >>> state_of([], 40, held=False, damage=None)[1][:21]
        'The run was cut off: '
    """
    made = f"at least {count(steps, 'step')}"
    if held:  # also where it is gone on with, and has no event yet
        return False, f"The run is being written now, and has made {made}."
    if ended(events):
        return True, f"The run {_end(events, count(steps, 'step'))}."
    torn = damage is not None and damage.kind != "incomplete"  # what is incomplete, a killed process leaves
    if torn or any(event.get("type") == "repaired" for event in events[-1:]):
        return False, f"Whether the run ended cannot be known, as the end of its event log is damaged; it made {made}."
    if held is None:
        why = "its last process was on another machine, or this is a copy"
        return False, f"Whether the run goes on or was cut off cannot be known here: {why}. It made {made}."
    return False, f"The run was cut off: its process was killed, or the machine went down. It made {made}."


def _end(events: Sequence[Mapping[str, Any]], steps: str) -> str:
    """Say how a run ended, with the type of the error that stopped it."""
    last: Mapping[str, Any] = next((event for event in reversed(events) if event.get("type") == "end"), {})
    kind, _, why = str(last.get("error") or "").partition(": ")
    if kind.rstrip(":") == "KeyboardInterrupt":
        return f"was interrupted after {steps}"
    if not kind:
        return f"ended after {steps}"
    if why.startswith("train: "):  # by which a training stops itself
        return f"was stopped after {steps}"
    return f"was stopped by an error after {steps}: {kind.rstrip(':')}"


def bundles_in(run: Path) -> list[Kept]:
    """Look at each kept step of a run.

    Args:
        run: the run's folder.
    """
    return [look_at(folder) for folder in bundles_of(run)]


def again(kept: Kept) -> tuple[str, str]:
    """Give the command that runs a kept step again, and what its user must fill in; "" if nothing.

    Args:
        kept: the step.
    """
    words, whole = replayed(kept.folder)
    return words, "" if whole else f", where NAME is the function that builds the {kept.model or 'model'}"


def bundle_notes(
    kept: Sequence[Kept], findings: Sequence[Mapping[str, Any]] = (), *, alarmed: bool = True
) -> list[str]:
    """Say which kept steps can be run again, and how; of those that cannot, the damage is told elsewhere.

    Args:
        kept: what is there.
        findings: as the page shows them; a command that stands there is not told again.
        alarmed: whether an alarm holds; without one it is said that a kept step is none.
    """
    notes = []
    finding = "" if alarmed else " That it was kept is no finding."
    shown = {value for one in findings for _, value in one["evidence"]}
    for one in kept:
        words, builds = again(one)
        if not one.damage and f"{words}{builds}" not in shown:
            notes.append(f"The step of {BUNDLES}/{one.folder.name} can be run again: `{words}`{builds}.{finding}")
    return notes


def logged_in(signals: Any) -> dict[str, list[tuple[int, float]]]:
    """Give what the loop logged, by name: the steps and numbers of the samples that have it.

    Args:
        signals: of the first process; None without any.
    """
    names = [name for name in signals.scalar_names if name not in OWN_SCALARS] if signals is not None else []
    return {name: signals.scalars(name) for name in names}


def logged_facts(logged: Mapping[str, Sequence[tuple[int, float]]]) -> list[tuple[str, str, str]]:
    """Give the last number of each name: label, value, and where it began.

    Args:
        logged: as `logged_in` gives it.

    Example:
        >>> logged_facts({"accuracy": [(0, 0.5), (20, 0.75)], "seen": [(20, 640.0)]})
        [('accuracy', '0.75', 'logged; at step 0: 0.5'), ('seen', '640', 'logged at step 20')]
    """
    facts = []
    for name, pairs in list(logged.items())[:MAX_LOGGED]:
        first, last = pairs[0], pairs[-1]
        several = len(pairs) > 1
        note = f"logged; at step {first[0]:,}: {short(first[1])}" if several else f"logged at step {first[0]:,}"
        facts.append((name, short(last[1]), note))
    return facts


def logged_figures(logged: Mapping[str, Sequence[tuple[int, float]]]) -> list[dict[str, Any]]:
    """Draw each name that came more than once.

    Args:
        logged: as `logged_in` gives it.
    """
    figures = []
    for name, pairs in list(logged.items())[:MAX_LOGGED]:
        if sum(math.isfinite(number(value) or 0.0) for _, value in pairs) < 2:
            continue
        spec = {"x": {"label": "step"}, "y": {"label": name, "scale": "linear"}, "series": [loss_series(pairs)]}
        caption = f"As the loop logged it, at {count(len(pairs), 'sample')}."
        figures.append(line_figure(spec, name, caption))
    return figures
