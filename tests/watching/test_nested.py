"""Optimizers whose step calls that of the class above."""

import pytest
import torch
from tests.watching.by_hand import agree, by_hand, data, make, sgd, train, watch

from levada.watching.loop.overhead import Cadence


@pytest.mark.parametrize("pauses", [False, True])
def test_a_step_that_calls_the_step_of_the_class_above_is_one(pauses, monkeypatch):
    """Both classes were made once, so that PyTorch has wrapped the step of each; every third step raises."""

    class Warm(torch.optim.SGD):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            if self.calls % 3 == 2:
                raise RuntimeError("not this time")
            return super().step(closure)

    if pauses:
        monkeypatch.setattr(Cadence, "pause", lambda self, step: 4)
    model, expected = make(), by_hand(make(), data(8))
    sgd(model)
    optimizer = Warm(model.parameters(), lr=0.1)
    with watch(model, optimizer) as watched:
        for x in data(8):
            for _ in range(2):
                try:
                    train(model, optimizer, [x])
                except RuntimeError:
                    continue
                break
    assert watched.steps == 8
    if not pauses:
        agree(watched, expected)
