"""The page's view of one study: its question, figures and claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from levada.report.check import sampled
from levada.report.claim import STATUSES, claim_view, read_claims
from levada.report.figure import figure
from levada.report.series import read_panels
from levada.report.words import short

__all__ = ["study_view"]

MAX_ROWS: Final = 400
_SHOWN: Final = ("report", "study", "result", "failure", "figure", "claim", "repaired")


def study_view(name: str, events: list[dict[str, Any]]) -> dict[str, Any]:
    """Make what the template shows of one study.

    Args:
        name: the run's name, used where the study gives none.
        events: the events of its run.
    """
    told: dict[str, Any] = next((event for event in reversed(events) if event["type"] == "study"), {})
    results = [event for event in events if event["type"] == "result"]
    figures = {str(event.get("id")): event for event in events if event["type"] == "figure"}
    claims = [claim_view(claim) for claim in read_claims(events)]
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


def _counts(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count the claims by status, in the order of `STATUSES`."""
    counts = Counter(claim["status"] for claim in claims)
    return [{"status": one, "sign": STATUSES[one], "count": counts[one]} for one in STATUSES if counts[one]]


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
