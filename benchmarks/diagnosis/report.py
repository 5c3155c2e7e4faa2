"""The tables and figures of the documentation's page on verdicts, from the rows of the five suites."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.diagnosis import memory, repair, trainability, verdicts
from benchmarks.diagnosis.planted import programs
from benchmarks.diagnosis.rows import Row, read
from benchmarks.diagnosis.score import Rate
from benchmarks.diagnosis.verdicts import Scores
from benchmarks.diagnosis.zoo import run as zoo
from levada.diagnose import DIAGNOSTICS
from levada.report.figure import figure

__all__ = ["SECTIONS"]

_NONE = "not yet measured"


@functools.cache
def _splits() -> Mapping[str, Mapping[str, Row]]:
    """Return the verdicts by split; the healthy programs that are held out stand beside the fresh faulty ones."""
    split = {program.name: program.split for program in programs()}
    found: dict[str, dict[str, Row]] = {"fresh": {}, "held out": {}, "calibration": {}}
    for name, row in read("verdicts").items():
        found[split[name]][name] = row
        if split[name] == "held out" and not row["operator"]:
            found["fresh"][name] = row
    return found


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    bar = "\\|"
    told = [[str(cell).replace("|", bar) for cell in cells] for cells in (head, ["---"] * len(head), *rows)]
    lines = ["| " + " | ".join(cells) + " |" for cells in told]
    return "\n".join(lines)


def _rate(rate: Rate) -> str:
    if not rate.of:
        return _NONE
    low, high = rate.interval
    return f"{rate.value:.1%} ({rate.count} of {rate.of}) [{low:.1%}, {high:.1%}]"


def _met(value: float, target: float, *, least: bool) -> str:
    if value != value:
        return ""
    return "met" if (value >= target if least else value <= target) else "**missed**"


def targets() -> str:
    """Return the table of what was to be reached, and what was."""
    there, before, here = (verdicts.score(rows) for rows in _splits().values())
    repaired = repair.score(read("repair"))
    rows: list[Sequence[object]] = []

    def add(what: str, get: Callable[[Scores], Rate], target: float, *, least: bool) -> None:
        found = get(there)
        sign = "at least" if least else "at most"
        met = _met(found.value, target, least=least)
        rows.append([what, f"{sign} {target:.0%}", _rate(found), met, _rate(get(before)), _rate(get(here))])

    add("false `error` on healthy twins", lambda s: s.false_errors, 0.01, least=False)
    add("faulty programs flagged", lambda s: s.flagged, 0.9, least=True)
    add("cause named by the first finding, of those flagged", lambda s: s.cause, 0.8, least=True)
    add("the same, of all whose cause a rule names", lambda s: s.cause_of_all, 0.8, least=True)
    add("culprit within one block, of those whose cause is named", lambda s: s.near, 0.85, least=True)
    add("the same, of all with a place", lambda s: s.near_of_all, 0.85, least=True)
    met = _met(repaired.value, 0.7, least=True)
    rows.append(["loss of the twin reached by the first remedy", "at least 70%", _rate(repaired), met, "", ""])
    proposed = {name: row for name, row in read("repair").items() if row["remedy"]}
    rows.append(["the same, where a remedy is proposed", "", _rate(repair.score(proposed)), "", "", ""])
    for optimizer in trainability.OPTIMIZERS:
        found = {title: trainability.areas(*told, optimizer) for title, told in trainability.halves().items()}
        ours = {title: areas[trainability.OURS] for title, areas in found.items()}
        held = found["held-out half"]
        best, rival = max((area, name) for name, area in held.items() if name != trainability.OURS)
        told = f"{ours['held-out half']:.3f}; best rival {best:.3f} ({rival})"
        met = _met(ours["held-out half"], 0.95, least=True)
        what = f"ROC area of trainability, {optimizer}"
        rows.append([what, "at least 0.95", told, met, "", f"{ours['calibration half']:.3f}"])
        fresh = "families drawn after everything was frozen"
        met = _met(ours[fresh], 0.95, least=True)
        rows.append([f"the same, {fresh}", "at least 0.95", f"{ours[fresh]:.3f}", met, "", ""])
    for what, get in (
        ("healthy twins flagged at all", lambda s: s.false_flags),
        ("faulty programs with an `error`", lambda s: s.recall),
        ("programs with an `error` that are faulty", lambda s: s.precision),
        ("culprit's very block", lambda s: s.exact),
    ):
        rows.append([what, "", _rate(get(there)), "", _rate(get(before)), _rate(get(here))])
    models = {split: zoo.summary(split=split)["any rule"] for split in ("held out", "calibration")}
    errors, warnings = ([models[split][kind] for split in models] for kind in ("error", "warn"))
    met = _met(errors[0].value, 0.01, least=False)
    rows.append(["models of the zoo with a false `error`", "at most 1%", _rate(errors[0]), met, "", _rate(errors[1])])
    rows.append(["models of the zoo with a false `warn`", "", _rate(warnings[0]), "", "", _rate(warnings[1])])
    rows.append(["a block at random is within one block", "", f"{there.chance:.1%}", "", "", f"{here.chance:.1%}"])
    known = {row["operator"] for row in _splits()["calibration"].values()}
    for what, seen in (
        ("flagged, of operators that the calibration half has", True),
        ("flagged, of operators that it has not", False),
    ):
        told = []
        for split in ("fresh", "held out"):
            own = _splits()[split].items()
            some = {name: row for name, row in own if row["operator"] and (row["operator"] in known) is seen}
            told.append(_rate(verdicts.score(some).flagged))
        rows.append([what, "", told[0], "", told[1], ""])
    rows.append(["CPU seconds of a check: median, largest", "", "{:.1f}, {:.1f}".format(*there.seconds), "", "", ""])
    return _table(["", "target", "fresh, or held out", "", "held out, first draw", "calibration half"], rows)


def counts() -> str:
    """Return how many programs there are, in a sentence."""
    labels = read("labels").values()
    healthy = sum(not row["operator"] and row["learned"] for row in labels)
    faulty = [row for row in labels if row["operator"]]
    harmful = [row for row in faulty if row["harm"]]
    operators = len({row["operator"] for row in harmful})
    return (
        f"{len(faulty)} programs have a fault planted, {len(harmful)} of them one that does harm, by {operators} "
        f"operators; {healthy} are healthy. They are perceptrons, convolutional and residual networks, transformers, "
        "vision transformers, LSTMs, GRUs, plain recurrent networks and autoencoders on digits, signals and text."
    )


def operators() -> str:
    """Return the table of operators."""
    there = _splits()["fresh"]
    causes = {row["operator"]: row["causes"] for row in there.values()}
    rows = [
        [
            f"`{name}`",
            ", ".join(causes[name]) or "none",
            f"{s.flagged.count} of {s.flagged.of}",
            f"{s.cause.count}",
            f"{s.near.count} of {s.near.of}" if s.near.of else "",
        ]
        for name, s in verdicts.by_operator(there).items()
    ]
    return _table(["operator", "rules that name it", "flagged", "cause named", "within one block"], rows)


def confusion() -> str:
    """Return, for each operator, which rules came first, and how often."""
    there = _splits()["fresh"]
    found: dict[str, list[tuple[str, int]]] = {}
    for (operator, rule), count in sorted(verdicts.score(there).confusion.items(), key=lambda item: -item[1]):
        found.setdefault(operator, []).append((rule, count))
    rows = [[f"`{name}`", ", ".join(f"{rule} {count}" for rule, count in told)] for name, told in sorted(found.items())]
    return _table(["planted", "first finding, or the verdict where there is none"], rows)


def misses() -> str:
    """Return every miss as an item of a list."""
    there = _splits()["fresh"]
    told = verdicts.score(there).misses
    return "\n".join(
        f"- `{name}`: {what}" for name, what in sorted(told.items(), key=lambda item: item[0].split("/")[::-1])
    )


def healthy_models() -> str:
    """Return, by rule, on how many models of the zoo it spoke; rules that never did are named below."""
    if any(row.get("rules") != len(DIAGNOSTICS) for row in zoo.read(zoo.OUT)):
        return "The rows are of a version with other rules: run `levada bench diagnosis` again."
    there, here = zoo.summary(split="held out"), zoo.summary(split="calibration")
    loud = [rule for rule in there if any(half[rule][s].count for half in (there, here) for s in ("error", "warn"))]
    rows = [[f"`{r}`", *(_rate(half[r][s]) for half in (there, here) for s in ("error", "warn"))] for r in loud]
    silent = sorted(set(there) - set(loud) - {"any rule", "exception"})
    head = ["", "error, held out", "warn, held out", "error, calibration", "warn, calibration"]
    return _table(head, rows) + f"\n\nSilent on all of them: {', '.join(f'`{rule}`' for rule in silent)}."


def roc() -> str:
    """Return the ROC curves of the held-out half."""
    rows, names = trainability.halves()["held-out half"]
    panels = [
        {
            "title": f"trained by {optimizer.upper()}",
            "series": [
                {"label": label.partition(" (")[0], "x": [p[0] for p in points], "y": [p[1] for p in points]}
                for label, points in trainability.curves(rows, names, optimizer).items()
            ],
        }
        for optimizer in trainability.OPTIMIZERS
    ]
    title = "Held-out networks: of those that train, and of those that do not, the share above a score"
    return _figure(title, "of those that do not train", "of those that train", panels)


def _figure(title: str, x: str, y: str, panels: list[dict[str, Any]]) -> str:
    spec: dict[str, Any] = {"title": title, "x": {"label": x}, "y": {"label": y}, "panels": panels}
    return f'<div class="levada-figure">\n{figure(spec)}\n</div>'


def rivals() -> str:
    """Return the areas of all scores, on the held-out half and on the families that were drawn last."""
    halves = trainability.halves()
    sets = ("held-out half", "families drawn after everything was frozen")
    found = {(o, s): trainability.areas(*halves[s], o) for o in trainability.OPTIMIZERS for s in sets}
    rows = [[name, *(f"{areas[name]:.3f}" for areas in found.values())] for name in next(iter(found.values()))]
    return _table(["score before training", *(f"{o.upper()}, {s}" for o, s in found)], rows)


def horizons() -> str:
    """Return the table of horizons and lags, and what they have in common."""
    rows = memory.read()
    names = list(dict.fromkeys(row["configuration"] for row in rows))
    told = []
    for name in names:
        own = [row for row in rows if row["configuration"] == name]
        predicted = sorted(row["horizon"]["value"] for row in own)
        told.append([name, f"{predicted[len(own) // 2]:.0f}", ", ".join(str(row["longest"]) for row in own)])
    if not rows:
        return _NONE
    s = memory.summary(rows)
    low, high = s["ratio_quartiles"]
    return (
        f"Spearman's correlation over {s['networks']} networks is {s['spearman']:.2f}; the longest lag is "
        f"{s['ratio_median']:.1f} times the horizon [quartiles {low:.1f}, {high:.1f}], "
        f"within a factor of 4 in {s['within_factor_4']} of {s['with_ratio']}.\n\n"
        + _table(["network", "predicted horizon, median", "longest lag learned, by seed"], told)
    )


def repairs() -> str:
    """Return which remedies were proposed first, how often they reached the twin, and what was not repaired."""
    rows = read("repair")
    proposed = Counter(row["remedy"] or f"none ({row['outcome']})" for row in rows.values())
    good = Counter(row["remedy"] for row in rows.values() if repair.reached(row))
    table = _table(
        ["first remedy", "programs", "reach the twin"],
        [[f"`{name}`", count, good[name]] for name, count in proposed.most_common()],
    )
    failed = "\n".join(
        f"- `{name}`: {row['remedy'] or row['outcome']}, {_loss(row['repaired_end'])} after it, "
        f"{_loss(row['faulty_end'])} without, the twin {_loss(row['twin_end'])}"
        for name, row in sorted(rows.items())
        if not repair.reached(row)
    )
    return f"{table}\n\nNot brought to the twin's loss:\n\n{failed}"


def _loss(value: float | None) -> str:
    return "no number" if value is None else f"{value:.3g}"


SECTIONS: Mapping[str, Callable[[], str]] = {
    "targets": targets,
    "counts": counts,
    "operators": operators,
    "confusion": confusion,
    "misses": misses,
    "zoo": healthy_models,
    "roc": roc,
    "rivals": rivals,
    "memory": horizons,
    "repairs": repairs,
}
