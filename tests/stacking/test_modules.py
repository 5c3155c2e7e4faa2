"""What changes between two calls is seen, also where the calls before found nothing changed and compared no values."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from tests.stacking.stacks import DEPTH, DIM, pair
from torch import Tensor, nn

from levada._errors import UsageError
from levada.connections import Plain
from levada.stacking import modules
from levada.stacking.kinds import Kind, same


class Holder(nn.Module):
    """Reads what a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(DIM, DIM), nn.Tanh()
        self.linear.register_buffer("shift", torch.zeros(DIM))
        self.by, self.list = 0.0, [1.0]

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(sum(self.linear.buffers(), self.linear(x)))
        for child in self.act.children():
            y = child(y)
        for shift in self.act.buffers():
            y = y + shift
        y = y if self.training else 2 * y
        return y + torch.atan2(y.square() * self.list[0] * self.by, torch.full_like(y, -1.0))


class Halved(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def _hook(module, args, y):
    return y / 2


CHANGES = {
    "attribute": lambda b: setattr(b, "by", 3.0),
    "sign of zero": lambda b: setattr(b, "by", -0.0),
    "in a list": lambda b: b.list.__setitem__(0, -1.0),
    "mode": lambda b: setattr(b, "training", False),
    "hook": lambda b: b.act.register_forward_hook(_hook),
    "table of hooks": lambda b: setattr(b.act, "_forward_hooks", OrderedDict({0: _hook})),
    "class": lambda b: setattr(b.act, "__class__", Halved),
    "method": lambda b: setattr(b.act, "forward", lambda x: x / 2),
    "module": lambda b: setattr(b, "act", nn.ReLU()),
    "first module in a module": lambda b: b.act.add_module("more", nn.ReLU()),
    "table of modules": lambda b: setattr(b, "_modules", {**b._modules, "act": nn.ReLU()}),
    "buffer": lambda b: setattr(b.linear, "shift", torch.ones(DIM)),
    "buffer elsewhere": lambda b: setattr(b.linear.shift, "data", torch.ones(DIM)),
    "buffer of other strides": lambda b: setattr(b.linear.shift, "data", torch.arange(2.0 * DIM)[::2]),
    "another buffer": lambda b: b.linear.register_buffer("more", torch.ones(DIM)),
    "first buffer of a module": lambda b: b.act.register_buffer("shift", torch.ones(DIM)),
    "table of attributes": lambda b: setattr(b, "__dict__", {**b.__dict__, "by": 3.0}),
    "table of a child's attributes": lambda b: setattr(b.act, "__dict__", {**b.act.__dict__, "forward": lambda x: x}),
    "table of buffers": lambda b: setattr(b.linear, "_buffers", {"shift": torch.ones(DIM)}),
}


@pytest.mark.parametrize(("which", "counted"), [([2], True), (range(DEPTH), True), ([2], False)])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_after_calls_without_one_counts(name, which, counted, batch, monkeypatch):
    plain, stacked = pair(Holder, Plain)
    if name != "sign of zero":
        for layer in (*plain, *stacked):
            layer.branch.by = 1.0
    if not counted:
        monkeypatch.setattr(modules, "_version", None)
    looked: list[Kind] = []
    difference = Kind.difference
    monkeypatch.setattr(Kind, "difference", lambda kind: (looked.append(kind), difference(kind))[1])
    with torch.no_grad():
        for _ in range(3):
            looked.clear()
            stacked(batch)
        runner = stacked.stacked.cache["runner"]
        if counted and modules._version is not None:
            assert [type(kind.modules[0]) for kind in looked] == [Holder]  # which holds a list
        assert len(runner.programs) == 1
        for layer in (*plain, *stacked):
            if layer.connection.layer in which:
                CHANGES[name](layer.branch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(stacked(batch), plain(batch))


def test_a_table_of_parameters_that_is_replaced_is_an_error(batch):
    plain, stacked = pair(Holder, Plain)
    with torch.no_grad():
        for _ in range(3):
            stacked(batch)
        linear = stacked[2].branch.linear
        before, linear._parameters = linear._parameters, dict(nn.Linear(DIM, DIM).named_parameters())
        with pytest.warns(UserWarning, match="the tree of modules"), pytest.raises(UsageError, match="of its own now"):
            stacked(batch)
        # What was installed is taken out.
        assert dict.__getitem__(stacked[0].branch.linear._parameters, "weight") is None
        linear._parameters = before
        assert torch.equal(stacked(batch), plain(batch))


@pytest.mark.parametrize(
    ("some", "other", "expected"),
    [
        (0.0, -0.0, False),
        (1, True, False),
        (2, 2.0, False),
        (float("nan"), float("nan"), True),
        (np.float64(0.5), 0.5, False),
        ([1, (0.0,)], [1, (-0.0,)], False),
        ({"by": {0.0}}, {"by": {-0.0}}, False),
        ({("a", 0.0)}, {("a", -0.0)}, False),
        ({frozenset({(1,)})}, {frozenset({(True,)})}, False),
        ({("a", frozenset({0.0}))}, {("a", frozenset({0.0}))}, True),
        ({"by": [float("inf")]}, {"by": [float("inf")]}, True),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, False),
        (torch.ones(2), torch.ones(2), False),
    ],
)
def test_what_does_something_else_to_a_tensor_is_not_the_same(some, other, expected):
    assert same(some, other) == same(other, some) == expected
    assert same(some, some)
