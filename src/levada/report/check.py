"""The page's view of one check: verdict, pictures, findings, blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from levada._names import CALLED
from levada._numbers import sampled
from levada.report.account import calibration, cost
from levada.report.beside import line_figure
from levada.report.depth import limit
from levada.report.evidence import DRAWN, WORDS_ALONE, evidence_picture
from levada.report.mixing import mixing_figure
from levada.report.profile import column, decay, gradient_figure, gradient_key, signal_figure
from levada.report.words import (
    SIGNS,
    cell,
    evidence_name,
    evidence_rows,
    fired,
    headline,
    human,
    interval,
    number,
    phrase,
    precise,
    short,
    trust,
)

__all__ = ["COLUMNS", "check_view", "finding_view", "table_view"]

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
    "eps_fraction": "held back by eps",
    "gradient_snr": "gradient's signal to noise",
    "correlation": "correlation of inputs",
    "correlation_predicted": "correlation, predicted",
    "signal_effective_rank": "effective rank of inputs",
    "token_similarity": "cosine of tokens",
    "attention_entropy": "entropy of attention",
    "attention_logit_max": "largest logit",
    "nonfinite": "NaN or Inf",
    "composite_forward_gain": "mixing up to here, gain",
    "composite_backward_gain": "mixing from here, gain",
    "stream_cosine": "cosine of streams",
    "read_share": "largest share read",
    "write_share": "largest share written",
}


def check_view(report: Mapping[str, Any], title: str = "") -> dict[str, Any]:
    """Make what the template shows of one check.

    Args:
        report: the JSON of `levada check`.
        title: a title; left out, the model's name.
    """
    verdict = str(report.get("verdict", "unknown"))
    blocks = sorted(report.get("blocks") or (), key=lambda block: number(block.get("order")) or 0.0)
    found = fired(report)
    return {
        "title": title or str(report.get("model") or "check"),
        "verdict": verdict,
        # One that is healthy only as far as it was seen says so itself.
        "called": str(report.get("called") or verdict) if verdict == "healthy" else CALLED.get(verdict, verdict),
        "sign": SIGNS.get(verdict, "?"),
        "headline": headline(report),
        "claim": found[0].get("claim", "") if found else _unknown_reason(report),
        "state": "",
        "facts": _facts(report),
        "figures": _figures(report, blocks),
        "findings": [finding_view(one, report, blocks) for one in found],
        "open": [one for one in report.get("findings") or () if one.get("status") == "unknown"],
        "notes": [str(note) for note in report.get("notes") or ()],
        "table": table_view(blocks),
        "provenance": _provenance(report),
    }


def _unknown_reason(report: Mapping[str, Any]) -> str:
    reasons = [str(one.get("claim")) for one in report.get("findings") or () if one.get("status") == "unknown"]
    return reasons[0] if reasons and report.get("verdict") == "unknown" else ""


def _facts(report: Mapping[str, Any]) -> list[dict[str, str]]:
    summary, rate = report.get("summary") or {}, decay(report)
    facts = []
    if rate.get("value") is not None:
        facts.append({"label": "gradient per block", "value": f"× {short(rate['value'])}", "note": _beside(rate)})
    spread = summary.get("signal_decay_per_block")
    if isinstance(spread, Mapping) and spread.get("value") is not None:
        facts.append({"label": "spread per block", "value": f"× {short(spread['value'])}", "note": _beside(spread)})
    names = {"depth": "blocks deep", "effective_depth": "effective depth", "trainable_depth": "trainable depth"}
    for key, label in {**names, "memory_horizon": "memory horizon"}.items():
        value = summary.get(key)
        if value is not None:
            plain = value.get("value") if isinstance(value, Mapping) else value
            facts.append({"label": label, "value": short(plain), "note": _depth_note(value)})
    if report.get("parameters") is not None:
        facts.append({"label": "parameters", **_count(report["parameters"])})
    return facts


def _beside(value: Mapping[str, Any]) -> str:
    """Say what stands beside a number: its interval, and what theory predicts."""
    ends = re.search(r"\[(.*)\]", interval(value))
    fits = re.search(r"\((no one factor can be told.*)\)", interval(value))
    predicted = value.get("predicted")
    told = [f"interval {ends[1].replace(', ', ' to ')}" if ends else fits[1] if fits else ""]
    told.append(f"theory says {short(predicted)}" if predicted is not None else "")
    return "; ".join(filter(None, told))


def _depth_note(value: Any) -> str:
    if not isinstance(value, Mapping):
        return ""
    notes = [told] if (told := _beside(value)) else []
    if value.get("limited_by") is not None and limit(value):
        notes.append(limit(value))
    elif value.get("blocks") is not None and "low" not in value:
        notes.append(f"of {value['blocks']} residual blocks")
    return "; ".join(notes)


def _count(value: Any) -> dict[str, str]:
    """Write a large count with its word, and in full below."""
    amount = number(value)
    for size, word in ((1e9, "B"), (1e6, "M")):
        if amount is not None and math.isfinite(amount) and amount >= size:
            return {"value": f"{amount / size:.3g} {word}", "note": f"{int(amount):,}"}
    return {"value": short(value), "note": ""}


def _figures(report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    specs = []
    if len(blocks) > 1:
        specs = [gradient_figure(report, blocks, gradient_key(blocks)), signal_figure(report, blocks)]
    drawn = [line_figure(spec, str(spec["title"]), str(spec["caption"])) for spec in specs if spec["series"]]
    mixing = mixing_figure(report)
    return [*drawn, mixing] if mixing is not None else drawn


def finding_view(
    one: Mapping[str, Any], report: Mapping[str, Any], blocks: Sequence[Mapping[str, Any]], *, watched: bool = False
) -> dict[str, Any]:
    """Make what the template shows of one finding.

    Args:
        one: the finding.
        report: the JSON that holds it.
        blocks: the blocks at which it was found, in their order.
        watched: whether a run that was watched found it, and not a check.
    """
    severity, rule = str(one.get("severity", "info")), str(one.get("rule", ""))
    evidence = {key: value for key, value in (one.get("evidence") or {}).items() if key not in DRAWN}
    return {
        "severity": severity,
        "kind": CALLED.get(severity, severity),
        "sign": SIGNS.get(severity, "i"),
        "rule": rule,
        "title": phrase(one),
        "claim": one.get("claim", ""),
        "evidence": list(evidence_rows(evidence, rule=rule, watched=watched)),
        "picture": evidence_picture(one, report, blocks),
        "words_alone": WORDS_ALONE.get(rule, ""),
        "ruled_out": [str(sentence) for sentence in one.get("ruled_out") or ()],
        "calibration": calibration(one),
        "cost": cost(one),
        "consequence": one.get("consequence", ""),
        "falsify": one.get("falsify", ""),
        "source": one.get("source", ""),
        "remedies": [_remedy(remedy) for remedy in one.get("remedies") or ()],
    }


def _remedy(remedy: Mapping[str, Any]) -> dict[str, Any]:
    before, after = remedy.get("before") or {}, remedy.get("after") or {}
    rows = [
        (
            evidence_name(str(key)),
            interval(before.get(key), precise) if key in before else "—",
            interval(after.get(key), precise) if key in after else "—",
        )
        for key in dict.fromkeys([*before, *after])
    ]
    return {
        "name": human(str(remedy.get("name", ""))),
        "patch": str(remedy.get("patch", "")),
        "verified": bool(remedy.get("verified")),
        "trust": trust(remedy),
        "rows": rows,
    }


def table_view(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make the table of all numbers by block.

    Args:
        blocks: in their order; of many an even choice is shown.
    """
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
    told = (*keys, "seconds", "verdict", "called", "parameters")
    rows += [
        (human(key), short(value))
        for key, value in report.items()
        if key not in told and isinstance(value, (str, int, float)) and value != ""
    ]
    return rows
