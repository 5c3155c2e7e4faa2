"""The benchmark's zoo: its names and split, one entry from start to end, and how rows are counted."""

from __future__ import annotations

import json

import pytest
from benchmarks.diagnosis.score import Rate
from benchmarks.diagnosis.zoo.entry import held_out
from benchmarks.diagnosis.zoo.run import describe, entries, read, rows_of, run, summary


def test_the_zoo_has_its_libraries_and_a_third_is_held_out():
    names = list(entries())
    counts = [sum(name.startswith(library + "/") for name in names) for library in ("timm", "transformers", "torch")]
    assert counts[0] >= 25
    assert counts[1] >= 20
    assert counts[2] >= 15
    assert 0.25 < sum(map(held_out, names)) / len(names) < 0.42


def test_the_rate_rises_to_that_of_the_optimizer():
    entry = entries()["timm/resnet18"]
    assert [entry.factor(step) for step in (0, entry.warmup, 1000)] == pytest.approx([1e-3, 1.0, 1.0])


def test_an_entry_is_checked_at_its_start_and_trained_and_is_not_run_again(tmp_path):
    pytest.importorskip("mnist1d")
    out = tmp_path / "zoo.jsonl"
    rows = rows_of("torch/linear regression")
    assert [(row["when"], row["verdict"], row["fired"]) for row in rows] == [
        ("start", "healthy", []),
        ("trained", "healthy", []),
    ]
    assert rows[0]["loss_end"] < 0.1 * rows[0]["loss_start"]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(out, ["torch/linear regression"], None)
    assert read(out) == rows


def test_a_model_is_counted_once_however_often_a_rule_fires_on_it(tmp_path):
    def row(name, when, *fired, verdict="warn"):
        told = [{"rule": rule, "severity": severity, "where": {}, "claim": ""} for rule, severity in fired]
        return {"name": name, "when": when, "held_out": False, "verdict": verdict, "fired": told, "seconds": 1.0} | {
            "loss_start": 1.0,
            "loss_end": 0.5,
            "learned": True,
        }

    warned = ("rank_collapse", "warn")
    rows = [row("a", "start", warned, warned), row("a", "trained", warned), row("b", "start", verdict="exception")]
    out = tmp_path / "zoo.jsonl"
    out.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = summary(out)
    assert found["rank_collapse"] == {"error": Rate(0, 2), "warn": Rate(1, 2)}
    assert found["exception"]["error"] == Rate(1, 2)
    assert summary(out, "held out")["rank_collapse"]["warn"] == Rate(0, 0)
    assert "rank_collapse (warn)" in describe(out)
