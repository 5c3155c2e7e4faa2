"""Parameters that are in no optimizer: facts are told, followed, and taken back."""

import gc
import math
import warnings
import weakref

import pytest
import torch
from torch import nn

import levada
from levada.watching.steps import unoptimised
from levada.watching.steps.unoptimised import Unoptimised


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(unoptimised, "UPDATES", 64)


def model():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)], nn.Linear(8, 2))


def parameters(net, blocks):
    return [p for i in blocks for p in net[i].parameters()]


def train(net, optimizers, act=lambda i: None, steps=130, given=None, run=None, batch=lambda: torch.randn(4, 8)):
    """Train, and return what was said of the rule in turn, and the watch."""
    with levada.watch(net, given or optimizers, every=5, max_overhead=math.inf, run=run) as watch:
        for i in range(steps):
            net.zero_grad()
            net(batch()).square().mean().backward()
            for one in optimizers:
                one.step()
            act(i)
    assert watch.judge.between._unoptimised is not None
    return [f for f in watch.judge.history if f.rule == "unoptimised_parameters"], watch


def sgd(those):
    return torch.optim.SGD(those, lr=0.01)


@pytest.mark.parametrize(
    ("left_out", "where"), [([4], ("4", "4")), ([0, 1, 2, 3], ("0", "3")), ([2, 3, 4], ("2", "4"))]
)
def test_what_is_left_out_is_information_whatever_it_is(left_out, where, tmp_path):
    net = model()
    said, watch = train(net, [sgd(parameters(net, set(range(5)) - set(left_out)))], run=tmp_path / "run")
    (finding,) = said
    assert (finding.severity, finding.where) == ("info", {"first": where[0], "last": where[1]})
    assert finding.evidence["number"] == 2 * len(left_out)
    assert finding.evidence["told_at"] == 64
    assert watch.report().verdict not in ("warn", "error")
    assert not list((tmp_path / "run").glob("bundles/*"))


def test_the_claim_gives_the_facts():
    net = model()
    (finding,), _ = train(net, [sgd(parameters(net, range(4)))])
    assert finding.claim == (
        "2 of 10 parameters (4.weight, 4.bias) got a gradient and did not change in the last 64 updates; no optimizer "
        "that stepped meanwhile holds them."
    )


def test_what_asks_for_no_gradient_is_neither_followed_nor_counted():
    net = model()
    net[0].requires_grad_(False)
    (finding,), _ = train(net, [sgd(parameters(net, range(1, 4)))])
    assert finding.claim.startswith("2 of 8 parameters (4.weight, 4.bias) got a gradient")
    assert finding.evidence["tests"] == {"stood_still_for": 64, "looked_at": 2}


class Gated(nn.Module):
    """x + alpha f(x), with alpha its own or one of its model's; `aside` has a second way past the gate."""

    cut = False

    def __init__(self, alpha=None, aside=False):
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.outer = nn.Linear(8, 8)
        self.aside = aside
        self.shared = None if alpha is None else (alpha,)  # no parameter of this block
        if alpha is None:
            self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        alpha = self.alpha if self.shared is None else self.shared[0]
        y = self.outer(torch.relu(self.inner(x)))
        return x + alpha * (y.detach() + 0 * y if self.cut else y) + (y if self.aside else 0)


def gated(how):
    torch.manual_seed(0)
    alpha = nn.Parameter(torch.zeros(())) if how == "one for all" else None
    blocks = [Gated(alpha, how == "another way") for _ in range(3)]
    net = nn.ModuleDict({"blocks": nn.Sequential(*blocks), "head": nn.Linear(8, 2)})
    if alpha is not None:
        net.register_parameter("alpha", alpha)
    net.forward = lambda x: net["head"](net["blocks"](x))
    return net


@pytest.mark.parametrize("how", ["each its own", "one for all"])
def test_a_gate_that_is_zero_and_in_no_optimizer_is_a_warning_that_its_repair_ends(how):
    net = gated(how)
    optimizer = torch.optim.AdamW([p for n, p in net.named_parameters() if "alpha" not in n], lr=0.01)
    said, watch = train(net, [optimizer], steps=100)
    finding = said[-1]
    assert (finding.severity, finding.status) == ("warn", "fired")
    assert finding.where == {"first": "blocks.0", "last": "blocks.2"}
    names = ["alpha"] if how == "one for all" else [f"blocks.{i}.alpha" for i in range(3)]
    assert finding.evidence["gates"] == names
    assert finding.evidence["closed"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert (
        "of 3 blocks (blocks.0 to blocks.2), which an optimizer trains, get a gradient of exactly zero" in finding.claim
    )
    assert watch.report().verdict == "warn"
    exec(finding.remedies[0].patch, {"optimizer": optimizer, "model": net})
    assert train(net, [optimizer], steps=100)[0] == []
    assert all(bool(p != 0) for n, p in net.named_parameters() if "alpha" in n)


@pytest.mark.parametrize("how", ["frozen", "another way", "weights left out", "cut elsewhere"])
def test_a_gate_that_closes_nothing_which_is_to_learn_is_no_warning(how):
    net = gated(how)
    for block in net["blocks"]:
        block.alpha.requires_grad_(how != "frozen")
        if how == "cut elsewhere":
            block.cut = True
            nn.init.constant_(block.alpha, 0.5)
    held = net["head"] if how == "weights left out" else net
    optimizer = torch.optim.AdamW([p for n, p in held.named_parameters() if "alpha" not in n], lr=0.01)
    said = train(net, [optimizer], steps=100)[0]
    assert [f.severity for f in said] == ([] if how == "frozen" else ["info"])
    assert not said or "gates" not in said[0].evidence


@pytest.mark.parametrize("how", ["half of it is zero", "it is large and added", "the blocks have learned"])
def test_a_parameter_that_is_zero_beside_blocks_that_are_cut_is_no_gate(how, monkeypatch):
    monkeypatch.setattr(unoptimised, "_NUMBERS", 4)  # of which those of half a scale are the zeros
    net = gated("each its own")
    for block in net["blocks"]:
        block.cut = how != "the blocks have learned"
        half = torch.arange(8.0) % 2
        block.alpha = nn.Parameter(half if how == "half of it is zero" else torch.full((), 0.5))
    added = nn.Parameter(torch.zeros(() if how == "the blocks have learned" else (8,)))
    if how != "half of it is zero":
        net.register_parameter("added", added)
        net.forward = lambda x: net["head"](net["blocks"](x) + added)

    def cut(i):
        for block in net["blocks"]:
            block.cut |= i == 30

    left_out = "alpha" if how == "half of it is zero" else "added"
    optimizer = torch.optim.AdamW([p for n, p in net.named_parameters() if left_out not in n], lr=0.01)
    said = train(net, [optimizer], act=cut)[0]
    assert {one.severity for one in said} == {"info"}
    assert not any("gates" in one.evidence for one in said)


@pytest.mark.parametrize("how", ["another optimizer", "by hand", "by data", "both given"])
def test_what_something_else_moves_is_passed_over(how):
    net = model()
    one, other = sgd(parameters(net, range(4))), sgd(net[4].parameters())

    def act(i):
        for p in net[4].parameters() if how.startswith("by") else ():
            if how == "by data":
                p.data.sub_(p.grad, alpha=0.01)
            else:
                with torch.no_grad():
                    p.sub_(p.grad, alpha=0.01)

    optimizers = [one] if how.startswith("by") else [one, other]
    assert train(net, optimizers, act, given=optimizers if how == "both given" else [one])[0] == []


def test_what_moves_or_asks_for_no_gradient_from_the_start_is_passed_over():
    net = model()
    net[4].requires_grad_(False)
    assert train(net, [sgd(parameters(net, range(4)))])[0] == []
    net = model()
    net[0].requires_grad_(False)
    net[2].weight_of_none = nn.Parameter(torch.ones(3))  # gets no gradient
    assert train(net, [sgd(parameters(net, [1, 3, 4]) + list(net[2][0].parameters()))])[0] == []


@pytest.mark.parametrize("how", ["held", "moved", "frozen", "replaced"])
def test_what_was_told_is_cleared_when_it_is_over(how):
    net = model()
    optimizer = sgd(parameters(net, range(4)))
    late = sgd(net[4].parameters())  # the watch was not given it

    def act(i):
        if i == 80 and how == "held":
            optimizer.add_param_group({"params": net[4].parameters()})
        elif i == 80 and how == "frozen":
            net[4].requires_grad_(False)
        elif i == 80 and how == "replaced":
            net[4] = nn.Linear(8, 2)
            optimizer.add_param_group({"params": net[4].parameters()})
        elif i > 80 and how == "moved":
            late.step()

    said, _ = train(net, [optimizer], act, steps=300)
    assert [f.status for f in said] == ["fired", "clear"]
    assert 80 < said[1].evidence["cleared_at"] <= 112


def test_an_optimizer_that_rests_for_long_is_told_of_once():
    net = model()
    optimizer, slow = sgd(parameters(net, range(4))), sgd(net[4].parameters())
    said, _ = train(net, [optimizer], lambda i: i % 100 == 99 and slow.step(), steps=500)
    assert [f.status for f in said] == ["fired", "clear"]


@pytest.mark.parametrize("how", ["unfrozen", "replaced", "left out and replaced", "exchanged"])
def test_what_is_forgotten_on_the_way_is_told(how):
    net = model()
    if how == "unfrozen":
        net[4].requires_grad_(False)
    optimizer = sgd(parameters(net, range(5) if how == "replaced" else range(4)))

    def act(i):
        if i != 50:
            return
        if how == "unfrozen":
            net[4].requires_grad_(True)
        elif how != "exchanged":
            net[4] = nn.Linear(8, 3)
        else:  # as many others
            optimizer.param_groups[0]["params"] = parameters(net, range(1, 5))

    (finding,), _ = train(net, [optimizer], act, steps=200)
    first = "0.0" if how == "exchanged" else "4"
    assert finding.evidence["parameters"] == [f"{first}.weight", f"{first}.bias"]
    assert 50 + 64 <= finding.evidence["told_at"] <= 50 + 64 + 32


def test_what_comes_to_it_or_leaves_it_renews_what_stands():
    net = model()
    optimizer = sgd(parameters(net, [1, 2, 3, 4]))

    def act(i):
        if i == 80:
            optimizer.param_groups[0]["params"] = parameters(net, [2, 3, 4])  # block 1 is forgotten too
        if i == 200:
            optimizer.add_param_group({"params": net[0].parameters()})

    said, watch = train(net, [optimizer], act, steps=300)
    assert [(f.status, f.evidence["number"]) for f in said] == [("fired", 2), ("fired", 4), ("fired", 2)]
    (finding,) = [f for f in watch.findings if f.rule == "unoptimised_parameters"]
    assert finding.evidence["parameters"] == ["1.0.weight", "1.0.bias"]


def test_what_is_replaced_is_not_kept_alive():
    net = model()
    old = weakref.ref(net[4].weight)

    def act(i):
        if i == 5:
            net[4] = nn.Linear(8, 2)
        if i == 30:
            gc.collect()
            assert old() is None

    train(net, [sgd(parameters(net, range(2)))], act, steps=40)
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("moves", [False, True])
def test_a_table_of_which_few_rows_get_a_gradient(sparse, moves):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Embedding(200, 8, padding_idx=0, sparse=sparse)
            self.layers = model()

        def forward(self, index):
            return self.layers(self.table(index).mean(1))

    net = Table()

    def act(i):
        weight = net.table.weight
        if moves:
            weight.data.sub_(0.1 * weight.grad.to_dense())

    said, _ = train(net, [sgd(net.layers.parameters())], act, batch=lambda: torch.randint(1, 200, (8, 16)))
    assert [f.evidence["parameters"] for f in said] == ([] if moves else [["table.weight"]])


def test_of_very_many_some_are_looked_at():
    net = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(1000)])
    head, looking = nn.Parameter(torch.ones(2)), Unoptimised()
    net.append(head)
    for step in range(100):
        for p in net:
            p.grad = torch.ones(2)
        looking.before_update(step, net, [sgd([head])], ())
    assert looking.found.evidence["tests"]["looked_at"] == looking.found.evidence["number"] == 256
    assert looking.found.evidence["parameters"][:3] == ["0", "3", "7"]


def test_numbers_are_spread_over_the_whole_tensor():
    value = torch.arange(1000.0).reshape(10, 100)
    assert unoptimised.some_of(value)[-1] >= 1000 - 16
    assert 32 < unoptimised.some_of(value).numel() <= 64
    last = torch.arange(1024.0).reshape(4, 4, 8, 8).to(memory_format=torch.channels_last)
    assert unoptimised.some_of(last).data_ptr() == last.data_ptr()
    assert unoptimised.some_of(torch.tensor(3.0)).tolist() == [3.0]


def test_an_error_in_it_ends_it_alone(monkeypatch):
    def broken(tensor):
        raise RuntimeError("broken")

    monkeypatch.setattr(unoptimised, "some_of", broken)
    net = model()
    optimizer = sgd(parameters(net, range(4)))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        with levada.watch(net, optimizer) as watch:
            for _ in range(40):
                net.zero_grad()
                net(torch.randn(4, 8)).square().mean().backward()
                optimizer.step()
    assert ["unoptimised_parameters raised RuntimeError: broken" in str(one.message) for one in warned] == [True]
    assert watch.judge in watch._listeners


def test_weights_that_no_optimizer_holds_lose_no_updates():
    """Biases are trained alone, by a list of them."""
    torch.manual_seed(0)
    net = model()
    x = torch.randn(64, 8)
    y = net(x).detach() + 1.0
    optimizer = torch.optim.Adam([p for n, p in net.named_parameters() if "bias" in n], lr=0.003)
    with levada.watch(net, optimizer, every=2, max_overhead=math.inf) as watch:
        for _ in range(300):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
    report = watch.report()
    assert "lost_update" not in {finding.rule for finding in report.findings}
    assert report.verdict == "healthy", report
    assert "lost_update: no optimizer moves the weights of a block" in str(report)
