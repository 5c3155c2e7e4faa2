"""`check` leaves no trace: parameters, buffers, gradients, mode, hooks and random states, bit for bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.diagnose import check

X, Y = torch.randn(16, 8), torch.arange(16) % 4


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, 16),
        nn.BatchNorm1d(16),
        nn.Linear(16, 4),
    )
    model[0].register_forward_hook(lambda *_: None)
    model[1].eval()
    model[4].weight.requires_grad_(False)
    nn.functional.cross_entropy(model(X), Y).backward()
    return model


def state(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "objects": {name: id(t) for name, t in tensors.items()},
        "bits": {name: t.detach().clone() for name, t in tensors.items()},
        "asks": {name: t.requires_grad for name, t in tensors.items()},
        "gradients": {
            name: (id(p.grad), None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()
        },
        "modes": {name: m.training for name, m in model.named_modules()},
        "hooks": {
            name: [*m._forward_hooks.values(), *m._forward_pre_hooks.values()] for name, m in model.named_modules()
        },
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def fails(outputs, targets):
    raise RuntimeError("in the loss")


@pytest.mark.parametrize("how", ["measured", "wrong shape", "failing loss", "no closure"])
def test_nothing_is_changed(how):
    model = network()
    before = state(model)
    if how == "measured":
        check(model, [(X, Y), (X, Y)], seed=3, optimizer="SGD", lr=1.0)
    else:
        batch = (X[:, :5], Y) if how == "wrong shape" else (X, Y)
        with pytest.raises(UsageError):
            check(
                model,
                batch,
                loss=fails if how == "failing loss" else None,
                optimizer="LBFGS" if how == "no closure" else None,
            )
    after = state(model)
    for key in before:
        assert same(before[key], after[key]), key


def test_the_comparison_above_would_see_a_running_mean():
    model = network()
    before = state(model)
    model(X)
    assert not same(before["bits"], state(model)["bits"])


def test_buffers_and_modes_that_the_forward_changes_come_back():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen = self.seen + len(x)
            self.body.eval()
            return self.body(x)

    model = Counter()
    held = model.seen
    check(model, (X, Y))
    assert model.seen is held
    assert model.seen.item() == 0
    assert model.body.training
    assert not model.body[1].training


def test_the_same_seed_gives_the_same_report():
    def numbers(seed):
        told = check(network(), (X, Y), seed=seed).to_dict()
        return told["blocks"], told["summary"]

    assert numbers(5) == numbers(5)
    assert numbers(5) != numbers(6)


class Capturing(nn.Module):
    """Adds a hook on its first call, remembers that it did, and needs what the hook captures."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.hooked = nn.Linear(8, 16), nn.Linear(16, 4), False

    def forward(self, x):
        if not self.hooked:
            self.body.register_forward_hook(lambda *_: self.captured.append(1))
            self.hooked = True
        self.captured = []
        out = self.head(self.body(x).relu())
        assert self.captured == [1]
        return out


def test_a_hook_that_forward_adds_to_run_again_stays():
    model = Capturing()
    check(model, (X, Y))
    assert model(X).shape == (16, 4)
    assert len(model.body._forward_hooks) == 1
    assert not model.head._forward_hooks
