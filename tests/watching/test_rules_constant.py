"""A loss that is no lower than that of a constant prediction, and a tanh at its ends: neither is called healthy."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import nn
from torch.nn import functional

import levada
from levada.watching.loop.constant import ConstantLoss
from levada.watching.verdict.account import report
from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.judged import standing_of

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
CLASSES = torch.tensor([0, 0, 1, 2, 2, 2])
NUMBERS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) + 2
ENTROPY = -(math.log(1 / 3) / 3 + math.log(1 / 6) / 6 + math.log(1 / 2) / 2)
VARIANCE = float(NUMBERS.var(0, correction=0).mean())


def constant(*losses):
    known = ConstantLoss()
    known.open()
    for loss in losses:
        known.see([loss])
        known.learned()
    found = known.of(torch.stack(losses).detach().mean())
    return None if found is None else float(found)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (functional.cross_entropy(LOGITS, CLASSES), ENTROPY),
        (functional.cross_entropy(LOGITS, CLASSES, reduction="sum") / 6, ENTROPY),
        (functional.cross_entropy(LOGITS, CLASSES) * 1024, 1024 * ENTROPY),
        (-functional.cross_entropy(LOGITS, CLASSES), -ENTROPY),
        (functional.cross_entropy(LOGITS.T[None], CLASSES[None]), ENTROPY),
        (functional.cross_entropy(torch.cat([LOGITS, LOGITS]), torch.cat([CLASSES, CLASSES - CLASSES - 100])), ENTROPY),
        (functional.mse_loss(LOGITS, NUMBERS), VARIANCE),
        (functional.mse_loss(LOGITS, NUMBERS, reduction="sum"), 18 * VARIANCE),
        (functional.cross_entropy(LOGITS, CLASSES, label_smoothing=0.1), None),
        (functional.cross_entropy(LOGITS, CLASSES, weight=torch.tensor([1.0, 2.0, 1.0])), None),
        (functional.cross_entropy(LOGITS, CLASSES, reduction="none")[:2].mean(), None),
        (functional.cross_entropy(LOGITS, CLASSES) + 0.1 * LOGITS.square().mean(), None),
        ((LOGITS - NUMBERS).square().mean(), None),
        (functional.cross_entropy(LOGITS, torch.zeros_like(CLASSES)), math.nan),  # a constant is right
        (functional.mse_loss(LOGITS, torch.full_like(NUMBERS, 0.1)), math.nan),
    ],
)
def test_the_loss_of_the_best_constant_is_that_of_its_definition(loss, expected):
    found = constant(loss)
    assert found == expected if expected is None else found == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_micro_batches_are_taken_together_and_one_that_is_not_known_leaves_it_open():
    parts = [functional.cross_entropy(LOGITS[at], CLASSES[at]) for at in (slice(3), slice(3, 6))]
    assert constant(*parts) == pytest.approx(ENTROPY, rel=1e-5)
    assert constant(parts[0], LOGITS.square().mean()) is None


def test_what_somebody_packed_is_not_unpacked():
    seen = []

    def unpack(packed):
        seen.append(packed)
        return packed

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        loss = functional.cross_entropy(LOGITS, CLASSES)
    assert (constant(loss), seen) == (None, [])


def test_a_sample_tells_what_a_constant_gives_and_the_gradient_is_as_without():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)], nn.Linear(4, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    x = torch.randn(6, 4)
    functional.cross_entropy(net(x), CLASSES).backward()
    expected = [p.grad.clone() for p in net.parameters()]
    with levada.watch(net, optimizer, every=1, max_overhead=math.inf) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(net(x), CLASSES).backward()
            optimizer.step()
    assert watch.samples[-1].scalars["constant_loss"] == pytest.approx(ENTROPY, rel=1e-5)
    assert watch.samples[-1].tanh == frozenset({0, 1, 2})
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), expected, strict=True))


def staying(level, known, first=None, longest=None):
    """A loss that comes from `first` to a level at once, and stays; `known` is what a constant gives."""

    def edit(step, values, scalars, losses):
        noise = torch.randn(len(losses), generator=torch.Generator().manual_seed(step)).tolist()
        losses[:] = [(s, level + 0.02 * one if s else 3.46) for (s, _), one in zip(losses, noise, strict=True)]
        losses[:] = [(s, first if first and 0 < s < 12 else loss) for s, loss in losses]
        if known is not None:
            scalars["constant_loss"] = known
        if step == 0 and longest is not None:
            values["update_ratio"][:] = longest

    return edit


@pytest.mark.parametrize(
    ("level", "known", "first", "longest", "told"),
    [
        (3.0, 3.0, None, 2.0, "warn"),  # a step as large as the weights
        (3.0, 3.0, 4.5, 0.3, "warn"),  # of a tenth, and the loss rose with it
        (3.0, 3.0, None, 0.3, "unknown"),
        (3.0, 3.0, None, None, "unknown"),
        (2.9, 3.0, None, 2.0, "healthy"),  # it is lower by more than a hundredth
        (3.0, None, None, None, "unknown"),  # nothing says what a constant gives
        (1.5, None, None, None, "healthy"),  # the loss has come down by half
    ],
)
def test_a_loss_of_a_constant_prediction_is_not_healthy(level, known, first, longest, told):
    run = Synthetic()
    run.run(16, staying(level, known, first, longest))
    assert report(run.judge).verdict == told
    for finding in run.judge.fired:
        assert (finding.rule, finding.evidence["constant_loss"]) == ("learning_rate_too_high", 3.0)
        assert finding.remedies


def test_a_few_losses_do_not_tell_whether_more_than_a_constant_is_learned():
    run = Synthetic(every=8)
    run.run(14, staying(3.0, 3.0))
    standing = standing_of(run.judge)
    assert (run.judge.loss.steps, standing.verdict, standing.lacking) == (105, "unknown", {"losses": 23})


def test_a_loss_that_falls_late_is_not_flat():
    losses = LossBaseline()
    for step in range(300):
        losses.add(step, 4.0 - 0.002 * step)
    assert not losses.flat
    for step in range(300, 700):
        losses.add(step, 3.99)
    assert losses.flat


def saturated(rms, level):
    def edit(step, values, scalars, losses):
        values["signal_rms"][:-1] = rms
        losses[:] = [(s, level) for s, _ in losses]

    return edit


@pytest.mark.parametrize(
    ("rms", "level", "tanh", "found"),
    [
        (0.97, 2.3, range(8), True),
        (0.9, 2.3, range(8), False),  # a mean slope of 0.19
        (0.97, 2.3, (), False),
        (0.97, 2.3, (7,), False),  # the last block gives what is asked for
        (0.97, None, range(8), False),  # it learns
    ],
)
def test_a_tanh_at_its_ends_is_told_where_hardly_anything_is_learned(rms, level, tanh, found):
    def edit(step, values, scalars, losses):
        learning = list(losses)
        saturated(rms, level)(step, values, scalars, losses)
        if level is None:
            losses[:] = learning

    run = Synthetic()
    run.tanh = frozenset(tanh)
    run.run(14, edit)
    told = [(one.rule, one.severity, one.where["first"]) for one in run.judge.fired]
    assert told == ([("saturated_activation", "warn", "layers.0")] if found else [])
    judged = "saturated_activation" in standing_of(run.judge).judged
    assert judged == bool(set(tanh) - {7})


def test_a_saturated_network_is_found_while_it_runs():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4)], nn.Linear(16, 4))
    with torch.no_grad():
        for block in net[:-1]:
            block[0].weight.mul_(30)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    with levada.watch(net, optimizer, every=5, max_overhead=math.inf) as watch:
        for _ in range(80):
            x = torch.randn(32, 16)
            optimizer.zero_grad()
            functional.cross_entropy(net(x), x[:, :4].argmax(1)).backward()
            optimizer.step()
    told = [(one.rule, one.where["first"]) for one in watch.findings if one.status == "fired"]
    assert ("saturated_activation", "0") in told, watch.standing.told
