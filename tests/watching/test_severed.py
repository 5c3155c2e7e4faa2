"""Weights behind a function without a derivative, and all that has no gradient and is as it should be."""

import copy
import io
import math
from dataclasses import asdict

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import levada
from levada.report.words import phrase
from levada.watching.verdict.severed import Severed


class Binary(nn.Linear):
    """A linear map by the signs of its weights; `through` says how a gradient gets to them."""

    through = staticmethod(lambda w: w.sign() / 4)

    def forward(self, x):
        return functional.linear(x, self.through(self.weight), self.bias)


class Half(nn.Module):
    """A block with an ordinary weight, and one that is rounded."""

    def __init__(self, dim):
        super().__init__()
        self.norm, self.into, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim), Binary(dim, dim, bias=False)

    def forward(self, x):
        return x + self.out(functional.relu(self.into(self.norm(x))))


def train(body, steps=90, *, kind=torch.optim.AdamW, each=lambda model, step: None, every=20, **options):
    """Watch a network of 8 inputs that learns to tell 3 classes, and return the watch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), *body(), nn.Linear(16, 3))
    optimizer = kind(model.parameters(), lr=options.pop("lr", 3e-3), **options)
    of = torch.randn(8, 3)
    overhead = math.inf if every == 1 else 0.01
    with levada.watch(model, optimizer, every=every, max_overhead=overhead) as watch:
        for step in range(steps):
            x = torch.randn(32, 8)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), (x @ of).argmax(1)).backward()
            each(model, step)
            optimizer.step()
    return watch


def severed(watch):
    return [f for f in watch.findings if f.rule == "frozen_layers" and f.severity != "info"]


def with_(through, count=3):
    def body():
        layers = [Binary(16, 16) for _ in range(count)]
        for layer in layers:
            layer.through = through
        return [part for layer in layers for part in (layer, nn.ReLU())]

    return body


@pytest.mark.parametrize(
    "through",
    [
        lambda w: w.sign() / 4,
        lambda w: (w * 8).round() / 8,
        lambda w: (w > 0).float() / 4 - 0.125,
        lambda w: w.detach(),
    ],
    ids=["sign", "round", "comparison", "detach"],
)
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_weights_behind_a_function_without_a_derivative_are_one_warning_that_names_them(through, kind):
    watch = train(with_(through), kind=kind)
    (found,) = severed(watch)
    assert (found.severity, found.status) == ("warn", "fired")
    assert found.evidence["parameters"] == ["1.weight", "3.weight", "5.weight"]
    assert found.where == {"first": "1", "last": "5"}
    assert "The weights 1.weight, 3.weight, 5.weight never had a gradient other than zero" in found.claim
    assert phrase(asdict(found)) == "Some weights get no gradient in modules 1 to 5"  # the modules get theirs
    assert [f for f in watch.findings if f.rule == "frozen_layers"] == [found]
    assert watch.report().verdict == "warn"


def test_a_weight_is_named_though_another_of_its_block_learns_and_it_has_no_bias():
    watch = train(lambda: [Half(16) for _ in range(3)])
    (found,) = severed(watch)
    assert found.evidence["parameters"] == ["1.out.weight", "2.out.weight", "3.out.weight"]
    assert (found.where["first"], found.where["last"]) == ("1", "3")


def test_weights_that_a_parametrization_rounds_belong_to_the_layer_around_it():
    class Rounded(nn.Module):
        def forward(self, w):
            return (w * 8).round() / 8

    def body():
        layer = nn.Linear(16, 16)
        parametrize.register_parametrization(layer, "weight", Rounded())
        return [layer]

    (found,) = severed(train(body))
    assert found.evidence["parameters"] == ["1.parametrizations.weight.original"]


def test_a_convolution_and_a_checkpointed_layer_are_looked_at_too():
    class Signs(nn.Conv1d):
        def forward(self, x):
            return functional.conv1d(x, self.weight.sign() / 4, self.bias, padding=1)

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = Signs(1, 1, 3), Binary(16, 16)

        def forward(self, x):
            x = self.conv(x[:, None])[:, 0]
            return checkpoint(self.linear, x, use_reentrant=False)

    (found,) = severed(train(lambda: [Rows()]))
    assert found.evidence["parameters"] == ["1.conv.weight", "1.linear.weight"]


def gate(value, *, learns):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)
            self.scale = nn.Parameter(torch.tensor(value), requires_grad=learns)

        def forward(self, x):
            return self.norm(x + self.scale * torch.relu(self.linear(x)))

    return lambda: [Gated(), Gated()]


class Lora(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(16, 16).requires_grad_(False)
        self.a, self.b = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


class Experts(nn.Module):
    """Two experts, of which the second is never asked, and a third that is given rows of zeros."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        return self.experts[0](x) + self.experts[1](x[:0]).sum() + self.experts[2](torch.zeros_like(x))


class Dead(nn.Module):
    """A linear map whose rectifier is off for every input, beside the identity."""

    def __init__(self):
        super().__init__()
        self.linear, self.after = nn.Linear(16, 16), nn.Linear(16, 16)
        nn.init.constant_(self.linear.bias, -100.0)

    def forward(self, x):
        return x + self.after(torch.relu(self.linear(x)))


class Average(nn.Module):
    """A matrix that the loop's gradient never gets to, and that a moving average of its inputs makes."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x):
        with torch.no_grad():
            self.codes.mul_(0.9).add_(0.1 * x.T @ x / len(x))
        return x + x @ self.codes.detach()


class Recurrent(nn.Module):
    """A recurrent layer of one step, whose state is zero: its recurrent weights have no gradient."""

    def __init__(self):
        super().__init__()
        self.layer = nn.RNN(16, 16)

    def forward(self, x):
        return self.layer(x[None])[0][0]


class Modes(nn.Module):
    """A layer with a weight for each of two modes, of which one is never asked for."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(16, 16) / 4) for _ in range(2))

    def forward(self, x):
        return x @ self.second


class Hooked(nn.Module):
    """Frozen by a hook that multiplies the gradient by zero."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.linear.weight.register_hook(lambda gradient: gradient * 0)

    def forward(self, x):
        return self.linear(x)


class Disjoint(nn.Module):
    """A layer that is given rows of which the loss does not hear, and zeros where it does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        asked = (torch.arange(len(x)) % 2)[:, None]
        return x + self.linear(x * asked) * (1 - asked)


HEALTHY = {
    "straight-through": with_(lambda w: w + (w.sign() / 4 - w).detach()),
    "a gate of zero that learns": gate(0.0, learns=True),
    "a gate that stays zero on purpose": gate(0.0, learns=False),
    "lora": lambda: [Lora(), Lora()],
    "experts": lambda: [Experts()],
    "dead by chance": lambda: [Dead()],
    "a moving average": lambda: [Average()],
    "one step of a recurrent layer": lambda: [Recurrent()],
    "a weight for another mode": lambda: [Modes()],
    "a hook that multiplies by zero": lambda: [Hooked()],
    "rows that the loss does not hear of": lambda: [Disjoint()],
    "frozen": lambda: [nn.Linear(16, 16).requires_grad_(False)],
}


@pytest.mark.parametrize("body", HEALTHY.values(), ids=HEALTHY)
def test_weights_without_a_gradient_that_are_as_they_should_be_are_not_warned_of(body):
    watch = train(body)
    assert severed(watch) == []
    assert watch.judge.between.severed == {}


def test_gradients_that_the_loop_sets_to_zero_are_not_lost_in_the_layer():
    def clear(model, step):
        model[1].weight.grad.zero_()

    assert severed(train(lambda: [nn.Linear(16, 16), nn.ReLU()], each=clear)) == []


def test_a_weight_that_gets_a_gradient_later_is_told_of_no_more():
    class Later(Binary):
        step = 0

        def forward(self, x):
            w = self.weight if self.step > 60 else self.weight.detach()
            return functional.linear(x, w, self.bias)

    def count(model, step):
        model[1].step = step

    watch = train(lambda: [Later(16, 16), nn.ReLU()], steps=160, each=count, every=1)
    (found,) = severed(watch)
    assert found.status == "clear"


def test_hooks_are_there_for_some_updates_only_and_no_copy_has_them():
    model = nn.Sequential(Binary(4, 4), nn.Linear(4, 1))
    optimizer, looking = torch.optim.SGD(model.parameters(), lr=0.1), Severed()
    hooks = []
    for _ in range(60):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).sum().backward()
        looking.before_update(model, [optimizer])
        hooks.append(len(model[0]._forward_hooks) + len(model[0].weight._backward_hooks or ()))
        if hooks[-1]:
            copied = copy.deepcopy(model)
            torch.save(model, io.BytesIO())
            copied(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    assert looking.names == {"0.weight": "sign"}
    assert [i for i, n in enumerate(hooks) if n] == [7, 8, 9]
    looking.close()


def test_a_watch_that_ends_early_leaves_no_hook():
    watch = train(with_(lambda w: w.sign()), steps=9)
    for module in watch.model.modules():
        assert not module._forward_hooks
    for p in watch.model.parameters():
        assert not p._backward_hooks


def test_a_model_whose_weights_all_have_a_gradient_is_looked_at_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer, looking = torch.optim.SGD(model.parameters(), lr=0.1), Severed()
    model(torch.randn(8, 4)).sum().backward()
    looking.before_update(model, [optimizer])
    assert looking._weights == []
    assert not looking.waits


class Around(nn.Module):
    """Computes with the weight of a layer that it does not call."""

    def __init__(self, quantised):
        super().__init__()
        self.layer, self.quantised = nn.Linear(8, 8), quantised

    def forward(self, x):
        return x + torch.relu(nn.functional.linear(x, self.quantised(self.layer.weight), self.layer.bias))


@pytest.mark.parametrize(
    ("quantised", "warned"),
    [
        (lambda w: torch.round(16 * w) / 16, ["1.layer.weight", "2.layer.weight"]),
        (lambda w: w + (torch.round(16 * w) / 16 - w).detach(), []),
    ],
    ids=["forgotten", "straight_through"],
)
def test_a_module_that_computes_with_the_weight_of_a_layer_that_it_does_not_call(quantised, warned):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), Around(quantised), Around(quantised), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with levada.watch(model, optimizer, every=1, max_overhead=math.inf) as watch:
        for _ in range(40):
            x = torch.randn(16, 4)
            optimizer.zero_grad()
            (model(x) - x[:, :1]).square().mean().backward()
            optimizer.step()
    found = [f for f in watch.findings if f.severity == "warn" and f.rule == "frozen_layers"]
    assert [name for f in found for name in f.evidence["parameters"]] == warned
    for finding in found:  # the repair runs as it is printed, whatever is quantised
        y = torch.randn(8, requires_grad=True)
        names = {"x": y, "quantised": quantised}
        exec(finding.remedies[0].patch, names)
        torch.testing.assert_close(names["x"], quantised(y))
        assert torch.equal(torch.autograd.grad(names["x"].sum(), y)[0], torch.ones(8))
