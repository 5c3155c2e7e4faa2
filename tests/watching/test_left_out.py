"""A loop that leaves out batches which are not finite, before their backward pass, and goes on."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import levada
from levada.watching.verdict.ledger import Ledger
from levada.watching.verdict.left_out import LeftOut

BAD, STEPS = 12, 30


def train(spoil, *, bad=(BAD,), note="before", end="continue", of=1, loss_of=None, steps=STEPS):
    """Train, each update of `of` passes whose losses are added; a loss that is not finite has no backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss_of = loss_of or (lambda outputs, targets: (outputs - targets).square().mean())
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(steps):
            loss = 0.0
            for part in range(of):
                x = torch.randn(8, 4)
                targets = x.sum(1, keepdim=True)
                if step in bad and part == 0:
                    spoil(x, targets)
                if note == "before":
                    watch.note(targets=targets)
                outputs = model(x)
                loss = loss + loss_of(outputs, targets)
                if note == "behind":
                    watch.note(targets=targets)
            if not math.isfinite(loss.item()) and end == "continue":
                continue
            if not math.isfinite(loss.item()) and end == "break":
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return watch


def spoilt_targets(x, targets):
    targets[3] = math.nan


def spoilt_inputs(x, targets):
    x[3, 2] = math.nan


@pytest.mark.parametrize("note", ["before", "behind"])
def test_targets_that_are_not_finite_are_told_with_their_step_and_are_no_alarm(note):
    watch = train(spoilt_targets, note=note)
    (finding,) = watch.findings
    assert (finding.rule, finding.severity, finding.status) == ("nonfinite_batches", "info", "fired")
    assert "The loop left out a batch before the backward pass, at step 12" in finding.claim
    assert "the targets hold NaN in 1 of their 8 values" in finding.claim
    assert (finding.evidence["tensor"], finding.evidence["number"]) == ("targets", 1)
    assert watch.steps == STEPS - 1


def test_an_output_that_is_gone_was_looked_at():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(STEPS):
            x = torch.randn(8, 4)
            if step == BAD:
                spoilt_inputs(x, None)
            loss = nn.functional.cross_entropy(model(x), torch.zeros(8, dtype=torch.long))
            if loss.isnan():
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    (finding,) = watch.findings
    assert "at step 12: the output holds NaN. The batch that the model was given is not finite" in finding.claim


@pytest.mark.parametrize("note", ["before", None])
def test_inputs_that_are_not_finite_are_told_by_their_argument(note):
    (finding,) = train(spoilt_inputs, note=note).findings
    assert (finding.rule, finding.evidence["step"], finding.evidence["number"]) == ("nonfinite_batches", BAD, 1)
    assert "the output holds NaN. The batch that the model was given is not finite" in finding.claim
    assert "the argument input holds NaN in 1 of its 32 values" in finding.claim
    assert finding.evidence["tensor"] == "inputs"


def test_many_are_counted_and_a_tenth_of_all_is_a_warning():
    few = train(spoilt_targets, bad=(5, 6, BAD))
    (finding,) = few.findings
    assert (finding.severity, finding.evidence["number"]) == ("info", 3)
    # The steps of updates that were made do not count them.
    assert "left out 3 of 30 batches before the backward pass, the first at step 5 and the last at step 10" in (
        finding.claim
    )
    (finding,) = train(spoilt_targets, bad=range(5, 29, 3)).findings
    assert (finding.severity, finding.evidence["number"]) == ("warn", 8)
    (finding,) = train(spoilt_targets, bad=range(5, 150, 20), steps=150).findings
    assert (finding.severity, finding.evidence["number"]) == ("info", 8)
    (finding,) = train(spoilt_targets, bad=range(5, 26, 3)).findings
    assert (finding.severity, finding.evidence["number"]) == ("info", 7)


@pytest.mark.parametrize("bad", [(BAD,), (5, BAD)])
def test_noted_targets_that_end_a_loop_are_an_error_unless_it_went_on_before(bad):
    watch = train(spoilt_targets, bad=bad[-1:], end="break")
    (finding,) = watch.findings
    assert (finding.rule, finding.severity) == ("numerical_overflow", "error")
    assert "no backward pass came of the last pass; the targets hold NaN in 1 of their 8 values" in finding.claim
    watch = train(spoilt_targets, bad=(5, STEPS - 1))  # the last batch is one of those that it leaves out
    (finding,) = watch.findings
    assert (finding.rule, finding.evidence["number"]) == ("nonfinite_batches", 2)


@pytest.mark.parametrize("note", ["before", "behind"])
def test_of_batches_whose_losses_are_added_none_is_left_out(note):
    def known(outputs, targets):
        """The loss of the labels that are there."""
        return (outputs - torch.where(targets.isnan(), outputs, targets)).square().mean()

    assert train(spoilt_targets, bad=range(3, STEPS), of=2, loss_of=known, note=note).findings == []


@pytest.mark.parametrize("value", [-math.inf, 0.0])
def test_what_a_mask_may_mean_is_not_told(value):
    def spoil(x, targets):
        targets[0] = value

    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(STEPS):
            targets = torch.zeros(8, 1)
            if step == BAD:
                spoil(x, targets)
            watch.note(targets=targets)
            loss = (model(x) - targets).square().mean()
            if step == BAD:
                continue  # for whatever reason
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert watch.findings == []


class Imputing(nn.Module):
    """Takes inputs with NaN for what is missing."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        missing = x.isnan()
        return self.net(torch.cat([x.nan_to_num(), missing.float()], 1))


def imputed(batch, parts, measure=0, *, run=None, steps=40):
    """Train on losses that are added, and measure on batches of which no backward pass comes."""
    torch.manual_seed(0)
    model = Imputing()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf, run=run) as watch:
        for step in range(steps):
            loss = 0.0
            for _ in range(parts(step)):
                x, y = batch()
                watch.note(targets=y)
                difference = model(x) - y
                loss = loss + difference[~difference.isnan()].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for _ in range(measure):
                model(batch()[0]).square().mean().item()
    return watch


def missing_inputs():
    x = torch.randn(16, 4)
    y = x.sum(1, keepdim=True)
    return torch.where(torch.rand_like(x) < 0.2, math.nan, x), y


def missing_labels():
    x = torch.randn(16, 4)
    y = x.sum(1, keepdim=True)
    return x, torch.where(torch.rand_like(y) < 0.3, math.nan, y)


@pytest.mark.parametrize("batch", [missing_inputs, missing_labels])
@pytest.mark.parametrize("parts", [lambda step: 4, lambda step: 2 if step % 6 == 5 else 4, lambda step: 1 + step % 3])
def test_what_is_missing_and_learned_from_is_not_left_out_however_many_losses_are_added(batch, parts):
    watch = imputed(batch, parts)
    assert [f for f in watch.judge.history if f.severity != "info"] == watch.findings == []


def test_a_pass_that_measures_is_no_batch_that_is_left_out(tmp_path):
    assert imputed(missing_inputs, lambda step: 1, measure=2, run=tmp_path).findings == []
    # Targets that are learned from tell nothing of a pass that was left out.
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(30):
            for measures in (True, False):
                x, y = missing_labels()
                watch.note(targets=y)
                loss = (model(x) - y)[~y.isnan()].square().mean()
                if measures and step % 3 == 0:
                    continue
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    assert watch.findings == []


def test_what_was_told_is_taken_back_when_such_a_batch_is_learned_from():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(20):
            x = torch.randn(8, 4)
            y = x.sum(1, keepdim=True)
            if step in (5, 12):
                y[0] = math.nan
            watch.note(targets=y)
            loss = (model(x) - y)[~y.isnan()].square().mean()
            if step == 5:
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 8:
                assert [f.status for f in watch.findings] == ["fired"]
    assert [f.status for f in watch.findings] == ["clear"]


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_output_that_is_masked_by_inf_is_not_told(value):
    class Masked(nn.Linear):
        def forward(self, x, masked):
            return super().forward(x).masked_fill(masked & torch.eye(8, 3, dtype=torch.bool), value)

    torch.manual_seed(0)
    model = Masked(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(STEPS):
            output = model(torch.randn(8, 4), torch.tensor(step == BAD))
            if step == BAD:
                continue  # for whatever reason
            optimizer.zero_grad()
            output.square().mean().backward()
            optimizer.step()
    assert "nonfinite_batches" not in [f.rule for f in watch.findings]


def test_what_waits_for_an_update_that_does_not_come_is_counted_and_not_kept():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    with levada.watch(model, torch.optim.SGD(model.parameters(), lr=0.01), max_overhead=math.inf) as watch:
        asked = []
        left, words = watch.judge.left_out, watch.judge.left_out._words
        left._words = lambda: asked.append(1) or words()
        for _ in range(20):
            model(torch.full((2, 4), math.nan))
        assert (left._pending.number, len(asked)) == (19, 1)


def test_passes_of_training_are_counted_without_those_that_evaluate():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(10):
            x = torch.randn(8, 4)
            if step == 5:
                x[0] = math.nan
            loss = model(x).square().mean()
            if not loss.isnan():
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            model.eval()
            model(torch.randn(8, 4))
            model.train()
    assert [f.evidence["passes"] for f in watch.findings] == [7]  # when it was told


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64])
@pytest.mark.parametrize("rows", [4, 0])
def test_an_output_is_followed_whatever_it_is_made_of(kind, rows):
    source, ledger = SimpleNamespace(steps=0, passed=0), Ledger(3, print)
    left, weight = LeftOut(source, ledger, tuple), torch.ones(1, dtype=kind, requires_grad=True)
    for factor in (math.nan, 1.0):
        left.noted(torch.tensor([math.nan if not rows and math.isnan(factor) else 1.0]))
        left.begins()
        output = weight.expand(rows if math.isnan(factor) else 4) * factor
        left.returned(output)
        source.passed += 1
    output.abs().sum().backward()
    left.updated(0, torch.tensor(0.5))
    (finding,) = ledger.findings
    assert (finding.rule, finding.evidence["step"]) == ("nonfinite_batches", 0)
    assert finding.evidence["tensor"] == ("signal" if rows else "targets")


@pytest.mark.filterwarnings("ignore:.*complex64")
def test_batches_of_complex_outputs_that_are_left_out_are_told():
    torch.manual_seed(0)
    model = nn.Linear(4, 1, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=5, max_overhead=math.inf) as watch:
        for step in range(20):
            x = torch.randn(8, 4, dtype=torch.complex64)
            if step == 12:
                x[0, 0] = math.nan
            loss = model(x).abs().square().sum()
            if loss.isnan():
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert [(f.rule, f.evidence["step"]) for f in watch.findings] == [("nonfinite_batches", 12)]
