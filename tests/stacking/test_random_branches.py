"""Branches of random operations, stacked and not: whatever is recorded is what the layers do."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable

import pytest
import torch
from tests.stacking.stacks import DIM, gradients, pair
from torch import Tensor, nn
from torch.nn import functional

from levada.connections import HyperConnection, Plain, Residual, ReZero


def _in_part(x: Tensor) -> Tensor:
    y = x * 1.0
    y[..., :2] *= 2
    return y


OPERATIONS: list[Callable[[nn.Module, Tensor], Tensor]] = [
    lambda m, x: torch.relu(x),
    lambda m, x: functional.gelu(x),
    lambda m, x: functional.silu(x),
    lambda m, x: x.softmax(-1),
    lambda m, x: functional.layer_norm(x, (DIM,), m.scale),
    lambda m, x: -x,
    lambda m, x: (x * 0.1).exp(),
    lambda m, x: x + 1,
    lambda m, x: x + x,
    lambda m, x: x * x * 0.3,
    lambda m, x: (x.abs() + 0.1).sqrt(),
    lambda m, x: x.reshape(-1, DIM).tanh().view(x.shape),
    lambda m, x: x.transpose(0, -1).tanh().transpose(0, -1),
    lambda m, x: torch.cat([x[..., :3] * x[..., 3:], x[..., 3:]], -1),
    lambda m, x: torch.cat([*reversed(x.chunk(3, -1))], -1),
    lambda m, x: functional.pad(x, (1, 0))[..., :-1],
    lambda m, x: x.cumsum(-1) * 0.3,
    lambda m, x: (x * 1.5).relu_(),
    lambda m, x: (x + 0.1).tanh_(),
    lambda m, x: _in_part(x),
    lambda m, x: x.clamp(-1, 1),
    lambda m, x: x * x.detach().sigmoid(),
    lambda m, x: torch.where(x > 0, x, x * 0.1),
    lambda m, x: x / (x.norm(dim=-1, keepdim=True) + 1),
    lambda m, x: x / (1 + x.square().mean().sqrt()),
    lambda m, x: x - x.mean(0),
    lambda m, x: functional.dropout(x, 0.3, m.training),
    lambda m, x: x[..., [5, 4, 3, 2, 1, 0]],
    lambda m, x: torch.stack([x, x * m.scale]).mean(0),
    lambda m, x: x * m.scale.expand(x.shape),
    lambda m, x: x @ (m.scale.unsqueeze(-1) * m.scale) * 0.3,
    lambda m, x: (x + m.shift).relu(),
    lambda m, x: x * m.gain,
    lambda m, x: x * m.gain.tanh(),
    lambda m, x: x.float().sigmoid().to(x.dtype),
]


class Branch(nn.Module):
    """Some of the operations above, and linear layers among them."""

    def __init__(self, places: list[int], biases: list[bool]) -> None:
        super().__init__()
        self.places = places  # those below 0 are linear layers
        self.linear = nn.ModuleList(nn.Linear(DIM, DIM, bias=bias) for bias in biases)
        self.scale = nn.Parameter(torch.randn(DIM) * 0.1 + 1)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("shift", torch.rand(DIM) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        for place in self.places:
            x = OPERATIONS[place](self, x) if place >= 0 else self.linear[place](x)
        return x


@pytest.mark.parametrize("seed", [*range(16), 134, 338])  # of the last two no program could once be made
def test_random_branches(seed):
    draw = random.Random(seed)
    biases = [draw.random() < 0.6 for _ in range(draw.randint(1, 2))]
    places = [draw.randrange(len(OPERATIONS)) for _ in range(draw.randint(1, 5))] + [-1 - i for i in range(len(biases))]
    draw.shuffle(places)
    connection = draw.choice([Plain, Residual, ReZero, HyperConnection])
    plain, stacked = pair(lambda: Branch(places, biases), connection, checkpoint=draw.choice([False, False, 2]))
    plain.double(), stacked.double()
    x = torch.randn(draw.choice([(4, DIM), (2, 3, DIM), (1, DIM)]), generator=torch.Generator().manual_seed(seed)) / 2
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):  # recorded, and again
            found = [gradients(stack, x.double()) for stack in (plain, stacked)]
            torch.testing.assert_close(found[1], found[0], rtol=1e-7, atol=1e-9, equal_nan=True)
    assert not any("no program" in str(warning.message) for warning in told)
