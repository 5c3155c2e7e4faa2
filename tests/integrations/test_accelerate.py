"""Accelerate works as it is: what `prepare` returned is given to `levada.watch`."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
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
    watch = levada.watch(model, optimizer, run=tmp_path / "run", every=1, max_overhead=1e9)
    watch.add_losses = True
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
