"""A spike whose loss stays up is told until it is down, through later jumps, with the steps of its losses."""

import math

from benchmarks.watch_verdicts.synthetic import Synthetic

from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.spike import MOST, Spikes


def spikes(run):
    return [f for f in run.judge.findings if f.rule == "loss_spike"]


def with_jumps(later, *, back=math.inf):
    def edit(step, values, scalars, losses):
        scalars["lr"] = 0.03 if step >= 320 else 1e-3
        added = {s: 20.0 if 326 <= s < back else 0.0 for s, _ in losses}
        losses[:] = [(s, 500.0 if s in later else loss + added[s]) for s, loss in losses]

    return edit


def test_a_jump_after_one_that_stays_does_not_take_its_alarm_back():
    run = Synthetic()
    run.run(45, with_jumps((555, 700)))
    first, *others = spikes(run)
    assert (first.evidence["step"], first.status, first.severity) == (326, "fired", "error")
    assert [(f.evidence["step"], f.status) for f in others] == [(555, "clear"), (700, "clear")]
    run.run(10, with_jumps((), back=900))
    assert [f.status for f in spikes(run)] == ["clear"] * 3
    back = spikes(run)[0].evidence["back_at"]
    assert 900 < back < 950
    assert f"It was back at step {back}." in spikes(run)[0].claim
    assert "did not come back" not in spikes(run)[0].claim


def test_the_scatter_of_a_loss_that_stays_up_is_no_other_spike():
    def edit(step, values, scalars, losses):
        with_jumps((326, 555))(step, values, scalars, losses)  # 500 on the way up, and once again

    run = Synthetic()
    run.run(45, edit)
    assert [(f.evidence["step"], f.status) for f in spikes(run)] == [(326, "fired")]


def test_what_is_told_of_a_loss_that_stays_is_of_the_step_of_its_last_loss():
    run = Synthetic()
    run.run(17, with_jumps(()))
    losses = [(step, run.loss(step) + 20.0) for step in range(run.told, run.told + 150)]
    run.source.ended_losses = lambda: losses
    run.judge.close()  # half of the window is up only now, behind the last sample
    (finding,) = spikes(run)
    ended, (last, _) = finding.evidence["ended_at"], losses[-1]
    assert run.judge.rows[-1].step < ended < last
    assert f"at step {ended}, and the last 32 one of {run.judge.loss.recent:.4g} at step {last}." in finding.claim


def test_losses_of_several_kinds_that_take_turns_do_not_jump():
    def edit(step, values, scalars, losses):
        losses[:] = [(s, (3.7 if s % 5 == 4 else 0.7) + 0.01 * (s * 7 % 5)) for s, _ in losses]

    run = Synthetic()
    run.run(20, edit)
    assert spikes(run) == []
    run.run(10, lambda step, values, scalars, losses: losses.__setitem__(slice(None), [(s, 20.0) for s, _ in losses]))
    assert len(spikes(run)) == 1


def jumping_to(level, *, first, at=600):
    """Of a loss whose first few have a median of 1.2, that then falls to 0.45, and is at a level from a step on."""

    def edit(step, values, scalars, losses):
        losses[:] = [
            (s, first if s == 0 else (0.45 + 0.79 * math.exp(-s / 100) if s < at else level) + 0.01 * (s * 7 % 5))
            for s, _ in losses
        ]

    return edit


def test_a_jump_without_a_reason_is_an_alarm_above_the_loss_of_the_untrained_model():
    """Harder data, or another loss function, take it up as well; 300 was an initialisation that was off."""
    for level, first, severity in ((1.4, 2.0, "info"), (2.2, 2.0, "warn"), (200.0, 300.0, "warn")):
        run = Synthetic()
        run.run(45, jumping_to(level, first=first))
        (finding,) = spikes(run)
        assert 1.1 < finding.evidence["start"] < 1.3
        assert (finding.evidence["explained_by"], finding.severity) == (None, severity), (level, first)
        assert "If the data or the loss function was changed there, that is why." in finding.claim


def test_what_is_told_of_a_loss_that_stays_up_is_true_at_the_end():
    def edit(step, values, scalars, losses):
        with_jumps(())(step, values, scalars, losses)
        losses[:] = [(s, loss - 8.0 if s >= 700 else loss) for s, loss in losses]

    run = Synthetic()
    run.run(45, edit)
    run.judge.close()
    (finding,) = spikes(run)
    last, now = run.judge.loss.latest[-1][0], run.judge.loss.recent
    assert now < 13
    assert finding.claim.count(f"and the last 32 one of {now:.4g} at step {last}.") == 1
    assert finding.status == "fired"


def test_so_many_losses_that_stay_up_are_followed_and_no_more():
    following, losses, opened = Spikes(), LossBaseline(), []
    for level in range(MOST + 2):
        for i in range(150):
            step, loss = 150 * level + i, 100.0**level
            following.see_loss(step, loss, losses)
            losses.add(step, loss)
            opened += [not following.is_over] if i == 0 and level else []
    assert opened == [True] * MOST + [False]


def test_of_two_jumps_between_samples_the_last_is_told():
    def edit(step, values, scalars, losses):
        losses[:] = [(s, 500.0 if s in (562, 563, 564, 571, 572, 573) else loss) for s, loss in losses]

    run = Synthetic()
    run.run(45, edit)
    assert [f.evidence["step"] for f in spikes(run)] == [571]
