from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.blocks import Attention
from levada.networks import transformer
from levada.probe import attention_weights, lookup


def test_weights_are_those_that_the_output_is_made_with():
    torch.manual_seed(0)
    branch, x = Attention(8, heads=2, causal=True, norm=None), torch.randn(9, 100, 8)
    ((name, weights),) = attention_weights(branch, x)
    assert name == ""
    assert weights.shape == (9, 2, 100, 100)  # all rows and queries, and not some as for a diagnosis
    value = branch.value(x).unflatten(-1, (2, -1)).transpose(-3, -2)
    torch.testing.assert_close(branch.output((weights @ value).transpose(-3, -2).flatten(-2)), branch(x))


def test_torch_own_attention_is_seen():
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
    _, expected = attention(x, x, x, average_attn_weights=False)
    ((_, weights),) = attention_weights(attention, x, x, x)
    torch.testing.assert_close(weights, expected)


def test_every_layer_is_told_by_name_in_order():
    model = transformer(3, 8, vocabulary=5, heads=2, feed_forward=False)
    found = attention_weights(model, torch.zeros(2, 4, dtype=torch.int64))
    assert [name for name, _ in found] == [f"stack.layers.{i}.branch" for i in range(3)]
    with pytest.raises(UsageError, match=r"depth must be even.*For attention alone use feed_forward=False"):
        transformer(3, 8, vocabulary=5)


def test_lookup_is_weight_and_entropy_by_head_over_what_is_asked():
    weights = torch.tensor([[[[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]])
    found = lookup(weights, torch.tensor([[0, 2]]))
    assert found.weight == pytest.approx((0.6, 1.0))
    written = -(0.1 * math.log(0.1) + 0.2 * math.log(0.2) + 0.7 * math.log(0.7))
    assert found.entropy == pytest.approx(((math.log(2) + written) / 2, 0.0))
    assert found.head == 1
    assert lookup(weights, torch.tensor([[-1, 1]])).weight == pytest.approx((0.2, 0.0))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (torch.zeros(2, 2, dtype=torch.int64), r"places \(batch, queries\), got \(1, 1, 2, 3\) and \(2, 2\)"),
        (torch.tensor([[-1, -1]]), "at least one query must have a place"),
        (torch.tensor([[0, 3]]), r"below the number of keys 3, got 3"),
    ],
)
def test_what_does_not_fit_is_told(places, message):
    with pytest.raises(UsageError, match=message):
        lookup(torch.full((1, 1, 2, 3), 1 / 3), places)
