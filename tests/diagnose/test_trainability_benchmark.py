"""The grid of the trainability benchmark trains many replicas as one network each, with torch's own optimizers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

grid = pytest.importorskip("benchmarks.diagnosis.grid")


@pytest.mark.parametrize(
    "name", ["tanh-plain-none-1.76/5", "relu-residual-none-0.5/5", "relu-plain-layer-2/5", "relu-residual-batch-2/5"]
)
def test_replicas_step_as_networks_alone(name):
    cell, seeds = grid.CELLS[name], (0, 1)
    replicas = grid.Replicas(cell, seeds)
    generator = torch.Generator().manual_seed(2)
    inputs, targets = torch.randn(16, 196, generator=generator), torch.arange(16) % 10
    replicas.step(inputs, targets)
    replicas.step(inputs, targets)
    found = replicas.forward(replicas.parameters, inputs)
    for number, (rate, seed) in enumerate((r, s) for r in (*grid.SGD, *grid.ADAM) for s in seeds):
        net = grid.network(cell, seed)
        # The replicas' normalisations have no affine part.
        linear = [p for m in net.modules() if isinstance(m, torch.nn.Linear) for p in m.parameters()]
        if number < len(grid.SGD) * len(seeds):
            optimizer = torch.optim.SGD(linear, lr=rate, momentum=grid.MOMENTUM)
        else:
            optimizer = torch.optim.Adam(linear, lr=rate)
        for _ in range(2):
            optimizer.zero_grad()
            functional.cross_entropy(net(inputs), targets).backward()
            optimizer.step()
        torch.testing.assert_close(found[number], net(inputs), rtol=1e-3, atol=1e-4)


def test_the_grid_has_cells_that_are_unique_and_both_halves_are_large():
    assert 150 <= len(grid.CELLS) <= 250
    assert not set(grid.CELLS) & set(grid.FRESH)
    program = pytest.importorskip("benchmarks.diagnosis.program")
    assert 0.4 < sum(map(program.held_out, grid.CELLS)) / len(grid.CELLS) < 0.6
