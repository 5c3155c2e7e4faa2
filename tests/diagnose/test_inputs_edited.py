"""A forward pass that edits its inputs in place: every pass starts from the same batch, and the user's comes back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import levada


class Doubles(nn.Module):
    """Doubles its input in place, so that each pass on the same tensor would start from twice as much."""

    def __init__(self, net: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.net, self.in_place = net, in_place

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.mul_(2.0) if self.in_place else x * 2.0)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [m for _ in range(12) for m in (nn.Linear(16, 16), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(16, 3))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(32, 16, generator=generator), torch.randint(0, 3, (32,), generator=generator)


def test_the_batch_comes_back(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    kept = copy.deepcopy(batch)
    model = Doubles(net, in_place=True)
    report = levada.check(model, batch, optimizer="SGD", lr=0.01)
    torch.testing.assert_close(batch, kept, rtol=0, atol=0)
    assert any("edits its inputs in place" in note for note in report.notes)
    assert not model._forward_pre_hooks
    assert not model._forward_pre_hooks_with_kwargs


def test_the_same_figures_as_without_the_edit(net: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    edited = levada.check(Doubles(copy.deepcopy(net), in_place=True), batch, optimizer="SGD", lr=0.01)
    plain = levada.check(Doubles(net, in_place=False), batch, optimizer="SGD", lr=0.01)
    assert [f.rule for f in edited.findings] == [f.rule for f in plain.findings]
    for one, other in zip(edited.blocks, plain.blocks, strict=True):
        assert one["fields"] == other["fields"] if "fields" in one else one == other
    assert not any("edits its inputs" in note for note in plain.notes)


def test_the_batch_comes_back_after_an_error(batch: tuple[Tensor, Tensor]) -> None:
    class Raises(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x.mul_(2.0))
            raise RuntimeError("broken")

    kept = copy.deepcopy(batch)
    with pytest.raises(levada._errors.UsageError, match="broken"):
        levada.check(Raises(16, 3), batch)
    torch.testing.assert_close(batch, kept, rtol=0, atol=0)
