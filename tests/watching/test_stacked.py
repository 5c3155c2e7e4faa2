"""A stack whose layers hold their parameters together is watched as one whose layers hold their own."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import levada
from levada.runs import Run


def watched(folder, connection, *, stacked):
    torch.manual_seed(0)
    branches = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)]
    stack = levada.Stack(branches, connection, dim=8, stacked=stacked)
    model = nn.Sequential(nn.Linear(8, 8), stack, nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    with levada.watch(model, optimizer, run=folder, every=1, max_overhead=math.inf):
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(4, 8, generator=generator)).square().mean().backward()
            optimizer.step()
    return Run(folder).signals()


@pytest.mark.parametrize("connection", [levada.Residual, levada.ReZero])
def test_it_is_seen_by_layer(tmp_path, connection):
    apart = watched(tmp_path / "apart", connection, stacked=False)
    together = watched(tmp_path / "together", connection, stacked=True)
    assert together.names == apart.names
    assert [site["name"] for site in together.sites] == [site["name"] for site in apart.sites]
    for name in apart.names:
        expected, got = np.array(apart.read(name)), np.array(together.read(name))
        np.testing.assert_allclose(got, expected, rtol=1e-3, err_msg=name)  # of 16 bits, in octaves
    assert (np.array(together.read("weight_gradient_rms"))[1:] > 0).all()  # of ReZero none in the first step
