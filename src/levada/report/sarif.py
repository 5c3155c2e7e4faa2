"""Findings as SARIF 2.1.0, which code hosts and editors show beside the code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import quote

from levada import __version__
from levada._numbers import json_ready
from levada.report.words import human, phrase, trust

__all__ = ["to_sarif"]

_PROPERTIES: Final = ("evidence", "where", "calibration", "ruled_out", "cost_ms")
_LEVELS: Final = {"error": "error", "warn": "warning", "info": "note"}


def to_sarif(report: Mapping[str, Any]) -> dict[str, Any]:
    """Give a check as a SARIF log: fired findings as failures, undecided ones as open.

    Args:
        report: the JSON of `levada check`; its "line" is that of the function that builds the model.

    Example:
        >>> log = to_sarif({"model": "net.py:build", "findings": [{"rule": "dead_units", "severity": "warn",
        ...     "status": "fired", "claim": "7 of 8 units are flat.", "where": {"first": "layers.2"}}]})
        >>> result = log["runs"][0]["results"][0]
        >>> result["level"], result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"]
        ('warning', 'layers.2')

    Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0, 2020.
    """
    found = [one for one in report.get("findings") or () if one.get("status", "fired") in ("fired", "unknown")]
    rules = list(dict.fromkeys(str(one.get("rule", "finding")) for one in found))
    driver = {
        "name": "levada",
        "semanticVersion": str(report.get("levada") or __version__),
        "rules": [
            {"id": rule, "name": _pascal(rule), "shortDescription": {"text": f"{human(rule).capitalize()}."}}
            for rule in rules
        ],
    }
    run: dict[str, Any] = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(one, rules, str(report.get("model") or ""), _line(report)) for one in found],
        "properties": {"verdict": str(report.get("verdict") or "unknown")},
    }
    return {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}


def _pascal(rule: str) -> str:
    return "".join(part.capitalize() for part in rule.split("_"))


def _line(report: Mapping[str, Any]) -> int:
    """Return where the model is built in its file; 1, which stands for the file, where that is not known."""
    line = report.get("line")
    return line if isinstance(line, int) and line > 0 else 1


def _result(finding: Mapping[str, Any], rules: list[str], model: str, line: int) -> dict[str, Any]:
    rule, decided = str(finding.get("rule", "finding")), finding.get("status", "fired") == "fired"
    told = [f"{phrase(finding)}.", str(finding.get("claim") or ""), str(finding.get("consequence") or "")]
    remedies = finding.get("remedies") or ()
    told += [f"Repair ({trust(remedy)}): {human(str(remedy.get('name', '')))}." for remedy in remedies]
    return {
        "ruleId": rule,
        "ruleIndex": rules.index(rule),
        "kind": "fail" if decided else "open",
        # The format allows a level other than none for failures alone.
        "level": _LEVELS.get(str(finding.get("severity")), "note") if decided else "none",
        "message": {"text": " ".join(part for part in told if part)},
        "locations": [_location(finding.get("where") or {}, model, line)],
        "properties": {key: json_ready(finding.get(key) or {}) for key in _PROPERTIES},
    }


def _location(where: Mapping[str, Any], model: str, line: int) -> dict[str, Any]:
    sites = list(dict.fromkeys(str(where[key]) for key in ("first", "last") if where.get(key)))
    location: dict[str, Any] = {
        "logicalLocations": [{"fullyQualifiedName": site, "kind": "module"} for site in sites or [model or "model"]]
    }
    path, colon, _ = model.rpartition(":")
    if colon and path.endswith(".py"):
        pure = PurePath(path)
        uri = pure.as_uri() if pure.is_absolute() else quote(pure.as_posix())
        # A viewer needs a line.
        location["physicalLocation"] = {"artifactLocation": {"uri": uri}, "region": {"startLine": line}}
    return location
