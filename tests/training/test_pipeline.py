"""A pipeline of two processes computes what one process does, whatever the state that crosses."""

from __future__ import annotations

import copy
import inspect
import itertools
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import levada.connections
from levada._errors import UsageError
from levada.connection import Connection
from levada.networks import Network, mlp
from levada.theory.cost import CONNECTIONS as COSTED
from levada.theory.cost import NetworkSize, boundary_bytes
from levada.theory.scale import split_layers
from levada.training import Parallel, Pipeline, process_mesh
from levada.training.boundary import state_from, tensors_of
from levada.training.stages import Stages

DIM, DEPTH, BATCH = 8, 5, 8
OPTIONS = {
    "Dense": {"growth": 4},
    "LearnedAugmentedResidual": {"rank": 2},
    "ManifoldHyperConnection": {"iterations": 3},
    "SinglePassManifoldHyperConnection": {"iterations": 3},
    "SparseHyperConnection": {"streams": 6, "active": 3, "fixed": 1},
    "ValueResidual": {"period": 1},
}
VARIANTS = {
    "AttentionResidual of blocks": ("AttentionResidual", {"block_size": 2}),
    "AttentionResidual of blocks over a boundary": ("AttentionResidual", {"block_size": 4}),
    "ManifoldHyperConnection with a head": ("ManifoldHyperConnection", {"form": "deepseek_v4"}),
    "ValueResidual whose first values nobody reads later": ("ValueResidual", {"period": DEPTH}),
}
GPIPE, ONE = Parallel("pipeline", micro_batches=4, schedule="gpipe"), Parallel("pipeline", micro_batches=4)


class Values(nn.Sequential):
    """A branch with values, and no tokens to attend to."""

    mixes_values = True

    def forward(self, x: Tensor, mix_values=None) -> Tensor:
        values = self[0](x)
        return self[1](values if mix_values is None else mix_values(values))


def listed() -> dict[str, tuple[type[Connection], dict]]:
    found = {}
    for name, kind in vars(levada.connections).items():
        if isinstance(kind, type) and issubclass(kind, Connection) and not inspect.isabstract(kind):
            found[name] = kind, OPTIONS.get(name, {})
    del found["StochasticDepth"]  # each process draws its own numbers
    for name, (kind, options) in VARIANTS.items():
        found[name] = found[kind][0], {**found[kind][1], **options}
    return found


CONNECTIONS = listed()


class Case(NamedTuple):
    connection: str
    parallel: Parallel
    dtype: torch.dtype = torch.float64
    tied: bool = False
    frozen: bool = False


CASES = {
    **{f"{name}, 1f1b": Case(name, Parallel("pipeline", micro_batches=2)) for name in CONNECTIONS},
    **{
        f"{name}, {how}": Case(name, parallel, dtype)
        for name in ("Residual", "HyperConnection", "ManifoldHyperConnection", "AttentionResidual", "Dense")
        for how, parallel, dtype in (
            ("gpipe, float32", GPIPE, torch.float32),
            ("1f1b, uneven", Parallel("pipeline", micro_batches=4, split=(1, 4)), torch.float64),
            ("interleaved", Parallel("pipeline", micro_batches=4, schedule="interleaved-1f1b"), torch.float64),
            ("checkpointed", Parallel("pipeline", micro_batches=4, checkpoint=True), torch.float64),
        )
    },
    "tied": Case("HyperConnection", GPIPE, tied=True),
    "frozen": Case("HyperConnection", ONE, frozen=True),
}


def build(case: Case) -> Network:
    torch.manual_seed(0)
    kind, options = CONNECTIONS[case.connection]
    layers = itertools.count()

    def branch(dim_in: int) -> nn.Module:
        if next(layers) % options.get("period", DEPTH) == 0 and kind is levada.ValueResidual:
            return Values(nn.Linear(dim_in, DIM), nn.Tanh())
        return nn.Sequential(nn.LayerNorm(dim_in), nn.Linear(dim_in, options.get("growth", dim_in)), nn.Tanh())

    stack = levada.Stack(branch, kind, dim=DIM, depth=DEPTH, **options)
    net = Network(nn.Linear(DIM, DIM), stack, nn.Linear(stack.dim_out, DIM))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if case.tied:
        net.head.weight = net.stem.weight
    if case.frozen:
        net.stem.requires_grad_(False)
        net.stack[0].requires_grad_(False)
    return net.to(case.dtype)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x, target = torch.randn(2, BATCH, 3, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return x, target


def gradients_of(module: nn.Module) -> dict[str, Tensor]:
    named = module.named_parameters(remove_duplicate=False)
    return {name: p.grad for name, p in named if p.grad is not None}


def masked(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean over rows that count, of which micro-batches have different numbers."""
    counts = (target[..., 0] > 0.4).to(output)
    return ((output - target).square().mean(-1) * counts).sum() / counts.sum()


def count(target: Tensor) -> Tensor:
    return (target[..., 0] > 0.4).sum()


def alone(case: Case, loss=nn.functional.mse_loss) -> tuple[Tensor, dict[str, Tensor]]:
    net = build(case)
    x, target = batch(case.dtype)
    value = loss(net(x), target)
    value.backward()
    return value.detach(), gradients_of(net)


@pytest.fixture(scope="module")
def found(two_processes) -> dict:
    return two_processes(__file__)


def assert_equal(gradients: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert gradients.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= tolerance * largest, name


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_a_single_process(case, found):
    loss, expected = alone(CASES[case])
    double = CASES[case].dtype == torch.float64
    assert_equal(found[case]["gradients"], expected, 1e-12 if double else 1e-6)
    for process in range(2):
        assert float(found[case]["losses"][process]) == pytest.approx(float(loss), rel=1e-12 if double else 1e-6)


def test_stages_have_the_layers_and_the_names_of_the_network(found):
    net = build(CASES["Residual, 1f1b, uneven"])
    whole = [name for name, _ in net.named_parameters()]
    first, second = found["names"]["1f1b, uneven"]
    assert sorted([*first, *second]) == sorted(whole)
    assert all(name.startswith(("stem.", "stack.layers.0.")) for name in first)
    layers = {int(name.split(".")[2]) for name in found["names"]["interleaved"][0] if ".layers." in name}
    assert layers == {0, 1, 3}, "stages 0 and 2 of four"


def costed(name: str) -> NetworkSize:
    connection, options = VARIANTS.get(name, (name, {}))
    return NetworkSize(DEPTH, DIM, 1, 3, connection=connection, block_size=options.get("block_size", 1))


@pytest.mark.parametrize("name", [*CONNECTIONS])
def test_what_crosses_a_boundary(name, found):
    """Bytes for a micro-batch of 4 x 3 tokens in float64, three of five layers being on the first process."""
    token = 4 * 3 * 8
    crosses = found[f"{name}, 1f1b"]["crossing"]
    if VARIANTS.get(name, (name,))[0] in COSTED and "head" not in name:
        assert crosses == boundary_bytes(costed(name), 3, 4, element=8)
    by_hand = {
        "Residual": DIM,
        "ManifoldHyperConnection": 4 * DIM,
        "AttentionResidual": 4 * DIM,  # the input and three outputs
        "AttentionResidual of blocks": 3 * DIM,  # the input and two blocks
        "AttentionResidual of blocks over a boundary": 2 * DIM,  # the input and one block, which goes on
        "Dense": DIM + 3 * 4,
        "DepthWeightedAverage": 5 * DIM,  # the stream, the input and three outputs
        "InputResidual": 2 * DIM,
        "ValueResidual": 2 * DIM,
        "Momentum": 2 * DIM,
        "Reversible": DIM,
    }
    assert crosses == token * by_hand.get(name, crosses // token)


def test_what_is_sent_is_what_is_said(found):
    """Counted where tensors are handed to the process group: activations there, gradients back."""
    assert len(found["sent"]) > 8
    for name, sent in found["sent"].items():
        assert sent == [4 * found[name]["crossing"]] * 2, name


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_memory_for_what_arrives_and_micro_batches_on_their_way(schedule, found):
    """One of each micro-batch in each direction; under 1F1B no more on their way than stages that follow."""
    crossing = boundary_bytes(NetworkSize(DEPTH, DIM, 1, 3, connection="HyperConnection"), 3, 2, element=8)
    assert found["memory", schedule]["arriving"] == [4 * crossing] * 2
    assert found["memory", schedule]["waiting"] == ([4, 4] if schedule == "gpipe" else [2, 1])


def test_uneven_means_are_weighted(found):
    loss, expected = alone(CASES["HyperConnection, 1f1b"], masked)
    assert float(found["weighted"]["loss"]) == pytest.approx(float(loss), rel=1e-12)
    assert_equal(found["weighted"]["gradients"], expected, 1e-12)
    seen = torch.stack(found["weighted"]["seen"])
    assert not torch.allclose(seen.mean(), loss), "else there would be nothing to weight"


def test_gradients_add_up_over_steps(found):
    _, expected = alone(CASES["tied"])
    assert_equal(found["twice"], {name: 2 * gradient for name, gradient in expected.items()}, 1e-12)


def test_clipping_takes_the_norm_of_all_stages(found):
    net = build(CASES["tied"])
    x, target = batch(torch.float64)
    nn.functional.mse_loss(net(x), target).backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.01)
    assert float(norm) > 0.01
    expected = gradients_of(net)
    assert_equal(found["clipped"]["gradients"], expected, 1e-12)
    torch.testing.assert_close(found["clipped"]["norms"], [norm, norm])


def test_shapes_are_found_without_running_anything(found):
    """Hooks hear of four micro-batches and nothing else, and random numbers and statistics stay as they were."""
    assert found["calls"] == 4
    assert found["random state kept"]
    assert found["counted"] == 4


def test_evaluation_has_other_batches_and_no_gradients(found):
    net = build(CASES["HyperConnection, 1f1b"])
    x, target = batch(torch.float64)
    expected = nn.functional.mse_loss(net(x[:4]), target[:4]).detach()
    assert float(found["evaluated"]["loss"]) == pytest.approx(float(expected), rel=1e-12)
    assert found["evaluated"]["gpipe"] == found["evaluated"]["interleaved-1f1b"] == found["evaluated"]["loss"]
    assert found["evaluated"]["gradients"] == 0
    assert_equal(found["evaluated"]["again"], alone(CASES["HyperConnection, 1f1b"])[1], 1e-12)


def test_under_autocast_the_state_crosses_in_its_type(found):
    net = build(Case("Plain", ONE, torch.float32))
    x, target = batch(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.mse_loss(net(x).float(), target)
    loss.backward()
    assert found["autocast"]["types"] == [torch.bfloat16, torch.float32], "inside, and outside again"
    assert float(found["autocast"]["loss"]) == pytest.approx(float(loss.detach()), rel=1e-6)
    # Each micro-batch rounds its own sum to bfloat16.
    assert_equal(found["autocast"]["gradients"], gradients_of(net), 2e-2)


def test_layers_are_compiled(found):
    assert found["graphs"] > 0
    assert_equal(found["compiled"], alone(CASES["HyperConnection, 1f1b"])[1], 1e-12)


def test_a_network_on_the_meta_device_is_given_values_stage_by_stage(found):
    assert "must have values before the first step" in found["meta"]["message"]
    assert_equal(found["meta"]["gradients"], alone(CASES["HyperConnection, 1f1b"])[1], 1e-12)


def test_layers_are_cut_into_segments(found):
    assert found["segments"] == {"True": 2, "2": 2, "the stack's": 2}


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("batch", r"a multiple of the micro-batches, 4, .* got x of \(6, 3, 8\)"),
        ("stages", "stages must be the number of processes, 2, got 3"),
        ("interleaved stages", "stages must be a multiple of the number of processes, 2, got 5"),
        ("1f1b", "needs at least as many micro-batches as stages, 2, got 1"),
        ("interleaved", "needs a multiple of the 2 processes as micro-batches, got 3"),
        ("split", r"2 stages must share 5 layers, at least one each, got \[1, 1\]"),
        ("kind", "kind must be 'pipeline', got 'ddp'"),
        ("network", r"must be a levada\.networks\.Network, .* got Stack"),
        ("extra", "branches must return a tensor alone"),
    ],
)
def test_what_it_refuses(refused, message, found):
    import re

    assert re.search(message, found["refused"][refused])


def test_layers_are_shared_out_evenly():
    assert [len(part) for part in split_layers(10, 4)] == [3, 3, 2, 2]
    with pytest.raises(UsageError, match="3 stages must share 2 layers"):
        split_layers(2, 3)


class TestStates:
    """What is taken apart on one side is put together on the other."""

    def test_a_state_is_put_together_again(self):
        a, b = torch.randn(2, 3, requires_grad=True), torch.randn(3, 2).mT
        tensors, crossing = tensors_of((a, [b, None, {"c": a, "d": 3}]), "Residual")
        assert len(tensors) == 2, "a tensor that is there twice crosses once"
        assert all(tensor.is_contiguous() for tensor in tensors)
        first, (second, nothing, named) = state_from(tensors, crossing)
        assert torch.equal(first, a)
        assert torch.equal(second, b)
        assert nothing is None
        assert named["c"] is first
        assert named["d"] == 3
        assert crossing.bytes == 2 * 6 * 4

    def test_gradients_arrive_contiguous_and_zero_where_nothing_reads(self):
        leaves = [torch.randn(2, 3, requires_grad=True) for _ in range(2)]
        came, found = [2 * leaf for leaf in leaves], []
        came[0].register_hook(found.append)
        _, crossing = tensors_of(tuple(came), "Residual")
        first, _ = state_from(came, crossing)
        first.mT.contiguous().sin().square().sum().backward()
        assert found[0].is_contiguous()
        torch.testing.assert_close(leaves[0].grad, 2 * (4 * leaves[0]).sin())
        assert torch.equal(leaves[1].grad, torch.zeros(2, 3))

    def test_what_cannot_cross(self):
        with pytest.raises(
            UsageError, match=r"must have a gradient, and Residual's state holds a tensor of torch\.int64"
        ):
            tensors_of((torch.zeros(2), torch.zeros(2, dtype=torch.int64)), "Residual")
        with pytest.raises(UsageError, match="Residual's holds a object"):
            tensors_of((torch.zeros(2), object()), "Residual")
        _, crossing = tensors_of(torch.zeros(2), "Residual")
        with pytest.raises(UsageError, match=r"state has \(3,\) float32 where \(2,\) float32 were expected"):
            tensors_of(torch.zeros(3), "Residual", crossing)


def gathered(value: object) -> list:
    import torch.distributed as dist

    values: list = [None, None]
    dist.all_gather_object(values, value)
    return values


def of_all(pipeline: Pipeline) -> dict[str, Tensor]:
    """Gather the gradients of all stages."""
    first, second = gathered(gradients_of(pipeline.module))
    return first | second


class Sent:
    """Count the bytes that are handed to the process group."""

    def __enter__(self):
        import torch.distributed as dist

        self.bytes, self.real = 0, dist.P2POp

        def operation(op, tensor, *args, **kwargs):
            if op is dist.isend:
                self.bytes += tensor.numel() * tensor.itemsize
                assert tensor.is_contiguous()
            return self.real(op, tensor, *args, **kwargs)

        dist.P2POp = operation
        return self

    def __exit__(self, *_):
        import torch.distributed as dist

        dist.P2POp = self.real


def run_cases(mesh, result: dict) -> None:
    result["names"], result["sent"] = {}, {}
    for name, case in CASES.items():
        x, target = batch(case.dtype)
        pipeline = Pipeline(build(case), nn.functional.mse_loss, mesh, case.parallel)
        with Sent() as sent:
            loss = pipeline.step(x, target)
        crossing = sum(c.bytes for c in pipeline.crossings.values()) if pipeline.process == 0 else 0
        losses, crosses = gathered(loss), gathered(crossing)
        result[name] = {"gradients": of_all(pipeline), "losses": losses, "crossing": max(crosses)}
        if case.parallel.split or "gpipe" in name:
            result["sent"][name] = gathered(sent.bytes)
        if case.connection == "Residual":
            names = gathered([parameter for parameter, _ in pipeline.module.named_parameters()])
            result["names"][name.removeprefix("Residual, ")] = names


def run_steps(mesh, result: dict) -> None:
    x, target = batch(torch.float64)
    mean, plain = nn.functional.mse_loss, CASES["HyperConnection, 1f1b"]

    pipeline = Pipeline(build(CASES["tied"]), mean, mesh, GPIPE)
    pipeline.step(x, target)
    pipeline.step(x, target)
    result["twice"] = of_all(pipeline)
    pipeline.module.zero_grad()
    pipeline.step(x, target)
    norms = gathered(pipeline.clip_gradients(0.01))
    result["clipped"] = {"norms": norms, "gradients": of_all(pipeline)}

    seen = []

    def noted(output, target):
        seen.append(masked(output, target).detach())
        return masked(output, target)

    pipeline = Pipeline(build(plain), noted, mesh, ONE, weight=count)
    loss = pipeline.step(x, target)
    result["weighted"] = {"loss": loss, "gradients": of_all(pipeline), "seen": gathered(seen)[1]}

    pipeline = Pipeline(build(plain), mean, mesh, plain.parallel)
    pipeline.step(x, target)
    pipeline.module.zero_grad()
    evaluated = pipeline.evaluate(x[:4], target[:4])
    held = len(of_all(pipeline))
    pipeline.step(x, target)
    result["evaluated"] = {"loss": evaluated, "gradients": held, "again": of_all(pipeline)}
    for schedule in ("gpipe", "interleaved-1f1b"):
        other = Pipeline(build(plain), mean, mesh, Parallel("pipeline", micro_batches=2, schedule=schedule))
        result["evaluated"][schedule] = other.evaluate(x[:4], target[:4])

    with torch.device("meta"):
        net = build(plain)
    pipeline = Pipeline(net, mean, mesh, plain.parallel)
    try:
        pipeline.step(x, target)
    except UsageError as error:
        result["meta"] = {"message": str(error)}
    weights = build(plain).state_dict()
    pipeline.module.to_empty(device="cpu").load_state_dict({k: weights[k] for k in pipeline.module.state_dict()})
    pipeline.step(x, target)
    result["meta"]["gradients"] = of_all(pipeline)


def run_memory(mesh, result: dict) -> None:
    """Look at what a schedule holds: memory for what arrives, and how many micro-batches are on their way."""
    for parallel in (GPIPE, ONE):
        pipeline = Pipeline(build(CASES["HyperConnection, 1f1b"]), nn.functional.mse_loss, mesh, parallel)
        own = [*pipeline.module.stack.layers.values()][-1]
        counts = [0, 0]

        def entered(module, given, out, counts=counts):
            counts[0] += 1
            counts[1] = max(counts)
            out.register_hook(lambda _: counts.__setitem__(0, counts[0] - 1))

        own.register_forward_hook(entered)
        pipeline.step(*batch(torch.float64))
        stage = pipeline._schedules[True][1]._stage
        infos = [*stage.args_recv_info.values(), *stage.grad_recv_info.values()]
        buffers = [info.buffer for part in infos for info in part if info.buffer is not None]
        arriving = gathered(sum(buffer.numel() * buffer.itemsize for buffer in buffers))
        result["memory", parallel.schedule] = {"arriving": arriving, "waiting": gathered(counts[1])}


def run_quietly(mesh, result: dict) -> None:
    """Look at a layer with a hook, batch statistics and random numbers."""
    x, target = batch(torch.float64)
    layers = [
        nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5), nn.Flatten(0, 1), nn.BatchNorm1d(DIM)) for _ in range(2)
    ]
    layers = [nn.Sequential(layer, nn.Unflatten(0, (-1, 3))) for layer in layers]
    net = Network(nn.Identity(), levada.Stack(layers, levada.Residual, dim=DIM).double(), nn.Identity())
    pipeline = Pipeline(net, nn.functional.mse_loss, mesh, ONE)
    own = next(iter(pipeline.module.stack.layers.values()))
    calls: list = []
    own.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    pipeline._schedule(x[:2], True)
    result["random state kept"] = torch.equal(state, torch.get_rng_state())
    pipeline.step(x, target)
    result["calls"] = len(calls)
    result["counted"] = int(own.branch[0][3].num_batches_tracked)


def run_surrounded(mesh, result: dict) -> None:
    """Run under autocast, and compiled."""
    mean, (x, target) = nn.functional.mse_loss, batch(torch.float32)
    pipeline = Pipeline(build(Case("Plain", ONE, torch.float32)), lambda y, t: mean(y.float(), t), mesh, ONE)
    with torch.autocast("cpu", torch.bfloat16):
        loss = pipeline.step(x, target)
    result["autocast"] = {"loss": loss, "gradients": of_all(pipeline)}
    types = [pipeline.crossings[0].dtypes[0]]
    pipeline.step(x, target)
    result["autocast"]["types"] = [*types, pipeline.crossings[0].dtypes[0]]

    x, target = batch(torch.float64)
    compiled = Parallel("pipeline", micro_batches=2, compile=True)
    pipeline = Pipeline(build(CASES["HyperConnection, 1f1b"]), mean, mesh, compiled)
    torch._dynamo.utils.counters.clear()
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        pipeline.step(x, target)
    result["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    result["compiled"] = of_all(pipeline)


class Extra(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


def test_a_stage_has_no_more_segments_than_layers():
    net = mlp(5, DIM, inputs=DIM, outputs=DIM, connection=levada.Residual)
    assert Stages(net, split_layers(5, 2), [0, 1], 3).segments == {0: 3, 1: 2}
    with pytest.raises(UsageError, match="checkpoint must be at most the layers of a stage, 3, got 99"):
        Stages(net, split_layers(5, 2), [0], 99)


def run_refused(mesh, result: dict) -> None:
    x, target = batch(torch.float32)
    net = mlp(DEPTH, DIM, inputs=DIM, outputs=DIM, connection=levada.Residual)
    extra = copy.deepcopy(net)
    for layer in extra.stack:
        layer.branch = Extra(DIM, DIM)

    def pipeline(network=net, kind="pipeline", **options):
        return Pipeline(network, nn.functional.mse_loss, mesh, Parallel(kind, **options))

    attempts = {
        "batch": lambda: pipeline(micro_batches=4).step(x[:6], target[:6]),
        "stages": lambda: pipeline(micro_batches=4, stages=3),
        "interleaved stages": lambda: pipeline(micro_batches=4, stages=5, schedule="interleaved-1f1b"),
        "1f1b": lambda: pipeline(),
        "interleaved": lambda: pipeline(micro_batches=3, schedule="interleaved-1f1b"),
        "split": lambda: pipeline(micro_batches=4, split=(1, 1)),
        "kind": lambda: pipeline(kind="ddp"),
        "network": lambda: pipeline(network=net.stack, micro_batches=4),
    }
    if mesh.get_rank() == 0:  # before anything is sent: nobody waits
        attempts["extra"] = lambda: pipeline(network=extra, micro_batches=4).step(x, target)
    result["refused"] = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except UsageError as error:
            result["refused"][name] = str(error)
    result["segments"] = {}
    for name, network, checkpoint in (
        ("True", net, True),
        ("2", net, 2),
        ("the stack's", mlp(DEPTH, DIM, inputs=DIM, outputs=DIM, connection=levada.Residual, checkpoint=3), False),
    ):
        stages = pipeline(network=network, micro_batches=4, checkpoint=checkpoint).module
        result["segments"][name] = next(iter(stages.segments.values()))


def work(rank: int, folder: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = process_mesh(Parallel("pipeline"))
    result: dict = {}
    run_cases(mesh, result)
    run_steps(mesh, result)
    run_memory(mesh, result)
    run_quietly(mesh, result)
    run_surrounded(mesh, result)
    run_refused(mesh, result)
    if rank == 0:
        torch.save(result, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)
