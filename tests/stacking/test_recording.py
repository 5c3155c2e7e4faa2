"""What a layer changes while it is recorded is as it was, and what it does at each call it does at each call."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from tests.stacking.stacks import DEPTH, DIM, gradients, is_recorded, pair
from torch import Tensor, nn

from levada.connections import Residual
from levada.stack import Stack
from levada.stacking import modules, running


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


class Counting(nn.Linear):
    """Does something else at each call."""

    shared: ClassVar[dict[str, int]] = {"calls": 0}

    def __init__(self) -> None:
        super().__init__(DIM, DIM)
        self.seen = {"calls": [0]}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.count()

    def count(self) -> int:
        self.seen["calls"][0] += 1
        return self.seen["calls"][0]


class CountingInClass(Counting):
    """Counts the calls of all."""

    calls = 0

    def count(self) -> int:
        self.shared["calls"] += 1
        type(self).calls += 1
        return self.shared["calls"] + self.calls


class CountingInFunction(Counting):
    """Counts in what a function closes over."""

    def __init__(self, function: Callable[[], int]) -> None:
        super().__init__()
        self.function = function

    def count(self) -> int:
        return self.function()


def counter() -> Callable[[], int]:
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    return count


@pytest.mark.parametrize(
    "make",
    [
        lambda: [Counting() for _ in range(DEPTH)],
        lambda: [CountingInClass() for _ in range(DEPTH)],
        lambda: [*map(CountingInFunction, [counter()] * DEPTH)],
    ],
)
def test_what_layers_count_in_place_is_counted_once(make, batch):
    found = []
    for stacked in (False, True):
        CountingInClass.calls, CountingInClass.shared["calls"] = 0, 0
        torch.manual_seed(0)
        stack = Stack(make(), Residual, dim=DIM, stacked=stacked)
        with pytest.warns(UserWarning, match="or what one holds") if stacked else contextlib.nullcontext():
            found.append([stack(batch) for _ in range(3)])
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_list_that_layers_share_and_that_one_fills_is_as_it_was(batch):
    class Noting(nn.Linear):
        def __init__(self, sizes: list[int]) -> None:
            super().__init__(DIM, DIM)
            self.sizes = sizes

        def forward(self, x: Tensor) -> Tensor:
            self.sizes.append(len(x))
            return super().forward(x)

    sizes: list[int] = []
    stack = Stack([Noting(sizes) for _ in range(DEPTH)], Residual, dim=DIM, stacked=True)
    with pytest.warns(UserWarning, match="or what one holds"):
        stack(batch)
    assert sizes == [len(batch)] * DEPTH


def test_losses_that_layers_keep_are_there_after_each_call(batch):
    class Kept(nn.Linear):
        def __init__(self) -> None:
            super().__init__(DIM, DIM)
            self.kept: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.kept["loss"] = y.square().mean()
            return y

    plain, stacked = pair(Kept)
    for _ in range(2):
        for stack in (plain, stacked):
            for layer in stack:
                layer.branch.kept.clear()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                stack(batch)
        assert [layer.branch.kept for layer in stacked] == [layer.branch.kept for layer in plain]


def test_weights_of_other_strides_in_the_same_memory_count(batch):
    plain, stacked = pair()
    assert is_recorded(stacked)
    for stack in (plain, stacked):
        for weight in (p for p in stack.parameters() if p.shape[-2:] == (DIM, DIM)):
            weight.data = weight.data.transpose(-1, -2)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    assert is_recorded(stacked)


def test_programs_of_a_setting_that_changes_at_each_call_are_few(batch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5)))
    programs = stacked.stacked.cache

    def found(p: float, count: int) -> None:
        for stack in (plain, stacked):
            for layer in stack:
                layer.branch[1].p = p
        assert torch.equal(seeded(stacked, batch), seeded(plain, batch))
        assert len(programs["runner"].programs) == count

    for i in range(8):
        found(i / 100, i + 1)
    with pytest.warns(UserWarning, match="settings or shapes change from call to call"):
        found(0.08, 8)
    for i in range(9, 24):
        found(i / 100, 8)
    found(0.23, 9)  # it has come twice
    assert is_recorded(stacked)


def seeded(stack: Stack, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return stack(x)


def test_old_programs_are_let_go(batch, monkeypatch):
    monkeypatch.setattr(running, "_PROGRAMS", 2)
    monkeypatch.setattr(running, "_ROWS", 1)
    plain, stacked = pair()
    for length in (1, 2, 3, 1):
        assert torch.equal(stacked(batch[:length]), plain(batch[:length]))
    runner = stacked.stacked.cache["runner"]
    assert [len(runner.programs), len(runner.rows)] == [2, 1]


def test_views_of_the_parameters_are_made_once_for_each_program(batch, monkeypatch):
    _, stacked = pair(Optional)
    runner = None
    for training in (True, False, True, False):
        stacked(batch) if training else stacked(batch[:1])
        if runner is None or len(runner.rows) < 2:
            runner = stacked.stacked.cache["runner"]
            rows = {}
        for program, made in runner.rows.items():
            assert rows.setdefault(id(program), made) is made
    stacked.double()
    stacked(batch.double())
    assert len(runner.rows) == 1  # those of memory that is gone are let go


def deterministic() -> contextlib.AbstractContextManager[object]:
    stack = contextlib.ExitStack()
    stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
    torch.use_deterministic_algorithms(True)
    return stack


def of_doubles() -> contextlib.AbstractContextManager[object]:
    stack = contextlib.ExitStack()
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(torch.float64)
    return stack


@pytest.mark.parametrize("surroundings", [deterministic, torch.inference_mode, of_doubles])
def test_what_operators_ask_for_counts(surroundings, batch):
    _, stacked = pair()
    with torch.no_grad():
        for count in (1, 2):
            with surroundings() if count == 2 else contextlib.nullcontext():
                stacked(batch)
            assert len(stacked.stacked.cache["runner"].programs) == count


def test_gradients_of_gradients_hold_the_lock_while_buffers_are_others(batch, monkeypatch):
    _, stacked = pair()
    held = []
    difference = modules.Modules.difference

    def noting(self) -> str:
        held.append(stacked.stacked.lock._is_owned())
        return difference(self)

    monkeypatch.setattr(modules.Modules, "difference", noting)
    x = batch.clone().requires_grad_()
    torch.autograd.grad(stacked(x).sum(), x, create_graph=True)
    assert held == [True, True]
