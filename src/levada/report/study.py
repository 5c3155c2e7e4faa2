"""The page's view of one study: its question, figures and claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from levada.report.check import sampled
from levada.report.figure import figure
from levada.report.series import read_panels
from levada.report.words import evidence_rows, short

__all__ = ["STATUSES", "read_claims", "study_view"]

MAX_ROWS: Final = 400
STATUSES: Final = {"held": "✓", "not held": "✕", "not decided": "?"}
_SHOWN: Final = ("report", "study", "result", "failure", "figure", "claim", "repaired")


def read_claims(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Give the claims of a run; of one that was decided again, the last word."""
    last: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("type", "claim") == "claim":
            last[str(event.get("name"))] = event
    return list(last.values())


def study_view(name: str, events: list[dict[str, Any]]) -> dict[str, Any]:
    """Make what the template shows of one study.

    Args:
        name: the run's name, used where the study gives none.
        events: the events of its run.
    """
    told: dict[str, Any] = next((event for event in reversed(events) if event["type"] == "study"), {})
    results = [event for event in events if event["type"] == "result"]
    figures = {str(event.get("id")): event for event in events if event["type"] == "figure"}
    claims = [_claim(claim) for claim in read_claims(events)]
    sources = told.get("sources") or []
    return {
        "title": str(told.get("title") or told.get("name") or name),
        "name": str(told.get("name") or name),
        "question": str(told.get("question") or ""),
        "notes": _lines(told.get("notes")),
        "sources": [str(source) for source in ([sources] if isinstance(sources, str) else sources)],
        "figures": [_figure(spec) for spec in figures.values()],
        "claims": claims,
        "counts": _counts(claims),
        "results": len({str(event.get("key") or i) for i, event in enumerate(results)}),
        "failures": _failures(events),
        "seeds": sorted({str(event["seed"]) for event in results if event.get("seed") is not None}, key=_natural),
        "others": sum(event["type"] not in _SHOWN for event in events),
    }


def _failures(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say which results are missing because their computation failed, and was not repeated since."""
    last: dict[str, str] = {}
    for event in events:
        key = str(event.get("key"))
        if event["type"] == "failure":
            last[key] = f"{key}: {event.get('error') or 'failed'}"
        elif event["type"] == "result":
            last.pop(key, None)
    return list(last.values())


def _natural(text: str) -> tuple[float, str]:
    return (float(text), text) if text.isdigit() else (float("inf"), text)


def _lines(value: Any) -> list[str]:
    if not value:
        return []
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _counts(claims: list[dict[str, Any]]) -> str:
    counts = Counter(claim["status"] for claim in claims)
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])


def _claim(claim: Mapping[str, Any]) -> dict[str, Any]:
    status = str(claim.get("status") or "not decided")
    return {
        "name": str(claim.get("name") or ""),
        "statement": str(claim.get("statement") or claim.get("name") or ""),
        "criterion": str(claim.get("criterion") or ""),
        "reason": str(claim.get("reason") or ""),
        "seeds": ", ".join(map(str, claim.get("seeds") or ())),
        "status": status if status in STATUSES else "not decided",
        "sign": STATUSES.get(status, "?"),
        "numbers": list(evidence_rows(claim.get("numbers") or {})),
        "statistic": _statistic(claim.get("statistic")),
        "correction": _value(claim.get("correction")),
        "paper_value": _value(claim.get("paper_value")),
        "source": _value(claim.get("source")),
    }


def _statistic(statistic: Any) -> list[tuple[str, str]]:
    if isinstance(statistic, Mapping):
        return list(evidence_rows(statistic))
    return [("statistic", short(statistic))] if statistic else []


def _value(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {text}" for key, text in evidence_rows(value))
    return ", ".join(map(short, value)) if isinstance(value, list) else short(value)


def _figure(spec: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        (
            panel.title,
            one.label,
            "" if one.seed is None else str(one.seed),
            *_cells(panel.x.ticks, panel.x.scale, point),
        )
        for panel in read_panels(spec)
        for one in panel.series
        if not one.num_seeds
        for point in one.points
    ]
    kept = [rows[i] for i in sampled(len(rows), MAX_ROWS)]
    head = ["panel", "series", "seed", "x", "y", "low", "high"]
    used = [i for i in range(len(head)) if any(row[i] not in ("", "—") for row in kept)]
    return {
        "title": str(spec.get("title") or ""),
        "caption": str(spec.get("caption") or ""),
        "svg": figure(spec),
        "head": [head[i] for i in used],
        "rows": [[row[i] for i in used] for row in kept],
        "total": len(rows),
    }


def _cells(ticks: Any, scale: str, point: Any) -> tuple[str, str, str, str]:
    x = ticks[int(point.x)].label if scale == "category" else short(point.x)
    return x, short(point.y), short(point.low), short(point.high)
