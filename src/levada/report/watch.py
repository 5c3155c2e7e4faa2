"""The page's view of a watched run: loss, signals by block and step, findings as they came and went, what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from levada._numbers import sampled
from levada.report.beside import heat_figure, line_figure
from levada.report.check import finding_view, table_view
from levada.report.curve import counted, gaps, loss_series, of_whom, scale_of
from levada.report.curve import told as told_of
from levada.report.damage import of_absent, of_bundles, of_rank, of_signals
from levada.report.grid import Fine
from levada.report.inside import inside_figures
from levada.report.ranks import Depth, at
from levada.report.record import again, bundle_notes, bundles_in, logged_facts, logged_figures, logged_in, state_of
from levada.report.series import Span
from levada.report.staged import read_together
from levada.report.standing import headline_read, lead_read
from levada.report.words import SIGNS, count, number, phrase, sentence, short
from levada.runs.absent import absent
from levada.runs.bundles import Kept
from levada.runs.ending import ended, last_recorded
from levada.runs.frames import Damage
from levada.runs.jumps import more, onset, told_together
from levada.runs.lock import is_held
from levada.runs.processes import Recorded
from levada.runs.sampled import sampling
from levada.runs.unended import lacking_ends, without_end

__all__ = ["watch_view"]

ByOptimizer: TypeAlias = Mapping[str, Sequence[tuple[int, float]]]

NUM_PROFILES: Final = 4
MAX_FINDINGS: Final = 24
_WORST: Final = ("error", "warn")
_HEATS: Final = (
    ("gradient_rms", "gradient_nonfinite", "The gradient, by block and step", "gradient, root mean square per element"),
    ("signal_rms", "nonfinite", "The signal, by block and step", "signal, root mean square per element"),
)


def watch_view(
    run: Recorded, name: str, events: Sequence[Mapping[str, Any]], damage: Damage | None = None, *, drawn: bool = True
) -> dict[str, Any]:
    """Make what the template shows of a watched run; it is the template of a check.

    Blocks that other ranks hold, as stages of a pipeline do, follow those of the first; of ranks that hold the same
    blocks the first is shown, with the spread over the others.

    Args:
        run: the run.
        name: its name.
        events: its events, those that can be read.
        damage: what keeps its log from being read to its end.
        drawn: whether its figures are drawn and its kept steps are looked at, which take most of the time.
    """
    together = read_together(run, events)
    ranks, findings = together.signals, together.findings
    depth = Depth(together)
    fired = [one for one in findings if one.get("status", "fired") == "fired"]
    known = [one for one in findings if one.get("status") != "unknown"]
    once = [(known[i], [known[j] for j in others]) for i, others in told_together(known).items()]
    blocks = depth.blocks(depth.steps[-1]) if depth.steps else []
    left = _left(events)
    losses = depth.first.losses() if depth.first is not None else run.losses()
    each = run.losses_by_optimizer()
    steps = together.steps(losses)
    held = is_held(run.path)
    recorded = last_recorded(events, together.last)
    whole, state = state_of(events, steps, held=held, damage=damage)
    state += f" {sentence(lacking)}." if (lacking := lacking_ends(without_end(run.path, events))) else ""
    standing = together.standing(steps)
    verdict = standing.verdict
    logged, kept = logged_in(depth.first), bundles_in(run.path) if drawn else []
    whose = of_whom(events)
    figures = (
        [*_drawn(depth, losses, each, findings, left, logged, whose), *inside_figures(run, together)] if drawn else []
    )
    told = _findings(once[:MAX_FINDINGS], depth, kept, drawn)
    lost = of_signals(ranks)  # when all was read
    facts = [("steps", f"{steps:,}" if whole else f"at least {steps:,}", _samples(depth, left))]
    facts += [*_facts(depth, each or {"": losses}, events, steps, len(run.ranks)), *logged_facts(logged)]
    return {
        "title": name,
        "verdict": verdict,
        "called": f"{standing.called}{'' if whole else ' so far' if held else ', not ended'}",
        "sign": SIGNS[verdict],
        "headline": headline_read(standing, fired, lost, damage, ended=whole),
        "claim": f"{lead_read(standing, damage)} {_claim(fired)}".strip(),
        "state": state if whole else f"{'Not ended yet' if held else 'Not ended'}: {recorded}. {state}",
        "open_end": "" if whole or held else f"not ended: {recorded}",
        "damage": [*lost, *of_bundles(kept), *of_absent(absent(run.path, events) if drawn else ())],
        "facts": [{"label": label, "value": value, "note": note} for label, value, note in facts],
        "figures": figures,
        "findings": told,
        "open": [one for one in findings if one.get("status") == "unknown"],
        "notes": [
            # Beside an error it is of no weight which rules have not judged.
            f"{sentence(standing.counted)}." if verdict == "error" else standing.told,
            *_notes(run.ranks, ranks, depth, events, len(once)),
            *(bundle_notes(kept, told, alarmed=standing.alarmed) if drawn else ()),
        ],
        "table": table_view(blocks),
        "provenance": [],
    }


def _findings(
    known: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    depth: Depth,
    kept: Sequence[Kept],
    drawn: bool,
) -> list[dict[str, Any]]:
    """Give findings as a check shows them; of several of one rule, the first has the command for the kept step.

    Args:
        known: each with the jumps of the loss that are told with it.
        depth: the blocks.
        kept: the steps that are kept.
        drawn: as of `watch_view`.
    """
    seen = set[str]()
    told = []
    for one, others in known:
        rule = str(one.get("rule"))
        view = _told(one, depth, () if rule in seen else kept, drawn)
        if others:
            view["title"] += f",{more(others)}"
            at_steps = ", ".join(f"{step:,}" for step in sorted(map(onset, others)))
            view["evidence"].append(("not back from jumps at steps", at_steps))
        told.append(view)
        seen.add(rule)
    return told


def _told(one: Mapping[str, Any], depth: Depth, kept: Sequence[Kept], drawn: bool) -> dict[str, Any]:
    """Give a finding as a check shows it; one that stands, with the blocks as they were when it came."""
    told, clear = number(one.get("came")), one.get("status") == "clear"
    came = told if told is not None and math.isfinite(told) else None
    near = min(depth.steps, key=lambda step: abs(step - came)) if came is not None and depth.steps else None
    blocks = depth.blocks(near) if drawn and near is not None and not clear else []
    alone = len(depth.replicas) < 2 and len(depth.stages) < 2
    left_out = ("told_at", "rank") if alone else ("told_at",)
    evidence = {key: value for key, value in (one.get("evidence") or {}).items() if key not in left_out}
    view = finding_view({**one, "evidence": evidence}, {"blocks": blocks}, blocks, watched=True)
    when = [("told at step", f"{int(came):,}")] if came is not None else []
    if (renewed := _told_again(one)) is not None:
        when += [("renewed at step", f"{renewed:,}")]
    when += [("over at step", short(one["over"]))] if one.get("over") is not None else []
    whole = [each for each in kept if not each.damage and f"-{one.get('rule')}" in each.folder.name]
    view["evidence"] = [*when, *view["evidence"], *(("to run its step again", "".join(again(x))) for x in whole[:1])]
    if one.get("rule") == "numerical_overflow":
        view["picture"] = None  # samples know whether a block had any, not how many, and not at the step itself
    if clear:
        # What is over is told in short.
        view |= {"severity": "info", "kind": f"{view['kind']}, over", "sign": SIGNS["healthy"], "picture": None}
        view |= dict.fromkeys(("consequence", "falsify", "source", "words_alone", "calibration"), "")
    return view


def _told_again(one: Mapping[str, Any]) -> int | None:
    """Give the step of which a finding's numbers are, where it is another than the one at which it was told."""
    renewed = number(one.get("renewed"))
    return int(renewed) if renewed is not None and math.isfinite(renewed) else None


def _claim(fired: Sequence[Mapping[str, Any]]) -> str:
    return f"{fired[0].get('claim', '')} {_as_of(fired[0])}".strip() if fired else ""


def _as_of(one: Mapping[str, Any]) -> str:
    """Say of which step the numbers of a finding are: below a headline they would be taken for those of the end."""
    came, renewed = number(one.get("came")), _told_again(one)
    step = int(came) if renewed is None and came is not None and math.isfinite(came) else renewed
    if step is None or f"step {step:,}" in str(one.get("claim")):
        return ""
    return f"So it was at step {step:,}."


def _left(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Give the step whose update was not made, as it was not finite; None if there is none."""
    ends = (event for event in reversed(events) if event.get("type") == "end")
    return number(next((event.get("left") for event in ends), None)) if ended(events) else None


def _samples(depth: Depth, left: float | None) -> str:
    last = f", the last of step {depth.steps[-1]:,}" if depth.steps else ""
    last += ", whose update was not made" if depth.steps and depth.steps[-1] == left else ""
    return f"{count(len(depth.steps), 'sample')} kept{last}"


def _facts(
    depth: Depth, each: ByOptimizer, events: Sequence[Mapping[str, Any]], steps: int, ranks: int
) -> list[tuple[str, str, str]]:
    facts = []
    for name, losses in each.items():
        of = f" of {name.partition(' of ')[0]}" if name else ""
        if losses:
            facts.append((f"loss{of}", short(losses[-1][1]), f"at step {losses[0][0]:,}: {short(losses[0][1])}"))
    overhead = _overhead(depth, events)
    if overhead is not None:
        facts.append(("overhead", f"{short(100 * overhead)} %", sampling(depth.steps, steps)))
    facts.append(("blocks", f"{len(depth.sites):,}", ""))
    if ranks > 1:
        facts.append(("processes", f"{ranks:,}", ""))
    return facts


def _overhead(depth: Depth, events: Sequence[Mapping[str, Any]]) -> float | None:
    shares = (number(event.get("share")) for event in events if event.get("type") == "overhead")
    told = [value for value in shares if value is not None]
    scalars = depth.first.scalars("overhead") if depth.first is not None else []
    known = [*told[-1:], *(value for _, value in scalars[-1:])]
    return next((value for value in known if math.isfinite(value)), None)


def _notes(
    ranks: Sequence[int], read: Mapping[int, Any], depth: Depth, events: Sequence[Mapping[str, Any]], told: int
) -> list[str]:
    """Say what is not shown, and what was lost."""
    notes = [f"{told - MAX_FINDINGS} more findings are over."] if told > MAX_FINDINGS else []
    if len(read) < len(ranks):
        notes.append(f"{len(read)} of {len(ranks):,} processes were read, evenly chosen.")
    if depth.first is not None and len(depth.replicas) < len(read) - len(depth.stages) + 1:
        notes.append(f"The spread is over {count(len(depth.replicas), 'process')[:-2]}es.")
    dropped = [number(event["dropped"]) for event in events if "dropped" in event]
    if dropped and dropped[-1]:
        notes.append(f"{count(int(dropped[-1]), 'sample')} came faster than they could be written, and were dropped.")
    notes += [
        f"Damaged copies lie beside the signals{of_rank(rank, read)}, and nothing is missing by them: "
        f"{', '.join(names)}."
        for rank, signals in read.items()
        if (names := signals.copies())
    ]
    notes += [str(event["problem"]) for event in events if event.get("problem")]
    notes += [_ending(str(event["error"])) for event in events[-1:] if event.get("error")]
    return list(dict.fromkeys(notes))


def _ending(error: str) -> str:
    """Say by what a training ended, and what it said itself if it stopped."""
    if error.startswith("MeasurementError: train: "):
        return sentence(error)
    return f"The training ended by an error: {error.rstrip('.')}."


def _drawn(
    depth: Depth,
    losses: Sequence[tuple[int, float]],
    each: ByOptimizer,
    findings: Sequence[Mapping[str, Any]],
    left: float | None,
    logged: Mapping[str, Sequence[tuple[int, float]]],
    whose: str,
) -> list[dict[str, Any]]:
    return [
        *_loss(losses, each, findings, left, whose),
        *logged_figures(logged),
        *_heats(depth),
        *_profiles(depth, left),
    ]


def _loss(
    losses: Sequence[tuple[int, float]],
    each: ByOptimizer,
    findings: Sequence[Mapping[str, Any]],
    left: float | None,
    whose: str,
) -> list[dict[str, Any]]:
    if not losses:
        return []
    breaks = gaps(losses)
    series = [loss_series(those, name, breaks=breaks) for name, those in (each or {"": losses}).items()]
    scale, why = scale_of(losses)
    spans = []
    for one in findings:
        came, over = number(one.get("came")), number(one.get("over"))
        if came is not None and math.isfinite(came) and one.get("severity") in _WORST:
            spans.append(Span(came, losses[-1][0] if over is None else over, "", phrase(one)))
    spec = {
        "title": "",
        "x": {"label": "step"},
        "y": {"label": "loss", "scale": scale},
        "series": series,
        "spans": spans,
    }
    shaded = " Shaded are the steps at which a finding stood." if spans else ""
    apart = " Optimizers that take turns have losses of their own, with a line each." if each else ""
    caption = f"{counted(losses, left)}.{whose}{apart}{shaded}{told_of(losses, *series)}{why}"
    return [line_figure(spec, "The loss", caption)]


def _heats(depth: Depth) -> list[dict[str, Any]]:
    drawn = []
    for name, bad, title, what in _HEATS:
        if depth.has(name) and len(depth.steps) > 1:
            fine = Fine(depth.sites, depth.rows(name, bad), len(depth.steps))
            drawn.append(heat_figure(fine, title, what, _caption(depth)))
    return drawn


def _caption(depth: Depth) -> str:
    ranks = len(depth.replicas)
    return f"Of the first of {ranks} processes that hold these blocks." if ranks > 1 else ""


def _profiles(depth: Depth, left: float | None) -> list[dict[str, Any]]:
    if len(depth.sites) < 2:
        return []
    figures = []
    for name, title, label, lines in (
        ("gradient_rms", "The gradient by block, at some steps", _HEATS[0][3], NUM_PROFILES),
        ("update_ratio", "How far a step moves the weights", "update / weights, root mean squares", 2),
    ):
        series = _lines(depth, name, lines, None if name == "gradient_rms" else left)
        if series:
            spec = {"x": {"label": "block"}, "y": {"label": label, "scale": "log"}, "series": series}
            spread = series[-1].pop("processes", 0)
            caption = f"At the last step with the range over {spread} processes." if spread else ""
            figures.append(line_figure(spec, title, caption))
    return figures


def _lines(depth: Depth, name: str, most: int, left: float | None) -> list[dict[str, Any]]:
    """Give a signal at some steps, without the one that is left out."""
    lines, steps = [], [step for step in depth.steps if step != left]
    chosen = [steps[i] for i in sampled(len(steps), most)]
    for (first, last), step in {depth.span(name, step): step for step in chosen}.items():
        y = depth.at(name, step)
        if all(value is None for value in y):
            continue
        label = f"step {step:,}" if first == last else f"mean of steps {first:,} to {last:,}"
        line: dict[str, Any] = {"label": label, "style": "measured", "names": depth.sites}
        line |= {"x": list(range(len(y))), "y": y}
        lines.append(line)
        if step == chosen[-1]:
            line |= _spread(depth, name, step)
    return lines


def _spread(depth: Depth, name: str, step: int) -> dict[str, Any]:
    """Give the lowest and the highest over the ranks that hold the same blocks as the first, and sampled this step."""
    # One that was killed before the others lacks it.
    rows = [row for signals in depth.replicas if (row := at([signals], name, step))]
    if len(rows) < 2:
        return {}
    columns = [[math.nan if value is None else value for value in column] for column in zip(*rows, strict=True)]
    ends, rest = {"low": min, "high": max}, [None] * (len(depth.sites) - len(columns))
    found = {key: [end(c) if all(map(math.isfinite, c)) else None for c in columns] for key, end in ends.items()}
    return {"processes": len(rows), **{key: [*values, *rest] for key, values in found.items()}}
