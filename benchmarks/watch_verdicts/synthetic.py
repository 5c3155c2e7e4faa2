"""Samples that are made up: a healthy run, into which a test writes a fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from levada.probe.trace import Site
from levada.watching import Sample
from levada.watching.verdict.judge import Judge

__all__ = ["Synthetic"]

USUAL = {
    "signal_rms": 1.0,
    "gradient_rms": 1e-3,
    "weight_rms": 0.1,
    "weight_gradient_rms": 1e-3,
    "update_ratio": 1e-3,
    "zero_fraction": 0.5,
    "nonfinite": 0.0,
    "gradient_nonfinite": 0.0,
}

Edit = Callable[[int, dict[str, Tensor], dict[str, float], list[tuple[int, float]]], None]


class Synthetic:
    """A run of made-up samples and its judge.

    Attributes:
        judge: what hears them.
        step: the next sampled step.
        tanh: numbers of the blocks that end with a tanh.
    """

    def __init__(self, sites: int = 8, *, every: int = 20, dtype: torch.dtype | None = None, **options: Any) -> None:
        self.draw = torch.Generator().manual_seed(0)
        self.every, self.step, self.told = every, 0, 0
        self.weights: Tensor | None = None
        self.tanh = frozenset[int]()
        self.sites = tuple(Site(f"layers.{i}", i, "Block", (16, 32), (f"{i}.weight",)) for i in range(sites))
        source = SimpleNamespace(sites=self.sites, optimizers=(torch.optim.AdamW([torch.zeros(1)]),))
        if dtype is not None:
            source.model = nn.ModuleList([nn.Linear(2, 2, bias=False, dtype=dtype) for _ in range(sites)])
            source.optimizers = (torch.optim.AdamW(source.model.parameters()),)
        self.source = source
        self.judge = Judge(source, **options)

    def loss(self, step: int) -> float:
        """A loss that falls from 2.3 to 0.5, with the noise of batches."""
        noise = 0.05 * float(torch.randn((), generator=self.draw))
        return 0.5 + 1.8 * math.exp(-step / 150) + noise

    def run(self, samples: int, edit: Edit = lambda *_: None, *, lr: float = 1e-3) -> list[Any]:
        """Hand on samples; return what was newly found.

        Args:
            samples: how many.
            edit: of step, values, scalars and losses, before they are handed on.
            lr: the learning rate that they tell.
        """
        before = len(self.judge.findings)
        for _ in range(samples):
            noise = [torch.exp(0.1 * torch.randn(len(self.sites), generator=self.draw)).double() for _ in USUAL]
            values = {name: usual * by for (name, usual), by in zip(USUAL.items(), noise, strict=True)}
            scalars = {"lr": lr}
            losses = [(step, self.loss(step)) for step in range(self.told, self.step + 1)]
            edit(self.step, values, scalars, losses)
            if self.weights is not None and len(self.weights) == len(values["update_ratio"]):
                still = values["update_ratio"] == 0  # what no update moves stays as it was
                values["weight_rms"] = torch.where(still, self.weights, values["weight_rms"])
            self.weights = values["weight_rms"]
            self.judge.sampled(Sample(self.step, float(self.step), values, scalars, tuple(losses), 0, self.tanh))
            self.told, self.step = self.step + 1, self.step + self.every
        return self.judge.findings[before:]
