"""Two processes that train one model, with copies or shards: their samples are those of one with the whole batch."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import levada
from levada.watching.measure import reduce
from levada.watching.measure.sample import Sample
from levada.watching.watch import watch

DIM, STEPS, LR = 8, 3, 0.05
WAITED = 25.0  # seconds: who waits for a process that does not come waits for 30, and a machine may be busy
SIGNALS = ("signal_rms", "gradient_rms", "weight_rms", "weight_gradient_rms", "update_ratio", "zero_fraction")
EXACT = [
    "ddp",
    "unused",
    "no_sync",
    "module_inside",
    "wrapped_later",
    "fsdp",
    "checkpointed",
    "micro_steps",
    "compiled",
    "mhc",
    "stacked",
    "stacked, by depth",
]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(DIM, 9), nn.ReLU(), nn.Linear(9, DIM)  # 9 rows: uneven shards

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


class Net(nn.Module):
    def __init__(self, blocks: int = 3, *, checkpointed: bool = False, unused: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(blocks))
        self.checkpointed, self.unused = checkpointed, unused

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[: -1 if self.unused else None]:
            x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return x


def build(case: str, dtype: torch.dtype = torch.float64, *, stacked: bool = False) -> nn.Module:
    torch.manual_seed(0)
    if case == "mhc" or "stacked" in case:
        branches = [nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM), nn.ReLU()) for _ in range(3)]
        net = levada.Stack(branches, levada.ManifoldHyperConnection, dim=DIM, iterations=5, stacked=stacked)
    else:
        net = Net(checkpointed=case == "checkpointed", unused=case == "unused")
    return net.to(dtype)


def batches() -> Tensor:
    return torch.randn(STEPS, 8, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def objective(output: Tensor) -> Tensor:
    return (output.double() - 1).square().mean()


def formula(case: str, blocks: list[str], planted: Tensor | None = None) -> list[dict[str, Tensor]]:
    """What one process sees with the whole batch, by the definitions."""
    net, found = build(case), []
    outputs: dict[str, Tensor] = {}
    zeros: dict[str, float] = {}
    for name in blocks:
        net.get_submodule(name).register_forward_hook(lambda m, _, y, name=name: outputs.__setitem__(name, y))
        for module in net.get_submodule(name).modules():
            if isinstance(module, nn.ReLU):
                hook = lambda m, _, y, name=name: zeros.__setitem__(name, (y == 0).double().mean().item())  # noqa: E731
                module.register_forward_hook(hook)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for x in batches() if planted is None else planted:
        outputs.clear()
        loss = objective(net(x))
        inside = {name: y[0] if isinstance(y, tuple) else y for name, y in outputs.items()}
        gradients = dict(zip(inside, torch.autograd.grad(loss, list(inside.values()), retain_graph=True), strict=True))
        loss.backward()
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in net.parameters() if p.grad is not None))
        learned = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in net.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        rows: dict[str, list[float]] = {signal: [] for signal in SIGNALS}
        for name in blocks:
            own = [key for key, p in net.named_parameters() if key.startswith(f"{name}.") and p.dim() >= 2]
            update = [dict(net.named_parameters())[key].detach() - before[key] for key in own]
            rows["signal_rms"].append(rms([inside[name]]) if name in inside else math.nan)
            rows["gradient_rms"].append(rms([gradients[name]]) if name in inside else math.nan)
            rows["weight_rms"].append(rms([before[key] for key in own]))
            rows["weight_gradient_rms"].append(rms([learned[key] for key in own]))
            rows["update_ratio"].append(rms(update) / rows["weight_rms"][-1])
            rows["zero_fraction"].append(zeros[name] if name in inside else math.nan)
        values = {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()}
        found.append({**values, "loss": loss.detach(), "gradient_norm": torch.tensor(norm, dtype=torch.float64)})
    return found


def rms(values: list[Tensor]) -> float:
    return torch.cat([value.detach().flatten() for value in values]).square().mean().sqrt().item()


@pytest.fixture(scope="module")
def found(two_processes) -> dict:
    return two_processes(__file__)


@pytest.mark.parametrize("case", EXACT)
def test_samples_are_those_of_one_process(case, found):
    names, samples = found["samples"][case]
    assert len(samples) == STEPS
    for sample, expected in zip(samples, formula(case, names), strict=True):
        if case == "compiled":  # the activations are inside of what is compiled
            expected["zero_fraction"].fill_(math.nan)
        for signal in SIGNALS:
            rtol = 1e-7 if signal == "zero_fraction" else 1e-9  # a share of zeros is a float32
            torch.testing.assert_close(sample[signal], expected[signal], rtol=rtol, atol=1e-14, equal_nan=True)
        torch.testing.assert_close(sample["loss"], expected["loss"], rtol=1e-9, atol=0.0)
        torch.testing.assert_close(sample["gradient_norm"], expected["gradient_norm"], rtol=1e-9, atol=0.0)
    assert len(names) == 3


@pytest.mark.parametrize("case", EXACT)
def test_both_processes_have_the_same_samples(case, found):
    assert found["same"][case]


def test_mixed_precision_is_as_near_as_its_rounding(found):
    names, samples = found["samples"]["bfloat16"]
    for sample, expected in zip(samples, formula("fsdp", names), strict=True):
        for signal in SIGNALS[:-1]:
            torch.testing.assert_close(sample[signal], expected[signal], rtol=2e-2, atol=0.0)


def test_which_process_was_first_to_see_a_nan(found):
    _, samples = found["samples"]["planted"]
    assert [sample.get("nonfinite_rank") for sample in samples] == [None, 1.0, 0.0], "then all weights are NaN"
    assert samples[1]["nonfinite"].tolist() == [0.0, 1.0, 1.0], "block 0 is fine in both processes"
    assert samples[1]["gradient_nonfinite_rank"] == 1.0


def test_the_distance_is_the_largest_that_any_process_wants(found):
    # What is agreed on with one sample is the distance from the next one on.
    assert found["steps"] == [[0, 1, 3, 6], [0, 1, 3, 6]]


def test_a_jump_that_one_process_sees_is_sampled_in_all(found):
    first, second = found["jumped"]
    # The sample of step 80 brings what the second process asked for at step 65, and step 88 is where both hear it.
    assert first == second == [0, 40, 80, 89, 91, 95, 103, 119, 151]


def test_a_process_that_stops_to_watch_is_not_waited_for(found):
    for message, seconds, steps in found["stopped"]:
        assert seconds < WAITED
        assert steps == list(range(6)) if message else steps == [0, 1]
    messages = [message for message, *_ in found["stopped"]]
    assert messages[1] == ""
    assert "process 1 of 2 has stopped to watch" in messages[0]
    assert messages[0].count("training goes on") == 1


def test_an_exception_in_one_process_ends_the_watch_of_both(found):
    (first, seconds), (second, other) = found["raised"]
    assert (first, second) == ("", "planted")
    assert max(seconds, other) < WAITED


def test_processes_with_other_blocks_go_on_alone(found):
    for message, samples in found["different"]:
        assert "they do not have the same blocks" in message
        assert samples == 3


def test_processes_at_other_steps_go_on_alone(found):
    for message, samples in found["astray"]:
        assert "they are at different steps" in message
        assert samples >= 3


def test_a_process_whose_peers_do_not_watch_goes_on_alone(found):
    message, seconds, samples = found["only"]
    assert "do not add up their numbers any more" in message
    assert message.count("training goes on") == 1
    assert samples == 3
    assert seconds < WAITED


# In each of two processes.


def kept(sample: Sample) -> dict:
    return {**sample.values, **{name: torch.tensor(v, dtype=torch.float64) for name, v in sample.scalars.items()}}


def wrap(case: str, net: nn.Module, mesh) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if case in ("ddp", "unused", "no_sync", "module_inside", "wrapped_later", "planted"):
        return nn.parallel.DistributedDataParallel(net, find_unused_parameters=case == "unused")
    options = {"mesh": mesh}
    if case == "bfloat16":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if case in ("mhc", "stacked"):
        levada.shard_connections(net, mesh=mesh)
    if case == "stacked":
        return fully_shard(net, **options, shard_placement_fn=levada.stacked_placement(net, mesh))
    for layer in () if "stacked" in case else net.layers:
        if case == "compiled":
            layer.compile(backend="eager")
        fully_shard(layer, **options)
    return fully_shard(net, **options)


def train(case: str, rank: int, mesh) -> tuple[list[str], list[dict]]:
    net = build(case, torch.float32 if case == "bfloat16" else torch.float64, stacked="stacked" in case)
    if case != "wrapped_later":
        net = wrap(case, net, mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    given = net.module if case == "module_inside" else net  # as trainers give it to their callbacks
    with watch(given, optimizer, every=1, max_overhead=math.inf) as probe:
        if case == "wrapped_later":
            net = wrap(case, net, mesh)
        for step, x in enumerate(batches()):
            half = x.chunk(2)[rank].to(next(net.parameters()).dtype)
            pieces = half.chunk(2) if case in ("no_sync", "micro_steps") else (half,)
            for i, piece in enumerate(pieces):
                last = i == len(pieces) - 1
                if case == "micro_steps":
                    net.set_requires_gradient_sync(last)
                if case == "planted" and step == 1 and rank == 1:
                    plant(net)
                with net.no_sync() if case == "no_sync" and not last else contextlib.nullcontext():
                    (objective(net(piece)) / len(pieces)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(sample.rank == rank for sample in probe.samples)
    return [site.name for site in probe.sites], [kept(sample) for sample in probe.samples]


def plant(net: nn.Module) -> None:
    handle = net.module.layers[1].register_forward_pre_hook(lambda m, args: (args[0] * math.nan,))
    net.module.layers[2].register_forward_pre_hook(lambda *_: handle.remove())


def alone():
    """A model whose copies are known to each other and whose steps need no communication."""
    net = nn.parallel.DistributedDataParallel(Net(1).double())
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def step() -> None:
        with net.no_sync():
            objective(net(batches()[0])).backward()
        optimizer.step()
        optimizer.zero_grad()

    return watch(net, optimizer, every=1, max_overhead=math.inf), step


def steps_that_are_sampled(rank: int) -> list[int]:
    probe, step = alone()
    with probe:
        wanted = itertools.repeat(1) if rank == 0 else iter([2, *itertools.repeat(3, 20)])
        probe._engine.cadence.wanted = lambda: next(wanted)
        for _ in range(9):
            step()
    return [sample.step for sample in probe.samples]


def jump_in_one(rank: int) -> list[int]:
    net = nn.parallel.DistributedDataParallel(Net(1).double())
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    with watch(net, optimizer, every=40, max_overhead=math.inf) as probe:
        for step in range(152):
            level = 10.0 if rank and step >= 65 else 1.0
            with net.no_sync():
                (level + 1e-3 * objective(net(batches()[0]))).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [sample.step for sample in probe.samples]


def stop_early(rank: int) -> tuple[str, float, list[int]]:
    begun = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe, step = alone()
        for _ in range(2 if rank else 6):
            step()
        probe.close()
    message = "".join(str(w.message) for w in caught if "watch" in str(w.message))
    return message, time.perf_counter() - begun, [sample.step for sample in probe.samples]


def raise_in_one(rank: int) -> tuple[str, float]:
    probe, step = alone()
    begun, message = time.perf_counter(), ""
    try:
        with warnings.catch_warnings(), probe:
            warnings.filterwarnings("ignore", message="watch: .* process 1 of 2 has stopped")
            for i in range(4):
                if rank == 1 and i == 2:
                    raise ValueError("planted")
                step()
    except ValueError as error:
        message = str(error)
    return message, time.perf_counter() - begun


def watch_in_one(rank: int) -> tuple[str, float, int]:
    reduce._PATIENCE = timedelta(seconds=1)
    begun = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe, step = alone()
        if rank == 1:
            probe.close()
        for _ in range(3):
            step()
        probe.close()
    message = "".join(str(w.message) for w in caught if "watch" in str(w.message))
    return message, time.perf_counter() - begun, len(probe.samples)


def disagree(case: str, rank: int) -> tuple[str, int]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.distributed.barrier()
        if case == "different":
            net = Net(1).double()
            copies = nn.parallel.DistributedDataParallel(net)
            if rank == 1:  # after the copies were made, which would notice
                net.layers.append(Block().double())
            optimizer = torch.optim.SGD(net.parameters(), lr=LR)
            probe = watch(copies, optimizer, every=1, max_overhead=math.inf)

            def step() -> None:
                with copies.no_sync():
                    objective(copies(batches()[0])).backward()
                optimizer.step()

        else:
            probe, step = alone()
        with probe:
            for i in range(4):
                if case == "astray" and rank == 1 and i == 1:
                    probe._engine.steps += 1  # as if it had stepped once more
                if case == "different" and i == 3:
                    break
                step()
    return "".join(str(w.message) for w in caught if "watch" in str(w.message)), len(probe.samples)


def work(rank: int, folder: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    result: dict = {"samples": {}, "same": {}}

    def both(value) -> list:
        values = [None, None]
        dist.all_gather_object(values, value)
        return values

    for case in [*EXACT, "bfloat16", "planted"]:
        names, samples = train(case, rank, mesh)
        result["samples"][case] = names, samples
        mine = [{k: v.tolist() for k, v in sample.items() if k not in ("overhead", "input_rms")} for sample in samples]
        first, second = both(mine)
        result["same"][case] = str(first) == str(second)
    result["steps"] = both(steps_that_are_sampled(rank))
    result["jumped"] = both(jump_in_one(rank))
    result["stopped"] = both(stop_early(rank))
    result["raised"] = both(raise_in_one(rank))
    result["different"] = both(disagree("different", rank))
    result["astray"] = both(disagree("astray", rank))
    result["only"] = both(watch_in_one(rank))[0]
    if rank == 0:
        torch.save(result, folder / "found.pt")
    dist.barrier()  # a process that ends while the other still talks to it aborts
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes outlive the interpreter and abort it
