"""How far, and for how long, a loss must rise to be a spike, an odd batch, an alarm: each bound from both sides."""

import pytest
from benchmarks.watch_verdicts.synthetic import Synthetic

from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.spike import Spikes

ONSET = 401


def course(scatter=0.01):
    """Give a loss that starts at 2, and takes turns about 1 from step 16 on: what was learned is 1 and the scatter."""
    return lambda step: 2.0 if step < 16 else 1.0 + scatter * (-1) ** step


def spike(jumps, scatter=0.01, change=lambda step, values: None, samples=40, onset=ONSET):
    """Return what is told of losses that are so far above 1 from `onset` on, the last telling; None if nothing is."""
    usual = course(scatter)
    at = jumps if isinstance(jumps, dict) else {onset + i: jump for i, jump in enumerate(jumps)}

    def edit(step, values, scalars, losses):
        losses[:] = [(s, 1.0 + at[s] if s in at else usual(s)) for s, _ in losses]
        change(step, values)

    run = Synthetic()
    run.run(samples, edit)
    told = [one for one in run.judge.history if one.rule == "loss_spike" and one.status == "fired"]
    of_it = [one for one in told if one.evidence["step"] == onset]
    return of_it[-1] if of_it else None


def moved(step, values):
    """Let the gradient of a block leave its baseline at the sample before the jump."""
    if step >= 380:
        values["gradient_rms"][2] *= 1e3


@pytest.mark.parametrize(("jump", "told"), [(0.8, False), (1.0, True)])
def test_a_jump_is_twelve_standard_deviations(jump, told):
    assert (spike([jump] * 5, scatter=0.05) is not None) is told  # one is 0.074, and half of what was learned 0.53


@pytest.mark.parametrize(("jump", "told"), [(0.45, False), (0.55, True)])
def test_a_jump_is_half_of_what_was_learned(jump, told):
    assert (spike([jump] * 5) is not None) is told


@pytest.mark.parametrize(
    ("jumps", "told"),
    [
        ([0.9], False),
        ([1.1], True),  # all that was learned, on one step alone
        ([0.9, 0.9], False),
        ([0.9, 0.9, 0.9], True),
        ([0.9, 0.0, 0.9, 0.0, 0.9], True),  # three of five
        ([0.9, 0.0, 0.9, 0.0, 0.0, 0.9], False),
        ([0.9, 0.9, 0.2], False),  # that is back, a quarter of what was learned above
        ([0.9, 0.9, 0.3], True),
    ],
)
def test_a_jump_that_is_no_whole_loss_of_what_was_learned_lasts_three_of_five_steps(jumps, told):
    assert (spike(jumps) is not None) is told


@pytest.mark.parametrize(("later", "back"), [(0.2, ONSET + 8), (0.3, ONSET + 17)])
def test_a_loss_is_back_after_five_steps_within_a_quarter_of_what_was_learned(later, back):
    found = spike([1.5] * 4 + [later] * 9, samples=22)  # the last sample is of step 420
    assert found.evidence["back_at"] == back


@pytest.mark.parametrize(("steps", "severity"), [(19, "warn"), (20, "error")])
def test_what_moved_before_a_loss_that_is_above_its_start_for_twenty_steps_makes_it_an_error(steps, severity):
    assert spike([2.0] * steps, change=moved).severity == severity


@pytest.mark.parametrize(("jump", "severity"), [(1.05, "error"), (0.95, "warn")])
def test_a_loss_below_its_start_is_not_lost(jump, severity):
    assert spike([jump] * 30, change=moved).severity == severity


@pytest.mark.parametrize(("steps", "severity"), [(99, "info"), (100, "warn")])
def test_without_a_reason_a_hundred_steps_above_the_start_make_it_a_warning(steps, severity):
    assert spike([2.0] * steps).severity == severity


@pytest.mark.parametrize(("left", "odd"), [(0.55, False), (0.45, True)])
def test_a_batch_stands_out_by_four_times_what_it_leaves(left, odd):
    found = spike([2.0] + [left] * 5)
    assert ("The batch of step 401 stands out" in found.claim) is odd
    assert found.severity == ("warn" if odd else "info")


@pytest.mark.parametrize(("before", "severity"), [(0.45, "warn"), (0.55, "info")])
def test_a_lone_jump_is_an_alarm_at_four_times_the_largest_before(before, severity):
    assert spike({200: before, ONSET: 2.0}).severity == severity


@pytest.mark.parametrize(("onset", "severity"), [(127, "info"), (128, "warn")])
def test_a_run_of_fewer_than_128_losses_does_not_know_what_is_unheard_of(onset, severity):
    assert spike([3.0], onset=onset).severity == severity


@pytest.mark.parametrize(("by", "raised"), [(1.9, False), (2.1, True)])
def test_a_rate_that_drifts_is_no_rate_that_was_raised(by, raised):
    def edit(step, values, scalars, losses):
        usual = course()
        losses[:] = [(s, 3.0 if s >= ONSET else usual(s)) for s, _ in losses]
        scalars["lr"] = 0.1 * (by if step >= 380 else 1.0)

    run = Synthetic()
    run.run(40, edit)
    (found,) = [one for one in run.judge.findings if one.rule == "loss_spike"]
    rose = {"from": 0.1, "to": pytest.approx(0.21), "after": 360, "by": 380}
    assert found.evidence["learning_rate"] == (rose if raised else None)
    assert found.severity == ("error" if raised else "warn")


@pytest.mark.parametrize(("high", "steep"), [(15.9, False), (16.1, True)])
def test_of_a_young_run_a_loss_rose_steeply_that_is_eight_times_the_first(high, steep):
    rose = {"step": 2, "from": 2.0, "to": 40.0} if steep else None
    recent = [(0, 2.0), (1, 2.1), (2, high)] + ([(3, 40.0)] if steep else [])
    assert Spikes().before(4, recent, LossBaseline()) == rose
