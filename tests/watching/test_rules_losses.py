"""What follows every step's loss: spikes, explained by what moved first, and the first NaN or Inf."""

import math
from types import SimpleNamespace

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import nn

import levada
from levada.probe.trace import Site
from levada.watching import Sample
from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.judge import Judge


def spiking(onset, to, last=None):
    def edit(step, values, scalars, losses):
        losses[:] = [(s, to if onset <= s <= (last or onset) else loss) for s, loss in losses]

    return edit


def spikes(run):
    return [f for f in run.judge.findings if f.rule == "loss_spike"]


def test_one_odd_batch_is_named_with_its_step_and_nothing_moved_before_it():
    run = Synthetic()
    run.run(20, spiking(333, 40.0))
    (finding,) = spikes(run)
    assert finding.evidence["step"] == 333
    assert finding.severity == "warn"
    assert finding.where == {}
    assert "Nothing that is watched moved before it, up to the sampled step 320." in finding.claim
    assert "The batch of step 333 stands out" in finding.claim


@pytest.mark.parametrize(
    ("at", "size", "named"), [(0, 1.1, True), (0, 0.9, False), (320, 0.06, True), (320, 0.04, False), (340, 2.0, False)]
)
def test_steps_far_above_usual_before_the_jump_are_named_and_not_the_batch(at, size, named):
    def edit(step, values, scalars, losses):
        spiking(333, 40.0)(step, values, scalars, losses)
        if step == at:
            values["update_ratio"][:] = size

    run = Synthetic()
    run.run(20, edit)
    (finding,) = spikes(run)
    told = f"Step {at}, {333 - at} steps before it, moved the weights of the median block by {size:.2g} of"
    assert (told in finding.claim) is named
    assert finding.evidence["long_step"] == (at if named else None)
    assert ("The batch of step 333 stands out" in finding.claim) is not named
    assert finding.evidence["update_ratio"] == (pytest.approx(size) if named else None)


def test_what_moved_first_is_named_with_its_step():
    def edit(step, values, scalars, losses):
        spiking(347, 3.0, 380)(step, values, scalars, losses)
        if step >= 320:
            values["gradient_rms"][5] *= 30
        if step >= 340:
            values["signal_rms"][2] *= 8

    run = Synthetic()
    run.run(25, edit)
    (finding,) = spikes(run)
    moved = [(one["site"], one["signal"], one["step"]) for one in finding.evidence["moved_first"]]
    assert moved == [("layers.5", "gradient_rms", 320), ("layers.2", "signal_rms", 340)]
    assert finding.where["first"] == "layers.5"
    assert "First gradient_rms of layers.5 left its own baseline, at step 320" in finding.claim


def test_what_moves_with_the_spike_or_after_it_did_not_bring_it_about():
    def edit(step, values, scalars, losses):
        spiking(340, 3.0, 380)(step, values, scalars, losses)
        if step >= 340:
            values["gradient_rms"][5] *= 30

    run = Synthetic()
    run.run(25, edit)
    assert [f.evidence["moved_first"] for f in spikes(run)] == [[]]


def test_what_moved_long_before_is_no_explanation():
    def edit(step, values, scalars, losses):
        spiking(347, 3.0, 380)(step, values, scalars, losses)
        if step >= 220:
            values["gradient_rms"][5] *= 30

    run = Synthetic()
    run.run(25, edit)
    assert [f.evidence["moved_first"] for f in spikes(run)] == [[]]


def test_heavy_tails_are_no_alarm_and_told_three_times_at_most():
    def tails(step, values, scalars, losses):
        losses[:] = [(s, loss + (8.0 + s % 3 if s % 29 == 20 else 0.0)) for s, loss in losses]

    run = Synthetic()
    run.run(100, tails)
    assert [f.severity for f in spikes(run)] == ["info"] * 3


@pytest.mark.parametrize(("since", "severity"), [(322, "warn"), (307, "warn"), (302, "info")])
def test_a_climb_of_some_steps_is_part_of_the_jump_and_one_of_many_is_what_the_run_has_known(since, severity):
    def edit(step, values, scalars, losses):
        scalars["lr"] = 0.03 if step >= 320 else 1e-3
        added = {s: 0.7 if since <= s < 325 else 2.4 if 325 <= s < 333 else 0.0 for s, _ in losses}
        losses[:] = [(s, loss + added[s]) for s, loss in losses]

    run = Synthetic()
    run.run(25, edit)
    (finding,) = spikes(run)
    assert (finding.evidence["step"], finding.severity) == (325, severity)


def test_a_rate_that_rises_at_the_step_of_the_jump_did_not_bring_it_about():
    def edit(step, values, scalars, losses):
        spiking(320, 3.0, 360)(step, values, scalars, losses)  # another loss begins here, at another rate
        scalars["lr"] = 0.03 if step >= 320 else 1e-3

    run = Synthetic()
    run.run(30, edit)
    assert [f.severity for f in spikes(run)] == ["info"]


def test_a_raised_rate_explains_a_spike():
    def edit(step, values, scalars, losses):
        spiking(326, 3.0, 10_000)(step, values, scalars, losses)
        scalars["lr"] = 0.03 if step >= 320 else 1e-3

    run = Synthetic()
    run.run(30, edit)
    (finding,) = spikes(run)
    assert finding.severity == "error"  # it stays above the start
    assert finding.evidence["learning_rate"] == {"from": 1e-3, "to": 0.03, "after": 300, "by": 320}
    assert "The learning rate rose from 0.001 to 0.03 between steps 300 and 320." in finding.claim
    (remedy,) = finding.remedies
    assert (remedy.before, remedy.after) == ({"lr": 0.03}, {"lr": pytest.approx(1e-3)})
    assert "from before step 320 at the rate of before, 0.001" in finding.falsify


@pytest.mark.parametrize(
    "later",
    [
        pytest.param(lambda step: 1e-3, id="the rate is back"),
        pytest.param(lambda step: 0.03 * (1 + (step - 320) / 1e3), id="it rises on"),
    ],
)
def test_no_rate_is_proposed_where_it_is_another_by_now(later):
    def edit(step, values, scalars, losses):
        spiking(326, 3.0, 10_000)(step, values, scalars, losses)
        scalars["lr"] = 1e-3 if step < 320 else 0.03 if step < 340 else later(step)

    run = Synthetic()
    run.run(30, edit)
    (finding,) = spikes(run)
    assert finding.severity == "error"
    assert finding.remedies == ()


@pytest.mark.parametrize(("kind", "before", "at"), [("AdamW", 1e-3, 1.0), ("SGD", 0.03, 30.0)])
def test_a_rate_raised_a_thousandfold_has_one_date_and_its_repair(kind, before, at):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = getattr(torch.optim, kind)(net.parameters(), lr=before)
    with levada.watch(net, optimizer) as watch:
        for step in range(400):
            optimizer.param_groups[0]["lr"] = at if step >= 250 else before
            optimizer.zero_grad()
            inputs = torch.randn(32, 8)
            nn.functional.cross_entropy(net(inputs), inputs[:, :4].argmax(1)).backward()
            optimizer.step()
    dates = [f.evidence["learning_rate"] for f in watch.findings if f.evidence.get("learning_rate")]
    assert dates
    assert all((one["after"], one["by"]) == (249, 250) for one in dates)
    assert all(f"from {before:g} to {at:g} at step 250." in f.claim for f in watch.findings if "rate rose" in f.claim)
    worst = next(f for f in watch.findings if f.severity == "error")
    assert [remedy.after["lr"] for remedy in worst.remedies] == [pytest.approx(before)]


def test_a_warm_up_is_no_raised_rate():
    def edit(step, values, scalars, losses):
        spiking(326, 3.0, 380)(step, values, scalars, losses)
        scalars["lr"] = 1e-5 * step

    run = Synthetic()
    run.run(30, edit)
    assert [f.evidence["learning_rate"] for f in spikes(run)] == [None]


@pytest.mark.parametrize(
    "edit",
    [
        spiking(333, 1.2),  # a jump of a third of what was learned, in one batch
        lambda step, values, scalars, losses: losses.__setitem__(
            slice(None), [(s, loss * math.exp(-s / 60) if s % 37 or s < 400 else 0.05) for s, loss in losses]
        ),  # an easy task's loss that jumps a hundredfold
    ],
)
def test_jumps_that_do_not_matter_are_no_spikes(edit):
    run = Synthetic()
    run.run(40, edit)
    assert spikes(run) == []


def test_harder_data_is_information_and_no_alarm():
    def curriculum(step, values, scalars, losses):
        losses[:] = [(s, loss if s < 400 else 1.6 + 0.5 * math.exp(-(s - 400) / 50)) for s, loss in losses]

    run = Synthetic()
    run.run(40, curriculum)
    assert [f.severity for f in spikes(run)] == ["info"]
    assert "It did not come back" in spikes(run)[0].claim


def test_a_loss_baseline_ignores_what_is_not_finite():
    losses = LossBaseline(warm_up=4)
    for step, loss in enumerate([2.0, 2.0, math.inf, 2.0, math.nan, 2.0]):
        losses.add(step, loss)
    assert (losses.steps, losses.median, losses.ready) == (4, 2.0, True)


# NaN and Inf.


def overflow(run):
    return [f for f in run.judge.findings if f.rule == "numerical_overflow"]


def broken_from(onset, block, signal="nonfinite"):
    def edit(step, values, scalars, losses):
        losses[:] = [(s, math.nan if s >= onset else loss) for s, loss in losses]
        if step >= onset:
            values[signal][block:] = 1.0

    return edit


def test_the_first_block_of_a_step_that_was_sampled_is_named():
    run = Synthetic()
    run.run(13, broken_from(240, 3))
    (finding,) = overflow(run)
    assert finding.where == {"first": "layers.3", "last": "layers.3"}
    assert (finding.evidence["tensor"], finding.evidence["step"]) == ("signal", 240)
    assert finding.severity == "error"


def test_between_samples_the_step_is_known_from_the_loss_and_the_block_is_not_once_all_are_broken():
    run = Synthetic()
    run.run(14, broken_from(247, 0))
    (finding,) = overflow(run)
    assert finding.where == {}
    assert finding.evidence["step"] == 247
    assert finding.evidence["entered_after"] == 246
    assert "it entered after step 246 and by step 247" in finding.claim
    assert "the first one is not known" in finding.claim


def test_between_samples_finite_blocks_before_tell_the_block():
    run = Synthetic()
    run.run(14, broken_from(247, 5))
    assert overflow(run)[0].where["first"] == "layers.5"


def test_without_losses_the_step_is_said_to_lie_between_two_samples():
    def edit(step, values, scalars, losses):
        losses.clear()
        if step >= 240:
            values["nonfinite"][2:] = 1.0

    run = Synthetic()
    run.run(13, edit)
    assert "first seen at the sampled step 240; it entered after step 220 and by step 240" in overflow(run)[0].claim


def test_a_gradient_that_overflows_is_named_at_the_first_block_on_its_way_back():
    def edit(step, values, scalars, losses):
        if step >= 240:
            values["gradient_nonfinite"][:6] = 1.0

    run = Synthetic()
    run.run(13, edit)
    (finding,) = overflow(run)
    assert (finding.where["first"], finding.evidence["tensor"]) == ("layers.5", "gradient")


def test_a_scaler_that_skips_steps_is_no_alarm_but_one_that_skips_all_is():
    def edit(step, values, scalars, losses):
        scalars["loss_scale"] = 65536.0
        if step in (0, 20, 200):
            values["gradient_nonfinite"][:] = 1.0

    run = Synthetic()
    run.run(20, edit)
    assert overflow(run) == []

    def always(step, values, scalars, losses):
        scalars["loss_scale"] = 65536.0
        values["gradient_nonfinite"][:] = 1.0

    run.run(3, always)
    assert [f.where["first"] for f in overflow(run)] == ["layers.7"]


def test_infinities_of_a_mask_are_a_warning_alone():
    def edit(step, values, scalars, losses):
        values["nonfinite"][4] = 1.0

    for before, severity in ((0, "info"), (5, "warn")):  # there from the start, or since a step
        run = Synthetic()
        run.run(before)
        run.run(1, edit)
        assert [(f.severity, f.where["first"]) for f in overflow(run)] == [(severity, "layers.4")]


def test_numbers_that_are_finite_again_end_the_finding():
    def edit(step, values, scalars, losses):
        if step == 240:
            values["gradient_nonfinite"][2] = 1.0

    run = Synthetic()
    run.run(15, edit)
    assert [(f.status, f.evidence.get("cleared_at")) for f in overflow(run)] == [("clear", 260)]


class Watched(SimpleNamespace):
    """A model of three maps, with the pass that it was last called with."""

    def __init__(self):
        super().__init__(model=nn.Sequential(*(nn.Linear(3, 3) for _ in range(3))), optimizers=(), last_pass=None)
        self.sites = tuple(Site(str(i), i, "Linear", (2, 3), (f"{i}.weight", f"{i}.bias")) for i in range(3))

    def call(self, inputs):
        self.last_pass = SimpleNamespace(args=(inputs,), kwargs={}, step=7)


def seen_before_update(spoil):
    watched = Watched()
    judge = Judge(watched)
    judge.sampled(Sample(0, 0.0, {"signal_rms": torch.ones(3, dtype=torch.float64)}, {}, ((0, 1.0),), rank=3))
    inputs = torch.ones(2, 3)
    spoil(watched.model, inputs)
    watched.call(inputs)
    judge.before_update(7, torch.tensor(math.nan))
    judge.before_update(8, torch.tensor(math.nan))  # is told once
    (finding,) = judge.findings
    return finding


def test_before_the_update_a_broken_weight_is_named_exactly():
    def spoil(model, inputs):
        model[1].bias.data[2] = math.inf

    finding = seen_before_update(spoil)
    assert finding.where["first"] == "1"
    assert finding.evidence["tensor"] == "weight"
    assert (finding.evidence["step"], finding.evidence["rank"]) == (7, 3)
    assert "on rank 3: the parameter 1.bias holds Inf." in finding.claim


def test_before_the_update_weights_of_several_blocks_name_none():
    def spoil(model, inputs):
        for i in range(2):
            model[i].weight.data[0, 0] = math.nan

    finding = seen_before_update(spoil)
    assert finding.where == {}
    assert "2 parameters of several blocks hold NaN or Inf since an update behind step 0;" in finding.claim


def test_before_the_update_broken_inputs_are_named():
    def spoil(model, inputs):
        inputs[0, 0] = math.nan

    assert seen_before_update(spoil).evidence["tensor"] == "inputs"


def test_before_the_update_what_is_finite_leaves_the_forward_pass_or_the_loss():
    finding = seen_before_update(lambda model, inputs: None)
    assert finding.evidence["tensor"] == "loss"
    assert "the weights and the inputs are finite" in finding.claim
    assert "The gradients are finite all the same" not in finding.consequence  # there are none yet


@pytest.mark.parametrize("blocks", [[3], [3, 5]])
def test_a_weight_that_is_not_finite_any_more_is_named_if_it_is_the_only_one(blocks):
    def edit(step, values, scalars, losses):
        values["weight_rms"][blocks] = math.inf

    run = Synthetic()
    run.run(12)
    run.run(1, edit)
    (finding,) = overflow(run)
    assert (finding.severity, finding.evidence["tensor"]) == ("error", "weight")
    one = len(blocks) == 1
    assert finding.where.get("first") == ("layers.3" if one else None)
    assert f"{'layers.3 holds' if one else '2 weights hold'} NaN or Inf" in finding.claim


def test_a_rise_that_gives_back_less_than_half_of_what_was_learned_is_no_spike():
    run = Synthetic()
    run.run(40, spiking(701, 1.3, 712))  # of 1.8 that was learned, 0.8 for twelve steps
    assert spikes(run) == []


@pytest.mark.parametrize(("left", "odd"), [(3.0, True), (20.0, False)])
def test_a_batch_is_odd_if_the_steps_after_it_are_left_with_a_fraction(left, odd):
    def edit(step, values, scalars, losses):
        losses[:] = [(s, 40.0 if s == 333 else left if 333 < s < 345 else loss) for s, loss in losses]

    run = Synthetic()
    run.run(25, edit)
    (finding,) = spikes(run)
    assert ("stands out" in finding.claim) is odd
    assert finding.severity == ("warn" if odd else "info")


def test_a_loss_that_does_not_come_back_is_told_until_it_does():
    def edit(step, values, scalars, losses):
        spiking(326, 3.0, 800)(step, values, scalars, losses)
        scalars["lr"] = 0.03 if step >= 320 else 1e-3

    run = Synthetic()
    run.run(35, edit)
    (finding,) = spikes(run)
    assert (finding.status, finding.severity) == ("fired", "error")
    assert "It did not come back: the last 7 losses had a median of 3 at step " in finding.claim
    assert len(run.judge.history) < 5  # told, made worse, ended: not on every sample
    run.run(10, edit)
    assert [f.status for f in spikes(run)] == ["clear"]


@pytest.mark.parametrize(("raised", "at", "every"), [(90, 1e3, 20), (90, 1e3, 7), (3, 1e2, 20)])
def test_a_jump_of_the_loss_before_a_nan_is_named(raised, at, every):
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)], nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = []
    with levada.watch(net, optimizer, every=every, max_overhead=math.inf) as watch:
        for step in range(raised + 60):
            optimizer.param_groups[0]["lr"] = at if step >= raised else 0.01
            optimizer.zero_grad()
            loss = net(torch.randn(16, 4)).square().mean()
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
    bad = next(i for i, loss in enumerate(losses) if not math.isfinite(loss))
    first = next(f for f in watch.findings if f.rule == "numerical_overflow")
    jump = first.evidence["loss_spike"]
    assert first.evidence["step"] == bad > raised + 1
    assert jump["step"] == raised + 1  # the first loss of weights that the raised rate moved
    assert jump["to"] == max(losses[:bad])
    assert f"Before it the loss jumped, at step {raised + 1}, from " in first.claim


def test_no_jump_is_named_where_a_nan_comes_out_of_the_blue():
    run = Synthetic()
    run.run(20)
    run.run(1, lambda step, values, scalars, losses: losses.__setitem__(-1, (step, math.nan)))
    (finding,) = run.judge.findings
    assert finding.rule == "numerical_overflow"
    assert "loss_spike" not in finding.evidence
    assert "jumped" not in finding.claim


@pytest.mark.parametrize(("scaled", "told"), [(False, 240), (True, 242)])
def test_under_a_scaler_the_third_loss_in_a_row_that_is_not_finite_is_told_between_samples(scaled, told):
    run = Synthetic()
    run.run(12, lambda step, values, scalars, losses: scalars.update({"loss_scale": 1024.0} if scaled else {}))
    found = []
    for step in range(230, 245):
        bad = step in (232, 233) if step < 240 and scaled else step >= 240  # two are how it looks for its scale
        run.judge.before_update(step, torch.tensor(math.nan if bad else 0.8))
        found += [step] if overflow(run) and not found else []
    assert found == [told]
    assert overflow(run)[0].evidence["step"] == 240


@pytest.mark.parametrize("also", ["a weight", "a gradient", "a loss", "nothing"])
def test_infinities_of_a_mask_are_no_excuse_for_what_else_is_not_finite(also):
    def edit(step, values, scalars, losses):
        values["nonfinite"][4] = 1.0
        if step < 240:
            return
        if also == "a weight":
            values["weight_rms"][4] = math.inf
        elif also == "a gradient":
            values["gradient_nonfinite"][2] = 1.0
        elif also == "a loss":
            losses[:] = [(s, math.nan) for s, _ in losses]

    run = Synthetic()
    run.run(12, edit)
    assert [f.severity for f in overflow(run)] == ["info"]
    run.run(1, edit)
    assert [f.severity for f in overflow(run)] == ["info" if also == "nothing" else "error"]


def test_what_was_not_finite_beside_a_mask_is_over_when_the_mask_alone_is_left():
    def edit(step, values, scalars, losses):
        values["nonfinite"][4] = 1.0
        losses[:] = [(s, math.nan if s == 247 else loss) for s, loss in losses]

    run = Synthetic()
    run.run(14, edit)
    assert [(f.severity, f.status) for f in overflow(run)] == [("info", "fired")]  # the loss of 247 is finite at 260
    run = Synthetic()
    run.run(12, edit)
    run.judge.before_update(239, torch.tensor(0.8))
    run.judge.before_update(247, torch.tensor(math.nan))
    assert [(f.severity, f.evidence["step"]) for f in overflow(run)] == [("error", 247)]
    run.run(3, edit)
    assert [(f.severity, f.status) for f in overflow(run)] == [("error", "clear"), ("info", "fired")]


def test_no_jump_is_told_beside_gradients_that_are_added_up():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer, of = torch.optim.Adam(model.parameters(), lr=0.01), torch.randn(16, 4)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(400):
            if step == 200:
                optimizer.zero_grad()
            x = torch.randn(32, 16)
            loss = nn.functional.cross_entropy(model(x), (x @ of).argmax(1)) * (50.0 if 250 <= step < 260 else 1.0)
            loss.backward()
            optimizer.step()
    told = [f.rule for f in watch.findings]
    assert "accumulated_gradients" in told
    assert "loss_spike" not in told
    assert "loss_above_best" not in told
