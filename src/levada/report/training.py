"""The page's view of a training: how it stands, its loss, its configuration, what was found while it was watched."""

from __future__ import annotations

import math
import shlex
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from levada._errors import UsageError
from levada._names import CALLED
from levada.report.beside import line_figure
from levada.report.curve import counted, loss_series, scale_of, told
from levada.report.staged import read_together
from levada.report.watch import MAX_FINDINGS
from levada.report.words import SIGNS, count, number, phrase, sentence, short
from levada.runs import Run
from levada.runs.curves import curve
from levada.runs.ending import State, ended, last_recorded, last_word, training_state
from levada.runs.findings import superseded
from levada.runs.lock import is_held

__all__ = ["training_view"]

CONFIG: Final = "config.toml"
MAX_WATCHED: Final = 12  # watched runs that are listed, the newest
_VERDICTS: Final = ("error", "warn", "unknown", "healthy")
_SIGNS: Final[Mapping[State, str]] = {"running": "▸", "ended": "✓", "stopped": "!", "failed": "✕", "not ended": "?"}
_KILLED: Final = "Its process ended without a word: it was killed, or the machine went down."
_ELSEWHERE: Final = "Its last process was on another machine, or cannot be asked: it goes on, or was killed."


def training_view(run: Run, name: str, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make what the template shows of a training.

    Args:
        run: of kind "train".
        name: its name.
        events: its events.
    """
    numbers = [{**event, "loss": _numbers(event["loss"])} if "loss" in event else event for event in events]
    losses = sorted(curve(numbers, "losses").items())
    held_out = sorted(curve(numbers, "evaluation").items())
    config = _config(run)
    table = config.get("run")
    wanted = table.get("steps") if isinstance(table, Mapping) else None
    wanted = wanted if isinstance(wanted, int) else None
    left = next((number(event.get("step")) for event in events[-1:] if event["type"] == "stopped"), None)
    done = max([0, *(step + (step != left) for step, _ in losses[-1:]), *(step for step, _ in held_out[-1:])])
    state, why = _state(run, events, wanted)
    watched, findings = _watched(run, events)
    return {
        "title": name,
        "state": state,
        "sign": _SIGNS[state],
        "headline": _headline(state, done, wanted),
        "why": why,
        "facts": _facts(losses, held_out, events, done, wanted),
        "figures": _figures(losses, held_out, left),
        "config": [(key, _written(table)) for key, table in config.items()],
        "watched": watched,
        "verdict": watched[-1] if watched else None,  # as the newest record stands, so the training is called
        "told": findings[:MAX_FINDINGS],
        "notes": [*_left_out(findings), *(_continuing(run, left) if state not in ("ended", "running") else ())],
    }


def _numbers(loss: Any) -> Any:
    """Read losses: one, or a list; what is no number is infinitely far from one, and stays a step of the curve."""
    if isinstance(loss, list):
        return [_numbers(one) for one in loss]
    value = number(loss)
    return float("nan") if value is None else value


def _config(run: Run) -> Mapping[str, Any]:
    """Give the configuration as it is now; where its file is lost, that with which the run began."""
    with suppress(OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return tomllib.loads((run.path / CONFIG).read_text(encoding="utf-8"))
    return {key: value for key, value in run.manifest.config.items() if isinstance(value, Mapping)}


def _written(table: Any) -> str:
    if not isinstance(table, Mapping):
        return _value(table)
    return ", ".join(f"{key} = {_value(value)}" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {_value(one)}" for key, one in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _state(run: Run, events: Sequence[Mapping[str, Any]], wanted: int | None) -> tuple[State, str]:
    """Say how a training stands, and why if it did not come to its end."""
    held = is_held(run.path)
    state, last = training_state(events, wanted, held=held), last_word(events)
    if state in ("running", "ended"):
        return state, ""
    if last["type"] == "stopped":
        return state, sentence(last.get("told"))
    if last["type"] == "end":
        return state, str(last.get("error") or "") if state == "failed" else "It was interrupted (Ctrl-C)."
    return state, _ELSEWHERE if held is None else _KILLED


def _headline(state: State, done: int, wanted: int | None) -> str:
    of = f"{done:,} of {count(wanted, 'step')}" if wanted is not None else count(done, "step")
    if state == "running":
        return f"Training: {of} done"
    if state == "ended":
        return f"Trained for {count(done, 'step')}"
    return f"{state.capitalize()} after {of}"


def _facts(
    losses: Sequence[tuple[int, float]],
    held_out: Sequence[tuple[int, float]],
    events: Sequence[Mapping[str, Any]],
    done: int,
    wanted: int | None,
) -> list[dict[str, str]]:
    again = sum(event["type"] == "resumed" for event in events)
    note = [f"of {wanted:,}"] if wanted is not None else []
    note += [f"continued {again} times" if again > 1 else "continued once"] if again else []
    facts = [("steps", f"{done:,}", ", ".join(note))]
    if losses:
        facts.append(("loss", short(losses[-1][1]), f"at step {losses[0][0]:,}: {short(losses[0][1])}"))
    if held_out:
        least = min(held_out, key=lambda one: one[1])
        note = [f"lowest {short(least[1])}, after step {least[0]:,}"] if least[0] != held_out[-1][0] else []
        facts.append(("loss, held out", short(held_out[-1][1]), ", ".join(note)))
    return [{"label": label, "value": value, "note": note} for label, value, note in facts]


def _figures(
    losses: Sequence[tuple[int, float]], held_out: Sequence[tuple[int, float]], left: float | None
) -> list[dict[str, Any]]:
    if not losses and not held_out:
        return []
    # A loss is measured before its step's update: after so many steps as its number says, like what is held out.
    series = loss_series(losses, "training")
    scale, why = scale_of([*losses, *held_out])
    spec = {
        "title": "",
        "x": {"label": "steps done"},
        "y": {"label": "loss", "scale": scale},
        "series": [series, *([loss_series(held_out, "held out")] if held_out else [])],
    }
    what = counted(losses, left) + (", each before its update" if left is None else "")
    what += f", and {count(len(held_out), 'evaluation')} on what is held out." if held_out else "."
    return [line_figure(spec, "The loss", what + told(losses, series) + why)]


def _watched(run: Run, events: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Give the verdict of each watched run inside, and all findings: what stands before what is over, the newest first.

    A verdict is a row: its run, its word and sign, and what it rests on.
    """
    began = {str(event.get("path")): event for event in events if event["type"] == "watched"}
    names = [path.name for path in run.path.glob("watch/*") if path.is_dir()]
    names += [path.removeprefix("watch/") for path in began if path.startswith("watch/")]
    rows: list[dict[str, str]] = []
    stand: list[dict[str, Any]] = []
    over: list[dict[str, Any]] = []
    # The step from which on a newer one watches, or nobody does; "" if that is not known.
    later: Any = _unwatched(events)
    for index in sorted({int(name) for name in names if name.isdecimal() and len(name) < 10}, reverse=True):
        where = f"watch/{index}"
        row, found = _verdict(run.path / where)
        rows.append({"where": where, **row})
        begun = began.get(where, {"first": 0} if index == 1 else {})
        start = _start(begun)
        for one in found:
            if one.get("status") != "unknown":
                now = one if later is None else superseded(one, later, start or 0)
                (over if now.get("status") == "clear" else stand).append(_finding(now, where, start))
        later = begun.get("first", "")
    return _shortened(rows), [*stand, *over]


def _unwatched(events: Sequence[Mapping[str, Any]]) -> int | None:
    """Give the step from which on a training was continued without being watched; None if it was not."""
    last = {event["type"]: event for event in events if event["type"] in ("resumed", "watched")}
    step, first = last.get("resumed", {}).get("step"), last.get("watched", {}).get("first", 0)
    return step if isinstance(step, int) and isinstance(first, int) and step > first else None


def _verdict(path: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Give what a watched run is called and what that rests on, and its findings."""
    if not path.is_dir():
        return _row("unknown", "Its record is not there."), []
    try:
        run = Run(path)
        together = read_together(run, events := list(run.events()))
        losses, damage = run.losses(), run.damage
    except (UsageError, OSError) as error:
        return _row("unknown", f"It cannot be read: {error}"), []
    found = together.findings
    standing = together.standing(together.steps(losses))
    told = standing.told
    if standing.verdict == "healthy":
        statuses = {one.get("status", "fired") for one in found}
        what = "What was found is over" if "clear" in statuses else "Nothing was found"
        told = f"{'No alarm' if 'fired' in statuses else what}. {told}"
    # A process that is killed leaves half a frame: what is lost by that is the end itself.
    whole = damage is None or (damage.kind == "incomplete" and not ended(events))
    if not whole:
        told += " The end of its record cannot be read."
    elif not ended(events) and not is_held(path):
        told += f" Not ended: {last_recorded(events, together.last)}."
    return {**_row(standing.verdict, told), "called": standing.called}, found


def _row(verdict: str, told: str) -> dict[str, str]:
    return {"verdict": verdict, "sign": SIGNS[verdict], "called": CALLED[verdict], "told": told}


def _shortened(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Give the newest rows, the last of them in their order, and of the older ones how many had which verdict."""
    if len(rows) <= MAX_WATCHED:
        return rows[::-1]
    verdicts = Counter(row["verdict"] for row in rows[MAX_WATCHED:])
    worst = next(verdict for verdict in _VERDICTS if verdict in verdicts)
    counted = ", ".join(f"{verdicts[verdict]:,} {CALLED[verdict]}" for verdict in _VERDICTS if verdict in verdicts)
    older = {"where": f"{verdicts.total():,} before", **_row(worst, f"{counted}.")}
    return [older, *rows[:MAX_WATCHED][::-1]]


def _start(began: Mapping[str, Any]) -> int | None:
    """Give what a record's steps lack to be those of the training; None where that is not known."""
    first, numbered_from = began.get("first"), began.get("numbered_from", 0)
    known = isinstance(first, int) and isinstance(numbered_from, int)
    return first - numbered_from if known else None


def _left_out(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how many findings are not listed."""
    rest = findings[MAX_FINDINGS:]
    over = sum(bool(one["over"]) for one in rest)
    notes = [f"{len(rest) - over:,} more findings stand: see its watched runs."] if len(rest) > over else []
    return [*notes, *([f"{over:,} more findings are over."] if over else [])]


def _finding(one: Mapping[str, Any], where: str, start: int | None) -> dict[str, Any]:
    """Tell a finding in short; the watched run's own page has the evidence."""
    clear = one.get("status") == "clear"
    severity = str(one.get("severity", "info"))
    when = []
    for word, key in (("told at", "came"), ("over at", "over")):
        step = number(one.get(key))
        if step is not None and math.isfinite(step):
            when.append(f"{word} step {int(step) + (start or 0):,}")
    if start is None and when:
        when.append("as its record counts")
    elif start and when:
        when.append(f"its text counts from step {start:,} on")
    return {
        "severity": "info" if clear else severity,
        "kind": CALLED.get(severity, severity) + (", over" if clear else ""),
        "sign": SIGNS["healthy"] if clear else SIGNS.get(severity, "i"),
        "over": clear,
        "title": phrase(one),
        "claim": str(one.get("claim") or ""),
        "when": ", ".join(when),
        "where": where,
    }


def _relative(config: Mapping[str, Any]) -> bool:
    """Say whether a configuration names files from where its command was given."""
    tables = [table for key in ("run", "data") if isinstance(table := config.get(key), Mapping)]
    named = [table.get(key) for table in tables for key in ("folder", "path")]
    return any(isinstance(one, str) and one and not Path(one).is_absolute() for one in named)


def _continuing(run: Run, left: float | None) -> list[str]:
    """Say from where it can be continued; and where it stopped by itself, that it then comes there again."""
    whole = [path.parent.name for path in run.path.glob("checkpoints/step-*/complete.json")]
    steps = sorted(int(name.removeprefix("step-")) for name in whole if name.removeprefix("step-").isdecimal())
    if not steps:
        again = f", and comes to the same step {left:,.0f}" if left is not None else ""
        return [f"It holds no complete checkpoint: continued, it begins again{again}."]
    words = shlex.join(["levada", "train", str((run.path / CONFIG).absolute()), "--resume"])
    if run.manifest.cwd and _relative(_config(run)):
        words = f"cd {shlex.quote(run.manifest.cwd)} && {words}"
    command, newest = f"`{words}`", "Its newest complete checkpoint"
    if left is None:
        return [f"{newest} is that after step {steps[-1]:,}: {command} continues from there."]
    if steps[-1] < left:
        again = f"and takes the same steps up to step {left:,.0f} again"
        return [f"{newest} is that after step {steps[-1]:,}: {command} continues from there, {again}."]
    again = "takes that step again, with the same weights and the same batch, and stops there again"
    notes = [f"{newest} holds the weights from before step {left:,.0f}: {command} {again}."]
    if len(steps) > 1:
        notes.append(
            f"The checkpoint after step {steps[-2]:,} is from before that. The same steps follow from it, so that it "
            "helps only where something else than the training made them go wrong, as a fault of the machine."
        )
    return notes
