"""What is said where no block can be measured: the reason that holds, and what to do."""

import warnings

import pytest
import torch
import torch._dynamo
from tests.watching.by_hand import data, loss_of, make, sgd, train, watch
from torch import nn


def told_of(model, optimizer, step):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with watch(model, optimizer) as watched:
            for x in data():
                optimizer.zero_grad()
                step(x).backward()
                optimizer.step()
    (sentence,) = [str(one.message) for one in told if str(one.message).startswith("watch:")]
    return sentence, watched


@pytest.mark.parametrize("compiler", [False, True])
def test_blocks_that_run_past_their_hooks(compiler, monkeypatch):
    monkeypatch.setattr(torch._dynamo.utils, "counters", {"frames": {"ok": 1}} if compiler else {})

    class Past(type(make())):
        def forward(self, x):
            x = self.embed.forward(x)
            for block in self.blocks:
                x = block.forward(x)
            return self.head.forward(x)

    torch.manual_seed(0)
    model, plain = Past(), make()
    optimizer = sgd(model)
    sentence, watched = told_of(model, optimizer, lambda x: loss_of(model, x))
    train(plain, sgd(plain), data(3))
    assert "block.forward(x)" in sentence
    assert ("If something is compiled, call levada.watch before the first compiled call" in sentence) is compiler
    assert watched.samples[-1].values["signal_rms"].isnan().all()
    assert watched.samples[-1].values["update_ratio"].isfinite().all()
    assert watched.samples[-1].scalars["loss"] > 0


def test_complex_networks():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(3, 3, dtype=torch.complex64) for _ in range(3)))
    optimizer = sgd(model)
    sentence, watched = told_of(model, optimizer, lambda x: model(x.to(torch.complex64)).abs().square().mean())
    assert "give complex64 numbers" in sentence
    assert "compiled" not in sentence
    assert "forward" not in sentence
    norm = torch.stack([p.grad.abs().square().sum() for p in model.parameters()]).sum().sqrt()
    assert watched.samples[-1].scalars["gradient_norm"] == pytest.approx(float(norm))
    assert watched.samples[-1].values["signal_rms"].isnan().all()
    assert watched.samples[-1].values["update_ratio"].isfinite().all()
