"""Pauses of a watch whose optimizers take turns: what is heard, and all numbers, are those of one without pauses."""

import math
import random

import pytest
import torch
from tests.watching.by_hand import data, loss_of, make, sgd
from torch import nn

import levada
from levada.watching.loop.overhead import Cadence
from levada.watching.loop.turns import Turn


@pytest.fixture
def planned(monkeypatch):
    """Plan pauses by hand: the first step of each -> its length."""
    plan = {}

    def pause(self, step):
        return min(plan.get(step, 0), self._next - step) if self.pauses else 0

    monkeypatch.setattr(Cadence, "pause", pause)
    return plan


class Hears:
    """A listener that keeps the steps and losses that it hears of, and the samples."""

    def __init__(self):
        self.losses, self.samples = {}, []

    def before_update(self, step, loss):
        self.losses[step] = math.nan if loss is None else loss.item()

    def sampled(self, sample):
        self.samples.append(sample)

    def close(self):
        pass


class Adversaries(nn.Module):
    """Two networks that are called by themselves: no pass of the whole is ever seen."""

    def __init__(self):
        super().__init__()
        self.maker, self.critic = (nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)) for _ in range(2))

    def forward(self, x):
        raise NotImplementedError


def parts(model):
    return (model.maker, model.critic) if isinstance(model, Adversaries) else (model.blocks, model.head)


def turns(order, passes=1):
    """Return a loop in which optimizers take turns, each with passes of its own."""

    def loop(model, optimizers, batches):
        for step, x in enumerate(batches):
            optimizer = optimizers[order[step % len(order)]]
            optimizer.zero_grad()
            for _ in range(passes):
                (loss_of(model, x) / passes).backward()
            optimizer.step()

    return loop


def adversaries(critics):
    def loop(model, optimizers, batches):
        first, second = optimizers
        for step, x in enumerate(batches):
            if step % (critics + 1) < critics:
                second.zero_grad()
                (model.critic(model.maker(x).detach()).mean() - model.critic(x).mean()).backward()
                second.step()
            else:
                first.zero_grad()
                (-model.critic(model.maker(x)).mean()).backward()
                first.step()

    return loop


def actor_critic(model, optimizers, batches):
    """Two losses and steps behind one pass, and each third time the first optimizer rests."""
    first, second = optimizers
    for step, x in enumerate(batches):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (loss_of(model, x) + model.embed(x).square().mean()).backward()
        second.step()
        if step % 3:
            first.step()


def one_pass_two_steps(model, optimizers, batches):
    """Each optimizer steps twice behind a pass: each time is a step."""
    for step, x in enumerate(batches):
        optimizer = optimizers[step // 2 % 2]
        if step % 2 == 0:
            optimizer.zero_grad()
            loss_of(model, x).backward()
        optimizer.step()


def closures(model, optimizers, batches):
    for step, x in enumerate(batches):
        optimizer = optimizers[step % 2]

        def closure(x=x, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(model, x)
            loss.backward()
            return loss

        optimizer.step(closure)


def evaluated(model, optimizers, batches):
    """As turns, with a pass of validation that keeps its graph behind each update."""
    for step, x in enumerate(batches):
        optimizer = optimizers[step % 2]
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
        model.eval()
        loss_of(model, x)
        model.train()


LOOPS = {
    "turns": turns((0, 1)),
    "five to one": turns((1, 1, 1, 1, 1, 0)),
    "by chance": turns([random.Random(0).randrange(2) for _ in range(101)]),
    "micro-batches": turns((0, 1), passes=3),
    "adversaries": adversaries(1),
    "five critics": adversaries(5),
    "actor-critic": actor_critic,
    "two steps behind a pass": one_pass_two_steps,
    "closures": closures,
    "validation with gradients": evaluated,
}
PLAN = {12: 4, 19: 7, 30: 5, 41: 6, 50: 9, 70: 1, 74: 2, 80: 11}


def follow(loop, *, every=95, steps=100):
    model = Adversaries() if "adversaries" in loop.__qualname__ else make()
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    kind = torch.optim.LBFGS if loop is closures else torch.optim.SGD
    each = [[*part.parameters()] for part in parts(model)]
    optimizers = [kind(held, lr=0.01) for held in each]
    hears = Hears()
    with levada.watch(model, optimizers, every=every, max_overhead=math.inf, listeners=[hears]) as watch:
        loop(model, optimizers, data(steps))
    return watch, hears, model


@pytest.mark.parametrize("name", LOOPS)
def test_optimizers_that_take_turns_are_counted_in_a_pause_as_they_are_heard_outside(planned, name):
    whole, every, twin = follow(LOOPS[name])
    planned |= PLAN
    watch, some, model = follow(LOOPS[name])
    assert watch.steps == whole.steps == 100
    left_out = [step for at, length in PLAN.items() for step in range(at, at + length)]
    assert [*some.losses] == [step for step in range(100) if step not in left_out]
    assert watch._engine.cadence.pauses
    for step, loss in some.losses.items():
        assert loss == pytest.approx(every.losses[step], nan_ok=True), step
    ours, theirs = (dict(loss for sample in each.samples for loss in sample.losses) for each in (some, every))
    assert ours == {step: pytest.approx(theirs[step]) for step in ours}
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", LOOPS)
def test_a_sample_behind_a_pause_of_turns_is_that_of_a_watch_without_pauses(planned, name):
    _, every, _ = follow(LOOPS[name], every=20)
    planned |= {3: 17, 24: 8, 33: 7, 61: 19, 85: 5}
    watch, some, _ = follow(LOOPS[name], every=20)
    assert watch.steps == 100
    assert [sample.step for sample in some.samples] == [sample.step for sample in every.samples]
    for ours, theirs in zip(some.samples, every.samples, strict=True):
        for signal, values in theirs.values.items():
            assert torch.allclose(ours.values[signal], values, equal_nan=True), (ours.step, signal)
        assert ours.scalars.get("loss") == pytest.approx(theirs.scalars.get("loss"), nan_ok=True)


def test_a_step_that_a_scaler_skips_in_a_pause_of_turns_is_counted_behind_the_turn_before_it(planned):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def loop(model, optimizers, batches):
        for step, x in enumerate(batches):
            optimizer = optimizers[step % 2]
            optimizer.zero_grad()
            scaler.scale(loss_of(model, x) * (math.inf if step == 15 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()

    planned |= {12: 10}
    watch, hears, _ = follow(loop, steps=40)
    assert watch.steps == 40
    assert [*hears.losses] == [*range(12), *range(16, 40)]


def test_where_a_pass_between_two_steps_ends_none_there_are_no_pauses(planned):
    planned |= {4: 10}
    hears, model, other = Hears(), make(), nn.Linear(3, 1)
    first, second = (sgd(part) for part in parts(model))
    with levada.watch(model, [first, second], every=1000, max_overhead=math.inf, listeners=[hears]) as watch:
        for x in data(20):
            first.zero_grad()
            second.zero_grad()
            loss_of(model, x).backward()
            first.step()
            other(x).mean().backward()
            second.step()
    assert watch.steps == 20
    assert [*hears.losses] == [*range(20)]
    assert not watch._engine.cadence.pauses


def test_optimizers_that_step_together_for_the_first_time_end_a_pause_of_turns(planned):
    planned |= {12: 20}
    hears, model = Hears(), make()
    optimizers = [sgd(model.embed), sgd(model.blocks), sgd(model.head)]
    with levada.watch(model, optimizers, every=1000, max_overhead=math.inf, listeners=[hears]) as watch:
        for step, x in enumerate(data(40)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizers[step % 3].step()
            if step >= 17:
                optimizers[(step + 1) % 3].step()
    assert watch.steps == 40
    assert [*hears.losses] == [*range(12), *range(18, 40)]
    assert math.isnan(hears.losses[18])
    assert not any(map(math.isnan, [*hears.losses.values()][13:]))


@pytest.mark.parametrize("last", [12, 13, 14])
def test_a_watch_that_is_closed_in_a_pause_of_turns_has_counted_every_step(planned, last):
    planned |= {10: 4}
    watch, hears, _ = follow(LOOPS["turns"], steps=last)
    assert watch.steps == last
    assert [*hears.losses] == [*range(10)]


def test_nan_in_the_turn_behind_the_last_one_that_was_made_is_told_by_its_gradients(planned):
    planned |= {4: 20}
    for given in (math.nan, 1.0):
        model = make()
        optimizers = [sgd(part, lr=0.01) for part in parts(model)]
        with levada.watch(model, optimizers, every=1000, max_overhead=math.inf) as watch:
            for step, x in enumerate(data(10)):
                optimizer = optimizers[step % 2]
                optimizer.zero_grad()
                (loss_of(model, x) * (given if step == 9 else 1)).backward()
                if step == 9:
                    break
                optimizer.step()
        assert watch.steps == 9
        assert [finding.rule for finding in watch.findings] == ["numerical_overflow"] * math.isnan(given)


def test_what_an_update_left_in_the_gradients_of_who_rested_is_no_step_that_was_left(planned):
    planned |= {4: 20}
    model = make()
    optimizers = [sgd(part, lr=0.01) for part in parts(model)]
    with levada.watch(model, optimizers, every=1000, max_overhead=math.inf) as watch:
        turns((0, 1))(model, optimizers, data(9))
        model.head.weight.grad = torch.full_like(model.head.weight, math.inf)
    assert watch.steps == 9
    assert watch.findings == []


def test_a_loop_of_turns_that_makes_no_update_any_more_ends_the_pause_and_is_told(planned):
    planned |= {30: 10_000}
    model = make()
    optimizers = [sgd(part, lr=0.01) for part in parts(model)]
    with levada.watch(model, optimizers, every=1000, max_overhead=math.inf) as watch:
        for step, x in enumerate(data(200)):
            optimizer = optimizers[step % 2]
            optimizer.zero_grad()
            loss = loss_of(model, x * (math.nan if step >= 60 else 1))
            if not torch.isfinite(loss):
                continue
            loss.backward()
            optimizer.step()
    assert watch.steps == 60
    assert [(finding.rule, finding.severity) for finding in watch.findings] == [("skipped_steps", "error")]


def test_an_optimizer_that_steps_in_pauses_alone_is_not_said_to_rest(planned):
    planned |= {10 + 50 * k: 48 for k in range(40)}
    model = make()
    optimizers = [sgd(part, lr=0.01) for part in parts(model)]
    with levada.watch(model, optimizers, every=10_000, max_overhead=math.inf) as watch:
        for step, x in enumerate(data(2000)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizers[step < 5 or step % 50 == 30].step()
    assert watch.steps == 2000
    assert watch.judge.between.stopped == ""
    assert watch.findings == []


def test_whole_rounds_are_heard_between_the_pauses_of_a_loop_of_turns(monkeypatch):
    monkeypatch.setattr("levada.watching.loop.overhead._FREE", 0.0)
    torch.manual_seed(0)
    model, hears = Adversaries(), Hears()
    each = [torch.optim.SGD(part.parameters(), lr=1e-3) for part in parts(model)]
    with levada.watch(model, each, every=20, max_overhead=1e-3, listeners=[hears]) as watch:
        adversaries(5)(model, each, data(3000))
    assert watch.steps == 3000
    heard = [*hears.losses]
    assert len(heard) < 2000
    rows, row = [], [heard[0]]
    for step in heard[1:]:
        if step != row[-1] + 1:
            rows.append(row)
            row = []
        row.append(step)
    rows = [row for row in rows if row[0] > 12]  # by then each has had two turns
    assert len(rows) > 3
    assert all(len(row) >= 12 for row in rows)
    assert ", 1 step in " in watch.cost


def test_a_round_is_as_long_as_the_rarest_turn_and_forgets_who_rests_for_long():
    first, second, third = object(), object(), object()
    turn = Turn([first, second, third])
    for optimizer in (first, second, second, second) * 3:
        turn.add(optimizer)
        turn.end()
    assert turn.round == 4
    for _ in range(40):
        turn.add(second)
        turn.end()
    assert turn.round == 1
    turn.add(third)
    turn.end()
    assert turn.round == 1
    many = [object() for _ in range(17)]
    turn = Turn(many)
    for optimizer in many[:2] * 4:
        turn.add(optimizer)
        turn.end()
    assert turn.round == 1
    assert not turn.usual


def test_a_turn_that_is_left_in_a_pause_may_add_to_the_next_loss_which_is_not_told(planned):
    planned |= {4: 20}
    hears, model = Hears(), make()
    optimizers = [sgd(part, lr=0.01) for part in parts(model)]
    with levada.watch(model, optimizers, every=1000, max_overhead=math.inf, listeners=[hears]) as watch:
        turns((0, 1))(model, optimizers, data(6))
        loss_of(model, data(1)[0]).backward()
        watch.leave()
        optimizers[0].zero_grad()  # and the other one keeps what it has
        loss_of(model, data(1)[0]).backward()
        optimizers[1].step()
    assert watch.steps == 7
    assert math.isnan(hears.losses[6])


@pytest.mark.parametrize("passes", [False, True])
def test_what_rested_is_not_told_behind_a_pass_of_validation_either(planned, passes):
    planned |= {4: 20}
    model = make()
    optimizers = [sgd(part, lr=0.01) for part in parts(model)]
    with levada.watch(model, optimizers, every=1000, max_overhead=math.inf) as watch:
        turns((0, 1))(model, optimizers, data(9))
        model.head.weight.grad = torch.full_like(model.head.weight, math.inf)
        if passes:
            loss_of(model, data(1)[0])
    assert watch.findings == []


@pytest.mark.parametrize("pause", [0, 20])
def test_a_loss_that_is_given_behind_the_turn_of_another_network_is_that_of_the_next_step(planned, pause):
    planned |= {4: pause}
    model = Adversaries()
    optimizers = [sgd(part, lr=0.01) for part in parts(model)]
    with levada.watch(model, optimizers, every=1000, max_overhead=math.inf) as watch:
        adversaries(1)(model, optimizers, data(9))
        watch.leave(loss=model.critic(data(1)[0]).mean() * math.nan)
    assert watch.steps == 9
    assert [(finding.rule, finding.evidence["step"]) for finding in watch.findings] == [("numerical_overflow", 9)]
