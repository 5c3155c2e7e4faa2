"""What stacked layers store, and what the library says of them."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from tests.stacking.stacks import DEPTH, DIM, branch, is_recorded, pair
from torch import nn

import levada
from levada._errors import UsageError
from levada.connections import HyperConnection, Momentum, Plain, Residual
from levada.probe.execution import record
from levada.stack import Stack
from levada.stacking import as_layers, parameters_of


def test_parameters_must_be_alike():
    wide = [nn.Sequential(nn.Linear(DIM, w), nn.Linear(w, DIM)) for w in (3, 4)]
    with pytest.raises(UsageError, match=r"'branch\.0\.weight' is \(3, 6\) .* in layer 0 and \(4, 6\)"):
        Stack(wide, Residual, dim=DIM, stacked=True)
    with pytest.raises(UsageError, match=r"'branch\.1\.bias' is missing in layer 0"):
        Stack(
            [nn.Sequential(nn.Tanh(), nn.Linear(DIM, DIM, bias=b)) for b in (False, True)],
            Residual,
            dim=DIM,
            stacked=True,
        )
    with pytest.raises(UsageError, match="share no parameter"):
        Stack([nn.Linear(DIM, DIM)] * 2, Residual, dim=DIM, stacked=True)
    with pytest.raises(UsageError, match="these have none"):
        Stack([nn.Identity()], Residual, dim=DIM, stacked=True)
    with pytest.raises(UsageError, match="holds them in '_flat_weights'"):
        Stack([nn.LSTM(DIM, DIM) for _ in range(2)], Residual, dim=DIM, stacked=True)
    with pytest.raises(UsageError, match="UninitializedParameter"):
        Stack([nn.LazyLinear(DIM) for _ in range(2)], Residual, dim=DIM, stacked=True)


def test_what_does_not_go_with_stacking_is_refused(batch):
    with pytest.raises(UsageError, match="not compiled"):
        Stack([branch()], Residual, dim=DIM, stacked=True, compile=True)
    _, stacked = pair(connection=Momentum)
    with pytest.raises(UsageError, match="recompute=False"):
        stacked(batch)
    _, stacked = pair()
    with pytest.raises(UsageError, match="'weight' for layer 2"):
        stacked[2].branch[1].weight = nn.Parameter(torch.ones(DIM, DIM))
    with pytest.raises(UsageError, match="one by one"):
        del stacked[2].branch[1].weight


def test_optimizers_are_given_one_tensor_of_each_kind():
    plain, stacked = pair()
    shapes = {n: tuple(p.shape) for n, p in stacked.named_parameters()}
    assert shapes["stacked.branch.1.weight"] == (DEPTH, DIM, DIM)
    assert len(shapes) == 4
    assert sum(p.numel() for p in stacked.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_training_goes_as_that_of_the_plain_stack(optimizer, batch):
    plain, stacked = pair()
    for stack in (plain, stacked):
        steps = optimizer(stack.parameters(), lr=0.1)
        for _ in range(3):
            steps.zero_grad()
            stack(batch).square().sum().backward()
            nn.utils.clip_grad_norm_(stack.parameters(), 0.5)
            steps.step()
    torch.testing.assert_close(stacked.state_dict(), plain.state_dict())


def test_states_go_from_one_to_the_other(batch):
    plain, stacked = pair()
    assert list(stacked.state_dict()) == list(plain.state_dict())
    other = Stack([branch() for _ in range(DEPTH)], Residual, dim=DIM, stacked=True)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other(batch), plain(batch))
    back = Stack([branch() for _ in range(DEPTH)], Residual, dim=DIM)
    back.load_state_dict(other.state_dict())
    assert torch.equal(back(batch), plain(batch))
    outer = nn.Sequential(nn.Linear(DIM, DIM), other)
    assert "1.layers.0.branch.1.weight" in outer.state_dict()
    outer.load_state_dict(outer.state_dict(), assign=True)
    assert torch.equal(other(batch), plain(batch))
    assert is_recorded(other)


def test_loading_is_strict():
    plain, stacked = pair()
    state = plain.state_dict()
    state["layers.3.branch.1.bias"] = torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"size mismatch for layers\.3\.branch\.1\.bias"):
        stacked.load_state_dict(state)
    del state["layers.3.branch.1.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*layers\.3\.branch\.1\.bias"):
        stacked.load_state_dict(state)
    assert isinstance(stacked.stacked, nn.Module)
    assert is_recorded(stacked)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_have_parameters_of_their_own(way, batch):
    _, stacked = pair()
    expected = stacked(batch)
    if way == "deepcopy":
        other = copy.deepcopy(stacked)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(stacked))
    else:
        file = io.BytesIO()
        torch.save(stacked, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    with torch.no_grad():
        for parameter in stacked.parameters():
            parameter.zero_()
    assert torch.equal(other(batch), expected)
    assert is_recorded(other)
    assert torch.equal(other[2].branch[1].weight, other.stacked.branch.get_submodule("1").weight[2])


def test_stacks_pickled_before_the_hooks_moved_are_read(batch):
    _, stacked = pair()
    kept = pickle.dumps(stacked, protocol=2)
    for now, before in (("before_loading", "_spread"), ("after_loading", "_gather")):
        name = f"clevada.stacking.by_layer\n{now}\n".encode()
        assert name in kept
        kept = kept.replace(name, f"clevada.stack\n{before}\n".encode())
    other = pickle.loads(kept)
    other.load_state_dict({name: value * 2 for name, value in stacked.state_dict().items()})
    assert not torch.equal(other(batch), stacked(batch))
    stacked.load_state_dict(other.state_dict())
    assert torch.equal(other(batch), stacked(batch))


def test_a_layers_parameters_are_its_slices():
    _, stacked = pair()
    weight = stacked.stacked.branch.get_submodule("1").weight
    with torch.no_grad():
        nn.init.constant_(stacked[3].branch[1].weight, 5.0)
    assert weight[3].eq(5).all()
    assert not weight[2].eq(5).any()
    stacked[1](torch.randn(2, DIM)).square().sum().backward()  # a layer by itself: its gradient arrives too
    assert weight.grad[1].abs().sum() > 0
    assert weight.grad[[0, 2, 3, 4]].eq(0).all()
    assert list(stacked[1].parameters()) == []
    names = [n for n, _ in parameters_of(stacked)]
    assert names == [n for n, _ in pair()[0].named_parameters()]


def test_what_arrives_by_layer_is_gathered(batch):
    plain, stacked = pair()
    plain(batch).square().sum().backward()
    with as_layers(stacked):
        assert [n for n, _ in stacked.named_parameters()] == [n for n, _ in plain.named_parameters()]
        stacked(batch).square().sum().backward()
    weight = stacked.stacked.branch.get_submodule("1").weight
    assert torch.equal(weight.grad, torch.stack([layer.branch[1].weight.grad for layer in plain]))
    with as_layers(stacked):
        for parameter in stacked.parameters():
            parameter.grad = None
    assert weight.grad is None


def test_stacks_stay_stacked_where_what_one_was_given_is_refused(batch):
    both = nn.Sequential(pair()[1], pair()[1])
    expected, names = both(batch), [n for n, _ in both.named_parameters()]
    with (
        pytest.raises(UsageError, match=r"'branch\.1\.weight' is \(6, 6\).* layer 0 and \(3, 3\).* layer 2"),
        as_layers(both),
    ):
        both[1][2].branch[1].weight = nn.Parameter(torch.ones(3, 3))
    assert [n for n, _ in both.named_parameters()] == names
    assert torch.equal(both(batch), expected)
    assert is_recorded(both[0])


def test_moving_and_going_back(batch):
    plain, stacked = pair()
    stacked.double(), plain.double()
    assert torch.equal(stacked(batch.double()), plain(batch.double()))
    stacked(batch.double()).sum().backward(), plain(batch.double()).sum().backward()
    stacked.arrange(stacked=False)
    assert [n for n, _ in stacked.named_parameters()] == [n for n, _ in plain.named_parameters()]
    torch.testing.assert_close([p.grad for p in stacked.parameters()], [p.grad for p in plain.parameters()])
    assert torch.equal(stacked(batch.double()), plain(batch.double()))


def test_parameter_groups_are_those_of_the_plain_stack():
    plain, stacked = pair(connection=HyperConnection)
    expected, found = ({g["name"]: g for g in levada.parameter_groups(s)} for s in (plain, stacked))
    assert expected.keys() == found.keys()
    for name, group in found.items():
        assert group["weight_decay"] == expected[name]["weight_decay"]
        assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in expected[name]["params"])
        assert {id(p) for p in group["params"]} <= {id(p) for p in stacked.parameters()}
    with pytest.raises(UsageError, match="Muon takes matrices"):
        levada.parameter_groups(stacked, optimizer="muon")


def test_check_says_the_same(batch):
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(DIM, DIM), nn.Sigmoid())

    plain, stacked = pair(make, Plain)
    expected, found = (
        levada.check(nn.Sequential(s, nn.Linear(DIM, 2)), batch) for s in map(copy.deepcopy, (plain, stacked))
    )
    assert found.verdict == expected.verdict
    assert [b["site"] for b in found.blocks][:DEPTH] == [f"0.layers.{i}" for i in range(DEPTH)]
    assert [f.rule for f in found.findings] == [f.rule for f in expected.findings]
    before = copy.deepcopy(stacked.state_dict())
    expected, found = (levada.check(s, (batch, batch.tanh()), loss="mse").blocks for s in (plain, stacked))
    assert len(found) == DEPTH
    for block, other in zip(found, expected, strict=True):
        assert block.keys() == other.keys()
        assert {"gradient_rms", "cotangent_rms", "update_ratio"} <= block.keys()
        numbers = {key: value for key, value in other.items() if isinstance(value, float)}
        assert {key: block[key] for key in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-9)
    torch.testing.assert_close(stacked.state_dict(), before, rtol=0, atol=0)
    assert is_recorded(stacked)


def test_the_probe_measures_the_same(batch):
    traces = []
    for stack in pair():
        optimizer = torch.optim.AdamW(stack.parameters(), lr=0.01, eps=0.5)
        with levada.Probe(stack, optimizer, every=2, noise=True) as probe:
            for _ in range(5):
                optimizer.zero_grad()
                stack(batch).square().sum().backward()
                optimizer.step()
        traces.append(probe.trace())
    plain, stacked = traces
    assert stacked.names() == plain.names()
    assert [s.parameters for s in stacked.sites] == [s.parameters for s in plain.sites]
    assert stacked.values.keys() == plain.values.keys()
    assert plain["eps_fraction"][-1].unique().numel() > 2  # which differ, by layer
    torch.testing.assert_close(dict(stacked.values), dict(plain.values), equal_nan=True, rtol=1e-4, atol=1e-6)
    assert is_recorded(pair()[1])


def test_a_recorded_pass_names_the_parameters_that_layers_read(batch):
    plain, stacked = (record(stack, lambda stack=stack: stack(batch)) for stack in pair(connection=HyperConnection))
    assert stacked.sites == plain.sites
    told = [
        {
            block: [(op.kind, op.name, op.module, op.parameters, op.shape) for op in operations]
            for block, operations in execution.operations.items()
        }
        for execution in (plain, stacked)
    ]
    assert told[0] == told[1]
    assert ("layers.2.branch.1.weight", "layers.2.branch.1.bias") in [op[3] for op in told[1]["layers.2"]]


def test_watching_measures_the_same(batch):
    told = []
    for stack in pair():
        optimizer = torch.optim.SGD(stack.parameters(), lr=0.01)
        with levada.watch(stack, optimizer, every=1, max_overhead=1.0) as watching:
            for _ in range(3):
                optimizer.zero_grad()
                stack(batch).square().sum().backward()
                optimizer.step()
        told.append((watching.sites, dict(watching.samples[-1].values)))
    (sites, values), (found_sites, found) = told
    assert found_sites == sites
    assert len(sites) == DEPTH
    torch.testing.assert_close(found, values, equal_nan=True, rtol=1e-4, atol=1e-6)


def test_what_needs_layers_that_hold_their_own_says_so():
    _, stacked = pair(connection=HyperConnection)
    with pytest.raises(UsageError, match=r"arrange\(stacked=False\)"):
        levada.convert(nn.Sequential(nn.Linear(DIM, DIM), stacked), levada.ReZero)
