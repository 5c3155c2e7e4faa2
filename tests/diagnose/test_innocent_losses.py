"""Losses that are meant as they are: of whole batches, and of ascent. None of them is an error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada.diagnose import check

ROWS = 64


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


INPUTS, NUMBERS, COLUMN = draw(ROWS, 8), draw(ROWS, 2, seed=1), draw(ROWS, 1, seed=2).sigmoid()
ACTIONS = torch.randint(3, (ROWS,), generator=torch.Generator().manual_seed(3))
KINDS = functional.one_hot((draw(ROWS, seed=4) > 0.7).long(), 2).float()
DOMAIN = (draw(ROWS, 1, seed=5) > 0).float()


def proportions(out, targets):
    return -(targets.mean(0) * out.softmax(1).mean(0).log()).sum()


def moments(out, targets):
    return (out.mean(0) - targets.mean(0)).square().sum() + 0.1 * out.var(0).sum()


def both_moments(out, targets):
    return (out.mean(0) - targets.mean(0)).square().sum() + (out.std(0) - targets.std(0)).square().sum()


def same_variance(out, targets):
    """A penalty of one on the variance: an error over all pairs, but for a number that no output changes."""
    return (out.mean(0) - targets.mean(0)).square().sum() + out.var(0, correction=0).sum()


def totals(out, targets):
    return (out.sum() - targets.sum()).square() / len(out) + 1e-2 * out.square().mean()


def transport(eps):
    """Entropic optimal transport between outputs and targets, by 30 iterations."""

    def loss(out, targets):
        cost, many = torch.cdist(out, targets).square(), math.log(len(out))
        rows = columns = torch.zeros(len(out))
        for _ in range(30):
            rows = -eps * (torch.logsumexp((columns - cost) / eps, 1) - many)
            columns = -eps * (torch.logsumexp((rows[:, None] - cost) / eps, 0) - many)
        return (((rows[:, None] + columns - cost) / eps).exp() * cost).sum() / len(out) ** 2

    return loss


def correlation(out, targets):
    return 1 - functional.cosine_similarity(out[:, 0] - out.mean(), targets - targets.mean(), dim=0)


def hazards(out, targets):
    """Cox's partial likelihood: targets are times, of which each row is compared with the later ones."""
    order = targets.argsort(descending=True)
    return -(out[order, 0] - out[order, 0].logcumsumexp(0)).mean()


def standardised(out, targets):
    return (out[:, 0] - (targets - targets.mean()) / targets.std()).square().mean()


def chosen(out, targets):
    return out.log_softmax(1).gather(1, targets[:, None])[:, 0]


# outputs, targets, loss: of whole batches, on which nothing is said.
WHOLE = {
    "proportions": (2, KINDS, proportions),
    "moments": (2, NUMBERS, moments),
    "both moments": (2, NUMBERS, both_moments),
    "totals": (1, COLUMN, totals),
    "transport": (2, NUMBERS, transport(1.0)),
    "blurred transport": (2, NUMBERS, transport(5.0)),
    "totals of unlike shapes": (1, COLUMN[:, 0], totals),
    "moments of unlike shapes": (1, COLUMN[:, 0], lambda o, t: moments(o, t[:, None])),
    "correlation of unlike shapes": (1, COLUMN[:, 0], correlation),
    "hazards of unlike shapes": (1, COLUMN[:, 0], hazards),
    "standardised, of unlike shapes": (1, COLUMN[:, 0], standardised),
}
# Ascent, which may be meant: a warning that says so.
ASCENT = {
    "rewards of -1": (3, ACTIONS, lambda o, t: -(-torch.ones(len(t)) * chosen(o, t)).mean()),
    "domain confusion": (1, DOMAIN, lambda o, t: -functional.binary_cross_entropy_with_logits(o, t)),
    "negative learning": (3, ACTIONS, lambda o, t: chosen(o, t).mean()),
    "unlearning": (3, ACTIONS, lambda o, t: -functional.cross_entropy(o, t)),
}
# Errors over all pairs: the size tells.
PAIRS = {
    "squared": (2, NUMBERS, lambda o, t: (o[:, None] - t).square().mean(), "error"),
    "absolute": (2, NUMBERS, lambda o, t: (o[:, None] - t).abs().sum(), "error"),
    "smooth": (1, COLUMN[:, 0], lambda o, t: functional.smooth_l1_loss(*torch.broadcast_tensors(o, t)), "error"),
    "unlike shapes": (1, COLUMN[:, 0], lambda o, t: 3 * (o - t).square().mean(), "error"),
    "and a penalty": (2, NUMBERS, lambda o, t: (o[:, None] - t).square().mean() + 0.01 * o.square().mean(), "warn"),
    "penalty, unlike": (1, COLUMN[:, 0], lambda o, t: (o - t).square().mean() + 0.01 * o.square().mean(), "warn"),
    "but for a number": (2, NUMBERS, same_variance, "warn"),
    "another error": (1, COLUMN[:, 0], lambda o, t: (o - t).cosh().log().mean(), "warn"),
}


def said(width, targets, loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, width))
    report = check(model, (INPUTS, targets), loss=loss)
    return {f.rule: f for f in report.findings if f.status == "fired"}


@pytest.mark.parametrize("case", WHOLE)
def test_a_loss_of_the_whole_batch_is_left_in_peace(case):
    assert "wrong_loss" not in said(*WHOLE[case])


@pytest.mark.parametrize("case", ASCENT)
def test_ascent_is_a_warning_that_says_that_it_may_be_meant(case):
    found = said(*ASCENT[case])
    assert not [rule for rule, one in found.items() if one.severity == "error"]
    assert found["wrong_loss"].severity == "warn"
    assert "ascent is meant" in found["wrong_loss"].claim


def test_a_policy_with_unlike_rewards_is_no_ascent():
    weights = -1 - draw(ROWS, seed=6).abs()
    assert "wrong_loss" not in said(3, ACTIONS, lambda o, t: -(weights * chosen(o, t)).mean())


@pytest.mark.parametrize("case", PAIRS)
def test_only_the_size_of_a_broadcast_error_is_an_error(case):
    width, targets, loss, severity = PAIRS[case]
    assert said(width, targets, loss)["wrong_loss"].severity == severity
