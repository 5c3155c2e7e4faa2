"""The page's view of one check: verdict, pictures, findings, blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from levada.report.figure import figure
from levada.report.series import Span
from levada.report.words import (
    SIGNS,
    cell,
    evidence_rows,
    fired,
    headline,
    human,
    interval,
    number,
    phrase,
    precise,
    short,
)

__all__ = ["COLUMNS", "check_view", "column", "decay", "gradient_key", "sampled"]

FLOAT32_TINY: Final = 2.0**-149  # the smallest number above zero that float32 holds
MAX_ROWS: Final = 1000

# Columns of the table of blocks, in this order; what a report lacks is left out.
COLUMNS: Final[Mapping[str, str]] = {
    "signal_rms": "signal",
    "signal_predicted": "signal, predicted",
    "signal_spread": "spread",
    "spread_predicted": "spread, predicted",
    "cotangent_rms": "gradient of a random cotangent",
    "gradient_predicted": "gradient, predicted",
    "gradient_rms": "gradient of the loss",
    "gain_measured": "gain",
    "gain_predicted": "gain, predicted",
    "update_ratio": "update ratio",
    "saturated_fraction": "saturated",
    "dead_fraction": "dead",
    "zero_fraction": "zero",
    "lost_fraction": "updates lost",
    "nonfinite": "NaN or Inf",
}
_SEVERITIES: Final = {"error": "error", "warn": "warning", "info": "note"}


def column(blocks: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    """Give one signal over the blocks; all None where it was never measured (nothing but NaN counts as that)."""
    values = [number(block.get(key)) for block in blocks]
    measured = any(value is not None and not math.isnan(value) for value in values)
    return values if measured else [None] * len(values)


def gradient_key(blocks: Sequence[Mapping[str, Any]]) -> str:
    """Say which signal shows the gradient: that of a random cotangent, which theory predicts, or else the loss's."""
    return "cotangent_rms" if any(v is not None for v in column(blocks, "cotangent_rms")) else "gradient_rms"


def decay(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the summary's decay per block as a mapping, also where it is a bare number or absent."""
    value = (report.get("summary") or {}).get("gradient_decay_per_block")
    return value if isinstance(value, Mapping) else {"value": value}


def sampled(count: int, most: int) -> list[int]:
    """Give at most `most` of `count` indices, evenly, with the first and the last.

    Example:
        >>> sampled(100, 4)
        [0, 33, 66, 99]
    """
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def check_view(report: Mapping[str, Any], title: str = "") -> dict[str, Any]:
    """Make what the template shows of one check.

    Args:
        report: the JSON of `levada check`.
        title: a title; left out, the model's name.
    """
    blocks = sorted(report.get("blocks") or (), key=lambda block: number(block.get("order")) or 0.0)
    found = fired(report)
    return {
        "title": title or str(report.get("model") or "check"),
        "verdict": report.get("verdict", "unknown"),
        "sign": SIGNS.get(str(report.get("verdict")), "?"),
        "headline": headline(report),
        "claim": found[0].get("claim", "") if found else _unknown_reason(report),
        "facts": _facts(report),
        "figures": _figures(report, blocks),
        "findings": [_finding(one) for one in found],
        "open": [one for one in report.get("findings") or () if one.get("status") == "unknown"],
        "notes": [str(note) for note in report.get("notes") or ()],
        "table": _table(blocks),
        "provenance": _provenance(report),
    }


def _unknown_reason(report: Mapping[str, Any]) -> str:
    reasons = [str(one.get("claim")) for one in report.get("findings") or () if one.get("status") == "unknown"]
    return reasons[0] if reasons and report.get("verdict") == "unknown" else ""


def _facts(report: Mapping[str, Any]) -> list[dict[str, str]]:
    summary, rate = report.get("summary") or {}, decay(report)
    facts = []
    if rate.get("value") is not None:
        note = f"interval {short(rate['low'])} to {short(rate['high'])}" if rate.get("low") is not None else ""
        if rate.get("predicted") is not None:
            note += f"{'; ' if note else ''}theory says {short(rate['predicted'])}"
        facts.append({"label": "gradient per block", "value": f"× {short(rate['value'])}", "note": note})
    spread = summary.get("signal_decay_per_block")
    if isinstance(spread, Mapping) and spread.get("value") is not None:
        note = f"theory says {short(spread['predicted'])}" if spread.get("predicted") is not None else ""
        facts.append({"label": "spread per block", "value": f"× {short(spread['value'])}", "note": note})
    names = {"depth": "blocks deep", "effective_depth": "effective depth", "trainable_depth": "trainable depth"}
    for key, label in {**names, "memory_horizon": "memory horizon"}.items():
        value = summary.get(key)
        if value is not None:
            note = interval(value) if isinstance(value, Mapping) and value.get("low") is not None else ""
            plain = value.get("value") if isinstance(value, Mapping) else value
            facts.append({"label": label, "value": short(plain), "note": note})
    if report.get("parameters") is not None:
        facts.append({"label": "parameters", **_count(report["parameters"])})
    return facts


def _count(value: Any) -> dict[str, str]:
    """Write a large count with its word, and in full below."""
    amount = number(value)
    for size, word in ((1e9, "B"), (1e6, "M")):
        if amount is not None and math.isfinite(amount) and amount >= size:
            return {"value": f"{amount / size:.3g} {word}", "note": f"{int(amount):,}"}
    return {"value": short(value), "note": ""}


def _figures(report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    if len(blocks) < 2:
        return []
    key = gradient_key(blocks)
    specs = [_gradient_figure(report, blocks, key), _signal_figure(report, blocks)]
    return [
        {"title": str(spec["title"]), "caption": str(spec["caption"]), "svg": figure(spec)}
        for spec in specs
        if spec["series"]
    ]


def _spans(report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]], rules: tuple[str, ...]) -> list[Span]:
    """Mark where the gravest finding of these rules stands."""
    order = {str(block.get("site")): float(i) for i, block in enumerate(blocks)}
    for one in fired(report):
        where = one.get("where") or {}
        first, last = (order.get(str(where.get(key))) for key in ("first", "last"))
        first, last = (last if first is None else first), (first if last is None else last)
        if (
            one.get("severity") in ("error", "warn")
            and one.get("rule") in rules
            and first is not None
            and last is not None
        ):
            return [Span(min(first, last), max(first, last), phrase({**one, "where": {}}), phrase(one))]
    return []


def _line(
    blocks: Sequence[Mapping[str, Any]],
    label: str,
    style: str,
    group: str,
    values: Sequence[float | None],
    key: str = "",
) -> list[dict[str, Any]]:
    if all(value is None for value in values):
        return []
    names = [str(block.get("site", "")) for block in blocks]
    made: dict[str, Any] = {"label": label, "style": style, "group": group, "names": names}
    made |= {"x": list(range(len(blocks))), "y": _json(values)}
    low, high = column(blocks, f"{key}_low"), column(blocks, f"{key}_high")
    if key and any(value is not None for value in low):
        made |= {"low": _json(low), "high": _json(high)}
    return [made]


def _json(values: Sequence[float | None]) -> list[float | None]:
    return list(values)


def _gradient_figure(report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    measured = column(blocks, key)
    predicted = column(blocks, "gradient_predicted")
    if all(value is None for value in predicted):
        predicted = _extended(measured, number(decay(report).get("predicted")))
    label = "measured" if key == "gradient_rms" else "measured, of a random unit cotangent at the output"
    series = [
        *_interval_of_slope(report, blocks, measured, key),
        *_line(blocks, label, "measured", "measured", measured, key),
        *_line(blocks, "predicted by theory", "predicted", "predicted", predicted),
    ]
    loss = column(blocks, "gradient_rms") if key == "cotangent_rms" else []
    series += _line(blocks, "gradient of the loss", "measured", "loss", loss, "gradient_rms")
    shown = [v for v in (*measured, *predicted, *loss) if v is not None and math.isfinite(v) and v > 0]
    if shown and min(shown) < FLOAT32_TINY * 1e8:
        series.append(_limit("float32 has nothing smaller above zero", FLOAT32_TINY, len(blocks)))
    unit = "loss / signal" if key == "gradient_rms" else "1 at the output"
    rules = ("vanishing_gradient", "frozen_layers", "exploding_gradient", "shattered_gradient", "numerical_overflow")
    return {
        "title": "The gradient, block by block",
        "caption": _gradient_caption(report, blocks, measured),
        "x": {"label": "block, input on the left, output on the right"},
        "y": {"label": f"gradient, root mean square per element ({unit})", "scale": "log"},
        "series": series,
        "spans": _spans(report, blocks, rules),
    }


def _limit(label: str, value: float, count: int) -> dict[str, Any]:
    return {"label": label, "style": "reference", "x": [0, count - 1], "y": [value, value]}


def _extended(measured: Sequence[float | None], rate: float | None) -> list[float | None]:
    """Draw the predicted decay per block from the last measured block backwards."""
    known = [i for i, v in enumerate(measured) if v is not None and math.isfinite(v) and v > 0]
    if rate is None or not known or not math.isfinite(rate) or rate <= 0:
        return [None] * len(measured)
    last = known[-1]
    start = math.log10(measured[last] or 1.0)
    logs = [start + (last - i) * math.log10(rate) for i in range(len(measured))]
    return [10.0**value if -307 < value < 307 else None for value in logs]


def _interval_of_slope(
    report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]], measured: Sequence[float | None], key: str
) -> list[dict[str, Any]]:
    """Draw the interval of the measured decay as lines through the middle of the points, where blocks have none."""
    low, high = number(decay(report).get("low")), number(decay(report).get("high"))
    points = [(i, math.log10(v)) for i, v in enumerate(measured) if v is not None and math.isfinite(v) and v > 0]
    own = any(value is not None for value in column(blocks, f"{key}_low"))
    if own or low is None or high is None or not 0 < low <= high < math.inf or len(points) < 3:
        return []
    centre = sum(i for i, _ in points) / len(points)
    level = sum(v for _, v in points) / len(points)
    ends = [[level + (centre - i) * math.log10(rate) for rate in (low, high)] for i in range(len(measured))]
    kept = [(i, 10.0 ** min(pair), 10.0 ** max(pair)) for i, pair in enumerate(ends) if max(map(abs, pair)) < 307]
    x, lows, highs = (list(values) for values in zip(*kept, strict=True))
    return [
        {
            "label": "interval of the measured slope",
            "style": "band",
            "group": "measured",
            "x": x,
            "low": lows,
            "high": highs,
        }
    ]


def _gradient_caption(
    report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]], values: Sequence[float | None]
) -> str:
    ends = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v) and v > 0]
    zeros = sum(v == 0 for v in values)
    nothing = f" It is exactly zero at {zeros} of {len(values)} blocks." if zeros else ""
    if len(ends) < 2:
        return "No gradient above zero was measured at two blocks." + nothing
    (first, at_first), (last, at_last) = ends[0], ends[-1]
    change = math.log10(at_first) - math.log10(at_last)
    how = (
        "stays within a factor of two"
        if abs(change) < 0.301
        else f"{'grows' if change > 0 else 'shrinks'} {_times(change)}"
    )
    rate = decay(report)
    per = ""
    if rate.get("value") is not None:
        per = f": a factor of {interval(rate)} per block"
        per += f", where theory predicts {short(rate['predicted'])}" if rate.get("predicted") is not None else ""
    site = str(blocks[first].get("site")), str(blocks[last].get("site"))
    return f"On its way back from {site[1]} to {site[0]} the gradient {how}{per}.{nothing}"


def _times(change: float) -> str:
    return f"{short(10 ** abs(change))} times" if abs(change) < 3 else f"by {abs(change):.1f} orders of magnitude"


def _signal_figure(report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rms, spread = column(blocks, "signal_rms"), column(blocks, "signal_spread")
    series = [
        *_line(blocks, "signal", "measured", "signal", rms, "signal_rms"),
        *_line(blocks, "signal, predicted by theory", "predicted", "predicted", column(blocks, "signal_predicted")),
        *_line(blocks, "spread between inputs", "measured", "spread", spread, "signal_spread"),
        *_line(blocks, "spread, predicted", "predicted", "spread", column(blocks, "spread_predicted")),
    ]
    told = []
    for name, values in (("signal", rms), ("spread between inputs", spread)):
        known = [v for v in values if v is not None and math.isfinite(v)]
        if known:
            told.append(f"the {name} goes from {short(known[0])} to {short(known[-1])}")
    text = " and ".join(told)
    rules = (
        "vanishing_signal",
        "exploding_signal",
        "rank_collapse",
        "saturated_activation",
        "dead_units",
        "numerical_overflow",
    )
    return {
        "title": "The signal, block by block",
        "caption": f"From the first block to the last {text}." if text else "",
        "x": {"label": "block, input on the left, output on the right"},
        "y": {"label": "root mean square per element (units of the activations)", "scale": "log"},
        "series": series,
        "spans": _spans(report, blocks, rules),
    }


def _finding(one: Mapping[str, Any]) -> dict[str, Any]:
    severity = str(one.get("severity", "info"))
    return {
        "severity": severity,
        "kind": _SEVERITIES.get(severity, severity),
        "sign": SIGNS.get(severity, "i"),
        "rule": one.get("rule", ""),
        "title": phrase(one),
        "claim": one.get("claim", ""),
        "evidence": list(evidence_rows(one.get("evidence") or {})),
        "consequence": one.get("consequence", ""),
        "falsify": one.get("falsify", ""),
        "source": one.get("source", ""),
        "remedies": [_remedy(remedy) for remedy in one.get("remedies") or ()],
    }


def _remedy(remedy: Mapping[str, Any]) -> dict[str, Any]:
    before, after = remedy.get("before") or {}, remedy.get("after") or {}
    rows = [
        (
            human(str(key)),
            interval(before.get(key), precise) if key in before else "—",
            interval(after.get(key), precise) if key in after else "—",
        )
        for key in dict.fromkeys([*before, *after])
    ]
    return {
        "name": human(str(remedy.get("name", ""))),
        "patch": str(remedy.get("patch", "")),
        "verified": bool(remedy.get("verified")),
        "rows": rows,
    }


def _table(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kept = sampled(len(blocks), MAX_ROWS)
    keys = [key for key in COLUMNS if any(value is not None for value in column(blocks, key))]
    rows = [
        {
            "site": str(blocks[i].get("site", "")),
            "kind": str(blocks[i].get("kind") or ""),
            "cells": [cell(number(blocks[i].get(key))) for key in keys],
        }
        for i in kept
    ]
    return {"head": [COLUMNS[key] for key in keys], "rows": rows, "total": len(blocks)}


def _provenance(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    keys = {"model": "model", "levada": "levada", "torch": "torch", "seed": "seed", "schema": "schema"}
    rows = [(label, str(report[key])) for key, label in keys.items() if report.get(key) is not None]
    if report.get("seconds") is not None:
        rows.append(("time", f"{short(report['seconds'])} s"))
    told = (*keys, "seconds", "verdict", "parameters")
    rows += [
        (human(key), short(value))
        for key, value in report.items()
        if key not in told and isinstance(value, (str, int, float)) and value != ""
    ]
    return rows
