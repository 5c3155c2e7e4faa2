"""What connections of several streams share: streams side by side for other code, and weights that part them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import levada
from levada._errors import UsageError

CONNECTIONS = [
    (levada.HyperConnection, {"streams": 3}, 3 * 8),
    (levada.ManifoldHyperConnection, {"streams": 3}, 3 * 8),
    (levada.FractionalConnection, {"fractions": 4}, 8),
    (levada.IdentityHyperConnection, {"streams": 3}, 3 * 8),
]
every = pytest.mark.parametrize(
    ("connection", "options", "width"), CONNECTIONS, ids=lambda c: getattr(c, "__name__", "")
)


@every
def test_streams_side_by_side_are_a_view_and_come_back(connection, options, width):
    made = connection(8, **options)
    state = made.begin(torch.randn(10, 2, 8))  # (sequence, batch, dim)
    packed = made.pack(state)
    assert packed.shape == (10, 2, width)
    assert packed.is_contiguous()
    assert packed.data_ptr() == state.data_ptr()
    assert torch.equal(made.unpack(packed), state)
    assert made.unpack(packed).data_ptr() == state.data_ptr()


@every
def test_stages_that_hand_on_three_axes_compute_the_same(connection, options, width):
    torch.manual_seed(0)
    stack = levada.Stack([nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)], connection, dim=8, **options)
    x = torch.randn(10, 2, 8, requires_grad=True)
    expected = stack(x)
    hidden = stack[0].connection.pack(stack[0].connection.begin(x))
    for layer in stack:  # each as a stage that takes and gives (sequence, batch, n dim)
        hidden = layer.connection.pack(layer(layer.connection.unpack(hidden)))
        assert hidden.shape == (10, 2, width)
    last = stack[-1].connection
    found = stack.output(last.end(last.unpack(hidden)))
    assert torch.equal(found, expected)
    cotangent = torch.randn_like(expected)
    assert torch.equal(*(torch.autograd.grad(y, x, cotangent)[0] for y in (found, expected)))


def test_the_streams_of_a_single_pass_are_packed_beside_their_weights():
    connection = levada.SinglePassManifoldHyperConnection(8, streams=4)
    streams, weights = connection.begin(torch.randn(10, 2, 8))
    assert connection.pack(streams).shape == (10, 2, 32)
    assert weights.shape == (10, 2, 4)
    with pytest.raises(UsageError, match=r"SinglePass.*: the streams must be a tensor, got tuple\. Where .* a pair"):
        connection.pack((streams, weights))


@every
def test_what_cannot_be_taken_apart_is_said(connection, options, width):
    made = connection(8, **options)
    for shape in ((), (10, 2, 7)):
        with pytest.raises(UsageError, match=rf"packed streams must be \(\.\.\., {width}\).*Make them with pack"):
            made.unpack(torch.zeros(shape))
    with pytest.raises(UsageError, match="the state must be"):
        made.pack(torch.zeros(2, 5))


def test_favoured_weights_sum_to_one_and_favour_each_stream_in_turn():
    connection = levada.ManifoldHyperConnection(8, streams=3)
    weights = torch.stack([connection.favoured(layer) for layer in range(6)])
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, dtype=torch.float64), rtol=1e-15, atol=0)
    assert weights.argmax(-1).tolist() == [0, 1, 2, 0, 1, 2]
