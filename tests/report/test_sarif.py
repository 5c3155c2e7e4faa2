"""SARIF 2.1.0: what the format requires, and no finding lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from levada.report.sarif import to_sarif


def test_fired_findings_fail_and_undecided_ones_are_open(sick: dict[str, Any]) -> None:
    log = json.loads(json.dumps(to_sarif(sick), allow_nan=False))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert rules == ["vanishing_gradient", "rank_collapse", "short_memory"]
    told = [(r["ruleId"], r["kind"], r["level"]) for r in run["results"]]
    assert told == [
        ("vanishing_gradient", "fail", "error"),
        ("rank_collapse", "fail", "warning"),
        ("short_memory", "open", "none"),
    ]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["message"]["text"]
        assert result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"]
    first = run["results"][0]
    assert [place["fullyQualifiedName"] for place in first["locations"][0]["logicalLocations"]] == [
        "layers.0",
        "layers.30",
    ]
    assert first["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "mlp.py"}
    assert "Repair (tried on this model and data): residual." in first["message"]["text"]


@pytest.mark.parametrize(
    ("model", "uri"),
    [("my nets/a%b.py:f", "my%20nets/a%25b.py"), ("/home/net.py:f", "file:///home/net.py"), ("package.module:f", None)],
)
def test_a_file_is_a_uri(model: str, uri: str | None) -> None:
    finding = {"rule": "dead_units", "severity": "info", "claim": "c", "evidence": {"x": float("nan")}}
    (result,) = to_sarif({"model": model, "findings": [finding]})["runs"][0]["results"]
    place = result["locations"][0].get("physicalLocation")
    assert (place["artifactLocation"]["uri"] if place else None) == uri
    assert result["level"] == "note"
    assert result["properties"]["evidence"] == {"x": "nan"}


def test_nothing_found_is_a_valid_log() -> None:
    (run,) = to_sarif({"verdict": "healthy", "findings": []})["runs"]
    assert run["results"] == []
    assert run["tool"]["driver"]["rules"] == []
