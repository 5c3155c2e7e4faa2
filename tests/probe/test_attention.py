"""What attention attends to is what its weights say, however a model computes them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada.probe import record
from levada.probe.attention import Attention, AttentionMode, attention, attention_by_site, token_similarity

ROWS, LENGTH, DIM, HEADS = 3, 7, 16, 4


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def of_weights(weights, visible=None):
    """Return mean entropy over ln n and mean slope of weights `(batch, heads, queries, keys)`, computed by loops."""
    entropies, slopes = [], []
    visible = torch.ones_like(weights, dtype=torch.bool) if visible is None else visible.expand(weights.shape)
    for row, seen in zip(weights.flatten(0, 2).double(), visible.flatten(0, 2), strict=True):
        if int(seen.sum()) > 1:
            kept = row[seen]
            entropies.append(-sum(p * math.log(p) for p in kept.tolist() if p > 0) / math.log(len(kept)))
            slopes.append(1 - sum(p * p for p in kept.tolist()))
    return sum(entropies) / len(entropies), sum(slopes) / len(slopes)


def seen_in(model, *args, **kwargs):
    found = []

    def see(module, logits):
        found.append(attention(logits, module))

    with AttentionMode(model, see):
        model(*args, **kwargs)
    return found


class Product(nn.Module):
    """One attention, by whatever function."""

    def __init__(self, function):
        super().__init__()
        self.function, self.q, self.k = function, nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (self.q(x), self.k(x), x))
        return self.function(q, k, v)


def by_hand(q, k, v, hidden=None, scale=None):
    logits = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits if hidden is None else logits.masked_fill(hidden, -math.inf)
    return functional.softmax(logits, dim=-1) @ v


CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
SAME = {
    "plain": ({}, {}),
    "causal": ({"is_causal": True}, {"hidden": CAUSAL}),
    "boolean mask": ({"attn_mask": ~CAUSAL}, {"hidden": CAUSAL}),
    "added mask": ({"attn_mask": torch.zeros(LENGTH, LENGTH).masked_fill(CAUSAL, -1e9)}, {"hidden": CAUSAL}),
    "scale": ({"scale": 2.0}, {"scale": 2.0}),
}


@pytest.mark.parametrize("case", SAME)
def test_the_fused_function_is_seen_as_what_it_computes(case):
    fused, plain = SAME[case]
    model, x = Product(None), draw(ROWS, LENGTH, DIM)
    model.function = lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, **fused)
    (first,) = seen_in(model, x)
    model.function = lambda q, k, v: by_hand(q, k, v, **plain)
    (second,) = seen_in(model, x)
    for name in ("entropy", "lowest", "slope", "logit_max", "logit_std", "keys"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-5), name


def test_grouped_queries_share_their_keys():
    q, k = draw(2, 4, 5, 8), draw(2, 2, 5, 8)
    found = []

    class Grouped(nn.Module):
        def forward(self, q, k):
            return functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    with AttentionMode(Grouped(), lambda m, logits: found.append(logits)):
        model = Grouped()
        model(q, k)
    assert torch.allclose(found[0], q @ k.repeat_interleave(2, 1).transpose(-2, -1) * 8**-0.5, atol=1e-6)


@pytest.mark.parametrize("weights_too", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", ["", "causal", "padding", "both"])
@pytest.mark.parametrize("widths", [{}, {"kdim": 6, "vdim": 5}])
def test_multi_head_attention_has_the_entropy_of_the_weights_that_it_returns(weights_too, batch_first, masked, widths):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(DIM, HEADS, batch_first=batch_first, **widths)
    nn.init.normal_(module.in_proj_bias)
    q, k, v = (
        draw(ROWS, LENGTH, DIM),
        draw(ROWS, LENGTH, widths.get("kdim", DIM)),
        draw(ROWS, LENGTH, widths.get("vdim", DIM)),
    )
    padding = torch.arange(LENGTH)[None] >= torch.tensor([LENGTH, 5, 3])[:, None]
    options = {"attn_mask": CAUSAL} if masked in ("causal", "both") else {}
    options |= {"key_padding_mask": padding} if masked in ("padding", "both") else {}
    visible = torch.ones(ROWS, 1, LENGTH, LENGTH, dtype=torch.bool)
    visible &= ~CAUSAL if "attn_mask" in options else visible
    visible &= ~padding[:, None, None] if "key_padding_mask" in options else visible
    given = (q, k, v) if batch_first else tuple(t.transpose(0, 1) for t in (q, k, v))
    (found,) = seen_in(module, *given, need_weights=weights_too, **options)
    _, weights = module(*given, average_attn_weights=False, **options)
    entropy, slope = of_weights(weights.detach(), visible)
    assert found.entropy == pytest.approx(entropy, rel=1e-4)
    assert found.slope == pytest.approx(slope, rel=1e-4)


def test_a_softmax_that_is_no_attention_is_passed_over():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.basis = nn.Linear(DIM, 4), nn.Parameter(draw(4, DIM))

        def forward(self, x):
            learned = torch.softmax(x @ self.basis.T, -1)  # products with a parameter
            return (self.router(x).softmax(-1) + learned) @ self.basis

    assert seen_in(Gate(), draw(ROWS, LENGTH, DIM)) == []


def test_a_model_runs_and_learns_the_same_while_it_is_looked_at():
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.1, batch_first=True)
    x, outcomes = draw(ROWS, LENGTH, DIM), []
    for looked_at in (False, True):
        torch.manual_seed(1)
        layer.zero_grad()
        if looked_at:
            with AttentionMode(layer, lambda *_: None):
                out = layer(x)
        else:
            out = layer(x)
        out.square().sum().backward()
        outcomes.append([out.detach(), *(p.grad.clone() for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())


def test_calls_of_a_shared_module_are_told_apart_by_their_order():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Linear(DIM, DIM)
            self.block = nn.TransformerEncoderLayer(DIM, HEADS, 32, dropout=0.0, batch_first=True)
            self.head = nn.Linear(DIM, 2)

        def forward(self, x):
            return self.head(self.block(3 * self.block(self.stem(x))))

    model, x = Shared(), draw(ROWS, LENGTH, DIM)
    execution = record(model, lambda: model(x))
    found = [Attention("block.self_attn", e, e, 0.5, 1.0, 1.0, 7.0) for e in (0.9, 0.2)]
    by_site = attention_by_site(found, execution)
    assert {site: one.entropy for site, one in by_site.items()} == {"block": 0.9, "block#2": 0.2}


@pytest.mark.parametrize("keys", [64, 256, 1024])
@pytest.mark.parametrize("deviation", [10.0, 50.0])
def test_the_slope_of_large_normal_logits_is_theory_s(keys, deviation):
    found = attention(deviation * torch.randn(4, 8, 64, keys, generator=torch.Generator().manual_seed(0)))
    assert found.slope_predicted == pytest.approx(found.slope, rel=0.35)
    assert attention(draw(4, 8, 64, keys)).slope_predicted is None


def test_token_similarity_is_the_mean_cosine_of_pairs():
    x = draw(2, 5, 8) + 1.0
    pairs = [
        float(functional.cosine_similarity(x[b, s], x[b, t], dim=0))
        for b in range(2)
        for s in range(5)
        for t in range(5)
        if s != t
    ]
    assert token_similarity(x) == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert math.isnan(token_similarity(x[:, :1]))
    assert math.isnan(token_similarity(x[0]))
