"""The page's view of one study: its question, figures and claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from levada.report.beside import panel_table
from levada.report.claim import STATUSES, claim_view, failed, read_claims, wanted
from levada.report.embedded import line_data
from levada.report.figure import figure
from levada.report.picture import is_picture, picture_view
from levada.report.words import count

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
    missing = failed(events)
    figures = {str(event.get("id")): event for event in events if event["type"] == "figure"}
    claims = [claim_view(claim) for claim in read_claims(events)]
    sources = told.get("sources") or []
    return {
        "title": str(told.get("title") or told.get("name") or name),
        "name": str(told.get("name") or name),
        "question": str(told.get("question") or ""),
        "notes": _lines(told.get("notes")),
        "sources": [str(source) for source in ([sources] if isinstance(sources, str) else sources)],
        "figures": [picture_view(spec) if is_picture(spec) else _figure(spec) for spec in figures.values()],
        "claims": claims,
        "counts": _counts(claims),
        "results": len({str(event.get("key") or i) for i, event in enumerate(results)}),
        "failures": _failures(missing),
        "failed": f"{len(missing)} of {count(wanted(events, missing), 'result')} failed" if missing else "",
        "seeds": sorted({str(event["seed"]) for event in results if event.get("seed") is not None}, key=_natural),
        "others": sum(event["type"] not in _SHOWN for event in events),
    }


def _failures(missing: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say each error once, with the results that it kept from being computed."""
    places: dict[str, list[str]] = {}
    for key, event in missing.items():
        config = event.get("config") or {}
        told = [f"{name}={value}" for name, value in config.items()] if isinstance(config, Mapping) else []
        named = ", ".join([*told, f"seed={event['seed']}"] if event.get("seed") is not None else told) or key
        places.setdefault(str(event.get("error") or "failed"), []).append(named)
    return [
        f"{error} ({count(len(at), 'result')}: {at[0]}{'; …' if len(at) > 1 else ''})" for error, at in places.items()
    ]


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
    title = str(spec.get("title") or "")
    shown = {"kind": "lines", "title": title, "caption": str(spec.get("caption") or ""), "svg": figure(spec)}
    return {**shown, "data": line_data(spec, title), "table": panel_table(spec, MAX_ROWS)}
