"""Pauses: on short steps most are counted and not heard, so that watching stays below what was allowed."""

import contextlib
import copy
import math
import warnings

import pytest
import torch
from tests.watching.by_hand import data, loss_of, make, sgd, train
from torch import nn

import levada
from levada.watching.loop.clocks import more_time
from levada.watching.loop.overhead import Cadence
from levada.watching.verdict.falling import Falling
from levada.watching.verdict.spike import Spikes

# Seconds: of a step, of the watch's own code on one that is not sampled, of a sample.
STEP, OWN, SAMPLE = 5e-4, 1.5e-4, 1e-3


class Trained:
    """A cadence, and a training of steps of half a millisecond that it plans."""

    def __init__(self, *, own=OWN, step=STEP, max_overhead=0.01, real=1.0, every=20, waits=0.0):
        self.cadence = Cadence(every=every, max_overhead=max_overhead, regardless=11)
        self.own, self.seconds, self.real = own, step, real
        self.waits = waits  # seconds, of two in three steps that are heard, and of one in three others
        self.step, self.spent, self.trained, self.heard, self.pauses = 0, 0.0, 0.0, [], []

    def go_on(self, until):
        while self.step < until:
            sampled = self.cadence.due(self.step)
            own = SAMPLE if sampled else self.own
            took = own if sampled else own * self.real
            waits = self.waits * (len(self.heard) % 3 > 0)
            self.cadence.count(sampled, own=own, seconds=self.seconds + took + waits)
            self.spent += took
            self.trained += self.seconds + took + waits
            self.heard.append(self.step)
            if sampled:
                self.cadence.plan(self.step)
            self.step += 1
            length = 0 if self.cadence.due(self.step) else self.cadence.pause(self.step)
            if length:
                seconds = length * (self.seconds + self.waits / 3)
                self.cadence.timed(False, seconds, length)
                self.pauses.append((self.step, length))
                self.trained += seconds
                self.step += length


def test_what_is_heard_and_sampled_of_short_steps_comes_to_the_share_that_was_allowed():
    run = Trained()
    run.go_on(3000)
    assert len(run.heard) == 3000, "the first half second of it is free"
    run.go_on(1_500_000)
    assert run.spent / run.trained == pytest.approx(0.01, rel=0.1)
    assert run.cadence.overhead == pytest.approx(run.spent / run.trained, rel=0.02)
    assert run.cadence.told.startswith("overhead 1 %, 1 step in ")
    assert "since step 3,3" in run.cadence.told
    # Two steps in a row are heard between two pauses, or a sampled one.
    pairs = [later - (at + length) for (at, length), (later, _) in zip(run.pauses, run.pauses[1:], strict=False)]
    assert set(pairs) <= {*range(1, 8)}
    assert pairs.count(1) + pairs.count(2) > 0.8 * len(pairs)


def test_more_may_be_heard_where_more_was_allowed_and_nothing_is_left_out_where_steps_are_long():
    dear, cheap = Trained(max_overhead=0.1), Trained()
    for run in (dear, cheap):
        run.go_on(200_000)
    assert 5 * len(cheap.heard) < len(dear.heard) < 200_000
    for whole in (Trained(max_overhead=1.0), Trained(max_overhead=math.inf), Trained(step=0.05)):
        whole.go_on(20_000)
        assert len(whole.heard) == 20_000
        assert whole.cadence.heard == ""


def test_what_torch_takes_to_call_hooks_is_known_by_the_steps_that_are_not_heard():
    told, twice = Trained(), Trained(real=2.0)
    for run in (told, twice):
        run.go_on(1_500_000)
    assert len(twice.heard) < 0.7 * len(told.heard)
    assert twice.cadence.overhead == pytest.approx(twice.spent / twice.trained, rel=0.05)
    assert twice.cadence.overhead == pytest.approx(0.01, rel=0.15)


def test_the_time_until_it_is_paid_for_is_what_it_takes():
    run = Trained()
    run.go_on(8000)
    told = run.cadence.paid_in
    assert run.cadence.overhead > 0.02
    assert f"(1 % after {more_time(told)})" in run.cadence.told
    run.go_on(8000 + round(told / STEP))
    assert run.cadence.overhead < 0.0115


def test_the_time_until_it_is_paid_for_runs_down_though_some_steps_wait():
    run, told = Trained(), []
    for steps in range(6000, 120_000, 6000):
        run.go_on(steps)
        for _ in range(15 if steps % 12_000 else 0):  # all of the last ones are eight times as long
            run.cadence.count(False, own=OWN, seconds=8 * STEP)
        told.append((run.cadence._trained, run.cadence.paid_in))
    ends = [at + more for at, more in told]
    assert min(ends) > 199
    assert max(ends) < 450, "by the last steps alone it would be eight times as long or as short"
    calm = ends[1::2]
    assert max(calm) - min(calm) < 0.1


def test_two_steps_in_a_row_are_heard_between_pauses_however_much_is_owed():
    run = Trained(real=3.0)
    run.go_on(20_000)
    ends = [at + length for at, length in run.pauses]
    assert len(ends) > 10
    assert all(later - end >= 2 for end, (later, _) in zip(ends, run.pauses[1:], strict=False))


def test_a_busy_machine_on_which_most_heard_steps_wait_makes_hearing_no_dearer():
    busy = Trained(waits=0.003)
    busy.go_on(60_000)
    assert busy.pauses
    assert busy.cadence._dearer(OWN) == 1.0
    assert busy.cadence.overhead == pytest.approx(busy.spent / busy.trained, rel=0.05)


def test_what_other_programs_took_is_told_with_the_steps_that_pay_for_it():
    cadence = Cadence(every=20, max_overhead=0.01)
    for step in range(4000):
        own = OWN if step % 2 else 8 * OWN
        cadence.count(False, own=own, seconds=STEP + own)
    for _ in range(4):
        cadence.timed(False, 40_000 * STEP, 40_000)
    cadence.timed(False, 130.0, 260_000)
    assert cadence.overhead > 0.0105
    paid = cadence.paid_in
    assert paid * 0.005 == pytest.approx(cadence._taken() - 0.01 * cadence._trained, rel=0.01)


def test_a_sample_that_has_to_be_paid_for_is_waited_for_as_long_again_at_most_before_that_is_asked_again():
    cadence = Cadence(every=20, max_overhead=0.01)
    for step in range(60):
        sampled = cadence.due(step)
        cadence.count(sampled, own=0.05 * sampled + 1e-6, seconds=STEP)
        if sampled:
            cadence.plan(step)
    cadence.distance, cadence._next = 20, 80
    assert not cadence.due(80)
    assert cadence._next == 100


def test_first_samples_that_are_far_apart_leave_no_step_between_them_unpaid():
    run = Trained(every=2000)
    run.go_on(20_000)
    assert run.pauses[0][0] < 4000
    assert run.cadence.samples == 10
    assert len(run.heard) < 6000


def test_no_step_that_is_sampled_or_asked_for_falls_into_a_pause():
    run = Trained()
    run.go_on(4000)
    assert run.pauses
    run.cadence.ask(run.step)
    run.go_on(run.step + 127)
    assert [step for step in run.heard if step > 4000][-120:] == [*range(run.step - 120, run.step)]
    assert run.cadence.pause(run.cadence._next - 3) == 0


def test_processes_that_agree_on_their_samples_make_no_pause():
    run = Trained()
    run.go_on(300)
    run.cadence.plan(run.step, 50)
    before = len(run.pauses)
    run.go_on(20_000)
    assert len(run.pauses) == before == 0
    assert "steps are too short for 1 %" in run.cadence.told


@pytest.fixture
def planned(monkeypatch):
    """Plan pauses by hand: the first step of each -> its length."""
    plan = {}

    def pause(self, step):
        return plan.get(step, 0) if self.pauses else 0

    monkeypatch.setattr(Cadence, "pause", pause)
    return plan


def follow(model, optimizer, steps, *, before=lambda step: None, **watching):
    """Train for so many steps, and return the watch and the losses by step."""
    losses = []
    with levada.watch(model, optimizer, **{"every": 1000, "max_overhead": math.inf, **watching}) as watch:
        for step, x in enumerate(data(steps)):
            before(step)
            optimizer.zero_grad()
            loss = loss_of(model, x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return watch, losses


class Hears:
    """A listener that keeps the steps and losses that it hears of."""

    def __init__(self):
        self.heard, self.samples = [], []

    def before_update(self, step, loss):
        self.heard.append((step, math.nan if loss is None else loss.item()))

    def sampled(self, sample):
        self.samples.append(sample)

    def close(self):
        pass


def test_steps_in_a_pause_are_counted_and_the_others_keep_their_numbers_losses_and_samples(planned):
    planned |= {3: 5, 10: 4}
    hears, model = Hears(), make()
    watch, losses = follow(model, sgd(model), 20, every=9, listeners=[hears])
    heard = [*range(3), 8, 9, *range(14, 20)]
    assert watch.steps == 20
    assert hears.heard == [(step, pytest.approx(losses[step])) for step in heard]
    assert [sample.step for sample in hears.samples] == [0, 9, 18]
    assert [step for sample in hears.samples for step, _ in sample.losses] == [*range(3), 8, 9, *range(14, 19)]
    twin = make()
    whole, _ = follow(twin, sgd(twin), 20, every=9)
    for ours, theirs in zip(hears.samples, whole.samples, strict=True):
        for name, values in theirs.values.items():
            assert torch.equal(
                ours.values[name],
                values,
            ) or torch.allclose(ours.values[name], values, equal_nan=True)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_nothing_of_a_pass_is_kept_or_measured_in_a_pause(planned):
    planned |= {3: 5}
    model, seen = make(), []
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf) as watch:
        assert watch.last_pass is None
        for x in data(8):
            optimizer.zero_grad()
            loss_of(model, x).backward()
            seen.append((watch.last_pass is not None, bool(watch.inputs)))
            optimizer.step()
    assert seen == [*[(True, True)] * 3, *[(False, False)] * 5]
    assert watch.passed == 3


def test_a_watch_that_is_closed_or_left_in_a_pause_tells_of_what_it_knows(planned):
    planned |= {3: 100}
    model = make()
    optimizer = sgd(model)
    watch, _ = follow(model, optimizer, 9)
    assert watch.steps == 9
    assert watch.report().verdict == "unknown"
    with watch:
        optimizer.zero_grad()
        loss_of(model, data(1)[0]).backward()
        optimizer.step()
    assert watch.steps == 10
    assert watch.passed == 4
    model = make()
    optimizer = sgd(model)
    watch = levada.watch(model, optimizer, every=1000, max_overhead=math.inf)

    def broken():
        with watch:
            train(model, optimizer, data(9))
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert watch.steps == 9


def test_weights_that_turn_nan_in_a_pause_are_told_at_its_end_without_a_step_that_nobody_saw(planned):
    planned |= {30: 20}
    model = make()

    def break_it(step):
        if step == 41:
            with torch.no_grad():
                model.blocks[1].linear.bias.fill_(math.nan)

    watch, _ = follow(model, sgd(model), 55, before=break_it)
    finding = watch.findings[0]
    assert (finding.rule, finding.evidence["step"], finding.evidence["entered_after"]) == ("numerical_overflow", 50, 29)
    assert finding.claim.startswith("The loss of step 50 is not finite, and that of step 29, heard before it, was: ")
    assert "behind step 29" in finding.claim
    assert "the first that is not finite" not in finding.claim


def test_weights_that_turn_nan_in_the_last_pause_are_told_at_the_end(planned):
    planned |= {30: 100}
    model = make()
    watch, losses = follow(
        model, sgd(model), 60, before=lambda step: model.head.bias.data.fill_(math.nan) if step == 58 else None
    )
    assert math.isnan(losses[-1])
    assert [finding.rule for finding in watch.findings] == ["numerical_overflow"]
    assert "behind step 29" in watch.findings[0].claim
    assert watch.findings[0].evidence["seen_at"] == 59


def test_a_loop_that_makes_no_update_any_more_ends_the_pause_and_is_told(planned):
    planned |= {30: 10_000}
    model = make()
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf) as watch:
        for step, x in enumerate(data(200)):
            optimizer.zero_grad()
            loss = loss_of(model, x * (math.nan if step >= 60 else 1))
            if not torch.isfinite(loss):
                continue
            loss.backward()
            optimizer.step()
    assert watch.steps == 60
    assert [(finding.rule, finding.severity) for finding in watch.findings] == [("skipped_steps", "error")]


def test_passes_of_validation_and_of_many_micro_batches_end_no_pause(planned):
    planned |= {4: 10}
    hears, model = Hears(), make()
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf, listeners=[hears]):
        for _ in range(16):
            optimizer.zero_grad()
            for x in data(30):
                (loss_of(model, x) / 30).backward()
            optimizer.step()
            with torch.no_grad():
                for x in data(100):
                    model(x)
    assert [step for step, _ in hears.heard] == [*range(4), 14, 15]


def test_the_loss_of_a_step_whose_first_micro_batches_were_not_heard_is_not_told(planned):
    planned |= {4: 10}
    hears, model = Hears(), make()
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf, listeners=[hears]) as watch:
        for step in range(10):
            count = 1 if step < 6 else 100
            optimizer.zero_grad()
            whole = 0.0
            for x in data(count):
                loss = loss_of(model, x) / count
                loss.backward()
                whole += loss.item()
            optimizer.step()
    assert watch.steps == 10
    assert [step for step, _ in hears.heard] == [*range(4), *range(6, 10)]
    assert [step for step, loss in hears.heard if math.isnan(loss)] == [6]
    assert hears.heard[-1] == (9, pytest.approx(whole))
    assert 6 not in [step for sample in hears.samples for step, _ in sample.losses]


def test_a_loop_that_made_no_update_is_heard_as_a_whole_once_it_clears_its_gradients(planned):
    planned |= {4: 10}
    hears, model = Hears(), make()
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf, listeners=[hears]):
        for step, x in enumerate(data(60)):
            optimizer.zero_grad()
            loss = loss_of(model, x)
            loss.backward()
            if not 6 <= step < 58:
                optimizer.step()
    assert [step for step, _ in hears.heard] == [*range(4), 6, 7]
    assert hears.heard[-1] == (7, pytest.approx(loss.item()))
    assert not math.isnan(hears.heard[-2][1])


def test_a_step_that_is_left_in_a_pause_and_made_again_is_sampled_with_its_loss(planned):
    planned |= {4: 10}
    hears, model = Hears(), make()
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf, listeners=[hears]) as watch:
        train(model, optimizer, data(7))
        x = data(1)[0] * math.nan

        def again():
            optimizer.zero_grad()
            loss_of(model, x).backward()

        again()
        watch.leave(again, loss_of(model, x))
    assert hears.samples[-1].step == 7
    assert [step for step, loss in hears.samples[-1].losses if math.isnan(loss)] == [7]
    assert watch.findings[0].claim.startswith(
        "The loss of step 7 is not finite, and that of step 3, heard before it, was:"
    )


def test_a_loop_that_stops_before_its_backward_pass_in_a_pause_tells_by_leave(planned):
    planned |= {4: 10}
    for given in (True, False):
        model = make()
        optimizer = sgd(model)
        with levada.watch(model, optimizer, every=1000, max_overhead=math.inf) as watch:
            train(model, optimizer, data(7))
            optimizer.zero_grad()
            loss = loss_of(model, data(1)[0] * math.nan)
            if given:
                loss.backward()
                watch.leave(loss=loss)
        assert [finding.rule for finding in watch.findings] == ["numerical_overflow"] * given
        assert watch.steps == 7


def test_a_step_that_a_scaler_skips_ends_a_pause_and_is_counted(planned):
    planned |= {4: 10}
    hears, model = Hears(), make()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf, listeners=[hears]) as watch:
        for step, x in enumerate(data(16)):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, x) * (math.inf if step == 7 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert watch.steps == 16
    assert [step for step, _ in hears.heard] == [*range(4), *range(8, 16)]


def test_optimizers_that_step_within_the_backward_pass_have_no_pauses():
    model = make()
    each = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def update(p):
        each[p].step()
        each[p].zero_grad()

    for p in each:
        p.register_post_accumulate_grad_hook(update)
    with levada.watch(model, [*each.values()], every=1000, max_overhead=math.inf) as watch:
        for x in data(6):
            loss_of(model, x).backward()
    assert not watch._engine.cadence.pauses
    assert watch.steps == 6


def test_an_optimizer_that_rests_for_the_first_time_in_a_pause_ends_it(planned):
    planned |= {4: 10}
    hears, model = Hears(), make()
    first, second = sgd(model.blocks), sgd(model.head)
    with levada.watch(model, [first, second], every=1000, max_overhead=math.inf, listeners=[hears]) as watch:
        for step, x in enumerate(data(16)):
            first.zero_grad()
            second.zero_grad()
            loss_of(model, x).backward()
            first.step()
            if step < 7:
                second.step()
    assert watch.steps == 16
    assert [step for step, _ in hears.heard] == [*range(4), *range(8, 16)]


def test_a_loop_that_ends_its_steps_itself_is_heard_again_behind_a_pause(planned):
    planned |= {4: 6}
    hears, model = Hears(), make()
    with levada.watch(model, None, every=1000, max_overhead=math.inf, listeners=[hears]) as watch:
        for x in data(12):
            model.zero_grad()
            loss_of(model, x).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            watch.step()
    assert watch.steps == 12
    assert [step for step, _ in hears.heard] == [*range(4), 10, 11]


def test_a_closure_that_an_optimizer_calls_is_heard_again_behind_a_pause(planned):
    planned |= {3: 4}
    hears, model = Hears(), make()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf, listeners=[hears]) as watch:
        for x in data(9):

            def closure(x=x):
                optimizer.zero_grad()
                loss = loss_of(model, x)
                loss.backward()
                return loss

            optimizer.step(closure)
    assert watch.steps == 9
    assert [step for step, _ in hears.heard] == [0, 1, 2, 7, 8]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_compiled_model_is_not_compiled_again_for_a_pause(planned, when):
    planned |= {4: 3, 9: 3}
    model = make()
    called = torch.compile(model, backend="aot_eager") if when == "before" else model
    optimizer = sgd(model)
    hears = Hears()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with levada.watch(called, optimizer, every=1000, max_overhead=math.inf, listeners=[hears]) as watch:
            if when == "after":
                called = torch.compile(model, backend="aot_eager")
            for x in data(14):
                optimizer.zero_grad()
                loss_of(called, x).backward()
                optimizer.step()
                compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert watch.steps == 14
    assert [step for step, _ in hears.heard] == [*range(4), 7, 8, 12, 13]
    assert len({*compiled[3:]}) == 1


def test_two_watches_pause_each_by_itself(monkeypatch):
    model, other = make(), make(seed=1)
    optimizer, second = sgd(model), sgd(other)
    hears, hears_other = Hears(), Hears()
    with (
        levada.watch(model, optimizer, every=1000, max_overhead=math.inf, listeners=[hears]) as watch,
        levada.watch(other, second, every=1000, max_overhead=math.inf, listeners=[hears_other]),
    ):
        watch._engine.cadence.pause = lambda step: 5 if step == 3 else 0
        for x in data(12):
            for one, opt in ((model, optimizer), (other, second)):
                opt.zero_grad()
                loss_of(one, x).backward()
                opt.step()
    assert [step for step, _ in hears.heard] == [*range(3), *range(8, 12)]
    assert [step for step, _ in hears_other.heard] == [*range(12)]


def test_gradients_that_are_never_cleared_are_counted_by_the_steps_that_were_compared(planned):
    planned |= {4 + 6 * k: 4 for k in range(30)}
    model = make()
    optimizer = sgd(model, lr=1e-4)
    with levada.watch(model, optimizer, every=20, max_overhead=math.inf) as watch:
        for x in data(150):
            loss_of(model, x).backward()
            optimizer.step()
    piled = [finding for finding in watch.findings if finding.rule == "accumulated_gradients"]
    assert piled
    assert piled[0].evidence["steps_with_old_gradients"] == piled[0].evidence["of"] - 1
    assert "steps that were heard, up to step" in piled[0].claim


def test_a_loss_that_jumped_in_a_pause_is_told_between_the_steps_that_were_heard(planned):
    planned |= {200: 30}
    layer = nn.Linear(1, 1, bias=False)
    scale = nn.Parameter(torch.ones(()))
    model = nn.Sequential(layer, nn.Identity())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    with levada.watch(model, optimizer, every=20, max_overhead=math.inf) as watch:
        for step in range(300):
            x = 1 + 0.01 * torch.randn(8, 1, generator=generator)
            optimizer.zero_grad()
            factor = 50.0 if step >= 211 else 1.0
            (factor * (model(x) * scale.detach() - 2.0).square().mean()).backward()
            optimizer.step()
    jump = next(finding for finding in watch.findings if finding.rule == "loss_spike")
    assert jump.claim.startswith("The loss jumped between steps 199 and 230 from ")
    assert (jump.evidence["after"], jump.evidence["step"]) == (199, 230)
    assert "stands out" not in jump.claim


def test_a_rate_that_rose_in_a_pause_may_have_raised_the_loss_that_was_heard_behind_it(planned):
    planned |= {200: 30}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    with levada.watch(model, optimizer, every=20, max_overhead=math.inf) as watch:
        for step in range(330):
            if step == 205:
                optimizer.param_groups[0]["lr"] = 0.6
            x = torch.randn(32, 4, generator=generator)
            optimizer.zero_grad()
            (model(x)[:, 0] - x.sum(1)).square().mean().backward()
            optimizer.step()
    jump = next(finding for finding in watch.findings if finding.rule == "loss_spike")
    assert "The learning rate rose from 0.05 to 0.6 between steps 199 and 230." in jump.claim
    assert jump.evidence["learning_rate"] == {"from": 0.05, "to": 0.6, "after": 199, "by": 230}


def test_the_lowest_losses_in_a_row_are_those_that_were_heard_where_others_were_not():
    from levada.watching.verdict.baseline import LossBaseline
    from levada.watching.verdict.held_spikes import above_lowest

    whole, some = LossBaseline(), LossBaseline()
    for step in range(600):
        loss = 4.0 if step < 50 else 0.016 + 0.0001 * (step % 7) if step < 400 else 0.061
        whole.add(step, loss)
        some.add(step if step < 300 else 300 + 20 * (step - 300), loss)
    assert "lowest 32 in a row had" in above_lowest(whole).claim
    assert "lowest 32 in a row of those that were heard had" in above_lowest(some).claim


def test_a_spike_that_is_back_behind_a_pause_is_back_by_then():
    from levada.watching.verdict.baseline import LossBaseline

    spikes, baseline = Spikes(), LossBaseline(warm_up=8)
    for step in range(140):
        loss = 2.0 - 0.01 * step + 0.01 * (step % 3)
        spikes.see_loss(step, loss, baseline)
        baseline.add(step, loss)
    spikes.see_loss(200, 40.0, baseline)
    for step in range(300, 308):
        spikes.see_loss(step, 0.6, baseline)
    spike = spikes._ended[0]
    assert (spike.onset, spike.after, spike.back, spike.late) == (200, 139, 304, False)


def test_the_power_of_a_falling_loss_is_of_its_steps_however_few_are_heard():
    whole, few = Falling(), Falling()
    for step in range(1, 20_001):
        loss = 2.3 - 0.01 * step**1.5
        whole.add(step, loss)
        if step < 1000 or step % 50 < 2:
            few.add(step, loss)
    assert few.power == pytest.approx(whole.power, abs=0.02) == pytest.approx(1.5, abs=0.05)
    slow = Falling()
    for step in range(1, 20_001):
        if step < 1000 or step % 50 < 2:
            slow.add(step, 2.3 - 0.1 * step)
    assert slow.power < 1.1
    assert not slow.unbounded


def test_a_watch_that_pauses_is_copied_and_trained_as_before(planned):
    planned |= {3: 50}
    model = make()
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf):
        for x in data(6):
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
        twin = copy.deepcopy(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    loss_of(twin, data(1)[0]).backward()


def test_the_curve_of_a_long_run_with_pauses_is_one_line_that_says_of_how_many_steps_it_is():
    from levada.report.curve import gaps, loss_series, told

    early, pairs = (
        [(step, 1.0) for step in range(1000)],
        [(1000 + 65 * k + i, 0.5) for k in range(9000) for i in (0, 1)],
    )
    samples = [(1000 + 65 * 9000 + 40 * k, 0.4) for k in range(12_000)]
    uneven = [(1000 + (40 * k if k < 970 else 38_800 + 900 * (k - 970)) + i, 0.4) for k in range(1000) for i in (0, 1)]
    for losses in (early + uneven, early + pairs, early + pairs + samples, pairs + samples[:2000]):
        assert gaps(losses) == []
        caption = told(losses, loss_series(losses))
        assert "From step 1,002 on " in caption
        assert f"of {losses[-1][0] - 1001:,} steps have one" in caption
    lost = [(step + 100_000 * (step >= 1000 + 65 * 400), loss) for step, loss in early + pairs]
    assert gaps(lost) == [(1000 + 65 * 399 + 2, 1000 + 65 * 400 + 99_999)]


@pytest.mark.parametrize("end", ["break", "raise"])
def test_a_loop_that_stops_at_nan_in_a_pause_is_told_by_the_gradients_that_are_left(planned, end):
    planned |= {30: 100}
    model = make()
    optimizer = sgd(model)

    def stopping():
        with levada.watch(model, optimizer, every=1000, max_overhead=math.inf) as watch:
            watches.append(watch)
            for step, x in enumerate(data(60)):
                optimizer.zero_grad()
                loss = loss_of(model, x * (math.nan if step == 50 else 1))
                loss.backward()
                if loss.isnan():
                    if end == "raise":
                        raise KeyError
                    break
                optimizer.step()

    watches = []
    with pytest.raises(KeyError) if end == "raise" else contextlib.nullcontext():
        stopping()
    (finding,) = watches[0].findings
    assert (finding.rule, finding.severity, finding.evidence["step"]) == ("numerical_overflow", "error", 50)
    assert "of 10 parameters are not finite" in finding.claim
    assert finding.claim.endswith("which holds NaN; the loss was not heard.")


def test_gradients_that_are_finite_and_left_in_a_pause_tell_nothing(planned):
    planned |= {30: 100}
    model = make()
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf) as watch:
        for step, x in enumerate(data(60)):
            optimizer.zero_grad()
            loss_of(model, x).backward()
            if step < 50:
                optimizer.step()
    assert watch.findings == []


def test_no_pause_begins_soon_behind_a_step_that_a_scaler_skipped_or_a_loss_that_jumped():
    run = Trained()
    run.go_on(6000)
    assert run.pauses
    run.cadence.hear(run.step)
    at = run.step
    run.go_on(at + 32)
    assert [step for step in run.heard if step >= at] == [*range(at, at + 32)]
    run.cadence.ask(run.step)
    at = run.step
    run.go_on(at + 1000)
    assert [step for step in run.heard if step >= at] == [*range(at, at + 1000)]
    run.go_on(at + 20_000)
    assert len([step for step in run.heard if step >= at + 1100]) < 10_000


def test_a_scaler_that_skips_every_seventh_step_hides_no_weights_that_are_nan(monkeypatch):
    monkeypatch.setattr("levada.watching.loop.overhead._FREE", 0.0)
    torch.manual_seed(0)
    model = make()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=10**9)
    with levada.watch(model, optimizer, every=20, max_overhead=1e-3) as watch:
        for step, x in enumerate(data(700)):
            optimizer.zero_grad()
            scaler.scale(loss_of(model, x * (math.inf if step > 400 and step % 7 == 0 else 1))).backward()
            scaler.step(optimizer)
            scaler.update()
            if step == 600:
                with torch.no_grad():
                    model.head.bias.fill_(math.nan)
                    model.embed.bias.fill_(math.nan)
            if step == 650:
                found = [finding.evidence["step"] for finding in watch.findings if finding.severity == "error"]
    assert watch.steps == 700
    assert len(found) == 1
    assert 600 < found[0] < 620


def test_batches_that_were_left_out_are_counted_of_those_that_were_heard(planned):
    planned |= {30 + 40 * k: 30 for k in range(10)}
    model = make()
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf) as watch:
        for step, x in enumerate(data(400)):
            optimizer.zero_grad()
            loss = loss_of(model, x * (math.nan if step % 25 == 3 else 1))
            if loss.isnan():
                continue
            loss.backward()
            optimizer.step()
    finding = next(finding for finding in watch.findings if finding.rule == "nonfinite_batches")
    assert " batches that were heard before the backward pass" in finding.claim
    assert finding.evidence["passes"] <= watch.passed < 200
