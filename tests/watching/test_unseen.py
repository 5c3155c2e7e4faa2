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


class Some(type(make())):
    """Calls its blocks one way or another."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        x = self.embed(x)
        for i, block in enumerate(self.blocks):
            x = self.call(i, block, x)
        return self.head(x)


def some(call, change=lambda model: None):
    torch.manual_seed(0)
    model = Some(call)
    change(model)
    optimizer = sgd(model)
    return told_of(model, optimizer, lambda x: loss_of(model, x))


def test_some_blocks_that_run_past_their_hooks_are_named(monkeypatch):
    monkeypatch.setattr(torch._dynamo.utils, "counters", {})
    sentence, watched = some(lambda i, block, x: block.forward(x) if i < 2 else block(x))
    assert sentence.startswith("watch: blocks.0, blocks.1 learned and were not seen to run: something runs the blocks")
    assert watched.samples[-1].values["signal_rms"].isnan().tolist() == [False, True, True, False, False]


def test_some_complex_blocks_are_named():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6, dtype=torch.complex64)

        def forward(self, x):
            return self.linear(x.to(torch.complex64))

    sentence, _ = some(
        lambda i, block, x: block(x).abs() if i == 1 else block(x),
        lambda model: model.blocks.__setitem__(1, Turned()),
    )
    assert "blocks.1 learned and was not seen to run: blocks that give complex64 numbers are not measured" in sentence


@pytest.mark.filterwarnings("error")
def test_blocks_that_rest_or_share_their_weights_are_not_named():
    torch.manual_seed(0)
    model = Some(lambda i, block, x: x if i == 0 else block.forward(x) if i == 2 else block(x))
    model.blocks[2].linear.weight = model.blocks[1].linear.weight
    optimizer = sgd(model)
    with watch(model, optimizer) as watched:
        train(model, optimizer, data(6))
    assert watched.samples[-1].values["signal_rms"].isnan().sum() == 2


@pytest.mark.parametrize("kind", ["evolution", "func"])
def test_gradients_that_come_by_no_pass_that_is_seen_are_said_and_measured(kind):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    names, optimizer = [name for name, _ in model.named_parameters()], sgd(model, 0.01)

    def gradients(x):
        if kind == "evolution":
            with torch.no_grad():
                model(x)
            return [torch.full_like(p, 0.5) for p in model.parameters()]
        values = {name: p.detach() for name, p in model.named_parameters()}
        found = torch.func.grad(lambda v: torch.func.functional_call(model, v, (x,)).square().mean())(values)
        return [found[name] for name in names]

    with warnings.catch_warnings(record=True) as told, watch(model, optimizer) as watched:
        warnings.simplefilter("always")
        for x in data(40):
            for p, gradient in zip(model.parameters(), gradients(x), strict=True):
                p.grad = gradient
            weight, given = model[0].weight.detach().clone(), model[0].weight.grad
            optimizer.step()
    (sentence,) = [str(one.message) for one in told if str(one.message).startswith("watch:")]
    assert "16 steps were made, and no pass of the model" in sentence
    assert [sample.step for sample in watched.samples] == list(range(15, 40))
    last = watched.samples[-1].values
    assert last["signal_rms"].isnan().all()
    assert last["gradient_rms"].isnan().all()
    root = given.double().square().mean().sqrt()
    assert last["weight_gradient_rms"][0].item() == pytest.approx(float(root), rel=1e-5)
    moved = (0.01 * root) / weight.double().square().mean().sqrt()
    assert last["update_ratio"][0].item() == pytest.approx(float(moved), rel=1e-3)
    assert watched.standing.verdict == "unknown"
