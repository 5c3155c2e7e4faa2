"""What cannot go to torch.nn, or come from it, without a loss; and that nothing else is lost."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from levada._errors import UsageError
from levada.cells import LSTM, RNN, Recurrent


def normed(module, name):
    return parametrizations.weight_norm(module, name)


def pruned(module, name):
    return prune.l1_unstructured(module, name, amount=2)


@pytest.mark.parametrize(
    "cells",
    [
        lambda: [RNN(3, 5, constrained=True)],
        lambda: [RNN(3, 5), RNN(5, 5, constrained=True)],
        lambda: [normed(RNN(3, 5), "weight_hh")],
        lambda: [normed(LSTM(3, 5), "weight_hh")],
        lambda: [pruned(LSTM(3, 5), "weight_hh")],
    ],
)
def test_computed_weights_do_not_go_to_torch_as_if_they_were_parameters(cells):
    net = Recurrent(cells())
    message = (
        "a cell must hold its weights itself, got (RNN|LSTM), whose weight_hh is computed from other parameters. Take"
    )
    with pytest.raises(UsageError, match=message):
        net.to_torch()


def test_without_the_parametrization_it_goes_and_learns():
    net, x = Recurrent([RNN(3, 5, constrained=True)]), torch.randn(4, 2, 3)
    y = net(x)[0]
    parametrize.remove_parametrizations(net.cells[0], "weight_hh")
    twin = net.to_torch()
    torch.testing.assert_close(twin(x)[0], y)
    assert all(p.requires_grad for p in twin.parameters())


@pytest.mark.parametrize("change", [normed, pruned])
@pytest.mark.parametrize("name", ["weight_hh_l0", "weight_ih_l1_reverse"])
def test_computed_weights_do_not_come_from_torch(change, name):
    module = nn.RNN(3, 5, num_layers=2, bidirectional=True)
    change(module, name)
    with pytest.raises(UsageError, match=f"a module must hold its weights itself, got RNN, whose {name} is computed"):
        Recurrent.from_torch(module)


class Gated(nn.LSTM):
    def forward(self, x, state=None):
        y, state = super().forward(x, state)
        return 2 * y, state


class Named(nn.LSTM):
    """A subclass that computes what its parent does."""


def test_a_forward_of_ones_own_does_not_come_from_torch():
    with pytest.raises(
        UsageError, match=r"module must have the forward of nn.LSTM, got Gated with its own. Write a Cell"
    ):
        Recurrent.from_torch(Gated(3, 5))
    patched = nn.GRU(3, 5)
    patched.forward = lambda x: x
    with pytest.raises(UsageError, match=r"the forward of nn.GRU, got GRU with its own"):
        Recurrent.from_torch(patched)
    module, x = Named(3, 5), torch.randn(4, 2, 3)
    torch.testing.assert_close(Recurrent.from_torch(module)(x)[0], module(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN])
def test_frozen_weights_stay_frozen_and_the_others_free(kind):
    module = kind(3, 5, num_layers=2)
    module.weight_hh_l1.requires_grad_(False)
    net = Recurrent.from_torch(module)
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["layers.1.cells.0.weight_hh"]
    with torch.no_grad():
        back = net.to_torch()
    assert [n for n, p in back.named_parameters() if not p.requires_grad] == ["weight_hh_l1"]


def test_dropout_that_drops_nothing_is_kept_without_a_warning():
    net = Recurrent([LSTM(3, 5)], dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin = net.to_torch()
    assert twin.dropout == 0.5
    deep = Recurrent([LSTM(3, 5), LSTM(5, 5)], dropout=0.5).to_torch()
    x = torch.randn(4, 2, 3)
    assert not torch.equal(deep(x)[0], deep(x)[0]), "it drops"
