"""What an optimizer was told beside its rate: faults are found, and common recipes are not."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

import levada
from levada.diagnose import check
from levada.diagnose.check import examine
from levada.diagnose.facts import facts_of

LABELS = torch.arange(64) % 4
BATCH = (torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) + LABELS[:, None], LABELS)
RULES = {"unoptimised_parameters", "excessive_decay", "undamped_momentum"}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def found(optimizer, model=None):
    report = check(model or net(), BATCH, optimizer=optimizer)
    return {f.rule: f for f in report.findings if f.status == "fired" and f.rule in RULES}


def only_head(parameters):
    return torch.optim.SGD(list(parameters)[-2:], lr=0.1)


def two_groups(parameters):
    held = list(parameters)
    wide, narrow = [p for p in held if p.dim() > 1], [p for p in held if p.dim() < 2]
    return torch.optim.AdamW([{"params": wide}, {"params": narrow, "weight_decay": 0.0}])


COMMON = {
    "nobody's": None,
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "adam, coupled": functools.partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-4),
    "adamw of language models": functools.partial(torch.optim.AdamW, lr=6e-4, weight_decay=0.1, betas=(0.9, 0.95)),
    "adamw of vision transformers": functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.3),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=1e-3, weight_decay=1e-5, momentum=0.9),
    "two groups": two_groups,
}


@pytest.mark.parametrize("optimizer", COMMON.values(), ids=COMMON)
def test_common_recipes_are_no_finding(optimizer):
    assert not found(optimizer)


def test_parameters_that_the_optimizer_does_not_hold_are_a_warning():
    finding = found(only_head)["unoptimised_parameters"]
    assert finding.severity == "warn"
    assert finding.evidence["parameters"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert (finding.where["first"], finding.evidence["held"]) == ("0", 2)


def test_frozen_parameters_are_not_missed_by_it():
    model = net()
    for p in list(model.parameters())[:-2]:
        p.requires_grad_(False)
    assert not found(functools.partial(torch.optim.SGD, lr=0.1), model)


@pytest.mark.parametrize(
    ("optimizer", "measured"),
    [
        (functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=200.0), "shrinkage_per_step"),
        (functools.partial(torch.optim.SGD, lr=0.05, weight_decay=4.0), "shrinkage_per_step"),
        (functools.partial(torch.optim.Adam, lr=1e-3, weight_decay=200.0), "decay_over_gradient"),
    ],
)
def test_decay_that_takes_the_weights_away_is_an_error(optimizer, measured):
    finding = found(optimizer)["excessive_decay"]
    assert finding.severity == "error"
    assert finding.evidence[measured] >= 0.1
    free, full = finding.evidence["loss_without_decay"], finding.evidence["loss_with_decay"]
    assert free[0] - free[-1] > 5 * (full[0] - full[-1])


def test_momentum_multiplies_what_decay_takes():
    how = functools.partial(torch.optim.SGD, lr=0.05, weight_decay=0.4)
    plain, heavy = (check(net(), BATCH, optimizer=functools.partial(how, momentum=m)) for m in (0.0, 0.9))
    rules = [{f.rule for f in report.findings if f.status == "fired"} for report in (plain, heavy)]
    assert "excessive_decay" in rules[1] - rules[0]


@pytest.mark.parametrize("momentum", [1.0, 1.1])
def test_momentum_that_never_forgets_is_a_warning(momentum):
    assert found(functools.partial(torch.optim.SGD, lr=0.01, momentum=momentum))["undamped_momentum"].severity == "warn"


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.generator, self.critic = nn.Sequential(nn.Linear(16, 8), nn.ReLU()), nn.Linear(8, 4)

    def forward(self, x):
        return self.critic(self.generator(x))


def test_one_whole_part_that_is_left_out_is_information():
    finding = found(lambda parameters: torch.optim.SGD(list(parameters)[:2], lr=0.1), Pair())["unoptimised_parameters"]
    assert finding.severity == "info"
    assert finding.evidence["parameters"] == ["critic.weight", "critic.bias"]


def test_decay_beside_the_gradients_of_a_model_that_has_learned_is_silent():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
        optimizer.step()
    assert not found(functools.partial(torch.optim.Adam, lr=1e-3, weight_decay=1e-2), model)


@pytest.mark.parametrize(
    ("optimizer", "shrinks"),
    [
        (functools.partial(torch.optim.SGD, lr=0.1, weight_decay=0.5), 0.05),
        (functools.partial(torch.optim.SGD, lr=0.1, weight_decay=0.5, momentum=0.9), 0.5),
        (functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=5.0), 0.05),
        (functools.partial(torch.optim.Adam, lr=0.01, weight_decay=5.0), None),
        (functools.partial(torch.optim.RMSprop, lr=0.01, weight_decay=5.0), None),
        (functools.partial(torch.optim.Adadelta, lr=1.0, weight_decay=5.0), None),
    ],
)
def test_what_decay_takes_is_measured_and_not_guessed_from_the_optimizers_name(optimizer, shrinks):
    _, trace = examine(net(), BATCH, optimizer=optimizer)
    recipe = facts_of(trace).recipe
    if shrinks is None:
        assert math.isnan(recipe.shrinkage)
        assert recipe.outweighed > 0
    else:
        assert recipe.shrinkage == pytest.approx(shrinks, rel=1e-3)


@pytest.mark.parametrize("name", ["Adafactor", "Adagrad", "Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "Rprop"])
def test_every_optimizer_of_torch_is_read(name):
    assert check(net(), BATCH, optimizer=name).verdict == "healthy"


@pytest.mark.parametrize(
    ("optimizer", "remedy"),
    [
        (only_head, "all_parameters"),
        (functools.partial(torch.optim.AdamW, lr=1e-2, weight_decay=20.0), "weight_decay"),
    ],
)
def test_fix_repairs_what_they_find(optimizer, remedy):
    fixed = levada.fix(net(), BATCH, optimizer=optimizer, steps=50)
    assert fixed.outcome == "repaired"
    assert fixed.trials[0].name == remedy


@pytest.mark.parametrize("eps", [(1e-30, 1e-3), (None, 1e-3)])
def test_an_optimizer_whose_eps_is_a_pair_is_checked(eps):
    class Pair(torch.optim.SGD):
        def __init__(self, parameters):
            super().__init__(parameters, lr=0.1)
            self.param_groups[0]["eps"] = eps

    report = check(net(), BATCH, optimizer=Pair)
    assert report.verdict == "healthy"
    assert not any("eps_fraction" in block for block in report.blocks)
