"""A loop that leaves a pass of a pause before its backward pass: nobody heard its loss, and that is said."""

import contextlib
import math

import pytest
import torch
from tests.watching.by_hand import data, loss_of, make, sgd, train

import levada
from levada.runs import Run
from levada.watching.loop.overhead import Cadence


def stop(monkeypatch, how, *, at=435, pause=(425, 100), **watching):
    monkeypatch.setattr(Cadence, "pause", lambda self, step: pause[1] if step == pause[0] else 0)
    model = make()
    optimizer = sgd(model, lr=0.01)
    watch = levada.watch(model, optimizer, every=20, max_overhead=math.inf, **watching)

    def loop():
        with watch:
            train(model, optimizer, data(at))
            if how in ("ends", "before"):
                if how == "before":
                    raise ValueError
                return
            optimizer.zero_grad()
            loss = loss_of(model, data(1)[0] * math.nan)
            if how == "breaks":
                return
            raise (KeyboardInterrupt if how == "interrupts" else FloatingPointError)(f"{loss}")

    with contextlib.suppress(FloatingPointError, KeyboardInterrupt, ValueError):
        loop()
    return watch, model, optimizer


TOLD = "the last 10 steps were not heard, as steps are short, nor was the pass behind them, which no backward pass"


@pytest.mark.parametrize(("how", "verdict"), [("raises", "unknown"), ("breaks", "healthy"), ("interrupts", "healthy")])
def test_what_nobody_heard_is_told_and_no_verdict_rests_on_it_where_an_error_ended_the_loop(
    monkeypatch, tmp_path, how, verdict
):
    watch, _, _ = stop(monkeypatch, how, run=tmp_path / "run")
    assert watch.steps == 435
    assert watch.standing.verdict == verdict
    assert watch.standing.unjudged["numerical_overflow"].startswith(TOLD)
    assert "numerical_overflow" not in watch.standing.judged
    assert TOLD in str(watch.report())
    kept = [event for event in Run(tmp_path / "run").events() if event["type"] == "judged"][-1]
    assert TOLD in str(kept)


@pytest.mark.parametrize("how", ["ends", "before"])
def test_a_loop_that_left_no_pass_is_judged_as_before(monkeypatch, how):
    watch, _, _ = stop(monkeypatch, how)
    assert watch.standing.verdict == "healthy"
    assert "numerical_overflow" in watch.standing.judged


def test_outside_a_pause_nan_is_seen_in_the_output_and_nothing_else_is_told(monkeypatch):
    watch, _, _ = stop(monkeypatch, "breaks", pause=(0, 0))
    assert "numerical_overflow" not in watch.standing.unjudged


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (426, "the last step was not heard, as steps are short, nor was the pass behind it"),
        (425, "as steps are short, nobody heard the pass behind the last step"),
    ],
)
def test_it_says_how_many_steps(monkeypatch, at, told):
    watch, _, _ = stop(monkeypatch, "raises", at=at)
    assert watch.standing.unjudged["numerical_overflow"].startswith(told)


def test_it_is_over_once_another_step_is_made(monkeypatch):
    watch, model, optimizer = stop(monkeypatch, "raises")
    assert watch.standing.verdict == "unknown"
    with watch:
        train(model, optimizer, data(3))
        assert watch.standing.verdict == "healthy"
    assert watch.standing.verdict == "healthy"
    assert torch.isfinite(model.head.weight).all()
