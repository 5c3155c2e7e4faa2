"""Stacked stacks under `fully_shard` on two processes: stored, loaded and trained by layer, as plain ones are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import levada

DIM, DEPTH = 6, 5
CONNECTIONS = {
    "residual": (levada.Residual, {}),
    "scale": (levada.ReZero, {}),  # one number a layer, of which no process has a part
    "mhc": (levada.ManifoldHyperConnection, {"iterations": 3}),
}
# Divided by depth, as `fully_shard` does by itself; so that each process has a part of every layer; and with the
# connections as a unit of their own.
WAYS = ("by depth", "placed", "connections apart")
CASES = [(name, way) for name in CONNECTIONS for way in WAYS if (name, way) != ("residual", "connections apart")]
WIDTHS = {"residual": 6, "scale": 7, "mhc": 6}  # seven rows cannot be divided by two
LOADED = (
    "sharded",
    "whole",
    "of the first process",
    "assigned",
    "whole, assigned",
    "from a file",
    "plain, from a file",
    "of a plain one",
)
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # said where one process loads


def build(name: str, *, stacked: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    width, (connection, options) = WIDTHS[name], CONNECTIONS[name]
    branches = [
        nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, width), nn.Tanh(), nn.Linear(width, DIM)) for _ in range(DEPTH)
    ]
    stack = levada.Stack(branches, connection, dim=DIM, stacked=stacked, **options)
    return nn.Sequential(nn.Linear(DIM, DIM), stack, nn.Linear(DIM, 2)).double()


def batch() -> Tensor:
    return torch.randn(8, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def adam(net: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer that leaves a gradient of rounding errors small, as of a bias that Sinkhorn takes out."""
    return torch.optim.AdamW(net.parameters(), lr=0.05, eps=1e-4)


def train(net: nn.Module, x: Tensor, steps: int = 3) -> torch.optim.Optimizer:
    optimizer = adam(net)
    go_on(net, optimizer, x, steps)
    return optimizer


def go_on(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def functions(y: Tensor) -> set[str]:
    found, left = set(), [y.grad_fn]
    while left:
        node = left.pop()
        found.add(type(node).__name__)
        left += [before for before, _ in node.next_functions if before is not None]
    return found


@pytest.fixture(scope="module")
def found(two_processes) -> dict:
    return two_processes(__file__)


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Tensor]]:
    plain = {name: build(name, stacked=False) for name in CONNECTIONS}
    for net in plain.values():
        train(net, batch())
    return {name: net.state_dict() for name, net in plain.items()}


@pytest.mark.parametrize(("name", "way"), CASES)
def test_it_trains_as_a_plain_stack_in_one_process_and_is_stored_by_layer(name, way, found, expected):
    case = found[name, way]
    assert sorted(case["state"]) == sorted(expected[name])
    torch.testing.assert_close(case["state"], dict(expected[name]), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(case["full"], dict(expected[name]), rtol=1e-9, atol=1e-12)
    assert case["recorded"], "it runs as one function of autograd"


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_layer_is_divided_as_that_of_a_plain_stack_is(name, way, found):
    assert found[name, way]["placements"] == found[name, way]["plain"]
    stacked = {key: kind for key, kind in found[name, way]["stacked"].items() if ".stacked." in key}
    by_depth = {key.partition(".stacked.")[2] for key, kind in stacked.items() if kind == "S(0)"}
    uneven = {"scale": {"branch.1.weight", "branch.1.bias", "connection.scale"}, "residual": set()}
    if way == "by depth":
        assert len(by_depth) == len(stacked)
    elif name in uneven:
        assert by_depth == uneven[name]
    assert (set(stacked.values()) == {"S(0)"}) is (way == "by depth") or name == "residual"


@pytest.mark.parametrize(("name", "way"), CASES)
@pytest.mark.parametrize("how", LOADED)
def test_it_is_loaded_by_layer(how, name, way, found, expected):
    torch.testing.assert_close(found[name, way]["loaded"][how], dict(expected[name]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_it_is_stored_in_the_midst_of_a_pass(name, way, found):
    case = found[name, way]
    torch.testing.assert_close(case["between"], dict(build(name).state_dict()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "way"), CASES)
def test_one_process_goes_on_with_weights_and_moments(name, way, found, expected, tmp_path):
    """Of what two processes stored: the stacked one with the moments of its stacked tensors, whatever the way."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    net = build(name, seed=1)
    optimizer = adam(net)
    weights, moments = get_state_dict(net, optimizer)
    dcp.load({"model": weights, "optimizer": moments}, checkpoint_id=found[name, way]["checkpoint"], no_dist=True)
    set_state_dict(net, optimizer, model_state_dict=weights, optim_state_dict=moments)
    torch.testing.assert_close(dict(net.state_dict()), dict(expected[name]), rtol=1e-9, atol=1e-12)
    go_on(net, optimizer, batch(), 2)
    plain = build(name, stacked=False)
    train(plain, batch(), 5)
    torch.testing.assert_close(dict(net.state_dict()), dict(plain.state_dict()), rtol=1e-9, atol=1e-12)


def test_what_needs_whole_layers_says_so(found):
    probed = found["refused"].pop("probe")
    assert "Probe: parameters must be whole in this process" in probed
    assert "Use levada.watch" in probed
    assert set(found["refused"]) == {"arrange", "check"}
    for told in found["refused"].values():
        assert "sharding has divided the stacked" in told
        assert "Call arrange(stacked=False) before fully_shard" in told
    assert found["kept"], "what refuses leaves the stack as it was"


def test_the_placement_is_asked_for_what_is_stacked_alone(monkeypatch):
    from torch.distributed.tensor import Shard

    net = build("scale")
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    ask = levada.stacked_placement(net)
    asked = {name.partition("stacked.")[2]: ask(p) for name, p in net.named_parameters()}
    assert asked["branch.1.weight"] is asked["branch.1.bias"] is asked["connection.scale"] is None  # 7, 7 and 1
    assert asked["branch.3.weight"] == asked["branch.3.bias"] == Shard(1)  # 6
    assert ask(net[0].weight) is None


# In each of two processes.


def shard(net: nn.Module, way: str, mesh) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    options = {} if way == "by depth" else {"shard_placement_fn": levada.stacked_placement(net, mesh)}
    if way == "connections apart":
        levada.shard_connections(net, mesh=mesh)
    fully_shard(net[1], mesh=mesh, reshard_after_forward=way == "connections apart", **options)
    return fully_shard(net, mesh=mesh)


def whole(values) -> dict[str, Tensor]:
    return {name: value.full_tensor() for name, value in values.items()}


def load(how: str, net: nn.Module, state: dict, full: dict, checkpoint: str, plain: nn.Module, rank: int) -> nn.Module:
    """Load the state into a network that has another one, and return it."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    from levada.training import materialise

    if how in ("sharded", "assigned"):
        net.load_state_dict(state, assign=how == "assigned")
    elif how == "whole, assigned":
        mine = {name for name in state if name.startswith("1.")}  # others PyTorch does not divide
        net.load_state_dict({name: value for name, value in state.items() if name not in mine}, strict=False)
        net.load_state_dict({name: full[name] for name in mine}, strict=False, assign=True)
    elif how == "whole":
        set_model_state_dict(net, dict(full), options=StateDictOptions(full_state_dict=True))
    elif how == "of the first process":
        materialise(net, full if rank == 0 else {})
    elif how == "of a plain one":
        plain.load_state_dict(state)
        net.load_state_dict(plain.state_dict())
    else:
        into = plain if how.startswith("plain") else net
        held = into.state_dict()
        dcp.load({"model": held}, checkpoint_id=checkpoint)
        into.load_state_dict(held)
        return into
    return net


def refused(net: nn.Module) -> dict[str, str]:
    told = {}
    for name, call in {
        "arrange": lambda: net[1].arrange(stacked=False),
        "probe": lambda: levada.Probe(net[1]).__enter__(),
        "check": lambda: levada.check(net, batch=batch()),
    }.items():
        try:
            call()
        except levada._errors.UsageError as error:
            told[name] = str(error)
    return told


def work(rank: int, folder: Path) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    half = batch().chunk(2)[rank]
    result: dict = {}
    for name, way in CASES:
        case = result[name, way] = {"loaded": {}}
        net = shard(build(name), way, mesh)
        y = net(half)  # after which the stack stays gathered, but in the last way
        case["between"] = whole(net.state_dict())
        case["recorded"] = "LayersBackward" in functions(y)
        y.sum().backward()
        net.zero_grad()
        optimizer = train(net, half)
        state = net.state_dict()
        case["state"] = whole(state)
        case["full"] = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
        plain = fully_shard(build(name, stacked=False, seed=1), mesh=mesh)
        case["placements"] = {key: str(*value.placements) for key, value in state.items()}
        case["stacked"] = {key: str(*p.placements) for key, p in net.named_parameters()}
        case["plain"] = {key: str(*value.placements) for key, value in plain.state_dict().items()}
        case["checkpoint"] = str(folder / f"{name}, {way}")
        weights, moments = get_state_dict(net, optimizer)
        saving = dcp.async_save({"model": weights, "optimizer": moments}, checkpoint_id=case["checkpoint"])
        saving.result()
        dist.barrier()
        for how in LOADED:
            other = shard(build(name, seed=1), way, mesh)
            other = load(how, other, state, case["state"], case["checkpoint"], plain, rank)
            case["loaded"][how] = whole(other.state_dict())
            torch.testing.assert_close(other(half), net(half))
    net = shard(build("residual"), "placed", mesh)
    before = whole(net.state_dict())
    result["refused"] = refused(net)
    result["kept"] = all(torch.equal(value, before[key]) for key, value in whole(net.state_dict()).items())
    if rank == 0:
        torch.save(result, folder / "found.pt")
    dist.barrier()  # a process that ends while the other still talks to it aborts
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # gloo's threads sometimes outlive the interpreter and abort it
