"""Hyper-connections and fractional connections against the equations written out token by token, and their limits."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.connections.hyper import FractionalConnection, HyperConnection
from levada.connections.residual import Residual
from levada.stack import Stack

DIM = 6
KINDS = {
    "hyper": (HyperConnection, {"streams": 3}),
    "hyper mean": (HyperConnection, {"streams": 3, "head": "mean"}),
    "hyper rms": (HyperConnection, {"streams": 4, "norm": "rms"}),
    "hyper static": (HyperConnection, {"streams": 3, "dynamic": False}),
    "fractional": (FractionalConnection, {"fractions": 3}),
    "fractional rms": (FractionalConnection, {"fractions": 2, "norm": "rms"}),
    "fractional static": (FractionalConnection, {"fractions": 3, "dynamic": False}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class PreNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(module: nn.Module, by: float = 0.4) -> nn.Module:
    """Put every parameter off its start, where zeros and the identity hide what is wrong; the scales count fully."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(by * torch.randn_like(parameter) + (0.5 if name.endswith("scale") else 0.0))
    return module


def made(kind: str, **options) -> HyperConnection | FractionalConnection:
    connection, usual = KINDS[kind]
    return moved(connection(DIM, layer=1, depth=3, **usual, **options).double())


def stacks(connection, depth: int, **options) -> tuple[Stack, Stack]:
    torch.manual_seed(0)
    branches = [PreNorm(DIM) for _ in range(depth)]
    residual = Stack(copy.deepcopy(branches), Residual, dim=DIM).double()
    return Stack(branches, connection, dim=DIM, **options).double(), residual


def normalised(x: np.ndarray, norm: nn.Module) -> np.ndarray:
    weight = norm.weight.detach().numpy()
    if isinstance(norm, nn.RMSNorm):
        return weight * x / math.sqrt((x**2).mean())
    return weight * (x - x.mean()) / math.sqrt(x.var() + norm.eps) + norm.bias.detach().numpy()


def one_token(connection, streams: np.ndarray, branch) -> np.ndarray:
    """The equations with sums written out; `streams` is (n, width), or fractions."""
    n = len(streams)
    parameters = {name: p.detach().numpy() for name, p in connection.named_parameters()}
    wide = isinstance(connection, FractionalConnection)
    count = n if wide else 1
    read = parameters["static_read"].reshape(count, n).copy()
    mix, write = parameters["static_mix"].copy(), parameters["static_write"].copy()
    if connection.dynamic:
        rows = parameters["projection"]
        for j in range(n):
            features = normalised(streams[j], connection.norm)
            for i in range(count):
                read[i, j] += parameters["mix_scale"][0] * math.tanh(features @ rows[i])
            for i in range(n):
                mix[i, j] += parameters["mix_scale"][0] * math.tanh(features @ rows[count + i])
            write[j] += parameters["write_scale"][0] * math.tanh(features @ rows[count + n])
    given = np.concatenate([sum(read[i, j] * streams[j] for j in range(n)) for i in range(count)])
    out = branch(torch.from_numpy(given)).detach().numpy()
    outs = np.split(out, n) if wide else [out] * n
    return np.stack([sum(mix[i, j] * streams[j] for j in range(n)) + write[i] * outs[i] for i in range(n)])


@every_kind
def test_a_step_is_the_equations_token_by_token(kind):
    connection = made(kind)
    torch.manual_seed(0)
    branch = PreNorm(DIM).double()
    width = connection.begin(drawn(1, DIM)).shape[-1]
    state = drawn(2, 5, connection.streams, width)
    found = connection.advance(state, branch)
    expected = [one_token(connection, token.numpy(), branch) for token in state.flatten(0, 1)]
    torch.testing.assert_close(found.flatten(0, 1), torch.from_numpy(np.stack(expected)), rtol=1e-12, atol=1e-12)


@every_kind
def test_a_transposed_mix_is_another_function(kind):
    connection = made(kind)
    state = drawn(5, connection.streams, connection.begin(drawn(1, DIM)).shape[-1])
    mix = connection.coefficients(state).mix.expand(5, -1, -1)
    silent = connection.write(state, torch.zeros(5, DIM, dtype=torch.float64))
    torch.testing.assert_close(silent, torch.einsum("tij,tjd->tid", mix, state))
    assert (silent - torch.einsum("tji,tjd->tid", mix, state)).abs().max() > 0.1


def test_a_static_mix_sends_old_streams_to_new_ones():
    connection = HyperConnection(2, streams=2, dynamic=False)
    with torch.no_grad():
        connection.static_mix.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        connection.static_write.zero_()
    state = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(connection.write(state, torch.ones(2)), torch.tensor([[3.0, 4.0], [0.0, 0.0]]))


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("streams", [2, 3, 4])
def test_hyper_connections_start_as_the_pre_norm_network(streams, dynamic):
    x = drawn(2, 5, DIM)
    for head, factor in (("mean", 1), ("sum", streams)):
        stack, residual = stacks(HyperConnection, 9, streams=streams, dynamic=dynamic, head=head)
        torch.testing.assert_close(stack(x), factor * residual(x), rtol=1e-14, atol=1e-14)
    for layer in stack.layers:
        one_hot = torch.eye(streams, dtype=torch.float64)[layer.connection.layer % streams]
        assert torch.equal(layer.connection.static_read, one_hot)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("fractions", [2, 3])
def test_fractions_start_as_the_pre_norm_network(fractions, dynamic):
    x = drawn(2, 5, DIM)
    stack, residual = stacks(FractionalConnection, 9, fractions=fractions, dynamic=dynamic)
    torch.testing.assert_close(stack(x), residual(x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", ["hyper mean", "fractional", "fractional static"])
def test_start_as_residual_undoes_training_and_leaves_it_possible(kind):
    connection, options = KINDS[kind]
    stack, residual = stacks(connection, 7, **options)
    x = drawn(5, DIM)
    for layer in stack.layers:
        moved(layer.connection)
    assert (stack(x) - residual(x)).abs().max() > 0.1
    for layer in stack.layers:
        layer.connection.start_as_residual()
    torch.testing.assert_close(stack(x), residual(x), rtol=1e-13, atol=1e-13)
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
    moves_later = {"mix_scale", "write_scale", "norm.weight", "norm.bias"}  # zero rows hide them at first
    for step in range(3):
        optimizer.zero_grad()
        (stack(x) * drawn(5, DIM, seed=1)).sum().backward()
        for name, parameter in stack.layers[3].connection.named_parameters():
            if step or name not in moves_later:
                assert parameter.grad.abs().sum() > 0, (step, name)
        optimizer.step()
    if connection is HyperConnection:
        state = stack.layers[0].connection.begin(x)
        for layer in stack.layers:
            state = layer(state)
        assert (state[:, 0] - state[:, 1]).abs().max() > 1e-6, "the streams must come apart"


def test_a_sum_cannot_start_as_residual():
    with pytest.raises(UsageError, match=r"head='sum' the output is 3 times .* Pass head='mean'"):
        HyperConnection(DIM, streams=3).start_as_residual()


@pytest.mark.parametrize("axis", [-1, 1])
@every_kind
def test_a_step_is_a_read_and_a_write(kind, axis):
    connection = made(kind, axis=axis)
    x = drawn(2, DIM, 3, 4) if axis == 1 else drawn(2, 3, 4, DIM)
    state = connection.advance(connection.begin(x), nn.Tanh())
    expected = connection.write(state, connection.read(state).tanh())
    torch.testing.assert_close(connection.advance(state, nn.Tanh()), expected, rtol=1e-12, atol=1e-12)
    assert connection.read(state).shape == x.shape
    assert connection.end(state).shape == x.shape
    assert state.is_contiguous()


@every_kind
def test_images_are_tokens_with_the_channels_elsewhere(kind):
    images, tokens = made(kind, axis=1), made(kind)
    torch.manual_seed(0)
    convolution = nn.Conv2d(DIM, DIM, 1).double()
    linear = nn.Linear(DIM, DIM).double()
    with torch.no_grad():
        linear.weight.copy_(convolution.weight[:, :, 0, 0])
        linear.bias.copy_(convolution.bias)
    x = drawn(2, DIM, 3, 4)
    found = images.end(images.advance(images.begin(x), convolution))
    last = x.movedim(1, -1)
    expected = tokens.end(tokens.advance(tokens.begin(last), linear)).movedim(-1, 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    stack = Stack(
        lambda dim: nn.Conv2d(dim, dim, 3, padding=1), KINDS[kind][0], dim=DIM, depth=2, axis=1, **KINDS[kind][1]
    )
    assert stack(x.float()).shape == x.shape


@every_kind
def test_bfloat16_streams_have_float32_coefficients_also_under_autocast(kind):
    reference = made(kind)
    connection = copy.deepcopy(reference).float()
    state = reference.advance(reference.begin(drawn(50, DIM)), nn.Tanh()).bfloat16()
    expected = reference.coefficients(state.double())
    step = reference.advance(state.double(), nn.Tanh())
    with torch.autocast("cpu", torch.bfloat16):
        found = connection.coefficients(state)
        advanced = connection.advance(state, nn.Tanh())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    assert advanced.dtype == torch.bfloat16
    torch.testing.assert_close(advanced.double(), step, rtol=0.02, atol=0.05)
    if connection.dynamic:
        rounded = torch.nn.functional.linear(state.float(), connection.projection.bfloat16().float())
        exact = torch.nn.functional.linear(state.double(), reference.projection)
        assert (rounded - exact).abs().max() > 1e-3, "rounding a product's operands would show at this tolerance"


@every_kind
def test_autocast_does_not_round_what_streams_are_multiplied_by(kind):
    connection = made(kind).float()
    state = connection.advance(connection.begin(drawn(50, DIM).float()), nn.Tanh())
    out = drawn(50, DIM, seed=1).float()
    expected = connection.read(state), connection.write(state, out)
    with torch.autocast("cpu", torch.bfloat16):
        found = connection.read(state), connection.write(state, out)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@every_kind
def test_parameters_of_bfloat16_and_streams_of_float64_go_together(kind):
    connection = made(kind).bfloat16()
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        y = connection.end(connection.advance(connection.begin(drawn(3, DIM).to(dtype)), nn.Tanh()))
        assert y.dtype == dtype
    wide = torch.float64
    assert {c.dtype for c in connection.coefficients(connection.begin(drawn(3, DIM)))} == {wide}


@every_kind
def test_an_empty_batch_gives_an_empty_result(kind):
    connection = made(kind)
    x = drawn(0, 4, DIM).requires_grad_()
    y = connection.end(connection.advance(connection.begin(x), nn.Linear(DIM, DIM).double()))
    assert y.shape == x.shape
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in connection.parameters())


@every_kind
def test_a_nan_in_one_stream_stays_in_its_token(kind):
    connection = KINDS[kind][0](DIM, **KINDS[kind][1]).double()
    state = connection.begin(drawn(3, DIM))
    state[1, 1, 0] = math.nan
    found = connection.advance(state, nn.Linear(DIM, DIM).double()).isnan()
    assert not found[[0, 2]].any()
    assert found[1].any(-1).all(), "all streams of that token"


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e15])
@every_kind
def test_streams_of_any_size_have_finite_gradients(kind, size):
    connection = made(kind).float()
    x = (size * drawn(3, DIM)).float().requires_grad_()
    y = connection.end(connection.advance(connection.begin(x), nn.Tanh()))
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in connection.parameters())


@pytest.mark.parametrize("streams", [0, 1, -2])
def test_too_few_streams_are_refused(streams):
    with pytest.raises(UsageError, match=rf"streams must be at least 2, got {streams}\. .* use Residual"):
        HyperConnection(DIM, streams=streams)
    with pytest.raises(UsageError, match=rf"fractions must be at least 2, got {streams}\. .* use Residual"):
        FractionalConnection(DIM, fractions=streams)


def test_options_that_do_not_exist_are_refused():
    with pytest.raises(UsageError, match="head must be one of sum, mean, got 'max'"):
        HyperConnection(DIM, head="max")
    for connection in (HyperConnection, FractionalConnection):
        with pytest.raises(UsageError, match=f"{connection.__name__}: norm must be one of layer, rms, got 'batch'"):
            connection(DIM, norm="batch")
    with pytest.raises(UsageError, match="dim must be a multiple of fractions, got dim=6 and fractions=4"):
        FractionalConnection(DIM, fractions=4)


@every_kind
def test_inputs_that_do_not_fit_are_refused(kind):
    connection = made(kind)
    name = type(connection).__name__
    with pytest.raises(UsageError, match=f"{name}: the input must have 6 channels at axis -1"):
        connection.begin(drawn(3, DIM + 1))
    with pytest.raises(UsageError, match=f"{name}: the input must be of floating point"):
        connection.begin(torch.ones(3, DIM, dtype=torch.int64))
    for bad in (drawn(5, DIM), drawn(3, 7, DIM), connection.begin(drawn(3, DIM))[..., :1]):
        for call in (connection.read, connection.end, lambda s: connection.write(s, drawn(3, DIM))):
            with pytest.raises(UsageError, match=rf"{name}: the state must be \(\.\.\., \d, \d\)"):
                call(bad)
    with pytest.raises(UsageError, match="a branch must return the shape that it was given"):
        connection.advance(connection.begin(drawn(3, DIM)), nn.Linear(DIM, 1).double())


@every_kind
def test_branches_of_several_outputs_hand_on_the_rest(kind):
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x.tanh(), "rest"

    connection = made(kind)
    state = connection.begin(drawn(3, DIM))
    found = connection.advance(state, Two())
    assert found.extra == ("rest",)
    assert torch.equal(found.state, connection.advance(state, nn.Tanh()))


@every_kind
def test_rules_say_what_decays(kind):
    connection = made(kind)
    own = {name for name, _ in connection.named_parameters() if not name.startswith("norm.")}
    assert own <= set(connection.rules)
    assert {name for name in own if connection.rules[name].decay} == ({"projection"} if connection.dynamic else set())
    assert all(parameter.ndim for parameter in connection.parameters())


@pytest.mark.parametrize(("connection", "n"), [(HyperConnection, 4), (FractionalConnection, 3)])
def test_as_many_parameters_as_documented(connection, n):
    for dynamic in (True, False):
        option = {"streams" if connection is HyperConnection else "fractions": n}
        count = sum(p.numel() for p in connection(DIM, dynamic=dynamic, **option).parameters())
        if connection is HyperConnection:
            assert count == n**2 + 2 * n + dynamic * ((n + 4) * DIM + 2)
        else:
            assert count == 2 * n**2 + n + dynamic * ((2 * n + 3) * DIM // n + 2)


def test_the_options_are_printed():
    assert repr(HyperConnection(8, dynamic=False, head="mean")).startswith(
        "HyperConnection(dim=8, streams=4, dynamic=False, head='mean'"
    )
    assert "dim=8, fractions=2" in repr(FractionalConnection(8))
