"""What left its baseline before a loss jumped: which signals are named, in which order, and for how long they count."""

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic

ONSET = 333


def jumping(change, onset=ONSET):
    """Give the edit of a run whose loss jumps for good, and what else it does at each sample."""

    def edit(step, values, scalars, losses):
        losses[:] = [(s, 3.0 if s >= onset else loss) for s, loss in losses]
        change(step, values)

    return edit


def spike(run):
    (finding,) = [one for one in run.judge.findings if one.rule == "loss_spike"]
    return finding


def moved_first(change, samples=20, **options):
    run = Synthetic(**options)
    run.run(samples, jumping(change))
    return spike(run).evidence["moved_first"]


@pytest.mark.parametrize(("since", "named"), [(240, False), (260, True), (320, True)])
def test_what_moved_counts_if_it_was_within_the_last_samples(since, named):
    def change(step, values):
        if step >= since:
            values["gradient_rms"][2] *= 50

    assert [(one["site"], one["signal"], one["step"]) for one in moved_first(change)] == (
        [("layers.2", "gradient_rms", since)] if named else []
    )


def test_what_came_back_before_the_jump_did_not_bring_it_about():
    def change(step, values):
        if step in (280, 300):
            values["gradient_rms"][2] *= 50

    assert moved_first(change) == []


@pytest.mark.parametrize(("by", "words"), [(64.0, "times above it"), (1 / 64.0, "times below it")])
def test_a_fall_is_named_as_a_rise_is_and_by_how_far_it_went_at_first(by, words):
    def change(step, values):
        values["signal_rms"][5] = 1.0
        if step >= 300:
            values["signal_rms"][5] = by ** (0.5 if step == 300 else 1.0)

    run = Synthetic()
    run.run(20, jumping(change))
    (one,) = spike(run).evidence["moved_first"]
    assert (one["step"], abs(one["octaves"])) == (300, pytest.approx(3.0))
    assert f"at step 300, 8 {words}" in spike(run).claim


def test_of_what_left_at_the_same_step_the_furthest_is_first():
    def change(step, values):
        if step >= 300:
            values["gradient_rms"][2] *= 20
            values["gradient_rms"][6] *= 400
        if step >= 320:
            values["gradient_rms"][1] *= 1e6

    assert [(one["site"], one["step"]) for one in moved_first(change)] == [
        ("layers.6", 300),
        ("layers.2", 300),
        ("layers.1", 320),
    ]


@pytest.mark.parametrize(("scatter", "by", "named"), [(0.0, 1.7, False), (0.0, 2.3, True), (1.0, 8.0, False)])
def test_what_moved_is_twice_as_large_and_far_outside_its_own_scatter(scatter, by, named):
    draw = torch.Generator().manual_seed(1)

    def change(step, values):
        noise = torch.randn((), generator=draw, dtype=torch.float64)
        values["signal_rms"][5] = torch.exp(scatter * noise) if step < 320 else by

    assert bool(moved_first(change)) is named


@pytest.mark.parametrize(
    ("every", "gap", "known"), [(1, 60, True), (1, 70, False), (25, 72, True), (25, 80, False), (100, 300, True)]
)
def test_what_is_known_from_before_holds_for_64_steps_or_as_long_as_the_samples_span(every, gap, known):
    run = Synthetic(every=every)
    run.run(300 if every == 1 else 20, jumping(lambda *_: None, onset=10**9))
    last = run.told - 1
    run.step = last + gap + 10
    run.run(5, jumping(lambda *_: None, onset=last + gap))
    claim = spike(run).claim
    assert (f"Nothing that is watched moved before it, up to the sampled step {last}." in claim) is known
    assert ("What moved before it is not known, as no step was sampled shortly before." in claim) is not known


def test_a_rate_that_was_raised_is_named_though_no_step_was_sampled_shortly_before():
    run = Synthetic(every=25)
    run.run(20, jumping(lambda *_: None, onset=10**9))
    last = run.told - 1
    run.step = last + 90
    run.run(5, jumping(lambda *_: None, onset=last + 80), lr=0.1)
    claim = spike(run).claim
    assert f"The learning rate rose from 0.001 to 0.1 between steps {last} and {last + 90}." in claim
    assert "not known" not in claim
