"""Copies and shards of a model give the single process's gradients, on two processes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import levada
from levada._errors import UsageError
from levada.networks import Network, mlp, transformer
from levada.theory.cost import NetworkSize, gather_bytes, parameters, reduce_bytes
from levada.training import Parallel, materialise, parallelise, process_mesh

DIM = 8
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
CASES = {
    "copies": Parallel("ddp"),
    "copies, checkpointed": Parallel("ddp", checkpoint=2),
    "shards": Parallel("fsdp"),
    "shards, kept gathered": Parallel("fsdp", reshard=False),
    "shards, checkpointed": Parallel("fsdp", checkpoint=True),
    "shards, compiled, checkpointed": Parallel("fsdp", compile=True, checkpoint=2),
    "shards, stacked": Parallel("fsdp", stacked=True),
    "shards, stacked, kept gathered": Parallel("fsdp", stacked=True, reshard=False),
    "shards, stacked, checkpointed": Parallel("fsdp", stacked=True, checkpoint=2),
}
CONNECTIONS = {
    "residual": (levada.Residual, {}),
    "mhc": (levada.ManifoldHyperConnection, {"iterations": 3, "form": "deepseek_v4"}),
}


def build(connection: str, *, alike: bool = False) -> Network:
    """A transformer, whose layers are of two kinds; or one whose layers are all alike, so that they can be stacked."""
    torch.manual_seed(0)
    kind, options = CONNECTIONS[connection]
    net = transformer(4, DIM, vocabulary=12, heads=2, connection=kind, **options).double()
    if alike:
        branches = [nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.GELU()) for _ in range(4)]
        net.stack = levada.Stack(branches, kind, dim=DIM, **options).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def batch() -> Tensor:
    return torch.randint(12, (4, 5), generator=torch.Generator().manual_seed(1))


def gradients(net: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    scores = net(tokens)
    nn.functional.cross_entropy(scores.flatten(0, 1), tokens.flatten()).backward()
    return {name.removeprefix("module."): p.grad for name, p in net.named_parameters()}


@pytest.fixture(scope="module")
def found(two_processes) -> dict:
    return two_processes(__file__)


@pytest.mark.parametrize("connection", CONNECTIONS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_a_single_process(case, connection, found):
    expected = gradients(build(connection, alike="stacked" in case), batch())
    torch.testing.assert_close(found[case, connection], expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_layers_are_compiled_where_it_says_so(connection, found):
    assert found["graphs", "shards, compiled, checkpointed", connection] > 0
    assert found["graphs", "shards, checkpointed", connection] == 0


def test_what_is_gathered_and_reduced_is_what_it_costs(found):
    """All shapes are even, so that shards have no padding."""
    size = NetworkSize(4, DIM, 12, 5, heads=2)
    count = parameters(size)
    for case, passes in (
        ("shards", 2),
        ("shards, kept gathered", 1),
        ("shards, checkpointed", 2),
    ):
        # Half of what is gathered was there before.
        assert found["gathers", case] / 2 == gather_bytes(count, 2, element=8, passes=passes), case
        assert found["reduces", case] / 2 == reduce_bytes(count, 2, sharded=True, element=8)
    count = sum(p.numel() for p in build("residual", alike=True).parameters())
    for case, passes in (("shards, stacked", 2), ("shards, stacked, kept gathered", 1)):
        assert found["gathers", case] / 2 == gather_bytes(count, 2, element=8, passes=passes), case
        assert found["reduces", case] / 2 == reduce_bytes(count, 2, sharded=True, element=8)
    count = parameters(size)
    assert found["sums", "copies"] == reduce_bytes(count, 2, sharded=False, element=8)


def test_layers_stem_and_head_are_units_of_their_own(found):
    units = found["units"]
    layers = {f"stack.layers.{i}" for i in range(4)}
    assert units == {"", "stem", "head", "stack.output", *layers, *(f"{layer}.connection" for layer in layers)}
    assert found["tied units"].isdisjoint({"stem", "head"}), "shared weights stay in one unit"


def test_of_a_stacked_stack_the_stack_is_a_unit_and_its_connections_another(found):
    assert found["stacked units"] == {"", "stem", "head", "stack", "stack.output", "stack.stacked.connection"}
    assert found["stacked groups"] == 2, "what decays, and what does not"


@pytest.mark.filterwarnings("ignore:Stack. stacked layers run one by one")
@pytest.mark.parametrize("case", ["gathered", "gathered, stacked"])
def test_gathering_in_bfloat16_leaves_coefficients_and_gradients_in_float32(case, found):
    assert found[case]["branch"] == [torch.bfloat16]
    assert found[case]["connection"] == [torch.float32]
    assert found[case]["gradients"] == [torch.float32]


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "fsdp, stacked", "ddp, stacked"])
def test_a_model_on_the_meta_device_gets_the_first_processs_weights(kind, found):
    expected = gradients(build("mhc", alike="stacked" in kind), batch())
    torch.testing.assert_close(found["meta", kind], expected, rtol=1e-10, atol=1e-13)


def test_one_process_gets_the_stack_arranged():
    net = mlp(4, DIM, inputs=3, outputs=2, connection=levada.Residual, checkpoint=4)
    assert parallelise(net, None, Parallel()).stack.segments == 4, "what the stack was built with stays"
    assert parallelise(net, None, Parallel(checkpoint=2, compile=True)) is net
    assert net.stack.segments == 2
    assert all(layer.compiled is net.stack[0].compiled is not None for layer in net.stack)
    assert parallelise(net, None, Parallel(checkpoint=2)).stack[0].compiled is not None
    net.stack.arrange(compile=False)
    assert net.stack[0].compiled is None


def test_what_it_refuses():
    net = nn.Linear(2, 2)
    for options, message in (
        ({"kind": "zero"}, "kind must be one of none, ddp, fsdp, pipeline"),
        ({"kind": "pipeline", "schedule": "zb"}, "schedule must be one of gpipe"),
        ({"kind": "ddp", "micro_batches": 2}, "micro_batches belongs to kind='pipeline'"),
        ({"kind": "pipeline", "micro_batches": 0}, "micro_batches must be at least 1"),
        ({"gather": "bfloat16"}, "gather belongs to kind='fsdp'"),
    ):
        with pytest.raises(UsageError, match=message):
            Parallel(**options)
    with pytest.raises(UsageError, match=r"Use levada\.training\.Pipeline"):
        parallelise(net, None, Parallel("pipeline"))
    with pytest.raises(UsageError, match="needs a mesh"):
        parallelise(net, None, Parallel("fsdp"))
    with pytest.raises(UsageError, match="need a model with a Stack, and Linear has none"):
        parallelise(net, None, Parallel(checkpoint=1))
    with pytest.raises(UsageError, match="Start with torchrun"):
        process_mesh(Parallel("ddp"))


def test_what_the_meta_device_would_lose_is_refused():
    with torch.device("meta"):
        tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        tied[1].weight = tied[0].weight
        hidden = nn.Sequential(nn.Linear(2, 2))
        hidden[0].register_buffer("mask", torch.zeros(1), persistent=False)
    with pytest.raises(UsageError, match="tied weights"):
        materialise(tied, {})
    with pytest.raises(UsageError, match=r"buffer 0\.mask is not in the state dict"):
        materialise(hidden, {})


class Messages(TorchDispatchMode):
    """Count the bytes of what is gathered (as it is whole), of what is reduced to shards, and of what is summed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if operation.namespace == "c10d":
            whole = args[1] if name == "_reduce_scatter_base_" else args[0]
            self.bytes[name] += sum(t.numel() * t.itemsize for t in tree_leaves(whole) if isinstance(t, Tensor))
        return operation(*args, **(kwargs or {}))


def spread(rank: int, folder: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = process_mesh(Parallel("fsdp"))
    half = batch().chunk(2)[rank]

    def whole(values: dict[str, Tensor]) -> dict[str, Tensor]:
        values = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in values.items()}
        stacked = [name for name in values if ".stacked." in name]
        layers = {
            name.replace(".stacked.", f".layers.{i}."): layer
            for name in stacked
            for i, layer in enumerate(values[name])
        }
        return {name: value for name, value in values.items() if name not in stacked} | layers

    result: dict = {}
    for case, parallel in CASES.items():
        for connection in CONNECTIONS:
            compiling = torch.compiler.set_stance("default", force_backend="aot_eager")
            with compiling if parallel.compile else contextlib.nullcontext():
                torch._dynamo.utils.counters.clear()
                net = parallelise(build(connection, alike=parallel.stacked), mesh, parallel)
                with (
                    Messages()
                    if connection == "residual" and not parallel.compile
                    else contextlib.nullcontext() as messages
                ):
                    values = gradients(net, half)
                result[case, connection] = whole(values)
                if messages:
                    result |= {("gathers", case): messages.bytes["_allgather_base_"]}
                    result |= {("reduces", case): messages.bytes["_reduce_scatter_base_"]}
                    result |= {("sums", case): messages.bytes["allreduce_"]}
                result["graphs", case, connection] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for kind in ("ddp", "fsdp", "fsdp, stacked", "ddp, stacked"):
        asked = Parallel(kind.split(",")[0], stacked="stacked" in kind)
        with torch.device("meta"):
            net = build("mhc", alike=asked.stacked)
        weights = build("mhc", alike=asked.stacked).state_dict() if rank == 0 else {}
        net = parallelise(net, mesh, asked, weights=weights)
        result["meta", kind] = whole(gradients(net, half))
        if asked.kind == "fsdp":
            units = {name for name, m in net.named_modules() if isinstance(m, FSDPModule)}
            result["stacked units" if asked.stacked else "units"] = units
            result["stacked groups"] = len(levada.parameter_groups(net))
    tied = build("residual")
    tied.head[1].weight = tied.stem.token.weight
    tied = parallelise(tied, mesh, Parallel("fsdp"))
    result["tied units"] = {name for name, m in tied.named_modules() if isinstance(m, FSDPModule)}
    result["gathered"] = types(parallelise(build("mhc").float(), mesh, Parallel("fsdp", gather="bfloat16")), half)
    stacked = build("mhc", alike=True).float()
    stacked = parallelise(stacked, mesh, Parallel("fsdp", gather="bfloat16", stacked=True))
    result["gathered, stacked"] = types(stacked, half)
    if rank == 0:
        torch.save(result, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def types(net: nn.Module, tokens: Tensor) -> dict[str, list[torch.dtype]]:
    """Which types parameters have while they compute, and gradients afterwards."""
    seen: dict[str, set] = {"branch": set(), "connection": set()}
    connection = net.stack[1].connection
    kind = type(connection)

    def open_and_look(self, state):  # what the class calls in a step to read
        seen["connection"].add(self.projection.dtype)
        return kind.open(self, state)

    connection.__class__ = type(kind.__name__, (kind,), {"open": open_and_look})
    linear = next(m for m in net.stack[1].branch.modules() if isinstance(m, nn.Linear))
    linear.register_forward_pre_hook(lambda m, _: seen["branch"].add(m.weight.dtype))
    seen["gradients"] = {g.dtype for g in gradients(net, tokens).values()}
    return {name: sorted(kinds, key=str) for name, kinds in seen.items()}


if __name__ == "__main__":
    spread(int(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)
