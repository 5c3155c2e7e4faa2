"""A loss that rises because targets or inputs were scaled up has not lost what was learned."""

import math

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import nn
from torch.nn import functional

import levada
from levada.watching.loop.constant import ConstantLoss
from levada.watching.verdict.growth import Growth


def scaled(times, constant, inputs=1.0):
    """The loss jumps to so many times its start, 2.3, after a block's signal moved; batches tell how they grew."""

    def edit(step, values, scalars, losses):
        losses[:] = [(s, 2.3 * times if s >= 347 else loss) for s, loss in losses]
        if step >= 340:
            values["signal_rms"][2] *= 8
        if constant is not None:
            scalars["constant_of_batch"] = 2.3 * constant if step >= 340 else 2.3
        scalars["input_rms"] = inputs if step >= 340 else 1.0

    return edit


@pytest.mark.parametrize(
    ("times", "constant", "inputs", "severities"),
    [
        (1.5, 1.0, 1.0, ["error"]),
        (1.5, 1.4, 8.0, ["error"]),  # batches scatter by as much
        (1.5, 2.0, 8.0, ["warn"]),  # the loss is three quarters of what it was beside a constant's
        (3.0, 2.0, 8.0, ["error"]),  # and here more than that
        (1.5, 2.0, 1.4, ["error"]),  # targets that a diverging model makes itself
        (1.5, 1.0, 8.0, ["error"]),  # the targets have not grown
        (1.5, None, 8.0, ["error"]),  # nothing says if they have
    ],
)
def test_a_loss_above_its_start_is_an_error_unless_the_task_has_grown_as_much(times, constant, inputs, severities):
    run = Synthetic()
    run.run(30, scaled(times, constant, inputs))
    found = [f for f in run.judge.findings if f.rule == "loss_spike"]
    assert [f.severity for f in found] == severities
    grown = constant == 2.0 and inputs == 8.0
    said = "inputs are 8 times as large as on the first ones, and a prediction that is the same for every input would"
    assert (said in found[0].claim) is ("The task has grown" in found[0].claim) is grown


@pytest.mark.parametrize(
    ("batches", "factor"),
    [
        ([1.0] * 8, 1.0),
        ([1.0] * 8 + [4.0, 4.0], 1.0),
        ([1.0] * 8 + [4.0, 2.0, 3.0], 3.0),
        ([1.0] * 8 + [9.0, 4.0, 2.0, 3.0], 3.0),
        ([1.0] * 8 + [4.0, 4.0, 1.4], 1.0),
        ([1.0] * 8 + [4.0, 4.0, 1.5], 4.0),
        ([1.0] * 7 + [3.0, 4.0, 4.0, 4.0], 1.0),  # one of the first was as large, but for a third
        ([1.0] * 8 + [math.nan, 4.0, 0.0, 4.0, 4.0], 4.0),
        ([], 1.0),
    ],
)
def test_growth_is_that_of_three_batches_beside_the_first(batches, factor):
    growth = Growth()
    for value in batches:
        growth.add(value)
    assert growth.factor == factor


def test_classes_that_are_mixed_otherwise_are_no_growth():
    logits = torch.zeros(4, 2, requires_grad=True)
    known = ConstantLoss()
    known.open()
    loss = functional.cross_entropy(logits, torch.tensor([0, 1, 1, 0]))
    known.see([loss])
    known.learned()
    assert known.of(loss.detach()) is not None
    assert known.of(loss.detach(), batch=True) is None


def test_what_moved_long_before_the_last_sample_explains_no_jump():
    def edit(step, values, scalars, losses):
        losses[:] = [(s, 6.0 if s >= 640 else loss) for s, loss in losses]
        if step >= 300:
            values["gradient_rms"][5] *= 30

    run = Synthetic()
    run.run(16, edit)
    run.step = 700  # nothing was sampled since step 300
    run.run(1, edit)
    (finding,) = [f for f in run.judge.findings if f.rule == "loss_spike"]
    assert finding.evidence["moved_first"] == []
    assert "What moved before it is not known, as no step was sampled shortly before." in finding.claim


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sample_tells_how_large_inputs_are_and_what_a_constant_gives_on_its_batch(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)], nn.Linear(4, 3)).to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    batches = [(torch.randn(64, 4).mul(scale).to(dtype), torch.randn(64, 3).mul(scale).to(dtype)) for scale in (1, 5)]
    with levada.watch(net, optimizer, every=1, max_overhead=math.inf) as watch:
        for x, y in batches:
            optimizer.zero_grad()
            for half in range(2):  # two micro-batches
                at = slice(32 * half, 32 * half + 32)
                (functional.mse_loss(net(x[at]), y[at]) / 2).backward()
            optimizer.step()
    for (x, y), sample in zip(batches, watch.samples, strict=True):
        assert sample.scalars["input_rms"] == pytest.approx(float(x.double().square().mean().sqrt()), rel=1e-5)
        variance = float(y.double().var(0, correction=0).mean())
        rounding = 1e-2 if dtype is torch.bfloat16 else 1e-5
        assert sample.scalars["constant_of_batch"] == pytest.approx(variance, rel=rounding)


def test_a_curriculum_that_scales_its_inputs_up_is_no_error():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    way = torch.randn(8, 1)
    with levada.watch(net, optimizer, every=10, max_overhead=math.inf) as watch:
        for step in range(420):
            x = torch.randn(64, 8) * (0.1 if step < 250 else 0.1 + (step - 250) / 100)
            optimizer.zero_grad()
            functional.mse_loss(net(x), (x @ way).sin()).backward()
            optimizer.step()
    assert all(finding.severity == "info" for finding in watch.findings)
    assert watch.findings[0].rule == "loss_spike"
