"""Weights, gradients and updates where no single moment has them all, and where parameters are replaced."""

import copy
import math
import warnings

import pytest
import torch
from tests.watching.by_hand import data, loss_of, make, sgd, train, watch

from levada._errors import UsageError


def fuse(parameters):
    """Return an optimizer for each parameter, which steps as soon as its gradient is there, and clears it."""
    optimizers = []
    for p in parameters:
        optimizers.append(one := torch.optim.SGD([p], lr=0.1))

        def step(_, one=one):
            one.step()
            one.zero_grad()

        p.register_post_accumulate_grad_hook(step)
    return optimizers


@pytest.mark.parametrize("apart", ["none", "head", "embed"])
def test_optimizers_that_step_within_the_backward_pass_are_as_one_behind_it(apart):
    plain, model = make(), make()
    with watch(plain, one := sgd(plain)) as expected:
        train(plain, one, data())
    behind = [] if apart == "none" else [*getattr(model, apart).parameters()]
    late = [torch.optim.SGD(behind, lr=0.1)] if behind else []
    within = fuse(p for p in model.parameters() if not any(p is other for other in behind))
    with watch(model, [*within, *late]) as watched:
        for x in data():
            for each in late:
                each.zero_grad()
            loss_of(model, x).backward()
            for each in late:
                each.step()
    assert watched.steps == len(watched.samples) == 3
    for sample, wanted in zip(watched.samples, expected.samples, strict=True):
        for name, values in wanted.values.items():
            torch.testing.assert_close(sample.values[name], values, rtol=1e-6, atol=1e-12, equal_nan=True)
        for name in ("loss", "gradient_norm", "lr"):
            assert sample.scalars[name] == pytest.approx(wanted.scalars[name], rel=1e-6)
    assert "no loss" not in str(watched.standing.unjudged)


def test_losses_between_samples_are_known_of_steps_within_the_backward_pass():
    model, losses = make(), []
    with watch(model, fuse(model.parameters()), every=3) as watched:
        for x in data(7):
            loss = loss_of(model, x)
            loss.backward()
            losses.append(float(loss.detach()))
    assert [sample.step for sample in watched.samples] == [0, 3, 6]
    assert [loss for sample in watched.samples for _, loss in sample.losses] == pytest.approx(losses)


def test_what_a_hidden_optimizer_may_have_cleared_is_unknown_and_said_once():
    model = make()
    with warnings.catch_warnings(record=True) as said, watch(model, fuse(model.parameters())[:-2]) as watched:
        warnings.simplefilter("always")
        for x in data():
            loss_of(model, x).backward()
    (sentence,) = [str(one.message) for one in said if "watch:" in str(one.message)]
    assert "2 parameters (head.weight first)" in sentence
    for sample in watched.samples:
        assert math.isnan(sample.scalars["gradient_norm"])
        for name in ("weight_gradient_rms", "update_ratio"):
            assert sample.values[name].isnan().tolist() == [False] * 4 + [True]


def test_a_backward_pass_whose_scalar_is_not_seen_is_said():
    model = make()
    with warnings.catch_warnings(record=True) as said, watch(model, fuse(model.parameters())) as watched:
        warnings.simplefilter("always")
        for x in data():
            y = model(x)
            y.backward(torch.ones_like(y))
    assert watched.steps == 3
    assert sum("the loss is not known" in str(one.message) for one in said) == 1


@pytest.mark.parametrize("when", ["before the forward pass", "before the update"])
def test_parameters_that_are_replaced_are_measured_or_unknown(when):
    model = make()
    optimizer = sgd(model)

    def replace():
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
        optimizer.param_groups.clear()
        optimizer.add_param_group({"params": [*model.parameters()]})

    expected = []
    with watch(model, optimizer) as watched:
        for step, x in enumerate(data(4)):
            if step == 2 and when == "before the forward pass":
                replace()
            optimizer.zero_grad()
            loss_of(model, x).backward()
            if step == 2 and when == "before the update":
                replace()
            expected.append([m.weight.grad for m in (model.embed, model.head)])
            optimizer.step()
    sample = watched.samples[2]
    if when == "before the update":  # the new ones have no gradient, and do not move
        assert sample.values["weight_gradient_rms"].isnan().all()
        assert math.isnan(sample.scalars["gradient_norm"])
    else:
        told = sample.values["weight_gradient_rms"][[0, -1]]
        torch.testing.assert_close(told, torch.stack([g.double().square().mean().sqrt() for g in expected[2]]))
        assert (sample.values["update_ratio"] > 0).all()
    assert "loss" in watched.samples[3].scalars
    assert (watched.samples[3].values["update_ratio"] > 0).all()


def test_the_copy_of_the_weights_is_bounded_by_hand():
    model = make()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(1))
        watched.weights.copy_bytes = 0
        train(model, optimizer, data(1))
        watched.weights.copy_bytes = 4 * 40  # one or two parameters at a time
        train(model, optimizer, data(1))
    known = [int(sample.values["update_ratio"].isfinite().sum()) for sample in watched.samples]
    assert known[0] == 5
    assert known[1] == 0
    assert 1 <= known[2] < 5
    with pytest.raises(UsageError, match="copy_bytes must be at least 0"):
        watched.weights.copy_bytes = -1
