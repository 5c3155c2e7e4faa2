"""Targets that do not follow from the inputs: planted disorder, its innocent twins, and each leg of the rule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from levada.diagnose import check
from levada.diagnose.diagnostics.mispaired_targets import mispaired_targets
from levada.diagnose.facts import Facts
from levada.diagnose.pairing import Pairing, chance, similarity
from levada.probe import Site, Trace

RULE = "mispaired_targets"
BATCHES, ROWS, FEATURES, CLASSES = 4, 32, 16, 5


def draw(seed=0):
    """Rows that differ in four directions of sixteen, as data does in few, and the class by two of them."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(BATCHES * ROWS, 4, generator=generator)
    x = hidden @ torch.linalg.qr(torch.randn(FEATURES, 4, generator=generator)).Q.T
    y = (hidden[:, 0] + hidden[:, 1]).argsort().argsort() * CLASSES // len(x)
    return x, y


def batches(x, y):
    return list(zip(x.split(ROWS), y.split(ROWS), strict=True))


def dealt(y, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in y.split(ROWS)])


def net(out=CLASSES):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, out))


def told(x, y, model=None, **how):
    report = check(model or net(), batches(x, y), optimizer="Adam", lr=5e-3, **how)
    return report, {f.rule: f.severity for f in report.findings if f.status == "fired" and f.severity != "info"}


def test_targets_of_another_batch_are_a_warning_with_the_order():
    x, y = draw()
    report, fired = told(x, y.roll(-ROWS))
    assert fired == {RULE: "warn"}, str(report)
    assert report.findings[0].evidence["order"] == "the batch after"
    assert told(x, y)[1] == {}


def test_targets_of_the_row_before_are_found():
    x, y = draw()
    report, fired = told(x, y.roll(1))
    assert fired == {RULE: "warn"}, str(report)
    assert report.findings[0].evidence["order"] == "the row before"


def test_dealt_targets_are_a_warning_and_half_of_them_are_none():
    x, y = draw()
    report, fired = told(x, dealt(y))
    assert fired == {RULE: "warn"}, str(report)
    assert min(report.findings[0].evidence["tests"]["chance_held_out"]) > 0.05
    half = torch.where(torch.arange(len(y)) % 2 == 0, y, dealt(y))
    assert RULE not in told(x, half)[1]


def test_numbers_that_are_dealt_are_found_as_classes_are():
    x, _ = draw()
    y = (x[:, :1] - x[:, 1:2]).contiguous()
    assert told(x, dealt(y), net(1), loss="mse")[1] == {RULE: "warn"}
    assert told(x, y, net(1), loss="mse")[1] == {}


def test_inputs_without_structure_and_relations_that_distances_do_not_see_are_no_fault():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(BATCHES * ROWS, FEATURES, generator=generator)
    labels = torch.randint(CLASSES, (len(noise),), generator=generator)
    assert RULE not in told(noise, labels)[1]  # data drawn to try a model
    bits = torch.randint(2, noise.shape, generator=generator) * 2.0 - 1
    parity = (bits[:, 0] * bits[:, 1] * bits[:, 2] > 0).long()
    assert RULE not in told(bits, parity)[1]  # takes thousands of steps, and is right


def test_targets_that_count_rows_follow_from_none_and_are_meant():
    x, _ = draw()
    assert RULE not in told(x, torch.arange(ROWS).repeat(BATCHES), net(ROWS))[1]


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(30, 16), nn.Linear(16, 32), nn.Linear(32, 30)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)).relu())


def test_tokens_whose_next_ones_are_another_rows_are_found():
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(30, (BATCHES * ROWS, 13), generator=generator)
    x, y = text[:, :-1].contiguous(), text[:, 1:].contiguous()

    def loss(out, targets):
        return nn.functional.cross_entropy(out.flatten(0, 1), targets.flatten())

    torch.manual_seed(0)
    report, fired = told(x, dealt(y), Words(), loss=loss)
    assert fired.get(RULE) in ("warn", "error"), str(report)
    (finding,) = (f for f in report.findings if f.rule == RULE)
    assert finding.evidence["order"] == "another row of the batch"
    assert RULE not in told(x, y, Words(), loss=loss)[1]


def test_one_batch_without_a_relation_is_not_known():
    x, y = draw()
    report = check(net(), (x, dealt(y)), optimizer="Adam", lr=5e-3)
    assert "one batch" in report.unknown[RULE]
    assert RULE not in check(net(), (x, y), optimizer="Adam", lr=5e-3).unknown


def test_a_chance_is_that_of_a_permutation():
    x, y = draw()
    right, wrong = (chance(similarity(x), similarity(t), 199) for t in (y, dealt(y)))
    assert right[0] == 1 / 200
    assert wrong[0] > 0.05
    generator = torch.Generator().manual_seed(0)
    drawn = [similarity(torch.randint(3, (24,), generator=generator)) for _ in range(100)]
    low = sum(chance(similarity(x[:24]), one, 19, seed)[0] <= 0.1 for seed, one in enumerate(drawn))
    assert 2 <= low <= 20  # 10 are expected: of 100 trials at 0.1, 2 to 20 but once in a thousand


def test_the_rule_needs_each_leg():
    site = Site("0", 0, "Linear", (1, 2))

    def said(found):
        return [f.severity for f in mispaired_targets(Trace((site,), (0,), {}, {"facts": Facts(pairing=found)}))]

    ends, after = "the row at the other end of the batch", "the batch after"
    assert said(Pairing(64, 0.5, ends, 1e-3, (), (0.6,), (0.01,))) == ["error"]
    assert said(Pairing(64, 0.5, ends, 1e-3, (), (0.6,), (0.4,))) == ["warn"]  # nor in that order
    assert said(Pairing(64, 0.5, after, 1e-3, (), (0.6,), (0.01,))) == ["warn"]  # a series in order looks alike
    assert said(Pairing(64, 0.5, after, 1e-3, (), (0.01,), (0.01,))) == []  # it learns as it is
    assert said(Pairing(64, 0.5, "the batch after", 1e-3, (), (0.6,), (0.4,))) == ["warn"]  # nor in that order
    assert said(Pairing(64, 0.5, planted=(0.01,) * 3, held=(0.6, 0.3), control=(0.01, 0.01))) == ["warn"]
    assert said(Pairing(64, 0.5, planted=(0.01,) * 3, held=(0.6, 0.3), control=(0.01, 0.3))) == []
    assert said(Pairing(64, 0.5, planted=(0.01,) * 3, held=(0.04, 0.3), control=(0.01, 0.01))) == []
    assert said(Pairing(64, 0.5, planted=(0.01,) * 3)) == []
    assert said(None) == []


def series(count, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def next_values():
    """Windows of noise in order, each with the value that comes next: the row after begins where this one is asked."""
    values = series(BATCHES * ROWS + FEATURES)
    x = values.unfold(0, FEATURES, 1)[: BATCHES * ROWS]
    return x, values[FEATURES:, None], 1


def direction():
    """The same windows, and whether the next value is above zero: the next row tells it, but holds no copy."""
    x, y, _ = next_values()
    return x, (y[:, 0] > 0).long(), 2


def stretches():
    """Rows go on from batch to batch, as those of a recurrent network that carries its state."""
    values = torch.randn(ROWS, BATCHES * FEATURES + 1, generator=torch.Generator().manual_seed(0))
    starts = range(0, BATCHES * FEATURES, FEATURES)
    x = torch.cat([values[:, s : s + FEATURES] for s in starts])
    return x, torch.cat([values[:, s + FEATURES, None] for s in starts]), 1


def yesterday():
    """What is asked of a row is a feature of the next one."""
    classes = torch.randint(4, (BATCHES * ROWS + 1,), generator=torch.Generator().manual_seed(0))
    known = nn.functional.one_hot(classes[:-1], 4).float()
    return torch.cat([series(BATCHES * ROWS * (FEATURES - 4)).view(-1, FEATURES - 4), known], 1), classes[1:], 4


@pytest.mark.parametrize("make", [next_values, direction, stretches, yesterday])
def test_rows_that_follow_on_each_other_are_no_disorder(make):
    x, y, out = make()
    report, fired = told(x, y, net(out))
    assert RULE not in fired, str(report)


class Transition(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net(4)

    def forward(self, state, action):
        return self.inner(torch.cat([state, action], 1))


def test_the_next_state_of_a_world_is_that_of_the_next_row():
    """A state that is thrown by its action, s' = product of parts of s and a: hard to see, and right."""
    generator = torch.Generator().manual_seed(0)
    actions = torch.randn(BATCHES * ROWS, FEATURES - 4, generator=generator)
    states = [torch.randn(4, generator=generator)]
    for action in actions:
        states.append(states[-1].roll(1).sign() * action[:4])
    s = torch.stack(states)
    data = [((s[k : k + ROWS], actions[k : k + ROWS]), s[k + 1 : k + ROWS + 1]) for k in range(0, BATCHES * ROWS, ROWS)]
    report = check(Transition(), data, optimizer="SGD", lr=1e-2)
    assert RULE not in {f.rule for f in report.findings}, str(report)
