"""What goes in and comes out of stacked layers lives on, whatever views it is made of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from levada import Plain, Residual, Stack

DIM = 6


class ViewOfAll(nn.Module):
    """Returns a view of what its last operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.view(-1, DIM)).tanh().view(x.shape)


class ViewOfGradient(ViewOfAll):
    """Sends back a view of a gradient that a weight's product reads."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((x.view(-1, DIM) + self.linear.bias).tanh()).view(x.shape)


class Gated(ViewOfAll):
    """Its backward pass may write over the gradient that comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.gate(x).sigmoid()


@pytest.mark.parametrize("connection", [Plain, Residual])
@pytest.mark.parametrize("branch", [ViewOfAll, ViewOfGradient, Gated])
def test_outputs_and_gradients_are_left_alone_by_the_next_step(
    branch: type[ViewOfAll], connection: type[Plain] | type[Residual]
) -> None:
    torch.manual_seed(0)
    plain = Stack([branch() for _ in range(24)], connection, dim=DIM).double()
    stacked = copy.deepcopy(plain).arrange(stacked=True)
    shape = (3, DIM) if branch is Gated else (2, 3, DIM)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = plain(x)
    (by_x,) = torch.autograd.grad(expected.square().sum(), x)
    y = stacked(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, *stacked.parameters()])
    for _ in range(2):  # the memory of a chunk is used again
        torch.autograd.grad(stacked(3 * x).sum(), [x, *stacked.parameters()])
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients[0], by_x)
