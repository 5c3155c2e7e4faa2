"""Steps that are too long, as the reason why a run broke: each leg of the verdict, what has another cause, a replay."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import levada
from levada.diagnose import Finding
from levada.probe.trace import Site
from levada.watching import Sample
from levada.watching.rerun.replay import replay
from levada.watching.verdict.bundle import Bundle, read_bundle, write_bundle
from levada.watching.verdict.overshot import Before, blamed, rate_proposal
from levada.watching.verdict.view import Blocks

HIGH = "learning_rate_too_high"


def mlp(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(6)]
    return nn.Sequential(nn.Linear(8, 32), *layers, nn.Linear(32, 1))


def trained(optimizer, steps=60, *, seed=0, spoil=lambda step, x: None, every=20, **options):
    """Train to give the first of eight numbers back; return the watch and the losses."""
    model = mlp(seed)
    optimizer, losses = optimizer(model.parameters()), []
    with levada.watch(model, optimizer, every=every, max_overhead=math.inf, **options) as watch:
        for step in range(steps):
            x = torch.randn(64, 8)
            targets = x[:, :1].clone()
            spoil(step, x)
            watch.note(targets=targets)
            optimizer.zero_grad()
            loss = (model(x) - targets).square().mean()
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
    return watch, losses


def sgd(lr, **options):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)


def broken(watch):
    return next(f for f in watch.findings if f.rule == "numerical_overflow")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_rate_at_which_the_loss_rises_until_it_is_no_number_is_named_with_a_lower_one(seed):
    finding = broken(trained(sgd(2.0), seed=seed)[0])
    told = finding.evidence[HIGH]
    assert "Steps that were too long came before it, at a learning rate of 2: " in finding.claim
    assert "the loss rose at each of the last" in finding.claim
    assert told["rises"] >= 4
    assert told["to"] > 8 * told["from"]
    assert 0 < told["lower"] <= 0.2
    assert finding.remedies[-1].after == {"lr": told["lower"]}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_one_step_that_leaves_nothing_of_the_weights_is_enough(kind):
    finding = broken(trained(lambda p: kind(p, lr=1e30), 4)[0])
    assert finding.evidence["step"] == 1
    assert finding.evidence[HIGH]["update_ratio"] > 1e20
    assert "step 0 moved the weights of the median block by " in finding.claim
    assert finding.evidence[HIGH]["lower"] < 1e30 / 1e10 or kind is torch.optim.Adam


def test_the_block_that_a_sample_names_afterwards_leaves_it_said():
    finding = broken(trained(sgd(1e30), 3, every=1)[0])
    assert finding.where["first"]
    assert finding.evidence[HIGH]["update_ratio"] > 1e20


def nan_from(step, x):
    if step == 25:
        x[3, 2] = math.nan


def test_a_nan_in_the_data_stays_what_it_is_at_any_rate():
    for lr in (1e-3, 0.3):
        finding = broken(trained(sgd(lr), 27, spoil=nan_from)[0])
        assert finding.evidence["tensor"] == "inputs"
        assert HIGH not in finding.evidence
        assert "learning rate" not in finding.claim


def test_a_nan_that_the_model_makes_at_short_steps_is_not_of_the_rate():
    class Rooted(nn.Module):
        def forward(self, x):
            return x if bool(x.abs().amax() < 3) else torch.sqrt(-x.abs() - 1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), Rooted(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(30):
            optimizer.zero_grad()
            model(torch.randn(32, 8) * (9.0 if step == 22 else 0.5)).square().mean().backward()
            optimizer.step()
    assert broken(watch).evidence["step"] == 22
    assert HIGH not in broken(watch).evidence


def test_a_spike_that_comes_back_stays_a_spike():
    def odd(step, x):
        if step == 150:
            x *= 4

    watch, losses = trained(lambda p: torch.optim.AdamW(p, lr=3e-3), 240, spoil=odd)
    assert losses[150] > 4 * losses[149]
    assert [f.rule for f in watch.findings if f.status == "fired" and f.severity != "info"] == []
    assert HIGH not in [f.rule for f in watch.findings]


def test_a_loss_that_rises_at_once_and_stays_above_its_start_is_a_warning_with_a_lower_rate():
    watch, losses = trained(sgd(1.0), 220, seed=3)
    assert math.isfinite(losses[-1])
    finding = next(f for f in watch.findings if f.rule == HIGH)
    assert (finding.severity, finding.status) == ("warn", "fired")
    assert "The loss rose with the first updates, from 1.1" in finding.claim
    # At curvature 2 and rate 1 a step goes twice as far as the minimum: to first order it lowers the loss fourfold.
    assert finding.evidence["promised"] == pytest.approx(4.0, rel=0.05)
    assert finding.remedies[0].after["lr"] <= 0.1
    assert watch.report().verdict == "warn"


def harder(lr, task, steps=260):
    """Train on a task that grows harder with the steps; return the watch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(steps):
            x = torch.randn(64, 8)
            optimizer.zero_grad()
            (model(x) - task(step, x[:, :1])).square().mean().backward()
            optimizer.step()
    return watch


@pytest.mark.parametrize("lr", [0.01, 0.05])
def test_a_task_that_grows_harder_is_information_as_its_steps_do_not_overshoot(lr):
    watch = harder(lr, lambda step, x: torch.sin(3 * x * (1 + step / 30)) * min(1.0, 0.1 + step / 10))
    assert watch.judge.loss.median > 1.5 * watch.judge.loss.first
    (finding,) = (f for f in watch.findings if f.rule == HIGH)
    assert finding.severity == "info"
    assert "nothing says that steps overshoot" in finding.claim
    assert finding.evidence["promised"] < 0.1
    assert finding.remedies == ()
    assert watch.report().verdict == "unknown"  # the loss went up and stayed, and nothing measured says why


def contrast(lr, steps=300):
    """Tell each row from a queue of others, which begins as zeros; return the watch."""
    torch.manual_seed(0)
    normal = nn.functional.normalize
    query, key = [
        nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)) for _ in range(2)
    ]
    key.load_state_dict(query.state_dict())
    optimizer = torch.optim.SGD(query.parameters(), lr=lr, momentum=0.9)
    queue = torch.zeros(2048, 16)
    with levada.watch(query, optimizer, every=5, max_overhead=math.inf) as watch:
        for _ in range(steps):
            x = torch.randn(16, 16)
            with torch.no_grad():
                for p, q in zip(key.parameters(), query.parameters(), strict=True):
                    p.lerp_(q, 0.01)
                right = normal(key(x + 0.3 * torch.randn(16, 16)), dim=1)
            asked = normal(query(x + 0.3 * torch.randn(16, 16)), dim=1)
            logits = torch.cat([(asked * right).sum(1, keepdim=True), asked @ queue.T], 1) / 0.07
            loss = nn.functional.cross_entropy(logits, torch.zeros(16, dtype=torch.long))
            queue = torch.cat([queue, right])[-2048:]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watch


# "unknown" where the last loss is above the best by half of what was learned.
@pytest.mark.parametrize(("lr", "verdict"), [(0.003, "unknown"), (0.01, "healthy"), (0.03, "healthy")])
def test_a_queue_that_fills_raises_the_loss_without_steps_that_are_too_long(lr, verdict):
    watch = contrast(lr)
    assert watch.judge.loss.median > 1.5 * watch.judge.loss.first
    assert [f.claim for f in watch.findings if f.severity != "info"] == []
    assert watch.report().verdict == verdict


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru, self.head = nn.Linear(4, 32), nn.GRU(32, 32, 2, batch_first=True), nn.Linear(32, 1)

    def forward(self, x):
        return self.head(self.gru(self.embed(x))[0][:, -1])


@pytest.mark.parametrize(("lr", "named"), [(0.5, True), (3e-3, False)])
def test_first_steps_as_large_as_the_weights_are_named_where_the_loss_does_not_come_back(lr, named):
    torch.manual_seed(2)
    model = Recurrent()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=lr), []
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for _ in range(220):
            x = torch.randn(32, 20, 4)
            optimizer.zero_grad()
            loss = (model(x) - 3 * x[:, :, 0].mean(1, keepdim=True)).square().mean()
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
    found = [f for f in watch.findings if f.rule == HIGH and f.status == "fired"]
    assert [f.severity for f in found] == ["warn"] * named
    if named:
        assert max(losses) > 20 * losses[0]
        assert "A step moved the weights of the median block by 4.9 of themselves." in found[0].claim
        assert found[0].remedies[0].after["lr"] == pytest.approx(0.5 * 1e-3 / found[0].evidence["longest"])


@pytest.mark.parametrize(("kind", "lr"), [(torch.optim.SGD, 0.1), (torch.optim.Adam, 1e-3)])
def test_a_rate_in_use_is_not_warned_of(kind, lr):
    watch, _ = trained(lambda p: kind(p, lr=lr), 220)
    assert [f for f in watch.findings if f.severity != "info"] == []


# Each leg alone, on made-up runs.

SITES = tuple(Site(f"{i}", i, "Linear", (4, 4), (f"{i}.weight",)) for i in range(3))
OVERFLOW = Finding(
    "numerical_overflow", "error", "fired", "NaN.", evidence={"step": 40, "tensor": "loss", "explained_by": None}
)
JUMP = {"step": 38, "from": 1.0, "to": 50.0}


def before(ratio=1e-3, sampled=20, losses=(), jump=None, rate=0.5, weights=1.0, learned=False):
    values = {"update_ratio": torch.full((3,), ratio), "weight_rms": torch.full((3,), weights)}
    row = Sample(sampled, 0.0, {name: v.double() for name, v in values.items()})
    return Before((row,), Blocks.of(SITES), tuple(enumerate(losses, 40 - len(losses))), rate, learned, jump)


def weights_of(size):
    model = nn.Sequential(*[nn.Linear(4, 4, bias=False) for _ in range(3)])
    for p in model.parameters():
        nn.init.constant_(p, size)
    return model


@pytest.mark.parametrize(
    ("known", "size", "named"),
    [
        (before(), 1.0, False),
        (before(0.3), 1.0, False),  # long, and no loss that rose
        (before(0.3, jump=JUMP), 1.0, True),
        (before(2.0), 1.0, False),  # twenty steps ago
        (before(2.0, sampled=38), 1.0, True),
        (before(math.inf, sampled=39), 1.0, False),  # weights that were zero
        (before(jump=JUMP), 1.0, False),  # a loss that jumps, at short steps
        (before(jump=JUMP), 30.0, True),
        (before(), 30.0, False),
        (before(losses=[1.0, 2.0, 9.0, 80.0, 700.0]), 1.0, True),
        (before(losses=[1.0, 2.0, 9.0, 80.0]), 1.0, False),  # three in a row
        (before(losses=[1.0, 1.1, 1.2, 1.3, 1.4]), 1.0, False),
        (before(losses=[1.0, 2.0, 9.0, 80.0, 700.0], rate=math.nan), 1.0, False),
        (before(0.09, jump=JUMP), 1.0, False),
        (before(0.11, jump=JUMP), 1.0, True),
        (before(0.9, sampled=38), 1.0, False),
        (before(1.1, sampled=38), 1.0, True),
        (before(2.0, sampled=37), 1.0, False),
        (before(jump=JUMP), 1.9, False),
        (before(jump=JUMP), 2.1, True),  # twice as large three steps after the one before the jump
        (before(jump=JUMP | {"step": 30}), 2.7, False),
        (before(jump=JUMP | {"step": 30}), 3.0, True),  # a tenth at each of eleven steps
        (before(losses=[1.0, 2.0, 3.0, 5.0, 7.9]), 1.0, False),
        (before(losses=[1.0, 2.0, 3.0, 5.0, 8.1]), 1.0, True),
    ],
)
def test_each_leg(known, size, named):
    assert (HIGH in blamed(OVERFLOW, known, weights_of(size)).evidence) is named


def test_data_and_the_weights_of_one_block_have_another_cause():
    known = before(0.3, jump=JUMP)
    for tensor, where in (("inputs", {}), ("targets", {}), ("weight", {"first": "1", "last": "1"})):
        finding = Finding("numerical_overflow", "error", "fired", "NaN.", where, OVERFLOW.evidence | {"tensor": tensor})
        assert blamed(finding, known, None) is finding


def test_the_rate_before_a_rise_is_named_unless_its_steps_were_long_too():
    rise = {"from": 0.25, "to": 0.5, "after": 20, "by": 40}
    for ratio, lower in ((1e-3, 0.25), (0.4, 0.5 * 1e-3 / 0.4)):
        known = replace(before(ratio, losses=[1.0, 2.0, 9.0, 80.0, 700.0]), rise=rise)
        assert blamed(OVERFLOW, known, None).evidence[HIGH]["lower"] == pytest.approx(lower)


def test_a_rise_that_is_long_past_or_went_on_says_nothing_of_the_rate():
    losses = [1.0, 2.0, 9.0, 80.0, 700.0]  # from step 36 on
    for rise, lower in (
        ({"from": 0.25, "to": 0.5, "after": 10, "by": 16}, 0.25),
        ({"from": 0.25, "to": 0.5, "after": 10, "by": 15}, 0.05),
        ({"from": 0.01, "to": 0.4, "after": 20, "by": 30}, 0.05),  # at 0.5 now: it warms up
    ):
        known = replace(before(losses=losses), rise=rise)
        assert blamed(OVERFLOW, known, None).evidence[HIGH]["lower"] == pytest.approx(lower), rise


def leapt(*, step=438, ratio=1e-3, leap=1e6, after=(), rise=None, last=1.0):
    """Return what is known of a loss that came up at step 438 in one step, and was sampled at step 370 before."""
    losses = [*((at, 1.0) for at in range(430, 437)), (437, last), (438, leap), (439, 1e9 * leap)]
    row = before(ratio, sampled=370).rows[0]
    rows = (row, *(Sample(439, 0.0, {**row.values, "weight_rms": torch.tensor(after).double()}) for _ in after[:1]))
    return Before(rows, Blocks.of(SITES), losses, 0.5, True, {"step": step, "from": 1.0, "to": leap}, rise)


LATE = Finding("numerical_overflow", "error", "fired", "NaN.", evidence=OVERFLOW.evidence | {"step": 440})


def test_a_loss_that_leaps_long_after_the_last_sample_is_not_blamed_on_the_rate():
    found = blamed(LATE, leapt(after=(1.0, 900.0, 1.0)), weights_of(1e3))
    assert HIGH not in found.evidence
    assert not found.remedies
    assert "came up 1e+06-fold in one step, and the last sample before is of step 370, where steps were short" in (
        found.claim
    )
    assert found.claim.endswith(
        "The weights of 1, and of no other block, changed by a factor of 900 between step 370 and step 439."
    )
    for known in (leapt(leap=101.0), leapt(ratio=0.09), replace(leapt(), rows=before(sampled=374).rows)):
        assert HIGH not in blamed(LATE, known, weights_of(1e3)).evidence
    found = blamed(LATE, leapt(last=4.0), weights_of(1e3))
    assert "came up 2.5e+05-fold in one step" in found.claim, "of the step before, not of the usual loss"
    rose = {"from": 0.25, "to": 0.5}
    for known, harmless in (
        (leapt(rise=rose | {"after": 369, "by": 400}), 370),
        (leapt(rise=rose | {"after": 372, "by": 373}), 65),
    ):
        assert "not known to be why" in blamed(LATE, known, weights_of(1e3)).claim, harmless
    for spread in ((), (9.0, 900.0, 1.0)):
        told = blamed(LATE, leapt(after=spread), weights_of(1e3)).claim
        assert told.endswith("the rate is not known to be why.")


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(leapt(ratio=0.3), id="steps were long"),
        pytest.param(leapt(leap=99.0), id="it may have overshot"),
        pytest.param(leapt(rise={"from": 0.25, "to": 0.5, "after": 430, "by": 436}), id="the rate rose"),
        pytest.param(leapt(rise={"from": 0.25, "to": 0.5, "after": 373, "by": 374}), id="the rate rose unseen"),
        pytest.param(replace(leapt(), rows=before(sampled=375).rows), id="it was sampled not long before"),
    ],
)
def test_a_leap_that_the_rate_may_explain_is_blamed_on_it(known):
    assert HIGH in blamed(LATE, known, weights_of(1e3)).evidence


ODD = "A batch that stands out can have made it so"


def test_a_loss_that_came_up_in_one_step_may_owe_it_to_a_batch():
    rise = {"from": 0.25, "to": 0.5, "after": 20, "by": 30}
    cases = (
        (before(jump=JUMP), 30.0, True),
        (before(jump=JUMP, learned=True), 30.0, True),
        (before(0.3, jump=JUMP, learned=True), 1.0, True),
        (before(0.3, jump=JUMP), 1.0, False),  # every step was long
        (before(jump=JUMP, losses=[1.0, 2.0, 9.0, 80.0, 700.0], learned=True), 30.0, False),  # it climbed
        (replace(before(jump=JUMP), rise=rise), 30.0, False),
        (replace(before(jump=JUMP), rise=rise | {"to": 0.4}), 30.0, True),
    )
    for known, size, odd in cases:
        finding = blamed(OVERFLOW, known, weights_of(size))
        assert HIGH in finding.evidence
        assert (ODD in finding.claim) is odd, known


@pytest.mark.parametrize(("warm", "at"), [(80, 61), (80, 25), (0, 25)])
def test_one_batch_in_a_warm_up_or_at_a_short_rate_is_named_as_what_may_be_why(warm, at):
    """One batch a million times as large, at rates that nothing else is wrong with."""
    lr = 0.01 if warm else 1e-3
    holder = []

    def spoil(step, x):
        if warm:
            holder[0].param_groups[0]["lr"] = lr * min(1.0, (step + 1) / warm)
        if step == at:
            x *= 1e6

    def optimizer(parameters):
        holder.append(torch.optim.SGD(parameters, lr=lr))
        return holder[0]

    finding = broken(trained(optimizer, at + 6, spoil=spoil)[0])
    told = finding.evidence[HIGH]
    assert ODD in finding.claim
    assert told["lower"] == pytest.approx(0.1 * told["lr"])
    assert told["lr"] == pytest.approx(holder[0].param_groups[0]["lr"], rel=0.2)


# Bundles, and a replay at a lower rate.


def square(outputs, targets):
    return (outputs - targets).square().mean()


def test_a_replay_says_what_a_lower_rate_gives_from_the_state_that_is_kept(tmp_path):
    watch, losses = trained(sgd(2.0), 12, run=tmp_path / "run")
    first, last = watch.judge.keeper.folders
    assert first.name == f"step-000002-{HIGH}"
    assert last.name.endswith("-numerical_overflow")
    model = mlp(5)
    again = replay(first, model, square)
    (finding,) = (f for f in again.report.findings if f.rule == HIGH)
    assert finding.severity == "warn"
    ends = finding.evidence["loss_at_lr"], finding.evidence["loss_at_lower_rate"]["losses"]
    assert ends[0][0] == ends[1][0] == pytest.approx(losses[2])
    assert not math.isfinite(ends[0][-1])
    assert ends[1][-1] < losses[2]
    assert finding.claim in again.report.notes
    assert finding.remedies[0].after["lr"] == finding.evidence["loss_at_lower_rate"]["lr"] < 2.0
    kept = {name: t.clone() for name, t in again.bundle.values["weights"].items()}
    assert all(torch.equal(t, kept[name]) for name, t in model.state_dict().items())
    told = replay(last, mlp(), square).report
    assert [f.rule for f in told.findings] == ["numerical_overflow"]
    named = broken(watch).evidence[HIGH]["lower"]
    assert any(
        f"no rate goes on from there. Go back to weights of before, and train at a lower one, as {named:.2g}." in note
        for note in told.notes
    )
    assert not any("unlike the one before" in note for note in told.notes)
    without = replay(first, mlp()).report
    assert not any("learning rate" in note for note in without.notes)


@pytest.mark.parametrize(("factor", "off"), [(1e30, True), (50.0, False)])
def test_a_batch_far_outside_is_named_and_no_rate_where_the_runs_finding_names_none(tmp_path, factor, off):
    class Root(nn.Module):
        def forward(self, x):
            return self.layer(torch.sqrt(40.0 - x.abs().amax(1, keepdim=True)) * x)

    def build():
        model = Root()
        model.layer = nn.Linear(8, 1)
        return model

    torch.manual_seed(0)
    model = build()
    optimizer = sgd(1e-3)(model.parameters())
    with levada.watch(model, optimizer, every=4, max_overhead=math.inf, run=tmp_path / "run") as watch:
        for step in range(20):
            x = torch.randn(64, 8) * (factor if step == 17 else 1.0)
            watch.note(targets=x[:, :1])
            optimizer.zero_grad()
            square(model(x), x[:, :1]).backward()
            optimizer.step()
    assert HIGH not in broken(watch).evidence
    notes = replay(watch.judge.keeper.folders[0], build(), square).report.notes
    assert any(note.endswith("no rate goes on from there. Go back to weights of before.") for note in notes)
    said = [note for note in notes if note.startswith("The batch is unlike the one before: the argument x is ")]
    assert len(said) == off
    assert all("times as large as that of step 16 (root mean squares of " in note for note in said)


@pytest.mark.parametrize(
    "kind", [sgd(2.0, momentum=0.9), lambda p: torch.optim.Adam(p, lr=1.0)], ids=["momentum", "adam"]
)
def test_steps_at_one_rate_leave_the_state_of_the_optimizer_for_the_next_and_for_a_second_replay(tmp_path, kind):
    watch, _ = trained(kind, 12, run=tmp_path / "run")
    kept = read_bundle(watch.judge.keeper.folders[0])
    state = copy.deepcopy(kept.values["optimizer"][0]["state"])
    assert any(float(t.abs().amax()) > 0 for moments in state.values() for t in moments.values())
    notes = [replay(kept, mlp(), square).report.notes for _ in range(2)]
    assert "10 steps of" in notes[0][-1]
    assert notes[0] == notes[1]
    for number, moments in kept.values["optimizer"][0]["state"].items():
        assert all(torch.equal(t, state[number][name]) for name, t in moments.items())


def test_steps_from_a_models_own_weights_leave_it_as_it_was(tmp_path):
    watch, _ = trained(sgd(2.0), 12, run=tmp_path / "run")
    kept, model = watch.judge.keeper.folders[0], mlp(0)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    notes = [replay(kept, model, square, as_built=True).report.notes for _ in range(2)]
    assert "10 steps of SGD" in notes[0][-1]
    assert notes[0] == notes[1]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_buffers_of_a_model_with_its_own_weights_are_put_back_without_steps_too(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    values = {"args": (torch.randn(4, 8),), "kwargs": {}, "weights": model.state_dict()}
    replay(write_bundle(tmp_path, Bundle(3, "dead_units", "why", values=values)), model, as_built=True)
    assert int(model[1].num_batches_tracked) == 0
    assert not model[1].running_mean.any()


def grouped(parameters):
    """Two groups, whose order is not the model's, and half the rate in one."""
    weights, biases = [[p for p in parameters if (p.dim() > 1) is wanted] for wanted in (True, False)]
    return torch.optim.SGD([{"params": biases, "lr": 2.0}, {"params": weights}], lr=4.0, momentum=0.5)


def test_groups_are_those_of_the_run_by_the_names_of_their_parameters(tmp_path):
    watch, _ = trained(lambda parameters: grouped(list(parameters)), 12, run=tmp_path / "run")
    kept = read_bundle(watch.judge.keeper.folders[0])
    note = replay(kept, mlp(), square).report.notes[-1]
    assert "at a learning rate of 4 (the highest of its groups, the others in proportion), and to" in note
    # By hand: the same steps, with the optimizer's own groups.
    model = mlp()
    model.load_state_dict(kept.values["weights"])
    optimizer = grouped(list(model.parameters()))
    optimizer.load_state_dict(copy.deepcopy(kept.values["optimizer"][0]))
    lower = float(note.rpartition(" at ")[2].rstrip("."))
    for group in optimizer.param_groups:
        group["lr"] *= lower / 4.0
    for _ in range(10):
        optimizer.zero_grad()
        square(model(*kept.values["args"]), kept.values["targets"]).backward()
        optimizer.step()
    end = float(square(model(*kept.values["args"]), kept.values["targets"]).detach())
    assert float(note.rpartition(", and to ")[2].split()[0]) == pytest.approx(end, rel=1e-3)


def test_a_rate_that_is_proposed_lowers_all_groups_by_one_factor():
    optimizer = grouped(list(mlp().parameters()))
    exec(rate_proposal(4.0, 0.04).patch, {"optimizer": optimizer})
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.04])


def reversed_order(parameters):
    return torch.optim.SGD(list(parameters)[::-1], lr=2.0, momentum=0.5)


def test_parameters_in_another_order_than_the_models_are_found_by_name(tmp_path):
    watch, _ = trained(reversed_order, 12, run=tmp_path / "run")
    kept = read_bundle(watch.judge.keeper.folders[0])
    assert "10 steps of SGD" in replay(kept, mlp(), square).report.notes[-1]
    old = replace(kept, facts={name: fact for name, fact in kept.facts.items() if name != "optimizer_parameters"})
    assert replay(old, mlp(), square).report.notes[-1] == (
        "Not judged: learning_rate_too_high: No other learning rate was tried: the optimizer had the parameters in "
        "another order than the model, which the bundle does not name."
    )


class Doubling(torch.optim.SGD):
    """A class of the user's."""


def test_what_a_lower_rate_needs_is_said_where_it_is_not_there(tmp_path):
    watch, _ = trained(lambda parameters: Doubling(parameters, lr=2.0), 12, run=tmp_path / "run")
    kept = read_bundle(watch.judge.keeper.folders[0])

    def note(bundle):
        return replay(bundle, mlp(), square).report.notes[-1]

    assert note(kept) == (
        "Not judged: learning_rate_too_high: No other learning rate was tried: Doubling is none of torch.optim."
    )
    old = {name: fact for name, fact in kept.facts.items() if name != "optimizer_parameters"} | {"optimizers": ["SGD"]}
    state = kept.values["optimizer"][0]
    two = [{**state["param_groups"][0], "params": [n]} for n in range(2)]
    groups = replace(kept, facts=old, values={**kept.values, "optimizer": [{**state, "param_groups": two}]})
    assert "the optimizer has several groups, and the bundle does not name their parameters." in note(groups)
    strange = replace(kept, facts=old | {"optimizer_parameters": [[["what"] * 16]]})
    assert "the optimizer held what, which the model has not." in note(strange)
    closure = torch.optim.LBFGS(mlp().parameters(), lr=2.0).state_dict()
    asks = replace(kept, facts=kept.facts | {"optimizers": ["LBFGS"]}, values={**kept.values, "optimizer": [closure]})
    assert "No other learning rate was tried: a step of the optimizer raised TypeError: " in note(asks)


def test_the_first_steep_rise_leaves_the_run_its_three_bundles(tmp_path):
    watch, _ = trained(sgd(2.0), 12, run=tmp_path / "run")
    assert watch.judge.keeper._left == 2
