"""A loss that is Inf behind finite outputs: of numbers that no check can read, nothing is said."""

import pytest
import torch
from torch import nn

import levada

HIDDEN = torch.full((16, 1), torch.inf)


@pytest.mark.parametrize(
    "loss",
    [lambda out, _: (out - HIDDEN).square().mean(), lambda out, _: -(0 * out).abs().log().mean()],
    ids=["targets that are Inf", "the logarithm of zero"],
)
def test_an_infinite_loss_is_not_said_to_overflow(loss):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)], nn.Linear(4, 1))
    report = levada.check(model, (torch.randn(16, 4), torch.randn(16, 1)), loss=loss)
    (finding,) = [found for found in report.findings if found.rule == "numerical_overflow"]
    assert finding.severity == "error"
    assert finding.claim.endswith("it arises in the loss itself, or comes with targets that could not be read.")
