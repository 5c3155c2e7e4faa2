"""A block that gives Inf on purpose, as a mask does, is no reason to judge nothing else."""

import math

from benchmarks.watch_verdicts.synthetic import Synthetic

from levada.watching.account import report


def masked(step, values, scalars, losses):
    values["nonfinite"][4] = 1.0
    values["signal_rms"][4] = math.inf


def broken(step, values, scalars, losses):
    masked(step, values, scalars, losses)
    if step >= 400:
        values["update_ratio"][:] = 0.3
    losses[:] = [(s, 30.0 if s >= 400 else loss) for s, loss in losses]


def test_a_sound_run_with_a_mask_is_healthy():
    run = Synthetic()
    run.run(40, masked)
    assert report(run.judge).verdict == "healthy"


def test_a_run_with_a_mask_is_judged():
    run = Synthetic()
    run.run(40, broken)
    rules = {f.rule for f in run.judge.findings if f.status == "fired"}
    assert {"numerical_overflow", "loss_spike", "learning_rate_too_high"} <= rules
    assert report(run.judge).verdict in ("warn", "error")
