"""The bounds and branches of the rules that nothing else crosses: each on either side."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import nn

from levada.diagnose.finding import Finding
from levada.diagnose.trainable import GRADIENT_SCALES
from levada.watching.record.kept_losses import MOST, KeptLosses
from levada.watching.rerun.retried import NAME, Retried, retried
from levada.watching.verdict.bundle import Bundle
from levada.watching.verdict.overshot import Before, blamed
from levada.watching.verdict.rules.depth import BEYOND

KEPT = Bundle(3, NAME, "why", finding={"rule": NAME})


# Steps from a bundle at other rates.


@pytest.mark.parametrize(
    ("kept", "end", "severity"),
    [(KEPT, 2.1, "error"), (KEPT, 1.9, "warn"), (replace(KEPT, finding={}), 2.1, "warn"), (KEPT, math.inf, "error")],
)
def test_a_replay_says_error_where_the_run_did_too_and_the_loss_doubled(kept, end, severity):
    finding = Retried("told", (1.0, 0.1), ((1.0, end), (1.0, 0.5))).finding(kept)
    assert (finding.severity, finding.evidence["explained_by"]) == (severity, "theory")


def steep(curvature, **facts):
    """Retry steps at a rate of 1 on `curvature w^2 / 2`, which a rate of up to 2 / curvature lowers."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    values = {"optimizer": [optimizer.state_dict()], "weights": model.state_dict()}
    facts = {"optimizers": ["SGD"], "optimizer_parameters": [[["weight"]]], **facts}

    def once():
        loss = 0.5 * curvature * model.weight.square().sum()
        loss.backward()
        return float(loss.detach())

    @contextlib.contextmanager
    def prepared():
        nn.init.ones_(model.weight)
        yield

    return retried(replace(KEPT, values=values, facts=facts), model, once, prepared)


@pytest.mark.parametrize(
    ("curvature", "lowest", "falls"), [(1.9e6, 1e-6, True), (1.9e7, 1e-6, False), (1.9, 0.1, True)]
)
def test_rates_are_tried_down_to_a_millionth(curvature, lowest, falls):
    found = steep(curvature)
    assert found.rates == (1.0, pytest.approx(lowest))
    assert (found.losses[1][-1] < found.losses[1][0]) is falls


@pytest.mark.parametrize(("passes", "made"), [(1, True), (2, False)])
def test_a_step_of_several_passes_is_not_made_again_at_another_rate(passes, made):
    found = steep(10.0, **{"pass": passes})
    assert bool(found.losses[0]) is made
    assert ("made of several passes" in found.told) is not made


# Losses between samples.


def test_of_the_losses_that_wait_for_a_sample_of_several_processes_the_later_half_is_kept():
    told: list[int] = []
    losses = KeptLosses(lambda _, **payload: told.extend(payload["steps"]), lambda: (), shared=True)
    for step in range(MOST):
        losses.hear(step, torch.tensor(1.0))
    assert len(losses) == MOST // 2
    assert told == list(range(MOST))


def test_losses_that_have_ended_and_are_written_are_not_written_again():
    told: list[int] = []
    ended = [(step, torch.tensor(1.0)) for step in range(6)]
    losses = KeptLosses(lambda _, **payload: told.extend(payload["steps"]), lambda: ended, shared=False)
    losses.hear(3, torch.tensor(1.0))
    losses.keep(3)
    losses.keep(5)
    assert told == [0, 1, 2, 3, 4, 5]


# Steps that are too long, and depth.


@pytest.mark.parametrize(("known", "told"), [(None, "steps"), ("place", "place")])
def test_long_steps_explain_what_nothing_else_does(known, told):
    evidence = {"step": 40, "tensor": "loss", "explained_by": known}
    losses = tuple(enumerate([1.0, 2.0, 9.0, 80.0, 700.0], 35))
    finding = Finding("numerical_overflow", "error", "fired", "NaN.", evidence=evidence)
    assert blamed(finding, Before((), None, losses, 0.5, False), None).evidence["explained_by"] == told


@pytest.mark.parametrize(("scale", "named"), [(1.0, True), (65536.0, False)])
def test_under_a_scaler_no_rate_is_blamed_for_what_is_not_finite(scale, named):
    def edit(step, values, scalars, losses):
        scalars["loss_scale"] = scale
        climb = {s: 3.0 ** (s - 234) for s, _ in losses if s >= 235}
        losses[:] = [(s, math.nan if s >= 240 else climb.get(s, loss)) for s, loss in losses]
        if step >= 240:
            values["nonfinite"][3:] = 1.0

    run = Synthetic()
    run.run(16, edit, lr=0.5)
    found = [f for f in run.judge.findings if f.rule == "numerical_overflow" and f.severity == "error"]
    assert [NAME in f.evidence for f in found] == [named]


@pytest.mark.parametrize(("kind", "told"), [("SGD", True), ("AdamW", False)])
def test_a_loss_far_above_its_start_is_told_of_short_steps_where_gradients_are_not_rescaled(kind, told):
    def risen(step, values, scalars, losses):
        losses[:] = [(s, 1.0 if s == 0 else 4.0 + 0.01 * math.sin(s)) for s, _ in losses]
        scalars["gradient_norm"], scalars["loss"] = 100.0, 4.0

    run = Synthetic()
    run.source.optimizers = (getattr(torch.optim, kind)([torch.zeros(1)], lr=1e-3),)
    run.run(12, risen)
    assert [f.severity for f in run.judge.findings if f.rule == NAME] == ["warn"] * told


def test_a_training_at_ten_scales_of_depth_is_not_beyond_them():
    assert pytest.approx(11.0) == BEYOND
    assert GRADIENT_SCALES == 10
