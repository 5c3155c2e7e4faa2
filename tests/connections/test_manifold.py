"""Manifold-constrained hyper-connections against loops written out, and their limits."""

import copy

import pytest
import torch
from tests.ops.differences import relative_errors
from tests.ops.test_sinkhorn import alternating, drawn
from torch import Tensor, nn

from levada._errors import UsageError
from levada.connections.manifold import ManifoldHyperConnection, StreamHead
from levada.connections.manifolds import MANIFOLDS
from levada.connections.residual import Residual
from levada.stack import Stack

DIM = 6
NAMES = ["birkhoff", *MANIFOLDS]


def learned(streams: int = 4, *, dim: int = DIM, seed: int = 0, **options) -> ManifoldHyperConnection:
    """A connection anywhere but at its start, where most of it is zero."""
    connection = ManifoldHyperConnection(dim, streams=streams, **options).double()
    with torch.no_grad():
        for parameter in connection.parameters():
            parameter.copy_(drawn(*parameter.shape, seed=seed))
    return connection


def branch(dim: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Tanh())


@pytest.mark.parametrize("streams", [2, 3, 4, 7, 16])
def test_a_layer_is_the_published_equation_written_out(streams):
    connection, x = learned(streams), drawn(5, streams, DIM, seed=1)
    function = branch(DIM).double()
    found = connection.advance(x, function)
    phi, bias, (to_read, to_write, to_mix) = connection.projection, connection.bias, connection.scale
    n = streams
    for token in range(5):
        v = x[token].reshape(-1)  # all streams behind one another, and one norm over all of them
        v = v / (v.square().mean() + 1e-6).sqrt()
        read = torch.sigmoid(to_read * (phi[:n] @ v) + bias[:n])
        write = 2 * torch.sigmoid(to_write * (phi[n : 2 * n] @ v) + bias[n : 2 * n])
        mix = alternating((to_mix * (phi[2 * n :] @ v) + bias[2 * n :]).reshape(n, n))
        out = function(sum(read[j] * x[token, j] for j in range(n)))
        for i in range(n):
            expected = sum(mix[i, j] * x[token, j] for j in range(n)) + write[i] * out
            torch.testing.assert_close(found[token, i], expected, rtol=1e-11, atol=1e-11)


def test_mixed_streams_are_convex_combinations_and_fewer_iterations_another_matrix():
    x = drawn(50, 4, DIM, seed=1)
    mix, short = learned().coefficients(x).mix, learned(iterations=2).coefficients(x).mix
    for matrix in (mix, short):
        torch.testing.assert_close(matrix.sum(-1), torch.ones(50, 4, dtype=torch.float64), rtol=0, atol=1e-15)
        assert (matrix >= 0).all()
    assert (short.sum(-2) - 1).abs().max() > 2 * (mix.sum(-2) - 1).abs().max()


def stacked(depth: int, streams: int, **options) -> tuple[Stack, Stack]:
    """A stack, and the residual one around the same branches."""
    torch.manual_seed(0)
    stack = Stack(branch, ManifoldHyperConnection, dim=DIM, depth=depth, streams=streams, **options).double()
    return stack, Stack([layer.branch for layer in stack], Residual, dim=DIM)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("streams", [2, 4])
def test_it_can_start_as_the_residual_connection(name, streams):
    if name == "isometric":
        streams = 5  # there is nothing to turn in two streams
    stack, residual = stacked(24, streams, manifold=name)
    for index, layer in enumerate(stack):
        with torch.no_grad():
            for parameter in layer.connection.parameters():
                parameter.copy_(drawn(*parameter.shape, seed=index))
    x = drawn(9, DIM, seed=1)
    expected = residual(x)
    assert relative_errors([stack(x)], [expected])[0] > 1e-2
    for layer in stack:
        layer.connection.start_as_residual()
        assert abs(layer.connection.bias[:streams].sigmoid().sum().item() - 1) < 1e-15
    assert relative_errors([stack(x)], [expected])[0] < 1e-12


@pytest.mark.parametrize("name", [name for name in NAMES if name != "permutations"])
def test_it_starts_as_the_residual_connection(name):
    stack, residual = stacked(24, 4, manifold=name)
    x = drawn(9, DIM, seed=1)
    assert relative_errors([stack(x)], [residual(x)])[0] < 1e-6  # the biases were rounded to float32
    read = stack[5].connection.coefficients(stack[5].connection.begin(x)).read
    torch.testing.assert_close(read[0], torch.tensor([0.1, 0.7, 0.1, 0.1]).double())


@pytest.mark.parametrize("name", NAMES)
def test_the_mixing_matrix_starts_near_the_identity(name):
    connection = ManifoldHyperConnection(DIM, manifold=name)
    mix = connection.coefficients(connection.begin(drawn(1, DIM, dtype=torch.float32))).mix[0]
    assert (mix - torch.eye(4)).abs().max() < 0.05


def test_mhc_lite_reads_its_own_stream_more():
    connection = ManifoldHyperConnection(DIM, manifold="permutations", layer=6, depth=8)
    read = connection.coefficients(connection.begin(torch.ones(1, DIM))).read[0]
    torch.testing.assert_close(read, torch.tensor([-1.0, -1.0, 1.0, -1.0]).sigmoid())
    assert connection.projection.shape == (2 * 4 + 24, 4 * DIM)


def gradients_after(steps: int, *, symmetric: bool = False) -> list[dict[str, Tensor]]:
    stack, _ = stacked(4, 4)
    if symmetric:
        with torch.no_grad():
            for layer in stack:
                layer.connection.bias[:4] = torch.tensor(1 / 4).logit()
    x, y = drawn(32, DIM, seed=1), drawn(32, DIM, seed=2)
    parameters = list(stack.parameters())
    for _ in range(steps + 1):
        found = torch.autograd.grad((stack(x) - y).square().mean(), parameters)
        with torch.no_grad():
            for parameter, value in zip(parameters, found, strict=True):
                parameter.sub_(0.3 * value)
    named = dict(zip([name for name, _ in stack.named_parameters()], found, strict=True))
    return [
        {kind: named[f"layers.{layer}.connection.{kind}"] for kind in ("projection", "bias", "scale")}
        for layer in range(4)
    ]


def test_from_the_exact_start_every_parameter_learns():
    at_start, later = gradients_after(0), gradients_after(2)
    for layer in range(4):
        write = at_start[layer]["bias"][4:8]
        assert layer == 3 or write.max() - write.min() > 0.1 * write.abs().max(), "later layers favour a stream"
        if layer:
            for kind, count in (("bias", 24), ("projection", 24), ("scale", 3)):
                rows = later[layer][kind].reshape(count, -1).abs().amax(1)
                assert (rows > 0).all(), f"{kind} of layer {layer}"


def test_equal_weights_would_never_tell_the_streams_apart():
    for layer in gradients_after(5, symmetric=True):
        assert layer["bias"][8:].abs().max() < 1e-15
        assert layer["bias"][4:8].max() - layer["bias"][4:8].min() < 1e-15


@pytest.mark.parametrize("form", ["deepseek_v4", "glm5_next"])
def test_released_forms_cannot_start_as_the_residual_connection(form):
    connection, x = ManifoldHyperConnection(DIM, form=form).double(), drawn(3, 4, DIM)
    torch.testing.assert_close(
        1 - connection.coefficients(x).mix.sum(-1), torch.full((3, 4), 1e-6).double(), rtol=1e-3, atol=0
    )
    with pytest.raises(UsageError, match=r"sum to 1 - 1e-06, so that .* Use form='paper'"):
        connection.start_as_residual()


def test_released_forms_differ_from_the_paper_by_epsilon_and_transpose():
    x = drawn(3, 4, DIM, seed=1)
    connections = learned(), learned(form="deepseek_v4"), learned()
    with torch.no_grad():
        for connection in connections:
            connection.scale.fill_(0.1)  # epsilon tells on entries that are not far above it
        for parameter in (connections[2].projection, connections[2].bias):
            parameter[8:] = parameter[8:].unflatten(0, (4, 4)).transpose(0, 1).flatten(0, 1).clone()
    paper, theirs, transposed = (connection.coefficients(x) for connection in connections)
    torch.testing.assert_close(theirs.read, paper.read + 1e-6, rtol=1e-12, atol=1e-12)
    assert torch.equal(theirs.write, paper.write)
    assert 1e-8 < (theirs.mix - transposed.mix).abs().max() < 1e-4
    assert (theirs.mix - paper.mix).abs().max() > 0.1


def test_a_learned_head_follows_the_last_layer():
    stack, x = Stack(branch, ManifoldHyperConnection, dim=DIM, depth=2, form="deepseek_v4").double(), drawn(3, 4, DIM)
    assert isinstance(stack.output, StreamHead)
    head = stack.output
    with torch.no_grad():
        head.scale.fill_(0.7)
        head.bias.copy_(drawn(4, seed=3))
    v = x[1].reshape(-1)
    weights = torch.sigmoid(0.7 * (head.projection @ v) / (v.square().mean() + 1e-6).sqrt() + head.bias) + 1e-6
    torch.testing.assert_close(head(x)[1], weights @ x[1], rtol=1e-12, atol=1e-12)
    assert torch.equal(stack[1].connection.end(x), x)
    assert stack(drawn(3, DIM)).shape == (3, DIM)
    assert isinstance(Stack(branch, ManifoldHyperConnection, dim=DIM, depth=2, form="glm5_next").output, nn.Identity)


@pytest.mark.parametrize("form", ["paper", "deepseek_v4"])
def test_images_keep_their_channels_where_they_are(form):
    torch.manual_seed(0)
    convolution = nn.Conv2d(DIM, DIM, 3, padding=1).double()
    stack = Stack([convolution] * 2, ManifoldHyperConnection, dim=DIM, axis=1, form=form).double()
    last = Stack([nn.Identity()] * 2, ManifoldHyperConnection, dim=DIM, form=form).double()
    x = drawn(2, DIM, 5, 4)
    assert stack(x).shape == x.shape
    for layer in stack:
        layer.branch = nn.Identity()
    last.load_state_dict(stack.state_dict(), strict=False)
    torch.testing.assert_close(stack(x), last(x.movedim(1, -1)).movedim(-1, 1))


@pytest.mark.parametrize("form", ["paper", "deepseek_v4"])
def test_bfloat16_streams_with_float32_coefficients(form):
    torch.manual_seed(0)
    stack = Stack(branch, ManifoldHyperConnection, dim=DIM, depth=2, form=form)
    with torch.no_grad():
        for layer in stack:
            layer.connection.projection.normal_()
    x = drawn(9, DIM, seed=1, dtype=torch.float32)
    expected = stack(x)
    connection = stack[0].connection
    state = connection.begin(x).bfloat16()
    full = connection.coefficients(state.float())
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = connection.coefficients(state)
        for mine, other in zip(found, full, strict=True):
            assert mine.dtype == torch.float32
            assert torch.equal(mine, other)
        assert connection.read(state).dtype == connection.write(state, connection.read(state)).dtype == torch.bfloat16
    low = copy.deepcopy(stack).bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert relative_errors([low.float()], [expected])[0] < 0.03


def test_what_is_not_a_number_stays_in_its_token():
    connection, x = learned(), drawn(6, 4, DIM, seed=1)
    spoiled = x.clone()
    spoiled[2, 1, 0] = float("nan")
    found, expected = connection.advance(spoiled, nn.Tanh()), connection.advance(x, nn.Tanh())
    assert found[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(found[others], expected[others])


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_and_zero_streams(name):
    stack, _ = stacked(2, 4, manifold=name)
    assert stack(torch.zeros(0, DIM).double()).shape == (0, DIM)
    connection = learned(manifold=name)
    zero = torch.zeros(3, 4, DIM, dtype=torch.float64, requires_grad=True)
    (connection.advance(zero, nn.Identity()).sum() + connection.coefficients(zero).mix.square().sum()).backward()
    assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 0}, "streams must be at least 2, got 0. For a single stream use Residual"),
        ({"streams": 1}, "streams must be at least 2, got 1"),
        ({"manifold": "sphere"}, "manifold must be one of birkhoff, .*, got 'sphere'"),
        ({"form": "deepseek"}, "form must be one of paper, deepseek_v4, glm5_next, got 'deepseek'"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"manifold": "permutations", "iterations": 5}, "serve manifold='birkhoff' alone"),
        ({"manifold": "permutations", "form": "deepseek_v4"}, "serve manifold='birkhoff' alone"),
        ({"manifold": "permutations", "streams": 9}, "^ManifoldHyperConnection: .*got 9"),
        ({"manifold": "kronecker", "streams": 6}, "^ManifoldHyperConnection: .*got 6"),
    ],
)
def test_what_it_refuses(options, message):
    with pytest.raises(UsageError, match=message):
        ManifoldHyperConnection(DIM, **options)


def test_what_it_refuses_to_be_given():
    connection = ManifoldHyperConnection(DIM)
    with pytest.raises(UsageError, match=r"must be \(\.\.\., 4, 6\).*got \(2, 3, 6\)"):
        connection.read(torch.zeros(2, 3, DIM))
    with pytest.raises(UsageError, match=r"floating point, got torch\.int64"):
        connection.begin(torch.zeros(2, DIM, dtype=torch.int64))


def test_every_parameter_has_a_rule():
    for module in (ManifoldHyperConnection(DIM), StreamHead(DIM)):
        assert set(module.rules) == {name for name, _ in module.named_parameters()}
        assert module.rules["projection"] == (True, "muon")
        assert not module.rules["bias"].decay
        assert not module.rules["scale"].decay
