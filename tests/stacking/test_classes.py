"""Classes of layers' modules, and buffers, that change after a layer was recorded."""

from __future__ import annotations

import types
from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from tests.stacking.stacks import DEPTH, DIM, gradients, is_recorded, pair
from torch import Tensor, nn


class Scaled(nn.Linear):
    """Reads an attribute of its class."""

    by: object = 1.0

    def __init__(self) -> None:
        super().__init__(DIM, DIM)
        self.register_buffer("shift", torch.zeros(DIM))

    @property
    def factor(self) -> float:
        return self.by[0] if isinstance(self.by, list) else self.by

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor + self.shift


class Negative(Scaled):
    """Returns the opposite."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def test_an_attribute_of_a_class_that_changes_counts(batch, monkeypatch):
    plain, stacked = pair(Scaled)
    shared = [3.0]
    for value in (1.0, 2.0, shared):
        monkeypatch.setattr(Scaled, "by", value)
        assert is_recorded(stacked)
        assert torch.equal(stacked(batch), plain(batch))
    shared[0] = 4.0
    assert torch.equal(stacked(batch), plain(batch))
    assert is_recorded(stacked)
    monkeypatch.setattr(Scaled, "by", torch.tensor(2.0))
    with pytest.warns(UserWarning, match="'by' holds a Tensor"):
        assert torch.equal(stacked(batch), plain(batch))


def test_a_method_that_is_replaced_counts(batch, monkeypatch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()))
    assert is_recorded(stacked)
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: x.relu())
    assert torch.equal(stacked(batch), plain(batch))
    assert is_recorded(stacked)


def test_a_class_that_is_replaced_counts(batch):
    plain, stacked = pair(Scaled)
    assert is_recorded(stacked)
    for stack in (plain, stacked):
        for layer in stack:
            layer.branch.__class__ = Negative
    assert is_recorded(stacked)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    plain[2].branch.__class__ = stacked[2].branch.__class__ = Scaled
    with pytest.warns(UserWarning, match="the tree of modules is not the same"):
        assert torch.equal(stacked(batch), plain(batch))


def test_a_class_that_changes_before_gradients_of_gradients_is_an_error(batch, monkeypatch):
    _, stacked = pair(Scaled)
    x = batch.clone().requires_grad_()
    y = stacked(x).sum()
    monkeypatch.setattr(Scaled, "by", 2.0)
    with pytest.raises(RuntimeError, match="another one now"):
        torch.autograd.grad(y, x, create_graph=True)


def test_slots_are_not_recorded(batch):
    class Slotted(Scaled):
        __slots__ = ("hidden",)

    _, stacked = pair(Scaled)
    for layer in stacked:
        layer.branch = Slotted()
    stacked.arrange(stacked=False).arrange(stacked=True)
    with pytest.warns(UserWarning, match="Slotted has slots"):
        stacked(batch)


def test_a_buffer_that_has_a_graph_gets_its_gradient(batch):
    plain, stacked = pair(Scaled)
    assert is_recorded(stacked)
    found = []
    for stack in (plain, stacked):
        source = torch.ones(DIM, requires_grad=True)
        for layer in stack:
            layer.branch.shift = 2 * source
        if stack is plain:
            stack(batch).square().sum().backward()
        else:
            with pytest.warns(UserWarning, match="a buffer requires a gradient"):
                stack(batch).square().sum().backward()
        found.append(source.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("make", [lambda: torch.arange(2.0 * DIM)[::2], lambda: torch._neg_view(torch.ones(DIM))])
def test_a_buffer_of_other_strides_or_signs_is_recorded_again(make, batch):
    plain, stacked = pair(Scaled)
    assert is_recorded(stacked)
    for i in (*range(DEPTH), 2):
        for stack in (plain, stacked):
            stack[i].branch.shift = make()
    assert torch.equal(stacked(batch), plain(batch))
    assert is_recorded(stacked)
    plain[2].branch.shift = stacked[2].branch.shift = torch.ones(DIM)
    with pytest.warns(UserWarning, match="buffers of one name differ in kind"):
        assert torch.equal(stacked(batch), plain(batch))


class Namespace:
    """Holds a setting."""

    by = 1.0


class Held(Scaled):
    """Asks for the scale in a way of its own."""

    options: ClassVar[dict[str, float]] = {"by": 1.0}

    def __init__(self, way: object) -> None:
        super().__init__()
        self.way = way

    @property
    def factor(self) -> float:
        return self.way(self) if isinstance(self.way, types.FunctionType) else self.way.by


def of_function(module: Held) -> float:
    return of_function.by


of_function.by = 1.0


def by_default(module: Held, *, by: float = 1.0) -> float:
    return by


class ByString(Held):
    """Asks by name."""

    @property
    def factor(self) -> float:
        return getattr(self, "options")["by"]  # noqa: B009


class OfMethod(Held):
    """Asks a method."""

    @property
    def factor(self) -> float:
        return self.multiplied.by

    def multiplied(self) -> None:
        raise AssertionError

    multiplied.by = 1.0


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: Held(Namespace), lambda patch: patch.setattr(Namespace, "by", 3.0)),
        (lambda: Held(of_function), lambda patch: patch.setattr(of_function, "by", 3.0)),
        (lambda: Held(by_default), lambda patch: patch.setitem(by_default.__kwdefaults__, "by", 3.0)),
        (lambda: ByString(None), lambda patch: patch.setitem(Held.options, "by", 3.0)),
        (lambda: OfMethod(None), lambda patch: patch.setattr(OfMethod.multiplied, "by", 3.0)),
    ],
)
def test_what_a_class_or_a_function_holds_counts(make, change, batch, monkeypatch):
    plain, stacked = pair(make)
    expected = 1 * plain(batch)
    namespace = stacked[0].branch.way is Namespace
    with pytest.warns(UserWarning, match="'way' holds a class of Python code") if namespace else nullcontext():
        assert torch.equal(stacked(batch), expected)
    assert is_recorded(stacked) != namespace
    change(monkeypatch)
    assert torch.equal(stacked(batch), plain(batch))
    assert not torch.equal(plain(batch), expected)


def test_a_class_of_pytorch_is_recorded(batch):
    def make() -> nn.Module:
        made = nn.Linear(DIM, DIM)
        made.normalization = nn.LayerNorm
        return made

    assert is_recorded(pair(make)[1])
