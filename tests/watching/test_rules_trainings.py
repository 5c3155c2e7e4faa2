"""The rules on real trainings, watched by the real engine: planted faults are named at their block."""

import pytest
from benchmarks.watch_verdicts.trainings import FAULTS, HEALTHY
from benchmarks.watch_verdicts.verdicts import judged

SEED = 7  # thresholds were set on others


@pytest.mark.parametrize("name", ["mlp easy", "mlp adam dropout warm-up cosine", "mlp curriculum", "mlp scaler"])
def test_a_healthy_training_is_silent(name):
    alarms = [f for f in judged(HEALTHY[name], SEED, steps=400).findings if f.severity != "info"]
    assert alarms == []


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("rate x30: mlp adam", 330),
        ("bf16 weights: mlp", 130),
        ("cut: branch, sgd", 360),
        ("40 layers, no normalisation", 90),
        ("NaN in a weight: mlp", 255),
        ("NaN in the inputs", 260),
        ("corrupted batch: mlp", 330),
        ("dying units: mlp", 330),
    ],
)
def test_a_planted_fault_is_named_at_its_block_and_step(name, steps):
    fault = FAULTS[name]
    findings = [f for f in judged(fault.build, SEED, steps=steps).findings if f.severity != "info"]
    assert findings[0].rule in fault.rules
    assert all(f.evidence["told_at"] >= fault.step for f in findings)
    if fault.block:
        assert findings[0].where["first"] == fault.block
    if "step" in findings[0].evidence:
        assert findings[0].evidence["step"] in (fault.step, fault.step + 1)
