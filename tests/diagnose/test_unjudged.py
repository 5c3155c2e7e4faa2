"""What a rule cannot know is told with its reason, in one line, and makes no verdict."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from levada.diagnose import check, diagnose
from levada.diagnose.diagnostics import DIAGNOSTICS
from levada.diagnose.unjudged import unjudged
from levada.probe import Probe

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(16, 8, generator=GENERATOR), torch.arange(16) % 3
TOKENS = torch.randint(20, (16, 6), generator=GENERATOR)
RATES = {"learning_rate_too_high", "learning_rate_too_low", "no_progress"}


def net(depth=2, **options):
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(8, 8, **options), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(8, 3, **options))


class Own(nn.Module):
    """Returns its loss."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        return self.body(x).square().mean()


class Tokens(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.embed, self.body = nn.Embedding(20, 8), net(depth)

    def forward(self, tokens):
        return self.body(self.embed(tokens).mean(1))


class Squared(nn.Module):
    """A function reads the inputs before any linear map."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        return self.body(x.sin())


class Stubborn(nn.Module):
    """It cannot be copied, and so not run in other numbers."""

    def __init__(self):
        super().__init__()
        self.body = net(dtype=torch.bfloat16)

    def __deepcopy__(self, memo):
        raise TypeError("not this one")

    def forward(self, x):
        return self.body(x)


class Biased(nn.Module):
    """Attention with a learned key, whose weights are not computed again."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


class Last(nn.Module):
    """A classifier of the last state."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def noisy(out, targets):
    """A loss that is random beyond the seed of a pass: it draws from a generator of its own."""
    factor = 1 + torch.rand((), generator=NOISE)
    return factor * nn.functional.cross_entropy(out, targets)


NOISE = torch.Generator().manual_seed(0)


class Alone:
    """A loss that takes what a model returns at the first call, and nothing else."""

    def __call__(self, out, targets):
        if not out.requires_grad:
            raise TypeError("only with a graph")
        return nn.functional.cross_entropy(out, targets)


def low_rank():
    return torch.randn(16, 2, generator=GENERATOR) @ torch.randn(2, 8, generator=GENERATOR)


def unrelated():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(192, 4, generator=generator) @ torch.linalg.qr(torch.randn(16, 4, generator=generator)).Q.T
    return x, torch.randint(3, (192,), generator=generator)


# Rule -> the situation in which it cannot know, and its reason; brackets tell two situations of a rule apart.
SITUATIONS = {
    "wrong_loss": (lambda: check(net(), X), "no targets"),
    "wrong_loss [own]": (lambda: check(Own(), X), "returns its loss"),
    "wrong_loss [random]": (lambda: check(net(), (X, Y), loss=noisy), "differs from call to call"),
    "double_softmax": (lambda: check(net(), X), "no targets"),
    "double_softmax [own]": (lambda: check(Own(), X), "returns its loss"),
    "unscaled_input": (lambda: check(Squared(), (100 * X, Y)), "not a linear map alone"),
    "unscaled_input [zeros]": (lambda: check(net(), (0 * X, Y)), "inputs are all zero|all inputs are zero"),
    "vanishing_signal": (lambda: check(net(), (X[:1], Y[:1])), "one row"),
    "exploding_gradient": (lambda: check(net().requires_grad_(False), (X, Y)), "decay over depth is not known"),
    "rank_collapse": (lambda: check(net(), (X[:1], Y[:1])), "one row"),
    "mispaired_targets": (
        lambda: check(nn.Sequential(nn.Linear(16, 8), net()), unrelated()),
        "only one batch is known",
    ),
    "rank_collapse [few rows]": (lambda: check(net(), (X[:3], Y[:3])), "3 rows"),
    "rank_collapse [flat]": (lambda: check(net(), (X[:1].repeat(16, 1), Y)), "rows of the batch are the same"),
    "rank_collapse [inputs]": (lambda: check(net(), (low_rank(), Y)), "directions only"),
    "shattered_gradient": (lambda: check(net(12), X), "no targets"),
    "shattered_gradient [tokens]": (lambda: check(Tokens(12), (TOKENS, Y)), "indices"),
    "shattered_gradient [rows]": (lambda: check(net(12), (X[:2], Y[:2])), "fewer than 4 rows"),
    "shattered_gradient [budget]": (lambda: check(net(12), (X, Y), budget=0.0), "budget"),
    "lost_update": (lambda: check(net(dtype=torch.bfloat16), X.bfloat16()), "no targets"),
    "lost_update [copy]": (lambda: check(Stubborn(), (X.bfloat16(), Y), optimizer="SGD", lr=1e-9), "float32"),
    "learning_rate_too_high": (lambda: check(net(), X, optimizer="SGD", lr=1.0), "no targets"),
    "learning_rate_too_high [random]": (
        lambda: check(net(), (X, Y), loss=noisy, optimizer="SGD", lr=1e-12),
        "differs from run to run",
    ),
    "learning_rate_too_high [budget]": (
        lambda: check(net(), (X, Y), optimizer="SGD", lr=1e4, budget=0.0),
        "budget",
    ),
    "learning_rate_too_low": (lambda: check(net(), X, optimizer="SGD", lr=1.0), "no targets"),
    "no_progress": (lambda: check(net(), X, optimizer="SGD", lr=1.0), "no targets"),
    "no_progress [zero]": (
        lambda: check(net(), (X, Y), optimizer=lambda p: torch.optim.SGD(p, lr=0.0)),
        "the learning rate is 0",
    ),
    "misscaled_weights": (lambda: check(net(), X), "no targets"),
    "unoptimised_parameters": (lambda: check(net(), X, optimizer="SGD", lr=0.1), "no targets"),
    "undamped_momentum": (lambda: check(net(), X, optimizer="SGD", lr=0.1), "no targets"),
    "excessive_decay": (lambda: check(net(), X, optimizer="SGD", lr=0.1), "no targets"),
    "short_memory": (lambda: check(Last(), (torch.randn(8, 5, 8), Y[:8]), budget=0.0), "budget"),
    "exploding_memory": (lambda: check(Last(), (torch.randn(8, 5, 8), Y[:8]), budget=0.0), "budget"),
    "mixed_rows": (lambda: check(nn.GRU(8, 8), torch.randn(16, 5, 8)), "rows or steps come first"),
    "mixed_rows [square]": (lambda: check(nn.GRU(8, 8), (torch.randn(5, 5, 8), torch.randn(5, 5, 8))), "as many steps"),
    "noisy_forward": (
        lambda: check(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.95)), (X[:1], X[:1])),
        "one row",
    ),
    "blind_attention": (lambda: check(Biased(), (torch.randn(8, 5, 8), Y[:8])), "computed again"),
    "attention_collapse": (lambda: check(Biased(), (torch.randn(8, 5, 8), Y[:8])), "computed again"),
}


@pytest.mark.parametrize("case", SITUATIONS)
def test_where_a_rule_cannot_know_it_says_why(case):
    attempt, reason = SITUATIONS[case]
    rule = case.partition(" ")[0]
    report = attempt()
    assert rule in report.unknown, report.unknown
    assert any(word in report.unknown[rule] for word in reason.split("|")), report.unknown
    assert rule not in {f.rule for f in report.findings if f.status == "fired"}
    lines = [note for note in report.notes if note.startswith("Not judged: ")]
    silent = {rule: why for rule, why in report.unknown.items() if rule not in {f.rule for f in report.findings}}
    assert len(lines) == bool(silent)
    assert all(name in lines[0] and why in lines[0] for name, why in silent.items())
    assert report.to_dict()["unknown"] == report.unknown
    assert set(report.unknown) <= set(DIAGNOSTICS)


def test_where_everything_is_known_nothing_is_said():
    report = check(net(), (X, Y), optimizer="SGD", lr=0.1)
    assert report.unknown == {}
    assert not any("Not judged" in note for note in report.notes)
    assert check(Tokens(2), (TOKENS, Y)).unknown == {}  # a shallow model has nothing to shatter


def test_silent_rules_change_no_verdict_and_unknown_findings_are_told_too():
    assert check(net(), X).verdict == check(net(), (X[:1], Y[:1])).verdict == "healthy"
    report = check(net().requires_grad_(False), (X, Y))
    assert report.verdict == "unknown"
    unknown = {f.rule: f.claim for f in report.findings if f.status == "unknown"}
    assert unknown
    assert unknown.items() <= report.unknown.items()


def test_numbers_that_are_not_finite_leave_nothing_else_to_say():
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    report = check(model, (X, Y))
    assert report.verdict == "error"
    assert report.unknown == {}


def run(steps=3, *, optimizer=True, scale=1.0):
    model = nn.Sequential(net(), nn.Dropout(0.1))
    stepper = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
    with Probe(model, stepper if optimizer else None) as probe:
        for _ in range(steps):
            stepper.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(X), Y)).backward()
            scaler.step(stepper)
            scaler.update()
            if not optimizer:
                probe.step()
    trace = probe.trace()
    return unjudged(trace, diagnose(trace))


# What a run cannot know: a probe without an optimizer, too few steps, a loss scale that was not told.
RUNS = {
    "train_mode": ({"optimizer": False}, "no optimizer"),
    "accumulated_gradients": ({"optimizer": False}, "no optimizer"),
    "accumulated_gradients [steps]": ({"steps": 2}, "fewer than two steps"),
    "lost_update": ({"optimizer": False}, "no optimizer"),
    "gradient_scale": ({"scale": 2.0**10}, "multiplied by 1024"),
}


@pytest.mark.parametrize("case", RUNS)
def test_what_a_run_cannot_know_is_told_too(case):
    options, reason = RUNS[case]
    told = run(**options)
    assert reason in told[case.partition(" ")[0]]
    assert run() == {}


def test_every_rule_without_an_unknown_of_its_own_is_in_the_table():
    own = {"vanishing_gradient", "dead_units", "saturated_activation", "exploding_signal"}  # findings, status unknown
    always = {"numerical_overflow", "frozen_layers", "stream_collapse", "unstable_mixing"}  # they read what is there
    named = {case.partition(" ")[0] for case in (*SITUATIONS, *RUNS)} - {"gradient_scale"}
    assert set(DIAGNOSTICS) <= named | own | always, "say where the new rule cannot know, or that it always can"
