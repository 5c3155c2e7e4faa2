"""The benchmarks of cells and of the scan: what they time, by which names, and the rows that they keep."""

from __future__ import annotations

import ast
import inspect
import json
import sys

import pytest
import torch
from benchmarks import cells, measure, scan

from levada.cells import RecurrentHighway


@pytest.mark.parametrize("module", [cells, scan], ids=lambda module: module.__name__)
def test_they_take_public_names_only(module):
    tree = ast.parse(inspect.getsource(module))
    names = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert [name for name in names if name.startswith("_") and not name.startswith("__")] == []


def test_the_highway_is_timed_as_it_is_by_default_and_its_case_says_the_depth(monkeypatch):
    timed = {}
    monkeypatch.setattr(cells, "loop", lambda name, cell, *rest: timed.update({name: cell}) or iter(()))
    monkeypatch.setattr(cells, "fused", lambda *args, **options: iter(()))
    for case in cells.cases(quick=True):
        list(case())
    depths = {name: cell.depth for name, cell in timed.items() if isinstance(cell, RecurrentHighway)}
    assert RecurrentHighway(2, 2).depth in depths.values()
    assert all(str(depth) in name for name, depth in depths.items())


def test_accuracy_is_measured_over_100_000_steps_unless_quick(monkeypatch):
    steps = []
    monkeypatch.setattr(scan, "accuracy", lambda decay, n: steps.append(n) or iter(()))
    for name in ("speed", "cells"):
        monkeypatch.setattr(scan, name, lambda *args: iter(()))
    for case in scan.cases(quick=False):
        list(case())
    assert len(steps) > 1
    assert set(steps) == {100_000}


def test_rows_are_kept_and_say_whether_the_target_was_met(monkeypatch, tmp_path):
    def cases(quick):
        yield lambda: scan.accuracy(1e-2, 500)

    monkeypatch.setattr(measure, "__file__", str(tmp_path / "measure.py"))
    monkeypatch.setattr(sys, "argv", ["scan"])
    threads = torch.get_num_threads()
    try:
        assert measure.main("scan", cases) == 0
    finally:
        torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (tmp_path / "results" / "scan.jsonl").read_text().splitlines()]
    assert [row["case"].rpartition(": ")[2] for row in rows] == ["linear_scan", "linear_scan, log=True"]
    assert [row["met"] for row in rows] == [None, rows[1]["ratio"]["median"] <= 1.0]
    assert all(set(row["extra"]["largest_relative_error"]) >= {"states", "by_gate"} for row in rows)
