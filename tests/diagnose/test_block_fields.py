"""The fields of a block, against loops by hand and theory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada.diagnose import check
from levada.diagnose.relations import effective_rank

X = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))


def wide(depth=4):
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(256, 256), nn.ReLU())]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=(2 / 256) ** 0.5)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, nn.Linear(256, 10))


def test_correlations_of_inputs_follow_the_mean_field_map():
    model = wide()
    blocks = check(model, X).blocks
    with torch.no_grad():
        signal = model[:2](X).double()
    products = signal @ signal.T
    pairs = float((products.sum() - products.trace()) / (64 * 63) / (products.trace() / 64))
    assert blocks[0]["correlation"] == pytest.approx(pairs, rel=1e-4)
    # The map of ReLU from a correlation of 0: 1/pi, and then up to 1.
    values = [b["correlation"] for b in blocks[:4]]
    predicted = [b["correlation_predicted"] for b in blocks[:4]]
    assert values[0] == pytest.approx(1 / torch.pi, abs=0.02)
    assert values == pytest.approx(predicted, abs=0.03)
    assert values == sorted(values)


def test_ranks_stand_beside_what_batch_and_width_allow_and_the_inputs_own():
    model = wide()
    report = check(model, X)
    with torch.no_grad():
        signal = model[:2](X).double()
    assert report.blocks[0]["signal_effective_rank"] == pytest.approx(effective_rank(signal), rel=1e-4)
    assert [b["rank_possible"] for b in report.blocks] == [63, 63, 63, 63, 10]
    assert report.summary["input_effective_rank"] == pytest.approx(effective_rank(X.double()), rel=1e-6)


def test_tokens_that_are_alike_have_a_cosine_of_one():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(16, 16), layer, nn.Linear(16, 3))
    alike = torch.randn(8, 1, 16).expand(8, 5, 16).clone()
    told = check(model, alike).blocks
    assert [b["token_similarity"] for b in told] == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    assert told[1]["attention_entropy"] == pytest.approx(1.0, abs=1e-6)
    x = torch.randn(8, 5, 16)
    with torch.no_grad():
        units = functional.normalize(model[0](x).double(), dim=-1)
    pairs = (units @ units.transpose(1, 2)).flatten(1).sum(1).sub(5).div(20).mean()
    assert check(model, x).blocks[0]["token_similarity"] == pytest.approx(float(pairs), rel=1e-4)
