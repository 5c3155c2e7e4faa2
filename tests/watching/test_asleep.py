"""What hooks take in a pause is told with the rest, as an estimate that is not too high."""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.watching.by_hand import data, loss_of, make, sgd, train

import levada
from levada.watching.loop.overhead import Cadence
from levada.watching.steps.asleep import Asleep


def paused(monkeypatch, *, parts=1, steps=100, several=False):
    monkeypatch.setattr(Cadence, "pause", lambda self, step: 7 if step >= 3 else 0)
    monkeypatch.setattr(Asleep, "seconds", lambda self, *, passes, steps: 1000.0 * passes + steps)
    model = make()
    optimizers = [sgd(model.blocks), sgd(model.head)] if several else [sgd(model)]
    with levada.watch(model, optimizers, every=1000, max_overhead=math.inf) as watch:
        for x in data(steps):
            for each in optimizers:
                each.zero_grad()
            for _ in range(parts):
                loss_of(model, x).backward()
            for each in optimizers:
                each.step()
    return watch


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_it_is_that_of_the_passes_and_updates_that_were_not_heard(monkeypatch, parts, several):
    watch = paused(monkeypatch, parts=parts, several=several)
    assert watch.steps == 100
    unheard = 100 - watch.passed // parts
    assert 80 < unheard < 97
    assert watch._engine.cadence._slept == unheard * (1000.0 * parts + 1 + several)
    assert "by hooks in pauses" in watch.cost


def test_the_overhead_holds_it_and_nothing_waits_for_it():
    with_it, without = (Cadence(every=2, max_overhead=0.1) for _ in range(2))
    for cadence in (with_it, without):
        for step in range(200):
            sampled = cadence.due(step)
            cadence.count(sampled, own=0.5 * sampled, seconds=1.0 + 0.5 * sampled)
            if sampled:
                cadence.plan(step)
        cadence.timed(False, 100.0, 100)
    with_it.sleep(30.0)
    assert with_it.overhead == pytest.approx(without.overhead + 30.0 / with_it._trained)
    assert with_it.distance == without.distance
    assert with_it.paid_in == without.paid_in == 0
    assert (
        with_it.told
        == f"overhead {100 * with_it.overhead:.2g} %, at least {3000 / with_it._trained:.2g} % by hooks in pauses"
    )
    assert "hooks" not in without.told


def test_what_is_left_once_all_is_paid_for_holds_it_too():
    cadence = Cadence(every=1, max_overhead=0.01)
    for _ in range(10):
        cadence.count(True, own=0.5, seconds=1.5)
    for _ in range(10):
        cadence.count(False, own=0.0, seconds=1.0)
    assert "(1 % after " in cadence.told
    cadence.sleep(0.02 * cadence._trained)
    assert "(3 % after " in cadence.told
    assert "at least 2 % by hooks in pauses" in cadence.told


def test_hooks_are_called_once_for_each_of_the_first_pauses_and_then_seldom(monkeypatch):
    ticks = iter([0.0, 1.0, 3.5, 6.0])  # without hooks 1, with them 2.5, and those of an optimizer 2.5
    monkeypatch.setattr("levada.watching.steps.asleep.time", SimpleNamespace(perf_counter=ticks.__next__))
    calls = []

    def hook(*_):
        calls.append(1)

    asleep = Asleep(hook, (hook, hook), (hook, hook))
    assert asleep.seconds(passes=1, steps=1) == 0
    measured = [pause for pause in range(100) if asleep.due]
    assert measured == [*range(15), 16, 32, 48, 64, 80, 96]
    asleep.measure()
    assert len(calls) == 5
    assert asleep.seconds(passes=1, steps=1) == 1.5 + 2.5
    assert asleep.seconds(passes=3, steps=2) == 3 * 1.5 + 2 * 2.5


def test_hooks_that_someone_has_on_all_modules_hear_of_none_of_it(monkeypatch):
    heard = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: heard.append(module))
    try:
        watch = paused(monkeypatch)
    finally:
        handle.remove()
    assert {*map(id, heard)} == {*map(id, watch.model.modules())} - {id(watch.model.blocks)}


def test_an_estimate_is_no_higher_than_what_a_pass_and_a_step_take(monkeypatch):
    monkeypatch.setattr(Cadence, "pause", lambda self, step: 20 if step >= 3 else 0)
    model = make()
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf) as watch:
        for x in data(400):
            optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizer.step()
    each = watch._engine.cadence._slept / watch._engine.cadence._passed_by
    assert 0 < each < watch._engine.cadence._trained / 400


def test_ctrl_c_while_hooks_are_timed_leaves_the_pause_as_it_was(monkeypatch):
    monkeypatch.setattr(Cadence, "pause", lambda self, step: 7 if step == 3 else 0)
    measure, model = Asleep.measure, make()

    def interrupted(self):
        measure(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Asleep, "measure", interrupted)
    optimizer = sgd(model)
    with levada.watch(model, optimizer, every=1000, max_overhead=math.inf) as watch:
        with pytest.raises(KeyboardInterrupt):
            train(model, optimizer, data(20))
        assert watch.steps == 10
        monkeypatch.setattr(Asleep, "measure", measure)
        train(model, optimizer, data(5))
        assert watch.steps == 15
        assert not watch._engine.pauses.on
