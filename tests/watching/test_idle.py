"""Parameters that stand still from the start: counted in the report, and not those that something moves."""

import math

import pytest
import torch
from torch import nn

import levada
from levada.watching.verdict.idle import UPDATES, Idle


def trained(case, steps=UPDATES):
    torch.manual_seed(0)
    model, idle = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)]), Idle()
    if case in ("frozen", "moved", "moved unseen", "thawed", "both"):
        model[1].requires_grad_(False)
    for step in range(steps):
        model.zero_grad()
        if case == "thawed" and step == 9:
            model[1].requires_grad_(True)
        with torch.no_grad():
            if case == "moved":
                model[1].weight.mul_(1.0)
            if case == "moved unseen":
                model[1].weight.data.add_(1.0)
        x = torch.randn(2, 4)
        (model[:2] if case in ("unused", "both") else model)(x).sum().backward()
        idle.before_update(model)
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.sub_(p.grad)
    return idle.told(model)


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("sound", ""),
        ("thawed", ""),
        ("frozen", "2 of 6 parameters (1.weight, 1.bias) have not changed since the first update: they ask for no"),
        ("moved", "1 of 6 parameters (1.bias) have"),
        ("moved unseen", "1 of 6 parameters (1.bias) have"),
        ("unused", "2 of 6 parameters (2.weight, 2.bias) have not changed since the first update: they ask for a grad"),
        ("both", "update: 2 ask for no gradient (requires_grad is False), 2 ask for a gradient, and had none at that"),
    ],
)
def test_what_stands_still_from_the_start_is_counted(case, told):
    found = trained(case)
    assert (told in found) if told else found == ""
    assert trained(case, UPDATES - 1) == ""


def test_the_report_of_a_run_says_so_and_stays_healthy_or_not_judged():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)])
    model[2].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=20, max_overhead=math.inf) as watch:
        for _ in range(UPDATES):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    report = watch.report()
    assert report.verdict in ("healthy", "unknown")
    assert any(note.startswith("2 of 8 parameters (2.0.weight, 2.0.bias) have not") for note in report.notes)
