"""What watching costs: `levada.watch` at its default settings, `wandb.watch`, and hooks as one writes them first.

On a GPU where there is one, else on a CPU; `CUDA_VISIBLE_DEVICES=` hides it.

python -m benchmarks.watch [--quick] [--only TEXT]
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import levada
from benchmarks.measure import Program, Row, compare_times, machine, main, ratio_of
from levada.watching.watch import Watch

Make = Callable[[], tuple[nn.Module, Tensor]]
Spent = tuple[float, float]
"""Seconds of a round by the clock, and of processor time, all threads together."""

LONG = 20_000
"""Steps after which the half second is spent in which every step of a short one is heard."""
LATE = f"after {LONG:,} steps"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mlp(depth: int) -> tuple[nn.Module, Tensor]:
    layers = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]  # else the signal ends in slow denormal numbers
    return nn.Sequential(*layers), torch.randn(64, 64)


def resnet(depth: int, images: int) -> tuple[nn.Module, Tensor]:
    return levada.networks.cifar_resnet(depth), torch.randn(images, 3, 32, 32)


def transformer(depth: int, dim: int, tokens: int) -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(dim, dim // 64, 4 * dim, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False), torch.randn(4, tokens, dim)


def steps_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int, spent: list[Spent], mixed: bool
) -> Program:
    """Train for some steps, in mixed precision or not; the seconds that they took go to `spent`."""
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0, enabled=mixed)

    def run() -> list[Tensor]:
        start = time.perf_counter(), time.process_time()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=mixed):
                loss = model(x).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        spent.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        return [loss.detach()]

    return run


@contextlib.contextmanager
def wandb_watched(model: nn.Module, every: int) -> Iterator[None]:
    """Everything that wandb.watch offers, offline; it is sent with each log, which a loop calls anyway."""
    import wandb

    with tempfile.TemporaryDirectory() as folder:
        os.environ["WANDB_SILENT"] = "true"
        run = wandb.init(mode="offline", dir=folder, project="benchmark")
        run.watch(model, log="all", log_freq=every)
        try:
            yield
        finally:
            run.unwatch(model)
            run.finish()


@contextlib.contextmanager
def naively_hooked(model: nn.Module) -> Iterator[None]:
    """Mean, deviation and norm of every output and gradient as numbers, at every step."""
    seen: list[tuple[float, float, float]] = []

    def keep(tensor: Tensor | None) -> None:
        if tensor is not None:
            seen.append((tensor.mean().item(), tensor.std().item(), tensor.norm().item()))

    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [m.register_forward_hook(lambda m, i, o: keep(o.detach())) for m in leaves]
    handles += [m.register_full_backward_hook(lambda m, i, o: keep(o[0])) for m in leaves]
    yield
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def emptily_hooked(model: nn.Module, optimizer: torch.optim.Optimizer, *, every_hook: bool) -> Iterator[None]:
    """Hooks that do nothing: one behind the step of the optimizer, or all that a watch has where it does not sample."""

    def nothing(*_: Any) -> None:
        return None

    handles = [optimizer.register_step_post_hook(nothing)]
    if every_hook:
        handles.append(optimizer.register_step_pre_hook(nothing))
        handles.append(model.register_forward_pre_hook(nothing, with_kwargs=True))
        handles.append(model.register_forward_hook(nothing))
        handles.append(model.register_forward_hook(nothing, always_call=True))
    yield
    for handle in handles:
        handle.remove()


def ratio(bare: Sequence[float], seen: Sequence[float], alike: bool) -> dict[str, float]:
    """Return the ratio of the rounds' times, whose steps are all alike or not."""
    return ratio_of([b / a for a, b in zip(bare, seen, strict=True)]) if alike else pooled(bare, seen)


def pooled(bare: Sequence[float], seen: Sequence[float]) -> dict[str, float]:
    """Return the ratio of all time to all time, and the quartiles of 1,000 redraws of the rounds."""
    draw, rounds = random.Random(0), range(len(bare))
    ratios = []
    for _ in range(1000):
        chosen = draw.choices(rounds, k=len(bare))
        ratios.append(sum(seen[i] for i in chosen) / sum(bare[i] for i in chosen))
    return {**ratio_of(ratios), "median": sum(seen) / sum(bare)}


def compare(name: str, make: Make, what: str, target: float | None, steps: int, repetitions: int) -> Iterator[Row]:
    """Compare two copies of a model that train alike, one of them watched, `steps` at a time.

    Of two copies one may be the slower by where it lies in memory: with one arrangement alone, ratios of 0.92 and of
    1.03 were found where 1.008 is found now. So each is the watched one in half of the rounds, with its own watch.

    Where all steps are sampled, or none is, the ratio is the median of the rounds. Where few are, it is all time over
    all time, since a median would leave the samples out; the quartiles are those of rounds drawn again from the rounds.

    Beside the clock's stands the ratio of processor times, with those of the threads that write: other programs on the
    machine stretch it far less.
    """
    model, x = make()
    model, x = model.to(DEVICE), x.to(DEVICE)
    bare: list[Spent] = []
    seen: list[Spent] = []
    said: list[dict[str, float]] = []
    copies = model, copy.deepcopy(model)
    for pair in (copies, copies[::-1]):
        times, told = rounds(pair, x, what, steps, repetitions)
        bare += times[0]
        seen += times[1]
        said += [told]
    alike = not what.startswith(("default", "wandb"))
    clock = ratio([one[0] for one in bare], [one[0] for one in seen], alike)
    processor = ratio([one[1] for one in bare], [one[1] for one in seen], alike)
    device = {"device": torch.cuda.get_device_name()} if DEVICE.type == "cuda" else {}
    yield Row(
        benchmark="watch",
        machine=machine() | device,
        case=f"{name}, {what}",
        baseline="training step with SGD",
        candidate="the same, watched",
        target=target,
        ratio=clock,
        repetitions=len(bare),
        extra={
            "steps": steps * len(bare),
            "processor": processor,
            **{key: max(each[key] for each in said) for key in said[0]},
        },
    )


def alone(watch: Watch, steps: Program) -> Program:
    """Let a watch hear of its own rounds alone, and its clock stand still between them.

    Else it looks around each backward pass of this thread, those of the unwatched copy too, which pay for it then; and
    it takes the other copy's turn for a step of its own.
    """
    losses, clock = watch._engine.losses, watch._engine._clock
    losses.close()
    left = time.perf_counter()

    def run() -> Any:
        nonlocal left
        losses.open()
        if isinstance(clock._last, float):  # a pause may last over several rounds
            clock._last += time.perf_counter() - left
        else:
            clock.tick(None)
        try:
            return steps()
        finally:
            losses.close()
            left = time.perf_counter()

    return run


def rounds(
    pair: tuple[nn.Module, nn.Module], x: Tensor, what: str, steps: int, repetitions: int
) -> tuple[tuple[list[Spent], list[Spent]], dict[str, float]]:
    """Time a model and its watched copy in turns: the seconds of each round, and what the watch says of itself."""
    optimizers = [torch.optim.SGD(net.parameters(), lr=1e-3) for net in pair]
    spent: tuple[list[Spent], list[Spent]] = [], []
    mixed = "mixed precision" in what
    baseline, watched = (
        steps_of(*each, x, steps, times, mixed) for *each, times in zip(pair, optimizers, spent, strict=True)
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        watch = None
        if what.startswith("wandb"):
            stack.enter_context(wandb_watched(pair[1], 20))
        elif what.startswith("naive"):
            stack.enter_context(naively_hooked(pair[1]))
        elif what.startswith("empty"):
            stack.enter_context(emptily_hooked(pair[1], optimizers[1], every_hook="all" in what))
        else:
            options: dict[str, Any] = {
                "a sampled step": {"every": 1, "max_overhead": math.inf},
                "a step not sampled": {"every": 1 << 30},
                "a step not sampled, mixed precision": {"every": 1 << 30},
                "a step not sampled, recorded": {"every": 1 << 30, "run": f"{folder}/run"},
                "default settings, recorded": {"run": f"{folder}/run"},
            }.get(what, {})
            watch = stack.enter_context(levada.watch(pair[1], optimizers[1], **options))
        timed = watched if watch is None else alone(watch, watched)
        for run in (baseline, timed) if what.endswith(LATE) else ():
            for _ in range(LONG // steps):
                run()
        compare_times(baseline, timed, repetitions=repetitions)
        told = {} if watch is None else {"said": round(watch.overhead, 5), "distance": watch.sampling}
    return (spent[0][-repetitions:], spent[1][-repetitions:]), told


def cases(quick: bool) -> Iterator[Callable[[], Iterator[Row]]]:
    sizes = ((20, 8, 2), (1000, 56, 12))[not quick]
    models: dict[str, tuple[Make, float]] = {
        f"MLP, {sizes[0]} layers of 64": (functools.partial(mlp, sizes[0]), 1.3),
        f"ResNet-{sizes[1]}, {8 if quick else 64} images": (
            functools.partial(resnet, sizes[1], 8 if quick else 64),
            1.05,
        ),
        f"transformer, {sizes[2]} layers of 256": (
            functools.partial(transformer, sizes[2], 256, 16 if quick else 128),
            1.05,
        ),
    }
    repetitions = 7 if quick else 10
    for name, (make, sampled) in models.items():
        yield functools.partial(compare, name, make, "default settings", 1.01, 20, repetitions)
        yield functools.partial(compare, name, make, "default settings, recorded", 1.01, 20, repetitions)
        yield functools.partial(compare, name, make, "a sampled step", sampled, 1, 15)
        yield functools.partial(compare, name, make, "a step not sampled", 1.002, 1, 101)
        yield functools.partial(compare, name, make, "wandb.watch(log='all', log_freq=20)", None, 20, repetitions)
        yield functools.partial(compare, name, make, "naive hooks, every step", None, 1, 7)
    # Of a step so short that the hooks are dear: fifty in a round, as one is shorter than a turn of others here.
    for what in ("", ", mixed precision", ", recorded"):
        small = functools.partial(mlp, 8)
        yield functools.partial(compare, "MLP, 8 layers of 64", small, f"a step not sampled{what}", 1.002, 50, 31)
    small = functools.partial(mlp, 8)
    yield functools.partial(compare, "MLP, 8 layers of 64", small, f"default settings, {LATE}", 1.01, 1000, 31)
    for what in ("empty hook behind the optimizer's step", "empty hooks, all that a watch has"):
        small = functools.partial(mlp, 8)
        yield functools.partial(compare, "MLP, 8 layers of 64", small, what, None, 50, 31)


if __name__ == "__main__":
    sys.exit(main("watch", cases))
