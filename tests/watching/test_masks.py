"""A block that gives Inf on purpose, as a mask does, is no reason to judge nothing else."""

import math

from benchmarks.watch_verdicts.synthetic import Synthetic

from levada.watching.verdict.account import report


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


def sometimes(step, values, scalars, losses):
    if step // 20 % 4 == 2:
        masked(step, values, scalars, losses)


def test_a_mask_that_some_batches_have_is_a_warning_once():
    run = Synthetic()
    run.run(40, sometimes)
    told = [f for f in run.judge.history if f.rule == "numerical_overflow" and f.status == "fired"]
    assert [f.severity for f in told] == ["warn", *["info"] * 9]
    assert told[1].consequence.startswith("None seen: it was there before and was gone again")
    assert report(run.judge).verdict == "healthy"


def test_another_block_or_one_that_did_harm_is_warned_of_again():
    def elsewhere(step, values, scalars, losses):
        sometimes(step, values, scalars, losses)
        if step == 520:
            values["nonfinite"][6] = 1.0

    run = Synthetic()
    run.run(28, elsewhere)
    told = [f for f in run.judge.history if f.rule == "numerical_overflow" and f.status == "fired"]
    assert [f.severity for f in told] == ["warn", *["info"] * 5, "warn"]

    def harmful(step, values, scalars, losses):
        sometimes(step, values, scalars, losses)
        if step == 60:
            values["nonfinite"][4] = values["gradient_nonfinite"][4] = 1.0

    run = Synthetic()
    run.run(8, harmful)
    told = [f for f in run.judge.history if f.rule == "numerical_overflow" and f.status == "fired"]
    assert [f.severity for f in told] == ["warn", "error", "warn"]
