"""How the diagnosis benchmark counts: verdicts, repairs, false alarms, and the page that is made of them."""

from __future__ import annotations

import json
import math

import pytest
from benchmarks.diagnosis import __main__ as bench
from benchmarks.diagnosis import repair, rows, verdicts
from benchmarks.diagnosis.planted import programs
from benchmarks.diagnosis.report import SECTIONS
from benchmarks.diagnosis.score import Rate, roc_area
from docs.verdicts import page, style

from levada.diagnose import DIAGNOSTICS

BLOCKS = ["0", "1", "2", "3"]


def row(name, operator="", found=(), *, place="", causes=("dead_units",), verdict=None):
    told = [{"rule": r, "severity": s, "first": f, "claim": "."} for r, s, f in found]
    severities = {f["severity"] for f in told}
    worst = "error" if "error" in severities else "warn" if "warn" in severities else "healthy"
    shared = {"rules": len(DIAGNOSTICS), "causes": list(causes), "blocks": BLOCKS, "cpu_seconds": 1.0, "unknown": []}
    return {"name": name, "operator": operator, "found": told, "place": place, "verdict": verdict or worst, **shared}


ROWS = [
    row("a"),
    row("b", found=[("rank_collapse", "warn", "0")]),
    row("c", found=[("frozen_layers", "info", "0")]),
    row("d/dead", "dead", [("dead_units", "error", "1")], place="1"),
    row("e/dead", "dead", [("dead_units", "warn", "2")], place="1"),
    row("f/dead", "dead", [("dead_units", "warn", "3")], place="1"),
    row("g/dead", "dead", [("frozen_layers", "info", "1"), ("rank_collapse", "error", "1")], place="1"),
    row("h/dead", "dead", place="1", verdict="unknown"),
]


def test_verdicts_are_counted_by_the_first_finding_that_is_no_information():
    scores = verdicts.score({r["name"]: r for r in ROWS})
    assert (scores.false_errors, scores.false_flags) == (Rate(0, 3), Rate(1, 3))
    assert (scores.recall, scores.flagged) == (Rate(2, 5), Rate(4, 5))
    assert (scores.cause, scores.cause_of_all) == (Rate(3, 4), Rate(3, 5))
    assert (scores.exact, scores.near, scores.near_of_all) == (Rate(1, 3), Rate(2, 3), Rate(2, 5))
    assert scores.chance == 3 / 4
    assert scores.precision == Rate(2, 2)
    assert scores.confusion == {("dead", "dead_units"): 3, ("dead", "rank_collapse"): 1, ("dead", "unknown"): 1}
    assert scores.misses == {"b": "warn rank_collapse at 0", "g/dead": "error rank_collapse at 1", "h/dead": "unknown"}
    assert list(verdicts.by_operator({r["name"]: r for r in ROWS})) == ["dead"]


@pytest.mark.parametrize(("end", "good"), [(0.2, True), (0.3, True), (0.32, False), (None, False)])
def test_a_repair_must_reach_the_twin(end, good):
    assert repair.reached({"twin_start": 2.2, "twin_end": 0.1, "repaired_end": end}) is good


def test_the_repaired_programs_are_the_same_whatever_else_there_is():
    names = [program.name for program in programs() if not program.healthy]
    chosen = repair.chosen(names)
    assert len(chosen) == repair.NUM_PROGRAMS
    assert {program.split for program in programs() if program.name in chosen} == {"fresh"}
    assert repair.chosen([name for name in reversed(names) if name in chosen]) == chosen


def squared(name):
    return {"value": int(name) ** 2}


def test_rows_are_computed_once_and_kept_as_they_come(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    (tmp_path / "squares.jsonl").write_text(json.dumps({"name": "2", "value": "kept"}) + "\n")
    found = rows.complete("squares", ["2", "3"], squared, jobs=1)
    assert {name: told["value"] for name, told in found.items()} == {"2": "kept", "3": 9}
    assert list(rows.read("squares")) == ["2", "3"]


def test_calibration_counts_programs_and_models_once_by_rule_and_severity(monkeypatch):
    zoo = [
        {
            "name": "vit",
            "when": when,
            "rules": len(DIAGNOSTICS),
            "fired": [{"rule": "rank_collapse", "severity": s} for s in severities],
        }
        for when, severities in (("start", ["warn"]), ("trained", ["warn", "error"]))
    ]
    monkeypatch.setattr(bench, "read", lambda name: {r["name"]: r for r in ROWS})
    zoo += [{**zoo[1], "name": "old", "rules": len(DIAGNOSTICS) - 1}]
    monkeypatch.setattr(bench.zoo, "read", lambda path: zoo)
    counts = bench.calibration()
    assert {k: counts["rank_collapse"][k] for k in ("errors", "warnings", "of")} == {
        "errors": 1,
        "warnings": 1,
        "of": 4,
    }
    assert counts["dead_units"]["errors"] == counts["dead_units"]["warnings"] == 0


def test_areas_and_intervals():
    assert roc_area([1.0, 2.0, math.inf], [False, True, True]) == 1.0
    with pytest.raises(ValueError, match="NaN"):
        roc_area([math.nan], [True])
    low, high = Rate(0, 60).interval
    assert low == 0.0
    assert high == pytest.approx(0.0602, abs=1e-4)
    assert str(Rate(0, 0)) == "0/0"


def test_an_unknown_suite_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["zo"])
    assert "there is no suite 'zo'; there are planted, zoo" in capsys.readouterr().err


def test_the_page_is_filled():
    source = "\n".join(f"<!-- {name} -->" for name in SECTIONS)
    filled = page(source)
    assert "<!--" not in filled
    assert "ROC area of trainability" in filled
    assert "<svg" in filled
    assert ":root" not in style()
