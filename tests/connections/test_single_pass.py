"""Single-pass hyper-connections against a loop written out: what a layer reads was decided by the layer before.

No code of others runs beside ours: the equations written out here are all that it is held to.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import levada
from levada import SinglePassManifoldHyperConnection, Stack
from levada._errors import UsageError
from levada.conversion import convert
from levada.probe import Probe

DIM, STREAMS, DEPTH = 6, 4, 3


def branches(depth: int = DEPTH) -> list[nn.Module]:
    return [nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(depth)]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learned(form: str) -> Stack:
    torch.manual_seed(0)
    stack = Stack(branches(), SinglePassManifoldHyperConnection, dim=DIM, streams=STREAMS, form=form).double()
    with torch.no_grad():
        for layer in stack:
            for parameter in layer.connection.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return stack


def sinkhorn_written_out(logits: Tensor, epsilon: float) -> Tensor:
    """Columns, then rows; or, with epsilon, the released order, the transpose of which multiplies the streams."""
    if not epsilon:
        matrix = logits.exp()
        for _ in range(20):
            matrix = matrix / matrix.sum(-2, keepdim=True)
            matrix = matrix / matrix.sum(-1, keepdim=True)
        return matrix
    matrix = logits.softmax(-1) + epsilon
    matrix = matrix / (matrix.sum(-2, keepdim=True) + epsilon)
    for _ in range(19):
        matrix = matrix / (matrix.sum(-1, keepdim=True) + epsilon)
        matrix = matrix / (matrix.sum(-2, keepdim=True) + epsilon)
    return matrix.mT


def written_out(stack: Stack, x: Tensor, epsilon: float) -> Tensor:
    n = STREAMS
    streams = torch.stack([x] * n, -2)
    read = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64).expand(*x.shape[:-1], n)
    for layer in stack:
        c = layer.connection
        flat = streams.reshape(*x.shape[:-1], n * DIM)
        logits = flat / (flat.square().mean(-1, keepdim=True) + 1e-6).sqrt() @ c.projection.T
        following = torch.sigmoid(c.scale[0] * logits[..., :n] + c.bias[:n]) + epsilon
        write = 2 * torch.sigmoid(c.scale[1] * logits[..., n : 2 * n] + c.bias[n : 2 * n])
        free = c.scale[2] * logits[..., 2 * n :] + c.bias[2 * n :]
        mix = sinkhorn_written_out(free.reshape(*free.shape[:-1], n, n), epsilon)
        out = layer.branch(torch.einsum("...j,...jd->...d", read, streams))
        streams = torch.einsum("...ij,...jd->...id", mix, streams) + write[..., None] * out[..., None, :]
        read = following
    return torch.einsum("...j,...jd->...d", read, streams)


@pytest.mark.parametrize(("form", "epsilon"), [("paper", 0.0), ("deepseek_v41", 1e-6)])
def test_a_stack_is_the_equation_written_out_and_so_are_its_gradients(form, epsilon):
    stack, x, cotangent = learned(form), drawn(1, 2, 5, DIM), drawn(2, 2, 5, DIM)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    found, expected = stack(inputs[0]), written_out(stack, inputs[1], epsilon)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters = list(stack.parameters())
    ours = torch.autograd.grad(found, [inputs[0], *parameters], cotangent)
    theirs = torch.autograd.grad(expected, [inputs[1], *parameters], cotangent)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert all(gradient.abs().max() > 1e-6 for gradient in ours)


def test_it_reads_by_what_was_decided_before_and_not_by_the_new_streams():
    stack, x = learned("paper"), drawn(1, 5, DIM)
    state = stack[0](stack[0].connection.begin(x))
    weights = state[1]
    expected = stack[0].connection.coefficients(stack[0].connection.begin(x)[0]).read
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)
    assert (weights - stack[1].connection.coefficients(state[0]).read).abs().max() > 0.01
    assert torch.equal(stack[1].connection.read(state), (weights[..., None] * state[0]).sum(-2))


def test_the_first_layer_reads_stream_0_alone():
    connection = SinglePassManifoldHyperConnection(DIM, streams=STREAMS)
    _, weights = connection.begin(torch.ones(2, DIM))
    state = drawn(1, 2, STREAMS, DIM).float(), weights
    assert torch.equal(connection.read(state), state[0][:, 0])


@pytest.mark.parametrize("streams", [2, 3, 4, 16])
def test_it_starts_as_the_residual_connection(streams):
    made, x = branches(12), drawn(1, 3, DIM)
    ours = Stack(made, SinglePassManifoldHyperConnection, dim=DIM, streams=streams).double()
    expected = Stack(made, levada.Residual, dim=DIM).double()(x)
    torch.testing.assert_close(ours(x), expected, rtol=1e-6, atol=1e-6)  # the biases are rounded to float32
    for layer in ours:
        layer.connection.start_as_residual()
    torch.testing.assert_close(ours(x), expected, rtol=1e-13, atol=1e-13)
    with pytest.raises(UsageError, match="rows of the mixing matrix"):
        SinglePassManifoldHyperConnection(DIM, form="deepseek_v41").start_as_residual()


def test_a_layer_starts_by_favouring_another_stream_than_the_layer_before():
    """The first reads stream 0, and hands on stream 1: favouring its own, it would have two layers read alike."""
    for layer in Stack(branches(6), SinglePassManifoldHyperConnection, dim=DIM, streams=STREAMS):
        state = layer.connection.begin(drawn(1, 3, DIM).float())
        _, weights = layer.connection.write(state, torch.zeros(3, DIM))
        assert (weights.argmax(-1) == (layer.connection.layer + 1) % STREAMS).all()


def test_a_converted_model_keeps_its_function_and_learns_in_every_new_parameter():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
    model, x = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), torch.randn(2, 5, 16)
    net = convert(model, SinglePassManifoldHyperConnection, batch=x)
    assert net.levada_conversion.difference <= 1e-12
    new = {name: p for name, p in net.named_parameters() if "connections" in name}
    before = {name: p.detach().clone() for name, p in new.items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in new.items())
    last = net.layers[-1].connections[-1]
    streams, _ = last.begin(x)
    assert last.coefficients(streams).read.shape == (2, 5, 4)


def test_post_norm_models_are_refused_because_their_stream_is_normalised_itself():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=False)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    with pytest.raises(UsageError, match="has no place for"):
        convert(model, SinglePassManifoldHyperConnection, batch=torch.randn(2, 5, 16))


def test_the_probe_sees_its_mixing():
    stack = learned("paper").float()
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.0)
    with Probe(stack, optimizer, every=1) as probe:
        stack(torch.randn(8, DIM)).square().mean().backward()
        optimizer.step()
    gain = probe.trace()["composite_forward_gain"]
    assert gain.isfinite().any()
    torch.testing.assert_close(gain[gain.isfinite()], torch.ones_like(gain[gain.isfinite()]), rtol=1e-5, atol=1e-5)


def test_what_is_not_a_number_stays_in_its_token():
    stack, x = learned("paper"), drawn(1, 3, DIM)
    x[1, 2] = torch.nan
    y = stack(x)
    assert y[1].isnan().all()
    assert y[[0, 2]].isfinite().all()
    assert stack(torch.empty(0, DIM, dtype=torch.float64)).shape == (0, DIM)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 0}, "streams must be at least 2, got 0. For a single stream use Residual"),
        ({"streams": 1}, "streams must be at least 2, got 1. For a single stream use Residual"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"form": "deepseek_v4"}, "form must be one of paper, deepseek_v41, got 'deepseek_v4'"),
    ],
)
def test_what_it_refuses(options, message):
    with pytest.raises(UsageError, match=message):
        SinglePassManifoldHyperConnection(DIM, **options)


def test_what_it_refuses_to_be_given():
    connection = SinglePassManifoldHyperConnection(DIM, streams=STREAMS)
    streams, weights = connection.begin(torch.randn(2, DIM))
    for state, message in [
        (streams, "must be a pair, streams and weights, got Tensor"),
        ((streams, weights[:1]), r"one weight for each stream of each token, \(2, 4\), got \(1, 4\)"),
        ((streams[..., :5], weights), r"must be \(..., 4, 6\), streams and width last, got \(2, 4, 5\)"),
    ]:
        with pytest.raises(UsageError, match=message):
            connection.read(state)
    with pytest.raises(UsageError, match="floating point"):
        connection.begin(torch.ones(2, DIM, dtype=torch.int64))
    with pytest.raises(UsageError, match="6 channels at axis -1"):
        connection.begin(torch.ones(2, 5))
