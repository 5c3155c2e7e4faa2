"""Intermediate losses: exact gradients in every surrounding, nothing left behind, and one sentence for each mistake."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import io
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint

import levada
from levada._errors import UsageError
from levada.supervision import Head, gradient_reach, linear_decay, until_half_depth

DIM, CLASSES = 8, 3


def plain(depth: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(depth)]
    return nn.Sequential(*layers, nn.Linear(DIM, CLASSES))


def head(seed: int = 1) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(DIM, CLASSES)


def batch(num: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num, DIM, generator=generator), torch.randint(CLASSES, (num,), generator=generator)


def supervision(model: nn.Module | None = None, sites: tuple[str, ...] = ("0", "2.1"), **options):
    heads = {site: head(seed) for seed, site in enumerate(sites, 1)}
    return levada.Supervision(model or plain(), heads, cross_entropy, **options)


def gradients(supervised: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    supervised.zero_grad()
    supervised(x, targets=y).loss.backward()
    return {name: p.grad.clone() for name, p in supervised.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_the_sum_by_hand():
    supervised, (x, y) = supervision(weight=0.4), batch()
    model, heads = supervised.model, supervised.heads
    first = model[0](x)
    third = model[2](model[1](first))
    parts = [cross_entropy(model[4](model[3](third)), y), cross_entropy(heads["/0"](first), y),
             cross_entropy(heads["/2/1"](third), y)]  # fmt: skip
    expected = parts[0] + 0.4 * (parts[1] + parts[2])
    wanted = torch.autograd.grad(expected, list(supervised.parameters()))
    found = supervised(x, targets=y)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(list(found.losses.values()), [part.detach() for part in parts])
    assert list(found.losses) == ["output", "0", "2.1"]
    torch.testing.assert_close(list(gradients(supervised, x, y).values()), list(wanted))


def test_the_model_is_left_as_it_was():
    model, (x, y) = plain(), batch()
    keys, before = list(model.state_dict()), model(x)
    supervised = supervision(model)
    supervised(x, targets=y)
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), before)
    assert [name for name in supervised.state_dict() if not name.startswith("model.")] == [
        "_extra_state", "heads./0.weight", "heads./0.bias", "heads./2/1.weight", "heads./2/1.bias",
    ]  # fmt: skip
    assert not any(parameter is other for parameter in supervised.heads.parameters() for other in model.parameters())


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_evaluation_has_no_hooks_and_runs_no_head():
    supervised, (x, y) = supervision(), batch()
    seen = []
    supervised.model[4].register_forward_pre_hook(lambda module, args: seen.append(hooks(supervised)))
    supervised(x, targets=y)
    supervised(x)
    assert seen == [3, 1], "two on the sites during the pass, and this one"
    for module in supervised.heads.values():
        module.forward = None
    supervised.eval()
    assert hooks(supervised) == 1
    assert torch.equal(supervised(x), supervised.model(x))
    found = supervised(x, targets=y)
    assert list(found.losses) == ["output"]
    assert found.loss == found.losses["output"]
    assert seen[2:] == [1, 1, 1]


def test_the_mode_begins_as_the_models():
    assert not supervision(plain().eval()).training


def test_without_targets_the_output_alone_comes_back():
    supervised, (x, _) = supervision(), batch()
    assert torch.equal(supervised(x), supervised.model(x))


def test_copies_and_pickles_are_supervised_and_leave_nothing_on_the_model():
    supervised, (x, y) = supervision(), batch()
    expected = supervised(x, targets=y).loss
    others = [copy.deepcopy(supervised), pickle.loads(pickle.dumps(supervised)), copy.copy(supervised),
              supervised._replicate_for_data_parallel()]  # fmt: skip
    for other in others:
        assert torch.equal(other(x, targets=y).loss, expected)
    del other, others
    gc.collect()
    assert torch.equal(supervised(x, targets=y).loss, expected)
    for model in (supervised.model, copy.deepcopy(supervised.model), swa_utils.AveragedModel(supervised.model)):
        assert hooks(model) == 0
    assert b"levada" not in pickle.dumps(supervised.model)


def test_passes_in_several_threads_do_not_mix():
    supervised = supervision()
    batches = [batch(num) for num in range(1, 9)]
    alone = [supervised(x, targets=y).loss.item() for x, y in batches]
    barrier = threading.Barrier(len(batches))
    # All are inside of the model at the same time, at both ends of both sites.
    for place in (1, 3):
        supervised.model[place].register_forward_pre_hook(lambda module, args: (barrier.wait(300), None)[1])
    with ThreadPoolExecutor(len(batches)) as pool:
        for _ in range(3):
            found = list(pool.map(lambda own: supervised(own[0], targets=own[1]).loss.item(), batches))
            assert found == alone
    assert hooks(supervised) == 2


def test_a_head_sees_what_a_hook_of_ones_own_makes_of_the_output():
    supervised, (x, y) = supervision(sites=("1",)), batch()
    supervised.model[1].register_forward_hook(lambda module, args, output: 2 * output)
    expected = cross_entropy(supervised.heads["/1"](supervised.model[:2](x)), y)
    assert supervised(x, targets=y).losses["1"] == pytest.approx(expected.item())


def test_a_model_in_another_mode_than_its_supervision_is_said():
    supervised, (x, y) = supervision(), batch()
    supervised.eval()
    supervised.model.train()
    with pytest.raises(UsageError, match="the model is in training mode, and its supervision in evaluation mode"):
        supervised(x, targets=y)
    supervised.train().model.eval()
    with pytest.raises(UsageError, match="the model is in evaluation mode, and its supervision in training mode"):
        supervised(x, targets=y)
    assert supervised(x).shape == (6, CLASSES)
    supervised.model.train()
    supervised.model[3].eval()
    assert len(supervised(x, targets=y).losses) == 3


@pytest.mark.parametrize("site", ["clear", "keys", "values", "items", "pop"])
def test_a_site_may_have_any_name(site):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(site, nn.Linear(DIM, DIM))
            self.output = head(5)

        def forward(self, x):
            return self.output(getattr(self, site)(x))

    supervised, (x, y) = supervision(model := Named(), (site,)), batch()
    expected = cross_entropy(supervised.heads[f"/{site}"](getattr(model, site)(x)), y)
    assert supervised(x, targets=y).losses[site] == pytest.approx(expected.item())
    again = supervision(model, (site,))
    again.load_state_dict(supervised.state_dict())


def test_it_runs_in_inference_mode():
    model = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(inplace=True), head(5))
    supervised, (x, y) = supervision(model, ("0",)), batch()
    expected = cross_entropy(supervised.heads["/0"](model[0](x)), y)
    with torch.inference_mode():
        found = supervised(x, targets=y)
    assert found.losses["0"] == pytest.approx(expected.item()), "as before the layer that works in place"


def test_lazy_heads_take_their_size_from_the_first_batch():
    supervised = levada.Supervision(plain(), {"1": nn.LazyLinear(CLASSES)}, cross_entropy)
    x, y = batch()
    with torch.no_grad():
        supervised(x, targets=y)
    assert supervised.heads["/1"].weight.shape == (CLASSES, DIM)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.low = nn.LSTM(DIM, DIM)
        self.high = nn.LSTM(DIM, DIM)
        self.out = nn.Linear(DIM, 5)

    def forward(self, x):
        return {"logits": self.out(self.high(self.low(x)[0])[0])}


def test_a_hierarchy_of_tasks():
    x = torch.randn(7, 2, DIM)
    targets = {"pos": torch.randint(4, (7, 2)), "syntax": torch.randint(5, (7, 2))}

    def tagging(scores, wanted):
        scores = scores["logits"] if isinstance(scores, dict) else scores
        return cross_entropy(scores.flatten(0, 1), wanted.flatten())

    low = Head(nn.Linear(DIM, 4), target="pos", select=0, weight=2.0)
    supervised = levada.Supervision(Tagger(), {"low": low}, tagging, target="syntax")
    found = supervised(x, targets=targets)
    first = supervised.model.low(x)[0]
    pos = tagging(low.module(first), targets["pos"])
    assert found.losses["low"] == pytest.approx(pos.item())
    assert found.loss.item() == pytest.approx(found.losses["output"].item() + 2 * pos.item())
    with pytest.raises(UsageError, match="the targets have no 'syntax', which the output asks for"):
        supervised(x, targets={"pos": targets["pos"]})
    selected = {"pair": Head(nn.Identity(), select=lambda out: out[1][0].squeeze(0), loss=lambda a, b: a.mean())}
    other = levada.Supervision(Tagger(), {"low": selected["pair"]}, tagging, target="syntax")
    assert other(x, targets=targets).losses["low"] == pytest.approx(first[-1].mean().item())


def test_schedules_move_with_steps_and_survive_a_checkpoint():
    supervised = supervision(schedule=until_half_depth, steps=12, weight=0.5)
    seen = []
    for _ in range(7):
        seen.append(tuple(supervised.factors.values()))
        supervised.step()
    # Of three heads, the output's among them, the first leaves after 1/6 of the steps and the second after 2/6.
    assert seen == [(0.5, 0.5)] * 2 + [(0.0, 0.5)] * 2 + [(0.0, 0.0)] * 3
    stored = io.BytesIO()
    torch.save(supervised.state_dict(), stored)
    stored.seek(0)
    other = supervision(schedule=until_half_depth, steps=12, weight=0.5)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert other.progress == supervised.progress == 7 / 12
    assert other.factors == {"0": 0.0, "2.1": 0.0}
    x, y = batch()
    found = other(x, targets=y)
    assert list(found.losses) == ["output", "0", "2.1"]
    assert found.loss == found.losses["output"], "what no longer contributes is told, and adds nothing"
    assert found.losses["0"] == supervision(weight=1)(x, targets=y).losses["0"]
    assert not any(name.startswith("heads.") for name in gradients(other, x, y))


def test_linear_decay_and_a_schedule_of_ones_own():
    assert [linear_decay(p, 0.5) for p in (0.0, 0.5, 1.0)] == [1.0, 0.5, 0.0]
    heads = {"0": Head(head(), schedule=lambda progress, depth: depth), "1": head()}
    supervised = levada.Supervision(plain(), heads, cross_entropy, schedule=linear_decay, steps=4, weight=1)
    supervised.step()
    assert supervised.factors == {"0": 1 / 3, "1": 0.75}
    for _ in range(9):
        supervised.step()
    assert supervised.factors["1"] == 0.0


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -0.5])
def test_a_schedule_that_returns_no_factor_is_said_and_nothing_moves(factor):
    with pytest.raises(UsageError, match=rf"at least 0, and that of '0' returned {factor:g} at progress 0 and depth"):
        supervision(schedule=lambda progress, depth: factor, steps=4)
    supervised = supervision(schedule=lambda progress, depth: factor if progress else 1.0, steps=4)
    with pytest.raises(UsageError, match=rf"returned {factor:g} at progress 0.25"):
        supervised.step()
    assert supervised.progress == 0
    assert supervised.factors == {"0": 0.3, "2.1": 0.3}


def test_a_site_that_is_called_again_has_the_mean_of_its_losses():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = plain(1)[0], head(5)

        def forward(self, x):
            return self.out(self.layer(self.layer(x)))

    supervised, (x, y) = supervision(Shared(), ("layer",)), batch()
    first = supervised.model.layer(x)
    each = [cross_entropy(supervised.heads["/layer"](h), y) for h in (first, supervised.model.layer(first))]
    assert supervised(x, targets=y).losses["layer"] == pytest.approx((sum(each) / 2).item())


class Checkpointed(nn.Module):
    def __init__(self, layers: nn.Sequential, **options):
        super().__init__()
        self.layers, self.options = layers, options

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, **self.options)
        return x


def test_checkpointing_changes_nothing():
    x, y = batch()
    expected = gradients(supervision(), x, y)
    model = Checkpointed(plain(), use_reentrant=False)
    found = gradients(supervision(model, ("layers.0", "layers.2.1")), x, y)
    assert len(found) == len(expected)
    for (_, one), (_, other) in zip(expected.items(), found.items(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("connection", ["ManifoldHyperConnection", "DepthWeightedAverage"])
def test_a_converted_model_is_computed_again_as_it_was(connection):
    torch.manual_seed(1)
    x, y = torch.randn(4, 5, DIM), torch.randint(CLASSES, (4, 5))
    supervised = levada.Supervision(converted(getattr(levada, connection)), {"layers.0": head()}, per_token)
    expected = gradients(supervised, x, y)
    for layer in supervised.model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    torch.testing.assert_close(gradients(supervised, x, y), expected)


def test_reentrant_checkpointing_is_refused():
    supervised = supervision(Checkpointed(plain(), use_reentrant=True), ("layers.1.0",))
    x, y = batch()
    with pytest.raises(UsageError, match=r"'layers.1.0' ran without gradients.*use_reentrant=False"):
        supervised(x.requires_grad_(), targets=y)


@pytest.mark.parametrize("connection", ["Residual", "HyperConnection", "Momentum", "DepthWeightedAverage"])
@pytest.mark.parametrize("segments", [0, 2])
def test_at_a_layer_of_a_stack_a_head_sees_what_the_stream_would_end_in(connection, segments):
    torch.manual_seed(0)
    branches = [nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM)) for _ in range(4)]
    stack = levada.Stack(branches, getattr(levada, connection), dim=DIM, checkpoint=segments)
    supervised, (x, y) = supervision(nn.Sequential(stack, head(7)), ("0.layers.1",)), batch()
    state = stack[0].connection.begin(x)
    for layer in (stack[0], stack[1]):
        state = layer(state)
    expected = cross_entropy(supervised.heads["/0/layers/1"](stack[1].connection.end(state)), y)
    assert supervised(x, targets=y).losses["0.layers.1"] == pytest.approx(expected.item())
    assert all(g.isfinite().all() for g in gradients(supervised, x, y).values())


def converted(connection=None, dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(DIM, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    if connection is None:
        return model.to(dtype)
    return levada.convert(model, connection, batch=torch.randn(4, 5, DIM)).to(dtype)


def per_token(scores: Tensor, wanted: Tensor) -> Tensor:
    return cross_entropy(scores.flatten(0, 1), wanted.flatten())


def test_of_a_converted_model_heads_see_what_the_next_branch_reads():
    x, y = torch.randn(4, 5, DIM), torch.randint(CLASSES, (4, 5))
    before = levada.Supervision(converted(), {"layers.0": head()}, per_token)
    after = levada.Supervision(converted(levada.ManifoldHyperConnection), {"layers.0": head()}, per_token)
    one, other = before(x, targets=y), after(x, targets=y)
    assert isinstance(after.model.layers[0], nn.Module)
    # The conversion preserves the function, and so what the second layer reads, to float32.
    torch.testing.assert_close(other.losses, one.losses, rtol=1e-5, atol=1e-5)
    other.loss.backward()
    assert all(p.grad is not None for p in after.model.layers[0].linear1.parameters())


def test_mixed_precision():
    supervised, (x, y) = supervision(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        found = supervised(x, targets=y)
    assert found.output.dtype == torch.bfloat16
    assert found.loss.dtype == torch.float32
    found.loss.backward()
    with torch.autocast("cpu", enabled=False):
        exact = supervised(x, targets=y).loss
    assert found.loss.item() == pytest.approx(exact.item(), rel=0.05)


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
def test_it_compiles_into_one_graph_whatever_the_schedule_says():
    supervised, (x, y) = supervision(schedule=linear_decay, steps=10), batch()
    compiled = torch.compile(supervised, backend="aot_eager", fullgraph=True)
    for _ in range(6):
        expected = gradients(supervised, x, y)
        found = {name.removeprefix("_orig_mod."): g for name, g in gradients(compiled, x, y).items()}
        torch.testing.assert_close(found, expected)
        supervised.step()
    # One with the first factors, one for all others.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    compiled.eval()
    assert torch.equal(compiled(x), supervised.model(x))


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_code_keeps_hooks_until_evaluation_and_copies_have_none_of_levadas():
    supervised, (x, y) = supervision(), batch()
    compiled = torch.compile(lambda x, y: supervised(x, targets=y), backend="aot_eager", fullgraph=True)
    expected = supervised(x, targets=y).loss
    torch.testing.assert_close(compiled(x, y).loss, expected)
    assert hooks(supervised) == 2
    assert not kept(supervised)
    for other in (copy.deepcopy(supervised), pickle.loads(pickle.dumps(supervised))):
        torch.testing.assert_close(other(x, targets=y).loss, expected)
        torch.testing.assert_close(other.model(x), supervised.model(x))
    assert b"levada" not in pickle.dumps(supervised.model)
    supervised.eval()
    assert hooks(supervised) == 0
    supervised.train()
    torch.testing.assert_close(compiled(x, y).loss, expected)


@pytest.mark.usefixtures("_fresh_compiler")
def test_the_model_outlives_a_supervision_that_was_compiled():
    model, (x, y) = plain(), batch()
    supervised = supervision(model)
    torch.compile(supervised, backend="aot_eager", fullgraph=True)(x, targets=y)
    replica = supervised._replicate_for_data_parallel()
    del replica
    gc.collect()
    assert hooks(model) == 2
    del supervised
    torch._dynamo.reset()
    gc.collect()
    assert hooks(model) == 0


class Breaks(nn.Module):
    def forward(self, x):
        torch._dynamo.graph_break()
        return x


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_in_several_graphs_it_is_the_same():
    model, (x, y) = plain(), batch()
    expected = gradients(supervision(model, ("1", "2.1")), x, y)
    model[1].append(Breaks())
    supervised = supervision(model, ("1", "2.1"))  # the graph breaks inside of a site
    compiled = torch.compile(supervised, backend="aot_eager")
    for _ in range(2):
        for _ in range(2):
            found = {name.removeprefix("_orig_mod."): g for name, g in gradients(compiled, x, y).items()}
            torch.testing.assert_close(found, expected)
        compiled.eval()
        assert hooks(model) == 0
        compiled.train()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_layers_are_compiled_once():
    supervised, (x, y) = supervision(), batch()
    expected = gradients(supervised, x, y)
    for layer in supervised.model:
        layer.compile(backend="aot_eager")
    counts = []
    for _ in range(4):
        torch.testing.assert_close(gradients(supervised, x, y), expected)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts[0] == counts[-1]


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_model_may_be_supervised_before_its_first_call():
    model, (x, y) = plain(), batch()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = gradients(supervision(model), x, y)
    supervised = supervision(compiled)
    for _ in range(3):
        found = gradients(supervised, x, y)
        torch.testing.assert_close(list(found.values()), list(expected.values()))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_model_that_ran_before_says_so():
    compiled, (x, y) = torch.compile(plain(), backend="aot_eager", fullgraph=True), batch()
    compiled(x)
    with pytest.raises(UsageError, match="compiled before this, is not seen"):
        supervision(compiled)(x, targets=y)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_a_head_sees_its_site_before_later_changes_in_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(inplace=True), nn.Linear(DIM, CLASSES))
    supervised, (x, y) = supervision(model, ("0",)), batch()
    with pytest.raises(UsageError, match="a later layer changes the output of site '0' in place"):
        supervised(x, targets=y)
    found = torch.compile(supervised, backend="aot_eager", fullgraph=True)(x, targets=y)
    expected = cross_entropy(supervised.heads["/0"](model[0](x)), y)
    assert found.losses["0"] == pytest.approx(expected.item())


def test_gradient_reach_is_autograds():
    supervised, (x, y) = supervision(plain(12), ("2", "5", "8")), batch()
    found = {reach.site: reach for reach in gradient_reach(supervised, x, targets=y)}
    assert all(p.grad is None for p in supervised.parameters())
    for name, loss in (("without", cross_entropy(supervised.model(x), y)), ("supervised", supervised(x, targets=y)[1])):
        supervised.zero_grad()
        loss.backward()
        for site in ("0.0", "7.0", "12"):
            owned = list(supervised.model.get_submodule(site).parameters())
            norm = torch.cat([p.grad.double().flatten() for p in owned]).norm().item()
            assert getattr(found[site], name) == pytest.approx(norm, rel=1e-6)
    assert found["12"].ratio == pytest.approx(1.0)
    with pytest.raises(UsageError, match="no intermediate losses in evaluation"):
        gradient_reach(supervised.eval(), x, targets=y)


def test_gradient_reach_moves_nothing():
    model, (x, y) = nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.Dropout(), head(5)), batch()
    norm = nn.Sequential(nn.BatchNorm1d(DIM), nn.LazyLinear(CLASSES))
    supervised = levada.Supervision(model, {"0": norm}, cross_entropy)
    supervised.heads["/0"][1](x)  # takes its size
    before, random = copy.deepcopy(supervised.state_dict()), torch.get_rng_state()
    first, second = (gradient_reach(supervised, x, targets=y) for _ in range(2))
    torch.testing.assert_close(dict(supervised.state_dict()), dict(before), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert first == second
    sized = nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(CLASSES))  # by a pass before
    lazy = levada.Supervision(plain(), {"0": sized}, cross_entropy)
    assert gradient_reach(lazy, x, targets=y)[0].ratio > 0


def test_a_probe_sees_the_same():
    supervised, (x, y) = supervision(plain(12), ("2", "5", "8")), batch()
    rms = []
    for loss in (lambda: cross_entropy(supervised.model(x), y), lambda: supervised(x, targets=y).loss):
        supervised.zero_grad()
        with levada.Probe(supervised.model) as probe:
            loss().backward()
            probe.step()
        rms.append(probe.trace()["gradient_rms"][0, 0].item())
    states = [supervised.model[0](x).detach().requires_grad_()]
    rest = supervised.model[1:]
    (expected,) = torch.autograd.grad(cross_entropy(rest(states[0]), y), states)
    assert rms[0] == pytest.approx(expected.square().mean().sqrt().item(), rel=1e-4)
    assert rms[1] > 1.5 * rms[0]


@pytest.mark.parametrize(
    ("heads", "match"),
    [
        ({}, "must map at least one site"),
        ([nn.Linear(2, 2)], "must map at least one site"),
        ({"2.2": head()}, r"Sequential has no module '2.2'. Near it: '2.1', '2.0'"),
        ({"": head()}, "own output has its loss already"),
        ({"0": 3}, "model must be an nn.Module, got int"),
    ],
)
def test_heads_that_cannot_be_used(heads, match):
    with pytest.raises(UsageError, match=match):
        levada.Supervision(plain(), heads, cross_entropy)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"weight": -1.0}, "weight must be at least 0.0, got -1.0"),
        ({"weight": float("nan")}, "weight must be at least 0.0, got nan"),
        ({"schedule": linear_decay}, "a schedule needs steps="),
        ({"schedule": linear_decay, "steps": 0}, "steps must be at least 1"),
        ({"schedule": 0.3}, "schedule must be a function, got 0.3"),
    ],
)
def test_arguments_that_cannot_be_used(options, match):
    with pytest.raises(UsageError, match=match):
        supervision(**options)


def test_a_site_that_did_not_run():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.skipped = head(), head()

        def forward(self, x):
            return self.used(x)

    supervised, (x, y) = supervision(Skips(), ("skipped",)), batch()
    with pytest.raises(UsageError, match="site 'skipped' did not run in this forward pass of Skips"):
        supervised(x, targets=y)


def kept(supervised: nn.Module) -> list[Tensor]:
    """What taps keep, wherever they are."""
    taps = [tap for own in (supervised._traced, *supervised._idle) for tap in own.taps.values()]
    assert not any(tap.open for tap in taps)
    return [value for tap in taps for value in (*tap.outputs, *tap.versions)]


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("failed below")


def test_a_failed_forward_leaves_nothing_behind():
    x, y = batch()
    supervised = supervision()
    layer = supervised.model[3]
    supervised.model[3] = Fails()
    with pytest.raises(RuntimeError, match="failed below"):
        supervised(x, targets=y)
    assert not kept(supervised)
    assert not hooks(supervised)
    copy.deepcopy(supervised)
    supervised.model[3] = layer
    assert supervised(x, targets=y).loss.isfinite()
    assert not kept(supervised)


@pytest.mark.parametrize("order", [("skipped", "used"), ("used", "skipped")])
def test_a_site_that_did_not_run_leaves_the_others_empty(order):
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.skipped, self.out = plain(1)[0], plain(1)[0], head()

        def forward(self, x):
            return self.out(self.used(x))

    supervised, (x, y) = supervision(Skips(), order), batch()
    with pytest.raises(UsageError, match="site 'skipped' did not run"):
        supervised(x, targets=y)
    assert not kept(supervised)
    copy.deepcopy(supervised)


@dataclasses.dataclass
class Hidden:
    first: Tensor
    second: Tensor


class Holder:
    def __init__(self, first, second):
        self.first, self.second = first, second


class Pair(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(2 * x, 3 * x)


class Changes(nn.Module):
    """A site returns two tensors, of which the next line changes one in place."""

    def __init__(self, form, place):
        super().__init__()
        self.input, self.pair, self.output = nn.Linear(DIM, DIM), Pair(form), head(4)
        self.place = place

    def forward(self, x):
        out = self.pair(self.input(x))
        if isinstance(out, Hidden | Holder):
            parts = [out.first, out.second]
        else:
            parts = list(out.values()) if isinstance(out, dict) else list(out)
        if isinstance(out, list):
            out.clear()
        parts[self.place].mul_(0)
        return self.output(parts[1 - self.place])


FORMS = {
    "tuple": (lambda a, b: (a, b), 0), "list": (lambda a, b: [a, b], 0), "dict": (lambda a, b: {"a": a, "b": b}, "a"),
    "dataclass": (Hidden, "first"), "object": (Holder, "first"), "computed": (lambda a, b: (a, b), lambda v: v[0] + 0),
}  # fmt: skip


def changes(form: str, place: int) -> levada.Supervision:
    make, select = FORMS[form]
    return levada.Supervision(Changes(make, place), {"pair": Head(head(), select=select)}, cross_entropy)


def first_alone(supervised: levada.Supervision, x: Tensor, y: Tensor) -> float:
    return cross_entropy(supervised.heads["/pair"](2 * supervised.model.input(x)), y).item()


@pytest.mark.parametrize("form", FORMS)
def test_a_change_in_place_inside_of_a_container_is_seen(form):
    x, y = batch()
    with pytest.raises(UsageError, match="a later layer changes the output of site 'pair' in place"):
        changes(form, 0)(x, targets=y)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "computed"])
def test_a_change_of_a_part_that_no_head_is_given_is_no_fault(form):
    supervised, (x, y) = changes(form, 1), batch()
    assert supervised(x, targets=y).losses["pair"] == pytest.approx(first_alone(supervised, x, y))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("form", [form for form in FORMS if form != "object"])
def test_compiled_a_head_sees_containers_as_they_were(form):
    supervised, (x, y) = changes(form, 0), batch()
    found = torch.compile(supervised, backend="aot_eager", fullgraph=True)(x, targets=y)
    assert found.losses["pair"] == pytest.approx(first_alone(supervised, x, y))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (nn.Linear(DIM + 1, CLASSES), r"head at '1' cannot be given what its site returns, a tensor \(6, 8\)"),
        (nn.Linear(DIM, CLASSES - 2), r"head at '1' cannot compare a tensor \(6, 1\) with targets that are a tensor"),
        (nn.Unflatten(1, (2, 4)), r"head at '1' cannot compare a tensor \(6, 2, 4\) with targets"),
        (Head(nn.Linear(DIM, CLASSES), select="hidden"), r"select='hidden' does not fit the output of site '1'"),
        (Head(head(), loss=lambda a, b: a), r"loss of the head at '1' must return a scalar, got a tensor \(6, 3\)"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit(given, match):
    x, y = batch()
    with pytest.raises(UsageError, match=match):
        levada.Supervision(plain(), {"1": given}, cross_entropy)(x, targets=y)


# Sharded: the gradients of two processes are those of one.

SHARDED = ("stack", "checkpointed", "converted")


def sharded_case(case: str) -> levada.Supervision:
    if case == "converted":
        model, sites, loss = (
            converted(levada.HyperConnection, torch.float64),
            ("layers.0", "layers.1.linear1"),
            per_token,
        )
        heads = {"layers.0": head(), "layers.1.linear1": nn.Linear(16, CLASSES)}
    else:
        torch.manual_seed(0)
        branches = [nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(3)]
        model = levada.Stack(branches, levada.HyperConnection, dim=DIM, checkpoint=2 if case == "checkpointed" else 0)
        sites, loss = ("layers.0", "layers.1.branch.1"), per_token
        heads = {sites[0]: head(), sites[1]: head(2)}
    supervised = levada.Supervision(model, heads, loss, schedule=linear_decay, steps=10)
    supervised.step()
    return supervised.double()


def tokens() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 5, DIM, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (4, 5), generator=generator)


@pytest.fixture(scope="module")
def found(two_processes):
    return two_processes(__file__)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.parametrize("case", SHARDED)
def test_sharded_gradients_are_those_of_a_single_process(case, found):
    expected = gradients(sharded_case(case), *tokens())
    assert any(name.startswith("heads.") for name in expected)
    torch.testing.assert_close(found[case], expected, rtol=1e-9, atol=1e-12)


def test_a_loss_that_is_none_and_a_model_without_heads_are_said_in_a_sentence():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(5, 3)
    with pytest.raises(UsageError, match="loss must be a function"):
        levada.Supervision(model, {"0": nn.Linear(4, 2)}, None)
    with pytest.raises(UsageError, match=r"must be a levada\.Supervision, got Sequential"):
        levada.supervision.gradient_reach(model, x, targets=torch.zeros(5, dtype=torch.long))


def shard(rank: int, folder: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    result = {}
    for case in SHARDED:
        supervised = sharded_case(case)
        levada.shard_connections(supervised, mesh=mesh)
        for layer in supervised.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(supervised, mesh=mesh)
        x, y = (part.chunk(2)[rank] for part in tokens())
        supervised(x, targets=y).loss.backward()
        result[case] = {n: p.grad.full_tensor() for n, p in supervised.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save(result, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    shard(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)
