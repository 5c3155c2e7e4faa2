"""The page's view of one repair: what was tried, how the loss went with it and without, and the change to make."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from levada._numbers import restore_numbers
from levada.report.beside import line_figure
from levada.report.repair import EFFECT, causes, effect, headline, judged
from levada.report.words import number, short

__all__ = ["fix_view"]

MOST_DRAWN: Final = 4
_SIGNS: Final = {"healthy": "✓", "repaired": "✓", "helps": "!", "not repaired": "✕", "unknown": "?"}


def fix_view(told: Mapping[str, Any]) -> dict[str, Any]:
    """Make what the template shows of one repair.

    Args:
        told: the JSON of `levada fix`.
    """
    trials = restore_numbers(list(told.get("trials") or ()))
    tried = [trial for trial in trials if trial.get("effect") is not None]
    outcome = str(told.get("outcome", "unknown"))
    drawn = [made for trial in tried[:MOST_DRAWN] if (made := _curves(trial)) is not None]
    return {
        "title": str(told.get("model") or "fix"),
        "outcome": outcome,
        "sign": _SIGNS.get(outcome, "?"),
        "headline": headline(told).removesuffix("."),
        "causes": causes(told),
        "does": str(trials[0].get("does", "")) if told.get("remedy") and trials else "",
        "judged": judged(told),
        "patch": str(told.get("diff") or told.get("patch") or "").rstrip("\n"),
        "figures": drawn,
        "left": len(tried) - len(drawn),
        "rows": [_row(trial) for trial in tried],
        "effect": EFFECT,
        "untried": [(str(t.get("name", "")), str(t.get("said", ""))) for t in trials if t.get("effect") is None],
        "notes": [str(note) for note in told.get("notes") or ()],
    }


def _row(trial: Mapping[str, Any]) -> dict[str, str]:
    before, after = (short((trial.get(side) or {}).get("loss")) for side in ("before", "after"))
    seeds = len(trial.get("seeds") or ())
    return {
        "name": str(trial.get("name", "")),
        "before": before,
        "after": after,
        "effect": effect(trial).replace("-", "−"),
        "answers": ", ".join(trial.get("causes") or ()),
        "said": str(trial.get("said", "")) + (f"; {seeds} seed{'' if seeds == 1 else 's'}" if seeds else ""),
    }


def _curves(trial: Mapping[str, Any]) -> dict[str, Any] | None:
    """Draw the losses of each step, as it is and with the remedy, a thin line for each seed, the median thick."""
    series: list[dict[str, Any]] = []
    finite: list[float] = []
    for side, label in (("before", "as it is"), ("after", "with the remedy")):
        held = trial.get(side) or {}
        curves = held.get("curves") or ([held["curve"]] if held.get("curve") else [])
        for seed, curve in enumerate(curves):
            values = [number(value) for value in curve]
            finite += [value for value in values if value is not None and math.isfinite(value)]
            one = {"label": label, "group": label, "style": "measured", "x": list(range(len(values))), "y": values}
            series.append({**one, "seed": seed} if len(curves) > 1 else one)
    if not finite:
        return None
    wide = min(finite) > 0 and max(finite) > 20 * min(finite)
    spec = {
        "title": f"The loss with {trial.get('name')} and without",
        "x": {"label": "step"},
        "y": {"label": "loss of the step's rows", "scale": "log" if wide else "linear"},
        "series": series,
    }
    return line_figure(spec, str(spec["title"]), _caption(trial))


def _caption(trial: Mapping[str, Any]) -> str:
    ends = [(trial.get(side) or {}).get("loss") for side in ("before", "after")]
    text = f"On all batches the loss ends at {short(ends[0])} as the model is, and at {short(ends[1])} with the remedy."
    return f"{text} Steps of one seed see the same rows and random numbers on both sides."
