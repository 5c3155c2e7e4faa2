"""What a layer changes while it is recorded is as it was, and what it does at each call it does at each call."""

from __future__ import annotations

import pytest
import torch
from tests.stacking.stacks import DEPTH, DIM, is_recorded, pair
from torch import Tensor, nn


class Mean(nn.Linear):
    """Puts a new mean in the place of the last one."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__(DIM, DIM)
        self.register_buffer("mean", torch.zeros(DIM))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.put(0.9 * self.mean + 0.1 * x.detach().mean(0))
        return super().forward(x - self.mean)

    def put(self, mean: Tensor) -> None:
        self.mean = mean


class ByName(Mean):
    """Does so where its buffers are held."""

    def put(self, mean: Tensor) -> None:
        self._buffers["mean"] = mean


class Memory(Mean):
    """Does so with the memory of the buffer."""

    def put(self, mean: Tensor) -> None:
        self.mean.data = mean


class First(Mean):
    """Keeps the mean of the first batch, in a buffer that was None."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.detach().mean(0)
        return nn.Linear.forward(self, x - self.mean)


class Registering(First):
    """Keeps it in a buffer that was not there."""

    def __init__(self) -> None:
        super().__init__()
        del self.mean

    def forward(self, x: Tensor) -> Tensor:
        if "mean" not in self._buffers:
            self.register_buffer("mean", x.detach().mean(0))
        return nn.Linear.forward(self, x - self.mean)


class Optional(nn.Linear):
    """Multiplies by a buffer, if there is one."""

    def __init__(self) -> None:
        super().__init__(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * getattr(self, "by", 1.0)


@pytest.mark.parametrize("make", [Mean, ByName, Memory, First, Registering])
def test_a_tensor_that_is_put_in_the_place_of_a_buffer_stays_there(make, batch):
    plain, stacked = pair(make)
    with pytest.warns(UserWarning, match="puts another tensor in the place of a buffer"):
        found = [stacked(i * batch) for i in range(3)]
    for i, y in enumerate(found):
        assert torch.equal(y, plain(i * batch))
    torch.testing.assert_close(stacked.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert torch.equal(stacked.eval()(batch), plain.eval()(batch))
    assert is_recorded(stacked)


def test_a_buffer_that_is_there_later_counts(batch):
    plain, stacked = pair(Optional)
    assert is_recorded(stacked)
    for i in range(DEPTH):
        for stack in (plain, stacked):
            stack[i].branch.register_buffer("by", torch.full((), 3.0))
        if i == 0:
            with pytest.warns(UserWarning, match="the tree of modules is not the same"):
                assert torch.equal(stacked(batch), plain(batch))
    assert is_recorded(stacked)
    assert torch.equal(stacked(batch), plain(batch))
