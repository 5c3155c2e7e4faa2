"""The probe against values computed by hand, and in the loops that people write."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import levada
from levada._errors import MeasurementError, UsageError
from levada.probe import SIGNALS, Probe, Trace
from levada.probe.collector import Collector
from levada.probe.statistics import mean_square


def rms(values):
    return values.double().square().mean().sqrt().item()


def hooks(model):
    attributes = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
    return sum(len(getattr(module, name)) for module in model.modules() for name in attributes)


def close(trace, signal, expected, step=0, tolerance=1e-5):
    torch.testing.assert_close(
        trace[signal][step], torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=1e-30, equal_nan=True
    )


class Net(nn.Module):
    """Three layers; what comes between them is a function, or a module that works in place."""

    def __init__(self, inplace):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.relu = nn.ReLU(inplace=True) if inplace else functional.relu

    def forward(self, x):
        return self.c(self.relu(self.b(torch.tanh(self.a(x)))))


def by_hand(net, x, targets):
    """Return outputs of the blocks and the loss's gradients there."""
    a = torch.tanh(net.a(x))
    b = torch.relu(net.b(a))
    c = net.c(b)
    gradients = torch.autograd.grad(functional.mse_loss(c, targets), (a, b, c))
    return [a, b, c], gradients


def batch(seed=1, rows=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator), torch.randn(rows, 3, generator=generator)


def net_and(optimizer, inplace=False, **options):
    torch.manual_seed(0)
    net = Net(inplace)
    return net, optimizer(net.parameters(), **options)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("every", [1, 2])  # the second sampled step uses other hooks than the first
def test_signals_and_gradients_by_hand(inplace, every):
    net, optimizer = net_and(torch.optim.SGD, inplace, lr=0.1)
    expected = []
    with Probe(net, optimizer, every=every) as probe:
        for step in range(4):
            x, targets = batch(step)
            expected.append(by_hand(net, x, targets))
            optimizer.zero_grad()
            functional.mse_loss(net(x), targets).backward()
            optimizer.step()
    trace = probe.trace()
    assert trace.steps == tuple(range(0, 4, every))
    assert trace.names() == ["a", "b", "c"]
    assert set(trace.values) == set(SIGNALS) - {"cotangent_rms"}
    for row, step in enumerate(trace.steps):
        outputs, gradients = expected[step]
        close(trace, "signal_rms", [rms(y) for y in outputs], row)
        close(trace, "signal_spread", [rms(y - y.mean(0)) for y in outputs], row)
        close(trace, "gradient_rms", [rms(g) for g in gradients], row)
        relu = outputs[1]
        close(trace, "zero_fraction", [0.0, (relu == 0).double().mean().item(), math.nan], row)
        close(trace, "dead_fraction", [0.0, (relu == 0).all(0).double().mean().item(), math.nan], row)
        saturated = (1 - outputs[0].square() < 0.01).double().mean().item()
        close(trace, "saturated_fraction", [saturated, math.nan, math.nan], row)
        close(trace, "nonfinite", [0.0] * 3, row)


@pytest.mark.parametrize(
    ("optimizer", "options"), [(torch.optim.SGD, {"lr": 0.1}), (torch.optim.Adam, {"lr": 0.01, "eps": 1e-12})]
)
def test_weights_and_updates_by_hand(optimizer, options):
    net, optimizer = net_and(optimizer, **options)
    weights = [layer.weight.detach().clone() for layer in (net.a, net.b, net.c)]
    x, targets = batch()
    with Probe(net, optimizer) as probe:
        functional.mse_loss(net(x), targets).backward()
        gradients = [layer.weight.grad.clone() for layer in (net.a, net.b, net.c)]
        optimizer.step()
    trace = probe.trace()
    close(trace, "weight_rms", [rms(w) for w in weights])
    close(trace, "weight_gradient_rms", [rms(g) for g in gradients])
    if isinstance(optimizer, torch.optim.SGD):
        sizes = [0.1 * rms(g) for g in gradients]
    else:  # the first step of Adam moves every weight that has a gradient by lr
        sizes = [0.01 * math.sqrt((g != 0).double().mean().item()) for g in gradients]
    close(trace, "update_ratio", [s / rms(w) for s, w in zip(sizes, weights, strict=True)], tolerance=1e-4)
    assert trace.context["lr"] == (options["lr"],)


def test_lost_fraction_counts_updates_below_the_precision_of_a_weight():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0]]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with Probe(layer, optimizer) as probe:
        layer(torch.tensor([[1e-9, 1e-3, 0.0, 1e-9]])).sum().backward()  # the third weight has no gradient
        optimizer.step()
    close(probe.trace(), "lost_fraction", [2 / 3])


def test_gradients_below_the_smallest_square_of_float32_are_measured():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1))
    net[1].weight.data.mul_(1e-30)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Probe(net, optimizer) as probe:
        for _ in range(2):
            y = net[0](torch.ones(4, 8))
            expected = torch.autograd.grad(net[2](net[1](y)).sum(), y)[0]
            net(torch.ones(4, 8)).sum().backward()
            optimizer.step()
            net[1].weight.data.mul_(1e-30 / net[1].weight.abs().mean())
    measured = probe.trace().at("gradient_rms", "0")
    assert 1e-33 < measured[0].item() < 1e-29
    assert measured[1].item() == pytest.approx(rms(expected), rel=1e-5)


def test_spread_far_below_the_mean_is_exact():
    net = nn.Linear(8, 8).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.float32, 2e-2)):
        net.to(dtype)
        nn.init.eye_(net.weight)
        nn.init.zeros_(net.bias)
        x = (1 + 1e-5 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)
        with Probe(net, optimizer) as probe:
            net(x).sum().backward()
            optimizer.step()
        assert probe.trace()["signal_spread"].item() == pytest.approx(
            rms(x.double() - x.double().mean(0)), rel=tolerance
        )


def test_accumulation_averages_the_micro_steps():
    net, optimizer = net_and(torch.optim.SGD, lr=0.0)
    parts = [batch(seed) for seed in range(3)]
    with Probe(net, optimizer) as probe:
        for _ in range(2):
            for x, targets in parts:
                functional.mse_loss(net(x), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    trace = probe.trace()
    assert trace.context["passes"] == (3, 3)
    outputs = torch.cat([by_hand(net, *part)[0][1] for part in parts])
    gradients = torch.cat([by_hand(net, *part)[1][0] for part in parts])
    for step in range(2):
        assert trace["signal_rms"][step, 1].item() == pytest.approx(rms(outputs), rel=1e-5)
        assert trace["gradient_rms"][step, 0].item() == pytest.approx(rms(gradients), rel=1e-5)


def test_evaluation_and_failed_passes_are_not_counted():
    net, optimizer = net_and(torch.optim.SGD, lr=0.0)
    x, targets = batch()
    with Probe(net, optimizer) as probe:
        for _ in range(2):
            with torch.no_grad():
                net(100 * x)
            net.eval()(100 * x)  # somebody forgot no_grad
            net.train()
            with pytest.raises(RuntimeError):
                net(torch.ones(2, 7))
            functional.mse_loss(net(x), targets).backward()
            optimizer.step()
    trace = probe.trace()
    for step in range(2):
        close(trace, "signal_rms", [rms(y) for y in by_hand(net, x, targets)[0]], step)


def test_without_optimizer_and_without_gradients():
    net, _ = net_and(torch.optim.SGD, lr=0.0)
    x, targets = batch()
    with Probe(net) as probe, torch.no_grad():
        for _ in range(2):
            net(x)
            net.c.register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                net(100 * x)  # fails after two blocks were measured
            net.c._forward_pre_hooks.popitem()
            probe.step()
    trace = probe.trace()
    close(trace, "signal_rms", [rms(y) for y in by_hand(net, x, targets)[0]], 1)
    assert trace["gradient_rms"].isnan().all()
    with Probe(net) as probe:
        functional.mse_loss(net(x), targets).backward()
        net.a.weight.data.mul_(1.5)
        probe.step()
    assert probe.trace().at("update_ratio", "a").item() == pytest.approx(0.5, rel=1e-5)


class Stream(nn.Module):
    """A residual stream; `inplace` says whether a block overwrites the boundary before it, which is not a fault."""

    def __init__(self, inplace):
        super().__init__()
        self.layers, self.inplace = nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), inplace

    def forward(self, x):
        x = self.layers[0](x)
        for layer in self.layers[1:]:
            y = layer(x.clone())
            x = x.add_(y) if self.inplace else x + y
        return x


def test_a_boundary_that_is_overwritten_is_measured_before():
    traces = []
    for inplace in (False, True, None):  # None: not on the first step, so that it is not foreseen
        torch.manual_seed(0)
        net = Stream(bool(inplace))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with Probe(net, optimizer) as probe:
            for step in range(3):
                net.inplace = step > 0 if inplace is None else inplace
                optimizer.zero_grad()
                net(batch(step)[0]).square().mean().backward()
                optimizer.step()
        traces.append(probe.trace())
    plain, overwritten, surprised = traces
    for signal in ("signal_rms", "signal_spread", "gradient_rms"):
        torch.testing.assert_close(overwritten[signal], plain[signal])
        torch.testing.assert_close(surprised[signal][[0, 2]], plain[signal][[0, 2]])
    assert surprised["signal_rms"][1].isnan().tolist() == [True, True, False]  # not measured, rather than wrong


def test_a_graph_of_an_earlier_step_does_not_count():
    net, _ = net_and(torch.optim.SGD, lr=0.0)
    x, targets = batch()
    losses = []
    with Probe(net) as probe:
        for step in range(3):
            loss = functional.mse_loss(net(x), targets)
            loss.backward(retain_graph=True)
            if step == 2:
                (100 * losses[-1]).backward()
            losses.append(loss)
            probe.step()
    close(probe.trace(), "gradient_rms", [rms(g) for g in by_hand(net, x, targets)[1]], 2)


def test_a_leaf_inside_the_model_keeps_no_hook():
    class Local(nn.Module):
        """Each block learns from its own loss."""

        def __init__(self):
            super().__init__()
            self.block = nn.Linear(6, 6)

        def forward(self, x):
            return self.block(x).detach().requires_grad_()

    torch.manual_seed(0)
    net = nn.Sequential(Local(), nn.Linear(6, 3))
    leaves = []
    net[0].register_forward_hook(lambda module, args, output: leaves.append(output))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with Probe(net, optimizer) as probe:
        for _ in range(2):
            net(batch()[0]).sum().backward()
            optimizer.step()
    assert [bool(leaf._backward_hooks) for leaf in leaves] == [False, False]
    assert probe.trace().at("gradient_rms", "0.block")[1].item() == pytest.approx(rms(leaves[1].grad))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.last = nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x)
        if self.reentrant is None:
            return self.last(self.middle(x))
        return self.last(checkpoint(self.middle, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_is_not_counted_twice(reentrant):
    traces = []
    for mode in (None, reentrant):
        torch.manual_seed(0)
        net = Checkpointed(mode)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with Probe(net, optimizer) as probe:
            for step in range(2):
                x, targets = batch(step)
                optimizer.zero_grad()
                functional.mse_loss(net(x), targets).backward()
                optimizer.step()
        traces.append(probe.trace())
    assert traces[0].names() == traces[1].names() == ["first", "middle.0", "middle.2", "last"]
    for signal in traces[0].values:
        torch.testing.assert_close(traces[0][signal], traces[1][signal], equal_nan=True)


def test_shared_tied_frozen_unused_and_detached():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(6, 6)
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.unused = nn.Linear(6, 6)
            self.tied = nn.Linear(6, 6)
            self.tied.weight = self.shared.weight

        def forward(self, x):
            x = self.frozen(x)
            x = torch.relu(self.shared(x))
            x = self.shared(x).detach()
            return {"logits": self.tied(x), "note": None}

    torch.manual_seed(0)
    net = Odd()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Probe(net, optimizer) as probe:
        for _ in range(2):
            optimizer.zero_grad()
            net(batch()[0])["logits"].sum().backward()
            optimizer.step()
    trace = probe.trace()
    assert trace.names() == ["frozen", "shared", "shared#2", "tied"]
    for step in range(2):
        gradient = trace["gradient_rms"][step]
        assert gradient.isnan().tolist() == [True, False, True, False]  # nothing after a detach has a graph
        assert gradient[[1, 3]].tolist() == pytest.approx([0.0, 1.0])
        assert trace["weight_gradient_rms"][step].isnan().tolist() == [True, False, False, False]
        assert (trace["weight_gradient_rms"][step, 1:] == trace["weight_gradient_rms"][step, 3]).all()
        assert trace["update_ratio"][step].isnan().tolist() == [True, False, False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    torch.manual_seed(0)
    exact, half = Net(False), Net(False).to(dtype)
    exact.load_state_dict(half.state_dict())
    cast_net = copy.deepcopy(exact)
    x, _ = batch(rows=64)
    x = x.to(dtype)
    traces = []
    for net, cast in ((exact, None), (half, None), (cast_net, dtype)):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        with Probe(net, optimizer) as probe, torch.autocast("cpu", dtype or torch.bfloat16, enabled=cast is not None):
            net(x.to(net.a.weight.dtype)).sum().backward()
            optimizer.step()
        traces.append(probe.trace())
    for trace in traces[1:]:
        for signal in ("signal_rms", "signal_spread", "gradient_rms", "weight_rms"):
            torch.testing.assert_close(trace[signal], traces[0][signal], rtol=0.02, atol=0)
    assert traces[0]["lost_fraction"].max() < 0.2 < traces[1]["lost_fraction"].max()


def test_nonfinite_shares():
    net, optimizer = net_and(torch.optim.SGD, lr=0.0)
    x, _ = batch(rows=4)
    x[1] = math.nan
    with Probe(net, optimizer) as probe:
        for _ in range(2):
            net(x).sum().backward()
            optimizer.zero_grad()  # NaN must not enter the weights
            optimizer.step()
    trace = probe.trace()
    for step in range(2):
        close(trace, "nonfinite", [0.25] * 3, step)
        assert trace["signal_rms"][step].isnan().all()
        assert trace["gradient_nonfinite"][step, 2].item() == 0.0


def test_activations_inside_composite_blocks():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.back = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x):
            return x + self.back(functional.hardtanh(functional.relu(self.wide(x)), -0.5, 0.5))

    torch.manual_seed(0)
    net = nn.Sequential(Block(), Block())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    x, _ = batch()
    with Probe(net, optimizer) as probe:
        for _ in range(2):
            net(x).sum().backward()
            optimizer.step()
    wide = functional.relu(net[0].wide(x))
    flat = functional.hardtanh(wide, -0.5, 0.5)
    trace = probe.trace()
    for step in range(2):
        zeros = torch.cat([wide, flat]) == 0
        assert trace["zero_fraction"][step, 0].item() == pytest.approx(zeros.double().mean().item())
        assert trace["saturated_fraction"][step, 0].item() == pytest.approx((flat == 0.5).double().mean().item())


def test_nothing_is_attached_on_steps_that_are_not_sampled(monkeypatch):
    net, optimizer = net_and(torch.optim.SGD, lr=0.1)
    attached, measured = [], []
    add = Collector.add
    monkeypatch.setattr(Collector, "add", lambda self, *a, **k: (measured.append(probe.steps), add(self, *a, **k))[1])
    with Probe(net, optimizer, every=3) as probe:
        for _ in range(7):
            attached.append(hooks(net))
            functional.mse_loss(net(batch()[0]), batch()[1]).backward()
            optimizer.step()
    assert [bool(count) for count in attached] == [True, False, False, True, False, False, True]
    assert set(measured) == {0, 3, 6}
    assert probe.trace().steps == (0, 3, 6)


def test_one_copy_to_the_host_for_each_sampled_step(monkeypatch):
    copies = []
    for name in ("tolist", "item", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _real=real, _name=name: (copies.append(_name), _real(self, *a))[1]
        )
    torch.manual_seed(0)
    net = nn.Sequential(*[layer for _ in range(40) for layer in (nn.Linear(6, 6), nn.Tanh())])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, foreach=True)
    loss = net(batch()[0]).sum()
    loss.backward()
    copies.clear()
    optimizer.step()
    own = len(copies)  # what the optimizer itself does
    copies.clear()
    with Probe(net, optimizer, every=2) as probe:
        for _ in range(6):
            net(batch()[0]).sum().backward()
            optimizer.step()
        probe.trace()
    assert len(copies) - 6 * own == 3


def test_nothing_is_left_behind_also_after_an_error():
    net, optimizer = net_and(torch.optim.Adam, lr=0.1)
    x, targets = batch()
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    state = torch.get_rng_state()
    for error in (None, ArithmeticError, KeyboardInterrupt):
        optimizer.zero_grad()
        try:
            with Probe(net, optimizer, every=2) as probe:
                for step in range(3):
                    loss = functional.mse_loss(net(x), targets)
                    if error is not None and step == 2:
                        raise error
                    loss.backward()
                    optimizer.step()
        except (ArithmeticError, KeyboardInterrupt):
            assert error is not None
        assert hooks(net) == 0
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert torch.overrides._len_torch_function_stack() == 0
        assert {name: vars(module).keys() for name, module in net.named_modules()} == {
            name: attributes.keys() for name, attributes in before.items()
        }
        assert net.training
        assert probe.trace().steps[0] == 0
    assert torch.equal(state, torch.get_rng_state())
    copy.deepcopy(net)
    net.zero_grad()
    loss.backward()  # a graph that outlived its probe
    assert len(probe.trace().steps) == 1


def test_a_copy_made_while_watching_is_not_watched():
    net, optimizer = net_and(torch.optim.SGD, lr=0.0)
    x, targets = batch()
    with Probe(net, optimizer) as probe:
        for _ in range(2):
            twin = copy.deepcopy(net)
            kept = [hook for module in twin.modules() for hook in module._forward_hooks.values()]
            assert {hook._function.__name__ for hook in kept} == {"_ignore"}
            torch.save(net, io.BytesIO())
            twin(100 * x).sum().backward()
            functional.mse_loss(net(x), targets).backward()
            optimizer.step()
    close(probe.trace(), "signal_rms", [rms(y) for y in by_hand(net, x, targets)[0]], 1)
    assert probe.trace().context["passes"] == (1, 1)


def test_watching_does_not_change_training():
    losses = []
    for watched in (False, True):
        net, optimizer = net_and(torch.optim.Adam, inplace=True, lr=0.01)
        with Probe(net, optimizer, every=2) if watched else torch.enable_grad():
            for step in range(5):
                optimizer.zero_grad()
                loss = functional.mse_loss(net(functional.dropout(batch(step)[0])), batch(step)[1])
                loss.backward()
                optimizer.step()
        losses.append(loss.item())
    assert losses[0] == losses[1]


def test_misuse_is_refused():
    net, optimizer = net_and(torch.optim.SGD, lr=0.1)
    with pytest.raises(UsageError, match="every must be at least 1"):
        Probe(net, optimizer, every=0)
    probe = Probe(net, optimizer)
    with pytest.raises(MeasurementError, match="no forward pass"):
        probe.trace()
    with probe:
        with pytest.raises(UsageError, match="already active"), probe:
            pass
        with pytest.raises(UsageError, match="counts its optimizer's steps"):
            probe.step()
        net(batch()[0]).sum().backward()
        with pytest.raises(MeasurementError, match="no sampled step was completed"):
            probe.trace()
    with pytest.raises(UsageError, match="not active"):
        Probe(net).step()


def test_trace_round_trip_through_json():
    import json

    net, optimizer = net_and(torch.optim.SGD, lr=0.1)
    with Probe(net, optimizer) as probe:
        net(batch()[0]).sum().backward()
        optimizer.step()
    trace = probe.trace()
    trace.values["signal_rms"][0, 0] = math.inf
    data = json.loads(json.dumps(trace.to_dict(), allow_nan=False))
    again = Trace.from_dict(data)
    assert again.sites == trace.sites
    assert again.steps == trace.steps
    for signal, values in trace.values.items():
        torch.testing.assert_close(again[signal], values, rtol=0, atol=0, equal_nan=True)
    assert again.context["optimizer"] == "SGD"
    assert trace["cotangent_rms"].isnan().all()
    with pytest.raises(UsageError, match="no site 'z'"):
        trace.at("signal_rms", "z")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
def test_a_stack_that_compiles_its_layers_is_measured_as_it_is_written():
    torch.manual_seed(0)
    compiled = levada.Stack([nn.Linear(4, 4) for _ in range(3)], levada.Residual, dim=4, compile={"backend": "eager"})
    written = levada.Stack([nn.Linear(4, 4) for _ in range(3)], levada.Residual, dim=4)
    written.load_state_dict(compiled.state_dict())
    x, traces = torch.randn(8, 4), []
    for model in (compiled, written):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Probe(model, optimizer, every=2) as probe:
            for _ in range(5):
                optimizer.zero_grad()
                model(x).square().mean().backward()
                optimizer.step()
        traces.append(probe.trace())
    assert traces[0].steps == (0, 2, 4)
    for signal in ("signal_rms", "gradient_rms", "update_ratio"):
        torch.testing.assert_close(traces[0][signal], traces[1][signal])
    assert torch._dynamo.eval_frame._stance.stance == "default", "outside of sampled passes it runs compiled"


@pytest.mark.parametrize("arrange", [lambda x: x, lambda x: x.mT, lambda x: x[:, ::2]])
def test_a_mean_square_of_many_numbers_is_exact(arrange):
    torch.manual_seed(0)
    x = arrange(torch.randn(1, 2049, 4097))
    torch.testing.assert_close(mean_square(x), x.double().square().flatten(1).mean(1), rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(3,), (1, 5), (3, 2, 300)])
def test_a_mean_square_of_complex_numbers_counts_each_once(dtype, shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype)
    expected = x.abs().double().square().reshape(shape[0], -1).mean(1)
    for value in (x, x.conj()):
        torch.testing.assert_close(mean_square(value), expected, rtol=1e-6, atol=0)
