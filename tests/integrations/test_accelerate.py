"""Accelerate works as it is: what `prepare` returned is given to `levada.watch`."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from tests.integrations.loops import assert_recorded, assert_same, plain, unwatched
from torch import nn

import levada


@pytest.fixture(autouse=True)
def alone():
    """Accelerate's state is the process's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def network():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)), nn.Linear(8, 1))


def mean_loss(model, args, kwargs):
    return model(args[0]).float().square().mean()


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "no"), (2, "bf16")])
def test_samples_are_those_of_a_plain_loop(tmp_path, accumulate, precision):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision)
    batches = torch.randn(12, 8, 8, generator=torch.Generator().manual_seed(1))
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, torch.utils.data.DataLoader(batches, batch_size=None)
    )
    watch = levada.watch(model, optimizer, run=tmp_path / "run", every=1, max_overhead=math.inf)
    with watch:
        for x in loader:
            with accelerator.accumulate(model):
                accelerator.backward(mean_loss(model, (x,), {}))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
    reference = network()
    expected = plain(
        reference,
        torch.optim.Adam(reference.parameters(), lr=0.01),
        [((x,), {}) for x in batches],
        mean_loss,
        accumulate=accumulate,
        clip=0.5,
        autocast=torch.bfloat16 if precision == "bf16" else None,
    )
    assert_same(watch, expected)
    assert watch.steps == 12 // accumulate
    assert_recorded(tmp_path / "run", watch)
    assert unwatched(accelerator.unwrap_model(model))


def test_gradients_are_divided_by_the_scale_of_a_wrapped_optimizers_scaler():
    Accelerator(cpu=True)
    batches = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(1))
    model, reference = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    # What prepare makes with fp16 where there is a GPU: a step that is patched while the scaler calls it.
    optimizer = AcceleratedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), device_placement=False, scaler=scaler)
    with levada.watch(model, optimizer, scaler=optimizer.scaler, every=1, max_overhead=math.inf) as watch:
        for number, x in enumerate(batches):
            loss = scaler.scale(mean_loss(model, (x,), {}))
            (loss * float("inf") if number == 3 else loss).backward()  # a step that the scaler leaves out
            optimizer.step()
            optimizer.zero_grad()
    kept = [x for number, x in enumerate(batches) if number != 3]
    expected = plain(reference, torch.optim.SGD(reference.parameters(), lr=0.1), [((x,), {}) for x in kept], mean_loss)
    assert (watch.steps, expected.steps) == (5, 4)  # one that a scaler skips ends too, and is not sampled
    assert [sample.scalars["loss_scale"] for sample in watch.samples][:2] == [1024.0, 1024.0]
    last = watch.samples[-1]
    assert (last.step, [step for step, _ in last.losses]) == (4, [3, 4])
    watch.samples[-1] = replace(last, step=3, losses=((3, last.losses[1][1]),))
    assert_same(watch, expected, skip=("overhead", "loss_scale"))
