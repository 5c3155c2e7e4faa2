"""Every pass begins at a known random state, without what `torch.manual_seed` does for devices that nobody uses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import levada
from levada._seeding import reseed


@pytest.fixture
def seeded(monkeypatch):
    """Count the calls of `torch.manual_seed`, each of which keeps a traceback for every kind of idle device."""
    found = []
    real = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: found.append(seed) or real(seed))
    return found


def drawn():
    return torch.rand(3).tolist()


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, -1])
def test_the_numbers_are_those_of_torch(seed):
    torch.manual_seed(seed)
    expected = drawn()
    reseed(seed)
    assert drawn() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_in_use_are_seeded():
    torch.manual_seed(3)
    expected = torch.rand(3, device="cuda").tolist()
    reseed(3)
    assert torch.rand(3, device="cuda").tolist() == expected


@pytest.mark.parametrize(("kind", "all_of_them"), [("mps", 1), ("xpu", 1), ("cuda", 0)])
def test_other_kinds_of_devices_are_left_to_torch(seeded, monkeypatch, kind, all_of_them):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    torch.manual_seed(5)
    expected = drawn()
    reseed(5)
    assert drawn() == expected
    assert len(seeded) == 1 + all_of_them


def test_a_check_seeds_all_devices_once_and_not_at_every_pass(seeded):
    passes = []
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    model.register_forward_hook(lambda *_: passes.append(1))
    levada.check(model, (torch.randn(32, 6), torch.arange(32) % 3), optimizer="SGD", lr=0.05)
    assert len(passes) > 20
    assert len(seeded) <= 2


def test_a_repair_seeds_all_devices_for_a_trial_and_not_at_every_step(seeded):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for p in model.parameters():
        nn.init.constant_(p, 1e-4)
    fixed = levada.fix(model, (torch.randn(32, 6), torch.arange(32) % 3), optimizer="SGD", lr=0.05, steps=50)
    steps = sum(50 * len(trial.seeds) for trial in fixed.trials)
    assert steps > 150
    assert len(seeded) < 10
