"""Stacked layers equal the plain stack in what they compute."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.stacking.stacks import DEPTH, DIM, gradients, is_recorded, pair
from torch import Tensor, nn

from levada.connections import HyperConnection, Plain, Residual, ReZero
from levada.stacking.program import Program


@pytest.mark.parametrize("connection", [Plain, Residual, ReZero, HyperConnection])
def test_equals_the_plain_stack(connection, batch):
    plain, stacked = pair(connection=connection)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch), rtol=0, atol=0)
    assert is_recorded(stacked)
    with torch.no_grad():
        assert torch.equal(stacked(batch), plain(batch))


@pytest.mark.parametrize("segments", [1, 2, DEPTH, True])
def test_checkpointing_gives_the_same(segments, batch):
    plain, stacked = pair()
    stacked.arrange(checkpoint=segments)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch), rtol=0, atol=0)


def test_checkpointing_keeps_the_first_states_alone(batch):
    _, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()))
    kept = [
        sum(len(row) for *_, rows in stacked.arrange(checkpoint=c)(batch).grad_fn.segments for row in rows)
        for c in (0, 2)
    ]
    assert kept == [4, 0]  # two chunks: states, and what tanh returned


@pytest.mark.parametrize("checkpoint", [False, 2])
def test_dropout_draws_what_the_plain_stack_draws(checkpoint, batch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5)))
    stacked.arrange(checkpoint=checkpoint)
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))
    assert is_recorded(stacked)
    stacked.eval(), plain.eval()
    assert torch.equal(stacked(batch), plain(batch))


NARROW = {
    "relu": nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU()),
    "mlp": nn.Sequential(nn.Linear(DIM, 3 * DIM), nn.ReLU(), nn.Linear(3 * DIM, DIM)),
    "gelu": nn.Sequential(nn.Linear(DIM, 3 * DIM), nn.GELU(), nn.Linear(3 * DIM, DIM)),
    "no bias": nn.Linear(DIM, DIM, bias=False),
}


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("connection", [Plain, Residual, HyperConnection])
def test_gradients_of_a_chunk_of_layers_are_those_of_each(kind, connection, batch):
    plain, stacked = pair(lambda: copy.deepcopy(NARROW[kind]), connection)
    plain.double(), stacked.double()
    for x in (batch.double(), torch.randn(5, DIM, dtype=torch.float64), batch.double()[None]):
        for segments in (0, 2):
            stacked.arrange(checkpoint=segments)
            for _ in range(2):  # again in the same memory
                torch.testing.assert_close(gradients(stacked, x), gradients(plain, x), rtol=1e-12, atol=1e-12)
    assert is_recorded(stacked)


def test_gradients_of_narrow_layers_are_made_a_chunk_at_once(batch):
    _, stacked = pair(lambda: copy.deepcopy(NARROW["relu"]))
    stacked(batch)
    (program,) = stacked.stacked.cache["runner"].programs.values()
    assert [written.whole for written in program.written] == [True, True]
    stacked(torch.randn(2**14, DIM))  # of these it would take no less time, and memory
    assert [written.whole for written in [*stacked.stacked.cache["runner"].programs.values()][1].written] == [False] * 2


def test_memory_of_a_chunk_is_not_used_twice_at_once(batch):
    plain, stacked = pair(lambda: copy.deepcopy(NARROW["relu"]))
    other, weight = 2 * batch, stacked.stacked.branch.get_submodule("0").weight
    expected = [torch.autograd.grad(plain(x).square().sum(), list(plain.parameters())) for x in (batch, other)]
    stacked(batch).sum().backward()  # leaves memory to use again
    first, second = stacked(batch).square().sum(), stacked(other).square().sum()
    found = [torch.autograd.grad(y, weight, retain_graph=True)[0] for y in (first, second, first)]
    third = stacked(other).square().sum()  # while both graphs are kept
    found += [torch.autograd.grad(y, weight)[0] for y in (second, third, first)]
    for gradient, place in zip(found, (0, 1, 0, 1, 1, 0), strict=True):
        torch.testing.assert_close(gradient, torch.stack([g for g in expected[place] if g.dim() == 2]))


class Gated(nn.Linear):
    """Reads what its first operation returned twice: before and after an operation that could write over it."""

    def forward(self, x: Tensor) -> Tensor:
        h = super().forward(x)
        return h.relu() * h


def test_nothing_is_written_over_that_is_read_later(batch):
    plain, stacked = pair(lambda: Gated(DIM, DIM))
    assert is_recorded(stacked)
    with torch.no_grad():
        assert torch.equal(stacked(batch), plain(batch))
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch))


@pytest.mark.parametrize("connection", [Plain, Residual])
@pytest.mark.parametrize("kind", NARROW)
def test_what_goes_in_and_comes_out_is_memory_of_its_own(connection, kind, batch):
    plain, stacked = pair(lambda: copy.deepcopy(NARROW[kind]), connection)
    given, cotangent = batch.clone().requires_grad_(), torch.ones_like(batch)
    y = stacked(given)
    output = y.detach().clone()
    (gradient,) = torch.autograd.grad(y, given, cotangent)
    held = gradient.clone()
    stacked(2 * batch).sum().backward()  # in the same memory
    assert torch.equal(y, output)
    assert torch.equal(gradient, held)
    assert torch.equal(given, batch)
    assert torch.equal(cotangent, torch.ones_like(batch))
    torch.testing.assert_close(gradient, torch.autograd.grad(plain(given).sum(), given)[0])


def test_what_is_drawn_while_recording_is_given_back(batch):
    _, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5)))
    first, second = (gradients(stacked, batch)["output"] for _ in range(2))
    assert torch.equal(first, second)


def test_recording_seeds_no_device_that_is_not_in_use(batch, monkeypatch):
    seeded: list[object] = []
    for device in (torch.cuda, torch.xpu, torch.mps):
        for name in {"manual_seed", "manual_seed_all"} & {*dir(device)}:
            monkeypatch.setattr(device, name, seeded.append)
    before = torch.get_rng_state()
    _, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.5)))
    seeded.clear()  # of `pair`
    torch.set_rng_state(before)
    stacked.eval()(batch)
    assert isinstance(stacked.stacked.cache["runner"].programs.popitem()[1], Program)
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), before)


def test_running_statistics_stay_with_their_layers(batch):
    plain, stacked = pair(lambda: nn.Sequential(nn.Linear(DIM, DIM), nn.BatchNorm1d(DIM), nn.ReLU()))
    torch.testing.assert_close(gradients(stacked, batch), gradients(plain, batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stacked.state_dict(), plain.state_dict(), rtol=0, atol=0)
    stacked.eval(), plain.eval()
    assert is_recorded(stacked)
    assert torch.equal(stacked(batch), plain(batch))


@pytest.mark.parametrize(
    "held", [(None, torch.zeros(DIM)), (torch.zeros(DIM), None), (torch.ones(DIM), torch.ones(DIM, dtype=torch.int64))]
)
def test_a_buffer_of_another_kind_is_recorded_again(held, batch):
    class Masked(nn.Linear):
        mask: Tensor | None

        def __init__(self) -> None:
            super().__init__(DIM, DIM)
            self.register_buffer("mask", None)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1 if self.mask is None else self.mask)

    plain, stacked = pair(Masked)
    for mask in held:
        for stack in (plain, stacked):
            for layer in stack:
                layer.branch.mask = mask
        assert is_recorded(stacked)
        assert torch.equal(stacked(batch), plain(batch))
    plain[2].branch.mask = stacked[2].branch.mask = torch.full((1,), 2.0)
    with pytest.warns(UserWarning, match="buffers of one name differ"):
        assert torch.equal(stacked(batch), plain(batch))


def test_autocast(batch):
    plain, stacked = pair()
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = gradients(plain, batch), gradients(stacked, batch)
        assert is_recorded(stacked)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
