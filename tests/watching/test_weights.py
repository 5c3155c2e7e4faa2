"""Weights, gradients and updates where no single moment has them all, and where parameters are replaced."""

import copy
import math
import warnings

import pytest
import torch
from tests.watching.by_hand import data, loss_of, make, sgd, train, watch

from levada._errors import UsageError


def fuse(parameters, scale=None):
    """Return an optimizer for each parameter, which steps as soon as its gradient is there, and clears it.

    With a scale, the gradient is divided by it, and where it is not finite the step is left out.
    """
    optimizers = []
    for p in parameters:
        optimizers.append(one := torch.optim.SGD([p], lr=0.1))

        def step(p, one=one):
            if scale is not None:
                p.grad.div_(scale)
            if scale is None or p.grad.isfinite().all():
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


def test_a_loss_that_is_nan_is_told_where_optimizers_step_within_the_backward_pass():
    plain, model = make(), make()
    batches = [math.nan * x if step == 2 else x for step, x in enumerate(data(4))]
    with watch(plain, sgd(plain)) as expected:
        train(plain, expected.optimizers[0], batches)
    with watch(model, fuse(model.parameters())) as watched:
        for x in batches:
            loss_of(model, x).backward()
    assert [finding.rule for finding in watched.findings] == ["numerical_overflow"]
    assert watched.findings[0].evidence["step"] == expected.findings[0].evidence["step"] == 2
    for sample, wanted in zip(watched.samples, expected.samples, strict=True):
        for name in ("loss", "gradient_norm"):
            assert sample.scalars[name] == pytest.approx(wanted.scalars[name], rel=1e-6, nan_ok=True)
        for name in ("update_ratio", "weight_gradient_rms", "signal_rms"):
            torch.testing.assert_close(sample.values[name], wanted.values[name], rtol=1e-6, atol=0, equal_nan=True)


def test_scaled_losses_and_steps_that_are_left_out_within_the_backward_pass():
    plain, model, scaler = make(), make(), torch.amp.GradScaler("cpu", init_scale=64.0)
    with watch(plain, sgd(plain)) as expected:
        train(plain, expected.optimizers[0], data(4))
    batches = data(4)
    batches.insert(2, math.inf * data(1)[0])  # it makes no update, and is no step
    with watch(model, fuse(model.parameters(), scale=64.0)) as watched:
        for x in batches:
            scaler.scale(loss_of(model, x)).backward()
    assert watched.steps == 4
    assert watched.findings == []
    for sample, wanted in zip(watched.samples, expected.samples, strict=True):
        assert sample.scalars["loss_scale"] == 64.0
        for name in ("loss", "gradient_norm"):
            assert sample.scalars[name] == pytest.approx(wanted.scalars[name], rel=1e-6)
        for name in ("update_ratio", "weight_gradient_rms"):
            torch.testing.assert_close(sample.values[name], wanted.values[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("bound", [0, 4 * 40])
def test_the_copy_is_bounded_where_optimizers_step_within_the_backward_pass(bound):
    model = make()
    with watch(model, fuse(model.parameters())) as watched:
        watched.weights.copy_bytes = bound
        for x in data(2):
            loss_of(model, x).backward()
    for sample in watched.samples:  # each optimizer's copy is made and dropped by itself
        assert sample.values["update_ratio"].isfinite().all() == (bound > 0)


def test_a_parameter_that_its_optimizer_exchanges_within_the_backward_pass_is_measured_as_it_is_now():
    model, moved = make(), []
    optimizers = []

    def step(p):
        one = next(each for each in optimizers if each.param_groups[0]["params"][0] is p)
        before = p.detach().clone()
        one.step()
        one.zero_grad()
        if p.dim() == 2 and p.shape == (6, 3):
            moved.append(float((p.detach() - before).norm() / before.norm()))

    for p in model.parameters():
        optimizers.append(torch.optim.SGD([p], lr=0.1))
        p.register_post_accumulate_grad_hook(step)
    with watch(model, optimizers) as watched:
        for turn, x in enumerate(data(4)):
            if turn == 2:
                new = torch.nn.Parameter(0.5 * model.embed.weight.detach())
                new.register_post_accumulate_grad_hook(step)
                optimizers[0].param_groups[0]["params"][0] = model.embed.weight = new
            loss_of(model, x).backward()
    assert [float(sample.values["update_ratio"][0]) for sample in watched.samples] == pytest.approx(moved, rel=1e-5)


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
