"""Blocks that get no gradient, beside parameters that do: what is said of them holds, and no more than that."""

import contextlib
import math

import pytest
import torch
from torch import nn

import levada


class Encoder(nn.Module):
    """An autoencoder, and a head that runs only once it has been trained."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2)))
        self.decoder = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)


def pretrained(head_is_measured, then):
    """Train the autoencoder, and then what `then` says; its target is nothing that could be predicted."""
    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    past_hooks = pytest.warns(UserWarning, match="head learned and was not seen to run")
    warned = past_hooks if then is probe and not head_is_measured else contextlib.nullcontext()
    with warned, levada.watch(model, optimizer, every=4, max_overhead=math.inf) as watch:
        for step in range(260):
            x = torch.randn(8, 4)
            hidden = model.encoder(x)
            if step < 80:
                loss = (model.decoder(hidden) - x).square().mean()
            else:
                head = model.head if head_is_measured else lambda h: nn.functional.linear(h, *model.head.parameters())
                loss = then(head, hidden, torch.randn(8, 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return [f for f in watch.findings if f.rule == "frozen_layers" and "No gradient reaches" in f.claim]


def probe(head, hidden, target):
    return (head(hidden.detach()) - target).square().mean()


def lost(head, hidden, target):
    return target.square().mean() + 0.0 * hidden.sum()


def test_a_probe_behind_a_pretraining_is_no_run_that_gets_no_gradient():
    found = pretrained(False, probe)
    assert {f.severity for f in found} == {"info"}
    assert "No gradient reaches the weights of 2 blocks" in found[-1].claim
    assert "Other parameters get one." in found[-1].claim
    found = pretrained(False, lost)
    assert {f.severity for f in found} == {"warn"}
    assert "No gradient reaches the weights of any block" in found[-1].claim


def test_what_gets_a_gradient_only_since_has_followed_and_cut_nothing():
    (found,) = pretrained(True, probe)
    assert (found.severity, found.where["first"]) == ("info", "encoder.1")
    assert "though others get one, which had none before: one training has followed another" in found.claim


def test_gradients_that_are_set_to_zero_behind_the_backward_pass_came_back_all_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with levada.watch(model, optimizer, every=1, max_overhead=math.inf) as watch:
        for step in range(50):
            x = torch.randn(8, 4)
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            for parameter in model[:2].parameters() if step > 20 else ():
                parameter.grad.zero_()
            optimizer.step()
    found = [f for f in watch.findings if f.rule == "frozen_layers"]
    assert [(f.severity, f.where) for f in found] == [("info", {"first": "0", "last": "1"})]
    assert "No gradient reaches the weights of 0 to 1" in found[0].claim
    assert "a gradient came back to what they give" in found[0].claim
    assert "set to zero between the backward pass and the update" in found[0].claim


def test_blocks_that_lost_their_gradient_at_other_steps_are_told_of_each():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(6)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    since = {1: 20, 3: 20, 4: 30}
    with levada.watch(model, optimizer, every=1, max_overhead=math.inf) as watch:
        for step in range(60):
            x = torch.randn(8, 4)
            optimizer.zero_grad()
            (model(x) - x).square().mean().backward()
            for i, first in since.items():
                if step > first:
                    model[i][0].weight.grad.zero_()
            optimizer.step()
    found = [f for f in watch.findings if f.rule == "frozen_layers"]
    assert [f.evidence["blocks"] for f in found] == [["1", "3"], ["4"]]
    assert "No gradient reaches the weights of 2 blocks (1, 3)" in found[0].claim


def generator(forward, update, steps=120):
    """Watch one model of two, whose own loss may not reach it."""
    torch.manual_seed(0)
    model, other = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))), nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with levada.watch(model, optimizer, every=4, max_overhead=math.inf) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            other(forward(model, step)).mean().backward()
            optimizer.step()
            update(model)
    return watch, [f for f in watch.findings if f.rule == "frozen_layers"]


@torch.no_grad()
def perturb(model):
    """Train without gradients, as an evolution strategy does."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.01)


def test_an_optimizer_that_steps_without_any_gradient_is_warned_of():
    watch, (found,) = generator(lambda model, step: model(torch.randn(8, 4)).detach(), lambda model: None)
    assert (found.severity, found.status, found.where) == ("warn", "fired", {"first": "0", "last": "2"})
    assert "No gradient reaches the weights of any block" in found.claim
    assert "no loss was seen that depends on them" in found.claim
    assert watch.report().verdict == "warn"


@pytest.mark.parametrize(
    ("forward", "update"),
    [
        (lambda model, step: model(torch.randn(8, 4)).detach(), perturb),
        (lambda model, step: model(torch.randn(8, 4)), lambda model: None),
    ],
    ids=["an evolution strategy", "a loss that is maximised"],
)
def test_what_moves_without_gradients_or_gets_some_is_not(forward, update):
    assert generator(forward, update)[1] == []
