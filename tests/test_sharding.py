"""Connections as units of sharding of their own: float32 coefficients over bfloat16 streams, on two processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import levada
from levada._errors import UsageError
from levada.connection import Connection
from levada.conversion import convert

STACKS = {
    "mhc": (levada.ManifoldHyperConnection, {"iterations": 5}),
    "mhc with a head": (levada.ManifoldHyperConnection, {"iterations": 5, "form": "deepseek_v4"}),
    "single pass": (levada.SinglePassManifoldHyperConnection, {"iterations": 5}),
    "hc": (levada.HyperConnection, {}),
    "gated": (levada.GatedResidual, {}),
    "attention": (levada.AttentionResidual, {}),
    "multiway": (levada.MultiwayDynamicDense, {}),
    "rezero": (levada.ReZero, {}),
    "mhc, checkpointed": (levada.ManifoldHyperConnection, {"iterations": 5, "checkpoint": 2}),
    "mhc, compiled": (levada.ManifoldHyperConnection, {"iterations": 2, "compile": {"backend": "aot_eager"}}),
    "single pass, compiled": (
        levada.SinglePassManifoldHyperConnection,
        {"iterations": 2, "checkpoint": 2, "compile": {"backend": "eager"}},
    ),
}
CONVERTED = {
    "converted hc": (levada.HyperConnection, {}),
    "converted gated": (levada.GatedResidual, {"preserve": False, "verify": False}),
    "converted single pass": (levada.SinglePassManifoldHyperConnection, {"iterations": 5}),
}
CASES = [*STACKS, *CONVERTED]
DIM = 8
COMPILED = [case for case, (_, options) in STACKS.items() if "compile" in options]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")


def build(case: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    if case in STACKS:
        connection, options = STACKS[case]
        branches = [nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(3)]
        net = levada.Stack(branches, connection, dim=DIM, **options)
    else:
        connection, options = CONVERTED[case]
        layer = nn.TransformerEncoderLayer(DIM, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        net = convert(model, connection, batch=batch(), **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.to(dtype)


def batch() -> Tensor:
    return torch.randn(4, 5, DIM, generator=torch.Generator().manual_seed(1))


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net(x).to(torch.float64).square().mean().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def compiled() -> dict[tuple[str, torch.dtype], dict[str, Tensor]]:
    """Give the gradients in one process, which compiles the loops of `levada[cpu]` and keeps them for others."""
    types = torch.float64, torch.float32
    return {(case, dtype): gradients(build(case, dtype), batch().to(dtype)) for case in CASES for dtype in types}


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, torch.dtype], dict[str, Tensor]]:
    return compiled()


@pytest.fixture(scope="module")
def found(two_processes, alone) -> dict[str, dict[str, dict]]:  # begun after it: each would compile the loops
    return two_processes(__file__)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_a_single_process(case, found, alone):
    expected = alone[case, torch.float64]
    torch.testing.assert_close(found["double"][case], expected, rtol=1e-9, atol=1e-12)
    assert any("connection" in name for name in expected)


@pytest.mark.parametrize("case", CASES)
def test_coefficients_are_made_of_float32_while_branches_run_in_bfloat16(case, found):
    types = found["types"][case]
    assert types["branch"] == [torch.bfloat16]
    assert types["connection"] == [torch.float32]
    assert types["alone"] == [torch.bfloat16], "else there would be nothing to keep"


@pytest.mark.parametrize("case", CASES)
def test_mixed_precision_gives_nearly_the_same_gradients(case, found, alone):
    expected = alone[case, torch.float32]
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in found["mixed"][case].items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() / largest < 0.05, name


@pytest.mark.parametrize("case", COMPILED)
def test_layers_are_compiled_between_what_sharding_does(case, found):
    assert found["graphs"][case] > 0


def test_what_it_refuses():
    with pytest.raises(UsageError, match="must have connections with parameters, and Linear has none"):
        levada.shard_connections(nn.Linear(2, 2))
    plain = levada.Stack([nn.Linear(2, 2)], levada.Residual, dim=2)
    with pytest.raises(UsageError, match="and Stack has none"):
        levada.shard_connections(plain)


def test_it_must_come_first(found):
    assert found["late"].startswith("shard_connections: it must come before fully_shard")


def types_seen(net: nn.Module, x: Tensor) -> dict[str, list[torch.dtype]]:
    """Which types the parameters of branches and connections have while they compute."""
    seen: dict[str, set] = {"branch": set(), "connection": set()}
    handles = []
    for module in net.modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_pre_hook(lambda m, _: seen["branch"].add(m.weight.dtype)))
        if isinstance(module, Connection):
            for method in ("write", "open", "coefficients", "combined"):
                spy(module, method, seen["connection"])
    net(x)
    for handle in handles:
        handle.remove()
    return {kind: sorted(types, key=str) for kind, types in seen.items()}


def spy(connection: Connection, method: str, seen: set) -> None:
    """Note the parameters' type where the class's own method runs, inside of what sharding put around it."""
    kind = type(connection)
    before = getattr(kind, method, None)
    if before is None:
        return

    def noted(self, *args):
        seen.update(p.dtype for p in self.parameters())
        return before(self, *args)

    connection.__class__ = type(kind.__name__, (kind,), {method: noted})


def shard(rank: int, folder: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    bfloat16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

    def sharded(net: nn.Module, own: bool = True, **options) -> nn.Module:
        if own:
            levada.shard_connections(net, mesh=mesh)
        for layer in net.layers:
            fully_shard(layer, mesh=mesh, **options)
        return fully_shard(net, mesh=mesh, **options)

    result: dict = {"double": {}, "mixed": {}, "types": {}, "graphs": {}}
    half = batch().chunk(2)[rank]
    for case in CASES:
        for kind, dtype, options in (
            ("double", torch.float64, {}),
            ("mixed", torch.float32, {"mp_policy": bfloat16}),
        ):
            net = sharded(build(case, dtype), **options)
            torch._dynamo.utils.counters.clear()
            values = gradients(net, half.to(dtype))
            result["graphs"][case] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            result[kind][case] = {name: gradient.full_tensor() for name, gradient in values.items()}
        types = types_seen(sharded(build(case, torch.float32), mp_policy=bfloat16), half)
        alone = types_seen(sharded(build(case, torch.float32), own=False, mp_policy=bfloat16), half)
        result["types"][case] = {**types, "alone": alone["connection"]}
    try:
        levada.shard_connections(sharded(build("hc", torch.float32), own=False), mesh=mesh)
    except UsageError as error:
        result["late"] = str(error)
    if rank == 0:
        torch.save(result, folder / "found.pt")
    dist.barrier()  # a process that ends while the other still talks to it aborts
    dist.destroy_process_group()


if __name__ == "__main__":
    shard(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # gloo's threads sometimes outlive the interpreter and abort it
