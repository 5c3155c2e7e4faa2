"""Loops in several threads: each watch hears of the backward passes that its own loop calls, and of no others."""

import contextlib
import math
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tests.watching.by_hand import agree, by_hand, data, loss_of, make, sgd, train, watch

import levada
from levada.watching.loop.own import OwnPasses
from levada.watching.measure.statistics import Kind, Statistics
from levada.watching.script import Watches


class Started:
    def close(self):
        pass


class Turns:
    """Two threads that stop at the same places, one after the other, so that one is in the midst of a step."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=300)
        self.errors = []

    def run(self, *loops):
        def guarded(loop):
            try:
                loop(self.barrier.wait)
            except BaseException as error:
                self.barrier.abort()
                self.errors.append(error)

        threads = [threading.Thread(target=guarded, args=(loop,)) for loop in loops]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.errors


def first_loop(model, optimizer, wait):
    """Train; each backward pass comes while the other loop is in the midst of its own."""
    for x in data():
        optimizer.zero_grad()
        loss = loss_of(model, x)
        wait()
        loss.backward()
        wait()
        optimizer.step()


def second_loop(model, optimizer, wait):
    """Train; in the midst of each backward pass the other loop makes one."""

    def hook(*_):
        wait()
        wait()

    for x in data():
        optimizer.zero_grad()
        loss = loss_of(model, x)
        loss.register_hook(hook)
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("both", [False, True])
def test_a_backward_pass_of_another_thread_is_none_of_this_watch(both):
    found = {}
    models = make(), make(seed=1)  # here: the threads would draw from one generator

    def first(wait):
        model = models[0]
        optimizer = sgd(model)
        with watch(model, optimizer) as found["first"]:
            first_loop(model, optimizer, wait)

    def second(wait):
        model = models[1]
        optimizer = sgd(model)
        with watch(model, optimizer) if both else contextlib.nullcontext() as found["second"]:
            second_loop(model, optimizer, wait)

    Turns().run(first, second)
    agree(found["first"], by_hand(make(), data()))
    if both:
        agree(found["second"], by_hand(make(seed=1), data()))


def test_a_watch_made_in_one_thread_follows_the_loop_into_another():
    model, other = make(), make(seed=1)
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        thread = threading.Thread(target=train, args=(model, optimizer, data(2)))
        thread.start()
        thread.join()
        other(data(1)[0]).sum().backward()
        train(model, optimizer, data()[2:])
    agree(watched, by_hand(make(), data()))


def test_gradients_that_arrive_in_another_thread_count():
    """As those of a device do: the hook is called where the backward pass was not."""
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        own = watched._engine.losses.own
        seen = []

        def hook(_):
            device = threading.Thread(target=lambda: seen.append(own.counted))
            device.start()
            device.join()  # it reads while the pass goes on, however late it runs

        model.blocks[0].linear.weight.register_hook(hook)
        train(model, optimizer, data(1))
        torch.autograd.grad(loss_of(model, data(1)[0]), list(model.parameters()))
    assert seen == [True, False]


def evaluate(model, *, gradients=False):
    """Call a model on something else than it is trained on, in another thread, from its beginning to its end."""

    def run():
        with torch.set_grad_enabled(gradients):
            model(100.0 * data(1)[0])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("midst", ["the first block", "the second block", "the backward pass", "the model, behind it"])
def test_an_evaluation_in_another_thread_is_no_part_of_the_pass_that_trains(midst, gradients):
    model, training = make(), threading.get_ident()
    optimizer = sgd(model)

    def hook(*_):
        if threading.get_ident() == training:
            evaluate(model, gradients=gradients)

    with watch(model, optimizer) as watched:
        if midst.startswith("the model"):
            model.register_forward_hook(hook)
        elif "block" in midst:
            model.blocks["second" in midst].relu.register_forward_pre_hook(hook)
        else:
            model.blocks[1].linear.weight.register_hook(hook)
        train(model, optimizer, data())
        assert watched.last_pass is None
        train(model, optimizer, data(1))
        kept = watched.last_pass
    agree(watched, by_hand(make(), [*data(), *data(1)]))
    assert torch.equal(kept.args[0], data(1)[0])


def test_steps_go_on_while_another_thread_is_in_the_midst_of_an_evaluation():
    model = make()
    optimizer, ends = sgd(model), threading.Event()

    def training(wait):
        for x in data():
            wait()
            train(model, optimizer, [x])
            wait()

    def evaluation(wait):
        def hook(*_):
            if threading.get_ident() == here:
                wait()
                wait()

        here = threading.get_ident()
        handle = model.blocks[1].register_forward_pre_hook(hook)
        with torch.no_grad():
            for _ in data():
                model(100.0 * data(1)[0])
        handle.remove()
        ends.set()

    with watch(model, optimizer) as watched:
        Turns().run(training, evaluation)
    assert ends.is_set()
    agree(watched, by_hand(make(), data()))


def test_a_compiled_block_that_another_thread_has_begun_to_call_runs_when_the_tap_is_off():
    model = make()
    model.blocks[0].compile(backend="eager")
    own = model.blocks[0]._compiled_call_impl
    with watch(model, sgd(model)):
        begun = model.blocks[0]._compiled_call_impl
    assert begun is not own
    assert torch.equal(begun(torch.ones(2, 6)), model.blocks[0](torch.ones(2, 6)))


def test_models_of_two_threads_that_a_script_trains_are_found_one_after_the_other():
    models, found, inside = [make(), make(seed=1)], [], []
    both = threading.Event()

    def start(model, optimizers, before):
        found.append(before)
        inside.append(model)
        if len(inside) == 2:
            both.set()
        both.wait(0.2)
        inside.remove(model)
        return Started()

    with Watches(start):
        Turns().run(*(lambda wait, model=model: train(model, sgd(model), data(2)) for model in models))
    assert found == [0, 1]
    assert not both.is_set()


def test_the_thread_that_updates_is_heard_though_another_ran_the_model():
    own = OwnPasses()
    own.open()
    forward = threading.Thread(target=own.follow)
    forward.start()
    forward.join()
    assert own.called_here()  # it opened the watch
    other = threading.Thread(target=own.updated)
    other.start()
    other.join()
    assert not own.called_here()
    own.updated()
    assert own.called_here()


@pytest.mark.parametrize("first", [False, True])
def test_losses_that_other_threads_make_are_of_the_step_whose_backward_pass_is_called_here(first):
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watching, ThreadPoolExecutor(1) as pool:
        for step, x in enumerate(data()):
            bad = step == len(data()) - 1
            x = x * math.nan if bad else x
            loss = loss_of(model, x) if first and step == 0 else pool.submit(loss_of, model, x).result()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert watching.passed == len(data()) - first  # of the second step it was not known yet
    (finding,) = watching.findings
    assert "the batch that the model was given is not finite" in finding.claim


def test_a_thread_that_evaluates_with_gradients_all_the_time_ends_no_measuring():
    """Both threads write what is measured: lists that did not fit each other ended the watch, or the process."""
    model, over = make(), threading.Event()
    optimizer = sgd(model)

    def evaluate():
        x = data(1)[0]
        while not over.is_set():
            loss_of(model, x)

    with warnings.catch_warnings(), levada.watch(model, optimizer, every=2, max_overhead=math.inf) as watch:
        warnings.simplefilter("error")
        beside = threading.Thread(target=evaluate)
        beside.start()
        try:
            for x in data(150):
                optimizer.zero_grad()
                loss_of(model, x).backward()
                optimizer.step()
        finally:
            over.set()
            beside.join()
    assert watch.steps == 150
    assert len(watch.samples) > 50
    assert not [one for one in watch.findings if one.severity != "info"]


def test_no_other_thread_adds_to_what_was_measured_while_it_is_read(monkeypatch):
    """Slots that came behind the sums had none: once in many runs, on a busy machine, that ended the watch."""
    locks, taken = [], []
    make_statistics, rows = Statistics.__init__, Kind.rows

    def made(statistics):
        make_statistics(statistics)
        locks.append(statistics.lock)

    def take():
        taken.append(locks[0].acquire(blocking=False))
        if taken[-1]:
            locks[0].release()

    def read(kind, *asked):
        beside = threading.Thread(target=take)
        beside.start()
        beside.join()
        return rows(kind, *asked)

    monkeypatch.setattr(Statistics, "__init__", made)
    monkeypatch.setattr(Kind, "rows", read)
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watching:
        train(model, optimizer, data())
    assert len(locks) == 1
    assert len(taken) == 3 * len(watching.samples) > 0
    assert not any(taken)
