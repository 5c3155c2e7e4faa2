"""How often a rule is wrong: counted by the benchmark, shipped with the package, told with its interval."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path

import pytest
from benchmarks.diagnosis.calibration import SHIPPED, write_calibration
from benchmarks.diagnosis.score import Rate

import levada
from levada.diagnose import DIAGNOSTICS, calibration
from levada.diagnose.calibration import calibration_of

ROOT = Path(__file__).parents[2]
COUNTS = {"dead_units": {"errors": 1, "warnings": 3, "of": 140, "suite": "healthy programs, held out"}}


@pytest.mark.parametrize("count", [0, 1, 7, 139, 140])
def test_the_interval_is_that_of_the_benchmark(count):
    counts = {"dead_units": {"errors": count, "warnings": 0, "of": 140, "suite": ""}}
    found, rate = calibration_of("dead_units", "error", counts), Rate(count, 140)
    assert (found["low"], found["high"]) == pytest.approx(rate.interval, abs=1e-9)
    assert found["rate"] == rate.value


def test_a_warning_is_compared_with_warnings_and_errors():
    assert calibration_of("dead_units", "error", COUNTS)["rate"] == 1 / 140
    assert calibration_of("dead_units", "warn", COUNTS)["rate"] == 4 / 140
    assert calibration_of("dead_units", "info", COUNTS) == {}
    assert calibration_of("rank_collapse", "error", COUNTS) == {}


def test_what_the_benchmark_writes_is_what_a_finding_carries(tmp_path, monkeypatch):
    write_calibration(tmp_path / calibration.FILE, COUNTS)
    written = json.loads((tmp_path / calibration.FILE).read_text())
    assert written == COUNTS
    monkeypatch.setattr(calibration, "_shipped", lambda: written)
    import torch
    from torch import nn

    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    net[2].bias.data.fill_(-100.0)
    report = levada.check(net, (torch.randn(32, 8), torch.arange(32) % 2))
    (found,) = [f for f in report.findings if f.rule == "dead_units"]
    assert found.calibration["suite"] == "healthy programs, held out"
    assert "false alarms: as severe on 1 of 140 healthy programs, held out (0.7 %, 95 % interval 0.1 to 3.9 %)" in str(
        report
    )


@pytest.mark.parametrize(
    "told",
    [
        {"errors": -1, "warnings": 0, "of": 3, "suite": ""},
        {"errors": 0, "warnings": 0, "of": 0, "suite": ""},
        {"errors": 2, "warnings": 2, "of": 3, "suite": ""},
        {"errors": 0.5, "warnings": 2, "of": 3, "suite": ""},
    ],
)
def test_counts_that_cannot_be_are_refused(tmp_path, told):
    with pytest.raises(ValueError, match="dead_units"):
        write_calibration(tmp_path / "x.json", {"dead_units": told})
    with pytest.raises(ValueError, match="there is no rule 'dead_unit'"):
        write_calibration(tmp_path / "x.json", {"dead_unit": told})
    assert not (tmp_path / "x.json").exists()


def test_the_package_holds_the_file_and_nothing_that_no_rule_has():
    held = json.loads(SHIPPED.read_text())
    assert set(held) <= set(DIAGNOSTICS)
    for told in held.values():
        assert 0 <= told["errors"] + told["warnings"] <= told["of"]
        assert math.isfinite(told["of"])
    # The wheel takes all files of the package that git does not ignore.
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["src/levada"]}
