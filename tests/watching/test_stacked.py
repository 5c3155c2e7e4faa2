"""A stack whose layers hold their parameters together is watched as one whose layers hold their own."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import levada
from levada.runs import Run


def watched(folder, connection, *, stacked, every=1):
    torch.manual_seed(0)
    branches = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)]
    stack = levada.Stack(branches, connection, dim=8, stacked=stacked)
    model = nn.Sequential(nn.Linear(8, 8), stack, nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    with levada.watch(model, optimizer, run=folder, every=every, max_overhead=math.inf):
        for _ in range(6):
            optimizer.zero_grad()
            y = model(torch.randn(4, 8, generator=generator))
            y.square().mean().backward()
            optimizer.step()
    return Run(folder).signals(), functions(y.grad_fn)


def functions(node):
    found, left = set(), [node]
    while left:
        node = left.pop()
        found.add(type(node).__name__)
        left += [before for before, _ in node.next_functions if before is not None]
    return found


@pytest.mark.parametrize("connection", [levada.Residual, levada.ReZero])
def test_it_is_seen_by_layer(tmp_path, connection):
    apart, _ = watched(tmp_path / "apart", connection, stacked=False)
    together, _ = watched(tmp_path / "together", connection, stacked=True)
    assert together.names == apart.names
    assert [site["name"] for site in together.sites] == [site["name"] for site in apart.sites]
    for name in apart.names:
        expected, got = np.array(apart.read(name)), np.array(together.read(name))
        np.testing.assert_allclose(got, expected, rtol=1e-3, err_msg=name)  # of 16 bits, in octaves
    assert (np.array(together.read("weight_gradient_rms"))[1:] > 0).all()  # of ReZero none in the first step


@pytest.mark.parametrize("connection", [levada.HyperConnection, levada.ManifoldHyperConnection])
def test_between_samples_it_runs_as_one_function(tmp_path, connection):
    """A watch puts methods of its own in the layers' connections for a sampled pass, which may be the first."""
    apart, _ = watched(tmp_path / "apart", connection, stacked=False, every=4)
    together, ran = watched(tmp_path / "together", connection, stacked=True, every=4)
    assert list(together.steps) == [0, 4]
    assert "LayersBackward" in ran
    for name in apart.names:
        np.testing.assert_allclose(np.array(together.read(name)), np.array(apart.read(name)), rtol=1e-3, err_msg=name)
