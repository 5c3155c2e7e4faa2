"""What a watched run is, in lines of text: findings, the verdict and what it rests on, cost, and the record."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from levada._names import printable
from levada.runs.bundles import bundles_of, replayed
from levada.runs.jumps import more, told_together
from levada.runs.sampled import sampling
from levada.runs.standing import Standing
from levada.watching.loop.places import original
from levada.watching.show.courses import of
from levada.watching.show.drawing import Course, Line

if TYPE_CHECKING:
    from levada.diagnose import Finding

__all__ = ["BETWEEN", "cost_pieces", "finding_lines", "fired", "footing", "standing_in", "summary", "told_once"]

_COLOURS: Final = {"error": "bold red", "warn": "yellow", "info": "cyan"}
_SIGNS: Final = {"error": ("✕", "x"), "warn": ("!", "!"), "info": ("i", "i")}
BETWEEN: Final = {True: " · ", False: ", "}


def fired(watch: Any) -> list[Finding]:
    """Return what holds, the gravest first.

    Args:
        watch: a watch.
    """
    order = {"error": 0, "warn": 1, "info": 2}
    found = [one for one in watch.findings if one.status == "fired"]
    return sorted(found, key=lambda one: order.get(one.severity, 3))


def told_once(found: Sequence[Finding]) -> list[tuple[Finding, tuple[Finding, ...]]]:
    """Give each finding that is told by itself, with those that are told with it: jumps of a loss that diverges.

    Args:
        found: what holds.
    """
    facts = [
        {"rule": one.rule, "severity": one.severity, "status": one.status, "evidence": one.evidence} for one in found
    ]
    return [(found[i], tuple(found[j] for j in others)) for i, others in told_together(facts).items()]


def cost_pieces(watch: Any, sampled: Sequence[int], steps: int) -> list[str]:
    """Say what watching costs, as far as it was measured, and how far apart samples are.

    Args:
        watch: a watch.
        sampled: the last steps that were sampled.
        steps: steps that were made.
    """
    measured = watch.overhead is not None and math.isfinite(watch.overhead)
    return [*([watch.cost] if measured else []), sampling(list(sampled), steps)]


def standing_in(watch: Any) -> Standing:
    """Give the standing of a watch; of one that has none, a standing that knows of no rule.

    Args:
        watch: what is shown.
    """
    standing = getattr(watch, "standing", None)
    return standing if isinstance(standing, Standing) else Standing(tuple(one.severity for one in fired(watch)))


def _verdict(standing: Standing, width: int, most: int, fine: bool) -> list[Line]:
    """Say that nothing alarms, and what that is worth: by which rules, and where it is not known, why not."""
    healthy = standing.verdict == "healthy"
    sign, style = (("✓" if fine else "ok"), "green") if healthy else ("?", "yellow")
    text = f"{standing.called}: {'no alarm' if standing.severities else 'nothing found'}, {standing.basis}"
    text += "" if healthy or not standing.reasons else f"; not judged: {standing.reasons}"
    texts = textwrap.wrap(text, max(width - len(sign) - 1, 20), max_lines=most, placeholder=" …" if fine else " ...")
    return [[(f"{sign} " if i == 0 else " " * (len(sign) + 1), style), (one, "dim")] for i, one in enumerate(texts)]


def finding_lines(
    found: Sequence[Finding], cleared: Sequence[Finding], standing: Standing, width: int, most: int, fine: bool
) -> list[Line]:
    """Say what is found and what is over, in `most` lines; a claim may take what others leave.

    Args:
        found: what holds.
        cleared: what is over.
        standing: of the run.
        width: of a line.
        most: lines.
        fine: whether letters beyond ASCII can be shown.
    """
    over: list[Line] = [[(f"{'✓' if fine else 'ok'} {one.rule} is over", "green")] for one in cleared]
    if standing.verdict in ("healthy", "unknown"):
        over = _verdict(standing, width, max(1, most - len(over)), fine) + over
    lines: list[Line] = []
    once = told_once(found)
    for i, (one, others) in enumerate(once):
        left = most - len(lines) - (len(once) - i - 1)
        if len(lines) == most - 1 and i < len(once) - 1:
            rest = sum(1 + len(beside) for _, beside in once[i:])
            lines.append([(f"  and {rest} more", "dim")])
            break
        lines += _finding(one, width, max(1, left), fine, more(others))
    return (lines + over + [[] for _ in range(most)])[:most]


def _finding(one: Finding, width: int, most: int, fine: bool, others: str) -> list[Line]:
    sign = _SIGNS.get(one.severity, ("i", "i"))[0 if fine else 1]
    head = f"{sign} {one.rule}{others}  "
    room = max(width - len(head), 20)
    texts = textwrap.wrap(printable(one.claim), room, max_lines=most, placeholder=" …" if fine else " ...") or [""]
    style = _COLOURS.get(one.severity, "")
    return [
        [(head if i == 0 else " " * len(head), style if i == 0 else ""), (text, "")] for i, text in enumerate(texts)
    ]


def footing(watch: Any, fine: bool) -> Line:
    """Say where the record is.

    Args:
        watch: a watch.
        fine: whether letters beyond ASCII can be shown.
    """
    return [(BETWEEN[fine].join(_record(watch)), "dim")]


def _record(watch: Any) -> list[str]:
    folder, dropped = getattr(watch, "run", None), getattr(watch, "dropped", 0)
    told = [f"record: {folder}" if folder is not None else "no record is kept"]
    return told + ([f"{dropped:,} samples were dropped"] if dropped else [])


def summary(
    watch: Any,
    losses: Sequence[tuple[str, Course]] = (),
    *,
    width: int = 80,
    fine: bool = True,
    called: str = "",
) -> list[Line]:
    """Say what a watch saw: findings, cost, and where the record is.

    Args:
        watch: one that is over, or goes on.
        losses: of its steps; of optimizers that have losses of their own those of each, with its name.
        width: of the lines, at most.
        fine: whether letters beyond ASCII can be shown.
        called: a name behind a space, where other watches are shown too.
    """
    steps, first = int(watch.steps), min((one.began[0] for _, one in losses if one.began is not None), default=0)
    seen = steps - first
    told = f"{seen:,} {'step' if seen == 1 else 'steps'} watched"
    told += f", {first:,} to {steps - 1:,}" if first and seen > 1 else ""
    for name, course in losses:
        if course.began is not None and course.last is not None:
            told += f", loss{of(name)} {course.began[1]:.4g} to {course.last[1]:.4g}"
            told += f" at step {course.last[0]:,}" if course.last[0] < steps - 1 else ""
    lines: list[Line] = [[(f"levada{called}", "bold cyan"), ("  ", ""), (told, "")]]
    for one, others in told_once(fired(watch)):
        lines += [[("  ", ""), *line] for line in _finding(one, width - 2, 4, fine, more(others))]
    standing = standing_in(watch)
    if standing.verdict in ("healthy", "unknown"):
        lines += [[("  ", ""), *line] for line in _verdict(standing, width - 2, 8, fine)]
    sampled = [sample.step for sample in getattr(watch, "samples", ())]
    cost = [*cost_pieces(watch, sampled, steps), *filter(None, [getattr(watch, "nearer", "")])]
    lines.append([("  " + BETWEEN[fine].join([*cost, *_record(watch)]), "dim")])
    run = getattr(watch, "run", None)
    if run is not None:
        lines += [[(f"  {words}", "dim")] for words in _replays(watch, Path(run), alarmed=standing.alarmed)]
        lines.append([(f"  levada report {shlex.quote(str(run))} -o report.html", "dim")])
    return lines


def _replays(watch: Any, run: Path, *, alarmed: bool) -> list[str]:
    """Name the kept steps, each with the command that runs it again, and say what its user must fill in."""
    kept = [replayed(folder) for folder in bundles_of(run)]
    if not kept:
        return []
    finding = "" if alarmed else ", which is no finding"
    told = f"1 step is kept{finding}; run it again" if len(kept) == 1 else ""
    told = told or f"{len(kept)} steps are kept{finding}; run them again"
    if not all(whole for _, whole in kept):
        built = type(original(watch.model)).__name__ if hasattr(watch, "model") else "model"
        told += f", where NAME builds the {built}"
    return [f"{told}:", *(words for words, _ in kept)]
