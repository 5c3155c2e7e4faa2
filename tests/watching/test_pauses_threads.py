"""Passes of a thread that evaluates the model are none of the turns of the thread that trains it."""

import math
import threading

import pytest
from tests.watching.by_hand import data, loss_of, make, sgd

import levada
from levada.watching.loop.overhead import Cadence


@pytest.mark.parametrize("paused", [False, True])
def test_a_pass_of_another_thread_between_two_optimizers_ends_no_step(monkeypatch, paused):
    monkeypatch.setattr(Cadence, "pause", lambda self, step: 9 if paused and step == 5 and self.pauses else 0)
    model = make()
    optimizers = [sgd(model.blocks, lr=0.01), sgd(model.head, lr=0.01)]
    with levada.watch(model, optimizers, every=1000, max_overhead=math.inf) as watch:
        for x in data(20):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model, x).backward()
            optimizers[0].step()
            thread = threading.Thread(target=loss_of, args=(model, x))
            thread.start()
            thread.join()
            optimizers[1].step()
    assert watch.steps == 20
    assert watch._engine.cadence.pauses
