"""Ctrl-C at any place: within a hook, while a watch is made, and while it is closed."""

import contextlib
import sys

import pytest
import torch
from tests.watching.by_hand import agree, by_hand, data, make, sgd, train, watch

from levada.watching.engine import Engine
from levada.watching.loop.losses import Losses
from levada.watching.measure.statistics import Kind
from levada.watching.measure.taps import Taps
from levada.watching.measure.together import Together
from levada.watching.steps.passes import Passes

BACKWARD = torch.autograd.backward


class Closed:
    """Counts how often it was closed."""

    closed = 0

    def before_update(self, step, loss):
        pass

    def sampled(self, sample):
        pass

    def close(self):
        self.closed += 1


def nothing_left(model, optimizer):
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert torch.autograd.backward is BACKWARD


def once(monkeypatch, owner, name, *, behind):
    """Let Ctrl-C come once, before what a method does or behind it."""
    original, left = getattr(owner, name), [True]

    def method(*args, **kwargs):
        first = bool(left and left.pop())
        if first and not behind:
            raise KeyboardInterrupt
        result = original(*args, **kwargs)
        if first:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(Engine, "leave"), (Passes, "detach"), (Losses, "close"), (Taps, "detach"), (Together, "deliver")],
)
def test_in_the_midst_of_closing_everything_is_taken_off_all_the_same(owner, name, behind, monkeypatch):
    model, closed = make(), Closed()
    optimizer = sgd(model)
    watched = watch(model, optimizer, listeners=[closed])
    train(model, optimizer, data())
    once(monkeypatch, owner, name, behind=behind)
    with pytest.raises(KeyboardInterrupt):
        watched.close()
    nothing_left(model, optimizer)
    assert closed.closed == 1


def test_while_a_watch_is_made_nothing_of_it_stays(monkeypatch):
    model = make()
    optimizer = sgd(model)
    once(monkeypatch, Taps, "attach", behind=True)
    with pytest.raises(KeyboardInterrupt):
        watch(model, optimizer)
    nothing_left(model, optimizer)


def test_within_a_sample_that_one_is_dropped_and_the_next_is_right(monkeypatch):
    model = make()
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        train(model, optimizer, data(1))
        once(monkeypatch, Kind, "add", behind=True)
        with pytest.raises(KeyboardInterrupt):
            train(model, optimizer, data(2)[1:])
        train(model, optimizer, data(3)[1:])
    assert [sample.step for sample in watched.samples] == [0, 2]
    agree(watched, by_hand(make(), data(3))[::2])


@pytest.mark.parametrize("part", range(24))
def test_at_any_line_of_a_watch_nothing_stays(part):
    def run(at):
        model, lines = make(), [0]
        optimizer = sgd(model)

        def line(frame, event, arg):
            if event == "line":
                lines[0] += 1
                if lines[0] == at:
                    raise KeyboardInterrupt
            return line

        def call(frame, event, arg):
            return line if "/levada/" in frame.f_code.co_filename.replace("\\", "/") else None

        before = sys.gettrace()
        with contextlib.suppress(KeyboardInterrupt):
            sys.settrace(call)
            try:
                with watch(model, optimizer, every=2):
                    train(model, optimizer, data(5))
            finally:
                sys.settrace(before)
        learning = torch.is_grad_enabled()
        torch.set_grad_enabled(True)  # for those that come behind, whatever is found
        return model, optimizer, learning, lines[0]

    *_, total = run(-1)
    model, optimizer, learning, _ = run(1 + (2 * part + 1) * total // 48)
    assert learning, "gradients are off for the rest of the process"
    nothing_left(model, optimizer)
