"""Layers of many kinds whose weights get no gradient: which of them lose it, and in what."""

import math
import pickle
import time
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import levada
from levada.watching.verdict import severed
from levada.watching.verdict.severed import LOOKS, PASSES, Severed

DIM = 4


class Own(nn.Module):
    """A layer by a function of itself and its input, with a weight of its own, and more."""

    def __init__(self, function, shape=(DIM, DIM), **more):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(shape) / 2)
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x, *given):
        return self.function(self, x, *given)


def changed(kind, function, *of, **options):
    """Make a layer of torch.nn with another forward."""
    return type("Changed", (kind,), {"forward": function})(*of, **options)


def look(layer, updates=LOOKS + PASSES + 1, *, call=None, schedule=None, each=lambda layer, step: None):
    """Train a layer between two others, and return what has looked for weights that lose their gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, DIM), layer, nn.Linear(DIM, 1))
    optimizer, looking = torch.optim.SGD(model.parameters(), lr=1e-3), Severed()
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule) if schedule else None
    for step in range(updates):
        optimizer.zero_grad()
        x = model[0](torch.randn(8, 3))
        model[2](call(layer, x) if call else layer(x)).square().mean().backward()
        each(layer, step)
        looking.before_update(model, [optimizer])
        optimizer.step()
        if rate:
            rate.step()
    return looking


def linear(then=lambda layer: None):
    layer = nn.Linear(DIM, DIM)
    then(layer)
    return layer


def give_another_output(layer):
    layer.hooked = True
    layer.register_forward_hook(lambda layer, given, output: given[0] + 0 * output)


class Through(torch.autograd.Function):
    """Gives what it is given, as an exchange between processes does for autograd."""

    @staticmethod
    def forward(context, values):
        return 1 * values

    @staticmethod
    def backward(context, gradient):
        return gradient


class Disabled(nn.Linear):
    """A frozen layer with a change to it that is switched off."""

    def __init__(self):
        super().__init__(DIM, DIM)
        self.weight.requires_grad_(False)
        self.change = nn.Parameter(torch.zeros(DIM, DIM))


def other_weights(layer, x):
    return torch.func.functional_call(layer, {"weight": torch.ones(DIM, DIM)}, (x,))


HEALTHY = {
    "a token for a mask that is not used": (Own(lambda s, x: 2 * x, (1, 1, DIM)), None),
    "a layer that is left out in a warm-up": (Own(lambda s, x: 1.0 * x), None),
    "a layer that is left out often": (Own(lambda s, x: x), None),
    "a gate that is a number": (Own(lambda s, x: x + 0.0 * (x @ s.weight)), None),
    "a gate that is given": (Own(lambda s, x, g: x + g * (x @ s.weight)), lambda s, x: s(x, torch.zeros(1))),
    "a gate within an exchange": (Own(lambda s, x: Through.apply(x + 0.0 * (x @ s.weight))), None),
    "a rectifier within that is shut": (Own(lambda s, x: x + torch.relu(x @ s.weight - 1e3)), None),
    "a second input of zero": (nn.Bilinear(DIM, DIM, DIM), lambda s, x: x + s(x, torch.zeros_like(x))),
    "a mask of zeros": (Own(lambda s, x: x + x @ (s.weight * s.mask), mask=torch.zeros(DIM, DIM)), None),
    "pruned": (linear(lambda s: prune.random_unstructured(s, "weight", 1.0)), None),
    "all weights dropped": (Own(lambda s, x: x + x @ functional.dropout(s.weight, 1.0)), None),
    "a hook that gives another output": (linear(give_another_output), None),
    "a call with other weights": (linear(), other_weights),
    "gradients that cancel": (linear(), lambda s, x: x + s(x) - s(x)),
    "an adapter that is switched off": (Disabled(), None),
    "a layer that others are within": (
        Own(lambda s, x: s.inner(x), (1, DIM), inner=nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU())),
        None,
    ),
    "a step function of the input": (Own(lambda s, x: x + 0.0 * (x.sign() @ s.weight)), None),
}


@pytest.mark.parametrize(("layer", "call"), HEALTHY.values(), ids=HEALTHY)
def test_weights_that_are_of_no_use_or_closed_within_their_layer_lose_nothing(layer, call):
    looking = look(layer, LOOKS + 3, call=call)
    assert layer._forward_hooks
    looking.close()
    assert not layer._forward_hooks or hasattr(layer, "hooked")
    looking = look(layer, LOOKS + 8, call=call)
    assert not looking.names
    assert not looking.waits
    assert not layer._forward_hooks or hasattr(layer, "hooked")


class Zeros(torch.autograd.Function):
    @staticmethod
    def forward(context, weight):
        return weight.sign()

    @staticmethod
    def backward(context, gradient):
        return 0 * gradient


class Signs(nn.Module):
    def forward(self, weight):
        return weight.sign() / 2


def attention():
    layer = nn.MultiheadAttention(DIM, 2)
    parametrize.register_parametrization(layer, "in_proj_weight", Signs())
    return layer


def attend(layer, x):
    query, key = x[:, None], torch.randn(8, 8, DIM)
    return x + layer(query, key[:, :1], key[:, :1])[0][:, 0]


def looked_up(layer, x):
    return x + layer(torch.arange(8) % 3)


def by_name(layer, x):
    return layer(input=x)


SEVERED = {
    "called by keyword": (
        changed(nn.Linear, lambda s, input: functional.linear(input, s.weight.sign()), DIM, DIM),
        by_name,
        "sign",
    ),
    "an embedding": (
        changed(nn.Embedding, lambda s, i: functional.embedding(i, (3 * s.weight).round()), 3, DIM),
        looked_up,
        "round",
    ),
    "the projections of attention": (attention(), attend, "sign"),
    "beside another weight": (
        Own(lambda s, x: x @ s.other @ s.weight.sign(), other=nn.Parameter(torch.randn(DIM, DIM))),
        None,
        "sign",
    ),
    "a function of its own": (Own(lambda s, x: x @ Zeros.apply(s.weight)), None, "Zeros"),
    "a sign before an exchange": (Own(lambda s, x: Through.apply(x @ s.weight.sign())), None, "sign"),
    "matrices of several experts": (
        Own(lambda s, x: torch.einsum("nd,edf->nf", x, s.weight.floor()), (2, DIM, DIM)),
        None,
        "floor",
    ),
    "by steps of a division": (
        Own(lambda s, x: x @ torch.div(s.weight, 0.1, rounding_mode="floor")),
        None,
        "div",
    ),
    "drawn": (Own(lambda s, x: x @ torch.bernoulli(s.weight.sigmoid())), None, "bernoulli"),
    "what comes out is rounded": (Own(lambda s, x: x + (x @ s.weight).round()), None, "round"),
    "a comparison": (Own(lambda s, x: x @ (s.weight > 0).float()), None, ""),
    "an argmax": (Own(lambda s, x: x @ functional.one_hot(s.weight.argmax(0), DIM).float()), None, ""),
    "data": (changed(nn.Linear, lambda s, x: functional.linear(x, s.weight.data, s.bias), DIM, DIM), None, ""),
    "a convolution with data": (
        changed(nn.Conv1d, lambda s, x: functional.conv1d(x, s.weight.data, s.bias, padding=1), 1, 1, 3),
        lambda s, x: x + s(x[:, None])[:, 0],
        "",
    ),
    "under checkpointing": (
        Own(lambda s, x: x @ s.weight.sign()),
        lambda s, x: checkpoint(s, x, use_reentrant=False),
        "sign",
    ),
    "under reentrant checkpointing": (
        Own(lambda s, x: x @ s.weight.sign()),
        lambda s, x: checkpoint(s, x, use_reentrant=True),
        "sign",
    ),
}


@pytest.mark.parametrize(("layer", "call", "lost_in"), SEVERED.values(), ids=SEVERED)
def test_weights_whose_gradient_is_lost_are_named_with_what_it_is_lost_in(layer, call, lost_in):
    assert list(look(layer, call=call).names.values()) == [lost_in]


def rounding():
    return Own(lambda s, x: x @ (4 * s.weight).round())


def test_a_rate_that_begins_at_zero_hides_nothing_and_one_that_stays_there_asks_for_nothing():
    assert look(rounding(), schedule=lambda step: min(step, 5) / 5).names == {"1.weight": "round"}
    assert look(rounding(), schedule=lambda step: 0.0).names == {}


def test_weights_that_are_scaled_back_to_their_norm_are_not_taken_for_learning():
    def scale(layer, step):
        layer.weight.data.mul_(2.0 / layer.weight.data.norm())

    assert look(rounding(), each=scale).names == {"1.weight": "round"}


def test_many_weights_that_rest_do_not_keep_one_from_being_looked_at():
    layer = nn.ModuleList([*(nn.Linear(DIM, DIM) for _ in range(40)), rounding()])
    looking = look(layer, updates=4 * LOOKS + PASSES + 1, call=lambda s, x: s[40](x))
    assert looking.names == {"1.40.weight": "round"}


def test_nothing_is_waited_for_where_nothing_can_be_looked_at():
    def freeze(layer, step):
        layer.weight.requires_grad_(step < LOOKS - 2)

    assert not look(rounding(), LOOKS + 1, each=freeze).waits


@pytest.mark.filterwarnings("ignore")
def test_layers_beside_a_compiled_one_are_looked_at_and_those_in_it_are_not():
    layer = nn.Sequential(nn.Sequential(rounding()), rounding())
    layer[0].compile(backend="eager")
    assert look(layer).names == {"1.1.weight": "round"}


def test_a_second_watch_looks_too_and_the_weight_is_pickled_without_a_word():
    model = nn.Sequential(rounding(), nn.Linear(DIM, 1))
    optimizer, one, two = torch.optim.SGD(model.parameters(), lr=1e-3), Severed(), Severed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(LOOKS + PASSES + 1):
            optimizer.zero_grad()
            for _ in range(20):  # passes behind an update: the first of them tell
                model(torch.randn(8, DIM)).sum().backward()
            torch.utils.hooks.warn_if_has_hooks(model[0].weight)
            pickle.dumps(model[1])
            one.before_update(model, [optimizer])
            two.before_update(model, [optimizer])
            optimizer.step()
    assert one.names == two.names == {"0.weight": "round"}


def test_sparse_gradients_that_come_late_are_gradients():
    model = nn.ModuleList(nn.Embedding(9, DIM, sparse=True) for _ in range(2))
    optimizer, looking = torch.optim.SGD(model.parameters(), lr=1e-3), Severed()
    for step in range(3 * LOOKS):
        optimizer.zero_grad()
        sum(layer(torch.arange(3)).sum() for layer in model[: 1 + step // (LOOKS + 2)]).backward()
        looking.before_update(model, [optimizer])
        optimizer.step()
        assert bool(looking._weights) == (step < LOOKS + 2)
    assert not looking.names


def test_an_error_of_its_own_takes_its_hooks_off(monkeypatch):
    model = nn.Sequential(rounding(), nn.Linear(DIM, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monkeypatch.setattr(severed, "_to_host", lambda sizes: 1 / 0)

    def train():
        for _ in range(LOOKS + 1):
            optimizer.zero_grad()
            model(torch.randn(8, DIM)).sum().backward()
            optimizer.step()

    with levada.watch(model, optimizer, every=1, max_overhead=math.inf):
        with pytest.warns(UserWarning, match="never gets to raised ZeroDivisionError"):
            train()
        assert not model[0].weight._backward_hooks


def signs(layer, x):
    return functional.linear(x, layer.weight.sign(), layer.bias)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.NAdam])
def test_a_decay_that_carries_weights_past_zero_hides_nothing(kind):
    torch.manual_seed(0)
    model = nn.Sequential(changed(nn.Linear, signs, 8, 8), nn.Linear(8, 1))
    optimizer, looking = kind(model.parameters(), lr=1e-2, weight_decay=1.0), Severed()
    model[0].weight.data.mul_(0.3)
    began = model[0].weight.detach().clone()
    for _ in range(60):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        looking.before_update(model, [optimizer])
        optimizer.step()
    assert bool((model[0].weight * began < 0).any())  # some are past it
    assert looking.names == {"0.weight": "sign"}
    assert not optimizer._optimizer_step_post_hooks


def test_what_a_moving_average_makes_under_a_decay_is_not_taken_for_decay():
    def averaged(layer, x):
        weight = layer.weight
        with torch.no_grad():
            weight.mul_(0.9).add_(0.1 * torch.randn_like(weight))
        return functional.linear(x, weight.sign())

    torch.manual_seed(0)
    model = nn.Sequential(changed(nn.Linear, averaged, 8, 8), nn.Linear(8, 1))
    optimizer, looking = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1.0), Severed()
    for _ in range(60):
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        looking.before_update(model, [optimizer])
        optimizer.step()
    assert looking.names == {}
    assert looking._weights == []  # it is known to be made otherwise


def test_the_time_of_the_hooks_is_told_with_the_rest(monkeypatch):
    found = severed.lost_in

    def slow(*of):
        time.sleep(0.02)
        return found(*of)

    monkeypatch.setattr(severed, "lost_in", slow)
    model = nn.Sequential(changed(nn.Linear, signs, 8, 8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with levada.watch(model, optimizer, every=1000) as watch:
        for step in range(LOOKS + PASSES + 1):
            if step == LOOKS - 1:
                before = watch.overhead
            optimizer.zero_grad()
            model(torch.randn(16, 8)).square().mean().backward()
            optimizer.step()
    assert before < 0.5 < watch.overhead  # by now nearly all of the time was in them
    assert watch.judge.between.severed == {"0.weight": "sign"}
