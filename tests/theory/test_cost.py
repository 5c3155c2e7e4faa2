"""The closed forms of cost are what is counted when a network runs, and a run is written."""

from __future__ import annotations

import re
import weakref
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import levada
import levada.ops.flops  # levada.ops registers its formulas only if the counter was imported before it
from levada._errors import UsageError
from levada.networks import Network, transformer
from levada.ops._define import plain_operations
from levada.runs import RunWriter, SignalWriter
from levada.runs.codes import encode
from levada.runs.pyramid import FADE, SEGMENT, SPANS
from levada.theory.cost import (
    CONNECTIONS,
    NetworkSize,
    boundary_bytes,
    gather_bytes,
    layer_parameters,
    loss_bytes,
    operations,
    parameters,
    probe_bytes,
    reduce_bytes,
    run_values,
    saved_bytes,
    stage_bytes,
    stage_parameters,
    training_state_bytes,
)
from levada.theory.scale import Machine, Plan, extrapolated
from levada.training import Parallel, Pipeline, parallelise, process_mesh
from levada.training.boundary import tensors_of
from levada.training.stages import Stages
from levada.watching import WATCHED

BATCH = 3
SIZES = [
    *(NetworkSize(4, 16, 11, 6, heads=2, connection=name) for name in CONNECTIONS),
    NetworkSize(6, 32, 13, 10, heads=4, connection="HyperConnection", streams=2),
    NetworkSize(6, 32, 13, 10, heads=4, connection="ManifoldHyperConnection", streams=3),
    NetworkSize(8, 16, 13, 5, heads=4, connection="AttentionResidual", block_size=3),
    NetworkSize(6, 8, 7, 4, heads=1, connection="DepthWeightedAverage"),
]
every_size = pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s.connection}-{s.depth}-{s.dim}")


def build(size: NetworkSize, **options) -> Network:
    torch.manual_seed(0)
    if "Hyper" in size.connection:
        options["streams"] = size.streams
    if size.connection == "AttentionResidual":
        options["block_size"] = size.block_size
    connection = getattr(levada, size.connection)
    return transformer(
        size.depth, size.dim, vocabulary=size.vocabulary, heads=size.heads, connection=connection, **options
    )


def tokens(size: NetworkSize) -> Tensor:
    return torch.randint(size.vocabulary, (BATCH, size.tokens), generator=torch.Generator().manual_seed(1))


def after_stem(net: Network, size: NetworkSize) -> Tensor:
    """Return what the stack reads, with a gradient and no graph before it."""
    return net.stem(tokens(size)).detach().requires_grad_()


@every_size
def test_parameters(size):
    net = build(size)
    assert parameters(size) == sum(p.numel() for p in net.parameters())
    assert parameters(size, range(1, 3)) == sum(
        p.numel() for layer in net.stack.layers[1:3] for p in layer.parameters()
    )


@every_size
def test_saved_activations(size):
    net = build(size)
    x = after_stem(net, size)
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net.head(net.stack(x))
    assert saved_bytes(size, BATCH) == sum(tensor.untyped_storage().nbytes() for tensor in found.values())


class Alive(TorchDispatchMode):
    """Count the bytes of tensors that were made and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.seen = 0, weakref.WeakSet()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.note(tensor.untyped_storage())
        return out

    def note(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        self.seen.add(storage)
        self.bytes += storage.nbytes()
        weakref.finalize(storage, self.forget, storage.nbytes())

    def forget(self, size: int) -> None:
        self.bytes -= size


@every_size
@pytest.mark.parametrize("segments", [1, 2, 4])
def test_checkpointed_activations(size, segments):
    """What is left after the forward pass: the input of the stack, which was there before, and what was made."""
    net = build(size, checkpoint=segments)
    x = after_stem(net, size)
    copied = "Hyper" in size.connection  # begin makes streams of the input, which nobody needs afterwards
    with Alive() as alive:
        y = net.head(net.stack(x))
        left = alive.bytes - y.untyped_storage().nbytes()
    made = saved_bytes(size, BATCH, segments=segments) - (0 if copied else x.untyped_storage().nbytes())
    assert left == made


@every_size
@pytest.mark.parametrize("segments", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_a_stage_holds(size, place, segments):
    net = build(size)
    layers = [range(2), range(2, 4 if size.depth > 4 else 3), range(4 if size.depth > 4 else 3, size.depth)]
    given, came = (tokens(size),), None
    for before in range(place):
        sent, came = Stages(net, layers, [before], 0).run(before, given, came)
        given = tuple(tensor.detach().requires_grad_() for tensor in sent)
        del sent
    net.stem = nn.Identity() if place else Given(after_stem(net, size))
    stage = Stages(net, layers, [place], segments)
    target = torch.zeros(BATCH, size.tokens, dtype=torch.int64)
    with Alive() as alive:
        held, _ = stage.run(place, given, came)
        left = alive.bytes
        if place == 2:  # the output, the log-probabilities and a mean, with the sum of weights that it was divided by
            loss = nn.functional.cross_entropy(held.flatten(0, 1), target.flatten())
            output = held.untyped_storage().nbytes()
            assert alive.bytes - left == loss_bytes(size, BATCH) + 2 * loss.itemsize
            left -= output
    if place < 2:
        assert len(held) == len(size.state(layers[place].stop))
    begun = 0 if place or "Hyper" in size.connection else BATCH * size.tokens * size.dim * 4  # what the stem returned
    assert left + begun == stage_bytes(size, layers[place], BATCH, segments=segments)


class Given(nn.Module):
    """A stem whose output was there before."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, tokens: Tensor) -> Tensor:
        return self.x


@every_size
def test_operations(size):
    net = build(size)
    with (
        plain_operations(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counted,
    ):  # others are not counted on CPUs
        net(tokens(size)).sum().backward()
    assert operations(size, BATCH) == counted.get_total_flops()
    net = build(size, checkpoint=2)
    with (
        plain_operations(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as again,
    ):
        net(tokens(size)).sum().backward()
    most = operations(size, BATCH, recompute=True)
    assert 0.9 * most < again.get_total_flops() <= most
    assert again.get_total_flops() > counted.get_total_flops()


@every_size
def test_what_crosses_every_boundary(size):
    net = build(size)
    state = net.stack[0].connection.begin(net.stem(tokens(size)))
    for layers, layer in enumerate(net.stack.layers, 1):
        state = layer(state)
        assert tensors_of(state, "")[1].bytes == boundary_bytes(size, layers, BATCH)


def test_state_of_training():
    net = build(SIZES[0])
    optimizer = torch.optim.AdamW(net.parameters())
    net(tokens(SIZES[0])).sum().backward()
    optimizer.step()
    held = [*net.parameters(), *(p.grad for p in net.parameters())]
    held += [s[name] for s in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert training_state_bytes(parameters(SIZES[0])) == sum(t.numel() * t.itemsize for t in held)
    assert training_state_bytes(1000, 4) == 4000


def test_what_a_sample_and_a_run_weigh(tmp_path):
    sites, keep, samples = 5, SEGMENT, SEGMENT * (FADE + 3)
    rows = encode([1.0 + i for i in range(sites * len(WATCHED))])
    assert len(rows) == probe_bytes(sites) == probe_bytes(sites, len(WATCHED))
    RunWriter.create(tmp_path, kind="watch", name="cost").close()
    table = [{"name": str(i), "order": i} for i in range(sites)]
    with SignalWriter(tmp_path, sites=table, signals=WATCHED, keep=keep, capacity=samples + 1) as writer:
        for step in range(samples):
            writer.append(step, 0.0, rows)
    assert writer.dropped == 0
    assert kept_values(tmp_path, sites * len(WATCHED)) == run_values(samples, sites, keep=keep, fade=FADE)


def kept_values(folder, series: int) -> int:
    """Count the values in the sealed files of a run's first rank, each of which has a whole segment."""
    files = {level: len([*(folder / "signals" / "rank-00000").glob(f"{level}-*")]) for level in SPANS}
    return series * sum(files[level] * SEGMENT // span * (1 if span == 1 else 3) for level, span in SPANS.items())


def test_a_pipelines_stages_wait():
    """Against a schedule that is played out: all micro-batches forward, then backward, each taking one unit."""
    for stages, micro_batches in product((1, 2, 5), (1, 4, 7)):
        done: dict[tuple[str, int, int], int] = {}
        free = [0] * stages
        for part, order in (("forward", range(stages)), ("backward", range(stages - 1, -1, -1))):
            for batch in range(micro_batches):
                for stage in order:
                    before = stage + (-1 if part == "forward" else 1)
                    ready = max(free[stage], done.get((part, before, batch), 0))
                    done[part, stage, batch] = free[stage] = ready + 1
        idle = 1 - 2 * micro_batches / max(free)
        plan = Plan(NetworkSize(10, 8, 9, 4), "pipeline", stages, micro_batches, micro_batches)
        assert plan.idle == pytest.approx(idle)


class TestPlan:
    """What a process needs, put together from the parts."""

    size = NetworkSize(12, 64, 100, 32, connection="ManifoldHyperConnection")

    def test_stages_share_the_layers(self):
        plan = Plan(self.size, "pipeline", 5, 10, 10)
        assert [layer for place in range(5) for layer in plan.stage(place)] == [*range(12)]

    @pytest.mark.parametrize("connection", ["Residual", "AttentionResidual"])
    @pytest.mark.parametrize(("depth", "stages"), [(8, 3), (10, 4), (14, 4), (6, 3), (4, 1)])
    def test_its_stages_are_the_pipelines(self, depth, stages, connection, one_process):
        size = NetworkSize(depth, 16, 11, 6, heads=2, connection=connection)
        plan = Plan(size, "pipeline", stages, stages, stages)
        net = build(size)
        parallel = Parallel("pipeline", stages=stages, micro_batches=stages, schedule="interleaved-1f1b")
        whole = Pipeline(net, nn.functional.cross_entropy, process_mesh(parallel), parallel).module
        assert whole.ranges == {place: plan.stage(place) for place in range(stages)}
        for place, layers in whole.ranges.items():
            held = sum(p.numel() for p in Stages(net, [*whole.ranges.values()], [place], 0).parameters())
            assert stage_parameters(size, layers) == held
            assert plan.stage_memory(place)["state"] == training_state_bytes(held)
        total = sum(plan.stage_memory(place)["state"] for place in range(stages))
        assert total == training_state_bytes(sum(p.numel() for p in whole.parameters()))

    @pytest.mark.parametrize("checkpoint", [False, True])
    def test_the_stage_that_needs_most_may_be_any(self, checkpoint):
        """The second has nearly as many micro-batches on their way as the first, and twice as much that arrives."""
        plan = Plan(NetworkSize(12, 64, 20, 32), "pipeline", 6, 48, 48, checkpoint)
        needs = [sum(plan.stage_memory(place).values()) for place in range(6)]
        assert max(needs) == needs[1] > max(needs[0], needs[3], needs[5])
        assert plan.memory == plan.stage_memory(1)
        recalling = NetworkSize(100, 8, 20, 32, connection="AttentionResidual")
        plan = Plan(recalling, "pipeline", 50, 500, 500, checkpoint)
        needs = [sum(plan.stage_memory(place).values()) for place in range(50)]
        assert max(needs) == needs[48] == sum(plan.memory.values())

    def test_the_last_stage_holds_the_loss(self):
        size = NetworkSize(4, 8, 1000, 16)
        plan = Plan(size, "pipeline", 2, 4, 2)
        output = 2 * 16 * 1000 * 4
        assert plan.stage_memory(1)["saved"] == stage_bytes(size, range(2, 4), 2) + output + loss_bytes(size, 2)

    @pytest.mark.parametrize("checkpoint", [False, True])
    @pytest.mark.parametrize(
        "size",
        [
            NetworkSize(10, 8, 12, 5, heads=2),
            NetworkSize(10, 8, 12, 5, heads=2, connection="HyperConnection"),
            NetworkSize(8, 8, 2000, 5, heads=2),
        ],
        ids=["layers", "connections", "head"],
    )
    def test_what_is_gathered_at_once(self, size, checkpoint, one_process):
        parallel = Parallel("fsdp", checkpoint=checkpoint)
        net = parallelise(build(size), process_mesh(parallel), parallel)
        most = most_gathered(net, tokens(size))
        counted = Plan(size, "fsdp", 2, 2, checkpoint=checkpoint).memory["gathered"]
        connection = 4 * (layer_parameters(size, 0) - layer_parameters(NetworkSize(2, 8, 12, 5), 0))
        # Each is a unit of its own, and that of the layer on its way is gathered later than its branch.
        late = 0 if checkpoint and size.vocabulary == 12 else connection
        assert most == counted - late
        if size.vocabulary == 12:
            assert (counted > 1.9 * Plan(size, "fsdp", 2, 2).memory["gathered"]) == checkpoint

    def test_a_pipelines_memory(self):
        """The first of two stages has two micro-batches on their way, and memory for four that come back."""
        plan = Plan(self.size, "pipeline", 2, 8, 4)
        embedding = 100 * 64
        assert plan.memory == {
            "state": 16 * (parameters(self.size, range(6)) + embedding),
            "gathered": 0.0,
            "saved": 2 * stage_bytes(self.size, range(6), 2),
            "arriving": 4 * boundary_bytes(self.size, 6, 2),
        }
        assert plan.sent == 4 * boundary_bytes(self.size, 6, 2)

    def test_shards_and_copies(self):
        count = parameters(self.size)
        shards, copies = Plan(self.size, "fsdp", 4, 8), Plan(self.size, "ddp", 4, 8)
        assert shards.memory["state"] == copies.memory["state"] / 4 == 4 * count
        assert shards.memory["saved"] == copies.memory["saved"] == saved_bytes(self.size, 2) + loss_bytes(self.size, 2)
        assert shards.sent == gather_bytes(count, 4) + reduce_bytes(count, 4, sharded=True)
        assert copies.sent == reduce_bytes(count, 4, sharded=False)
        assert Plan(self.size, "fsdp", 4, 8, checkpoint=True).memory["saved"] < shards.memory["saved"] / 2

    def test_what_runs_out_first(self):
        plan = Plan(self.size, "pipeline", 4, 4, 4)
        limits = plan.limits(Machine(memory=1e30, operations=1e30, link=1e30))
        assert limits["waiting"] == pytest.approx(3 / 4)
        assert "waiting, 0.75 x" in extrapolated([plan], Machine(memory=1e30, operations=1.0, link=1e30))
        assert "memory" in extrapolated([plan], Machine(memory=1.0)).splitlines()[-1]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "zero"}, "kind must be one of ddp, fsdp, pipeline"),
            ({"processes": 13, "micro_batches": 4}, "got 13 stages and depth 12"),
            ({"micro_batches": 3}, "3 parts must share sequences evenly, got 8"),
            ({"processes": 0}, "processes must be at least 1"),
        ],
    )
    def test_what_it_refuses(self, options, message):
        with pytest.raises(UsageError, match=message):
            Plan(self.size, **{"kind": "pipeline", "processes": 2, "sequences": 8, **options})


def most_gathered(net: Network, x: Tensor) -> int:
    """Return the most bytes of parameters that are whole at once in a step, or on their way."""
    from torch.distributed.fsdp import FSDPModule

    groups = [m._get_fsdp_state()._fsdp_param_group for m in net.modules() if isinstance(m, FSDPModule)]
    most = 0

    def count(*_: object) -> None:
        nonlocal most
        whole = [g for g in groups if g and (g._sharded_state.name == "UNSHARDED" or g._all_gather_result)]
        most = max(most, sum(4 * p._orig_size.numel() for group in whole for p in group.fsdp_params))

    def entered(module: nn.Module, given: object, out: Tensor) -> None:
        count()
        if out.requires_grad:
            out.register_hook(count)

    for module in net.modules():
        if not [*module.children()]:
            module.register_forward_hook(entered)
    net(x).sum().backward()
    return most


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_the_tables_of_the_documentation_are_made_by_it():
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "theory" in block:
            exec(block, names)
    for table in names["tables"]:
        assert table in page


def test_other_connections_are_refused():
    with pytest.raises(UsageError, match=r"connection must be one of Residual, .* got 'Dense'"):
        NetworkSize(2, 8, 9, 4, connection="Dense")
