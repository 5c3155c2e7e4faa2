"""Loops in several threads: each watch hears of the backward passes that its own loop calls, and of no others."""

import contextlib
import threading

import pytest
import torch
from tests.watching.by_hand import agree, by_hand, data, loss_of, make, sgd, train, watch


class Turns:
    """Two threads that stop at the same places, one after the other, so that one is in the midst of a step."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=20)
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
        model.blocks[0].linear.weight.register_hook(
            lambda _: threading.Thread(target=lambda: seen.append(own.counted)).start()
        )
        train(model, optimizer, data(1))
        torch.autograd.grad(loss_of(model, data(1)[0]), list(model.parameters()))
    for _ in range(1000):
        if len(seen) == 2:
            break
        threading.Event().wait(0.01)
    assert seen == [True, False]
