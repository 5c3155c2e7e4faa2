"""Batches whose rows are all the same: what is compared, when it is told, and where it is no fault."""

import dataclasses
import math

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import nn
from torch.nn import functional

import levada
from levada.watching.measure.sample import Sample
from levada.watching.steps.alike import ALIKE, Alike, Rows
from levada.watching.verdict.judged import standing_of

ROW = torch.linspace(-1, 1, 12)
SAME, DIFFER = ROW.expand(4, 12), torch.arange(48.0).view(4, 12)
SEQUENCES = torch.arange(30.0).view(1, 5, 6).expand(4, 5, 6)
PICTURES = SEQUENCES[:, None]


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    size: int = 4


class Graph(torch.Tensor):
    """Rows that belong together in a way that their numbers do not tell."""


def told(*given, targets=4, **named):
    alike = Alike()
    alike.open()
    alike.see([*enumerate(given), *named.items()])
    found = alike.of(targets)
    return None if found is None or math.isnan(float(found)) else float(found)


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        pytest.param([SAME], 4, id="rows"),
        pytest.param([SAME], None, id="two dimensions"),
        pytest.param([torch.zeros(4, 3, 5, 5)], None, id="one number"),
        pytest.param([PICTURES], 4, id="pictures"),
        pytest.param([torch.arange(6).expand(4, 6)], 24, id="tokens"),
        pytest.param([{"x": SAME, "n": 3}], 4, id="in a mapping"),
        pytest.param([Batch(SAME)], 4, id="in a dataclass"),
        pytest.param([SAME, torch.ones(12, 12, dtype=torch.bool)], 4, id="with a mask"),
        pytest.param([SAME, torch.arange(12)[None]], 4, id="with what is for all rows"),
        pytest.param([SAME, torch.tensor(0.5)], 4, id="with a number"),
        pytest.param([torch.ones(4)], 4, id="one dimension"),
        pytest.param([SAME, torch.empty(4, 0)], 4, id="with what holds nothing"),
        pytest.param([[SAME] * 64], 4, id="as many tensors as are compared"),
    ],
)
def test_rows_that_are_the_same_are_counted(given, targets):
    assert told(*given, targets=targets) == 4


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        pytest.param([DIFFER], 4, id="rows"),
        pytest.param([torch.cat([SAME[:3], DIFFER[:1]])], 4, id="the last"),
        pytest.param([torch.cat([SAME[:1], DIFFER[:1], SAME[:2]])], 4, id="one between"),
        pytest.param([SAME, DIFFER], 4, id="one argument of two"),
        pytest.param([torch.full((4, 12), math.nan)], 4, id="no numbers"),
        pytest.param([torch.arange(4.0)[:, None].expand(4, 12)], 4, id="features that are the same"),
    ],
)
def test_rows_that_differ_are_none(given, targets):
    assert told(*given, targets=targets) == 0


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        pytest.param([SAME[:1]], 1, id="one row"),
        pytest.param([SEQUENCES], None, id="the batch may be another dimension"),
        pytest.param([SEQUENCES], 5, id="the batch is another dimension"),
        pytest.param([SEQUENCES], 4, id="the first dimension may be time, also where targets have it"),
        pytest.param([torch.arange(20.0).view(1, 4, 5).expand(4, 4, 5)], 4, id="either may be"),
        pytest.param([SAME, torch.zeros(2, 30, dtype=torch.long)], 4, id="with edges"),
        pytest.param([SAME, object()], 4, id="with what is not known"),
        pytest.param([SAME.to_sparse()], 4, id="sparse"),
        pytest.param([SAME.clone().requires_grad_()], 4, id="made by another module"),
        pytest.param([SAME.as_subclass(Graph)], 4, id="of another class"),
        pytest.param([[SAME] * 65], 4, id="more tensors than are compared"),
        pytest.param([], 4, id="nothing"),
    ],
)
def test_what_may_tell_rows_apart_is_not_judged(given, targets):
    assert told(*given, targets=targets) is None


def size(*given):
    alike = Alike()
    alike.open()
    alike.see(enumerate(given))
    found = alike.size()
    return None if found is None else float(found)


def test_the_size_of_the_inputs_is_that_of_their_numbers_alone():
    x = torch.tensor([3.0, 4.0])
    assert size(x) == size(x, torch.tensor([700])) == pytest.approx(12.5**0.5)
    assert size(x, torch.tensor(1e6)) == size(x)  # a temperature, or the time of a diffusion
    assert size(torch.full((2, 3), -1e30)) == pytest.approx(1e30)  # a mask, whose square is no float32
    assert size(torch.empty(0, 4)) is size() is size(torch.tensor([7])) is None
    assert size([x] * 65) is None


def test_after_64_passes_of_a_step_no_more_are_compared():
    alike = Alike()
    alike.open()
    for _ in range(64):
        alike.see([(0, SAME)])
    alike.see([(0, DIFFER)])  # their cost is bounded
    assert float(alike.of(4)) == 4


def test_targets_among_the_arguments_are_no_inputs():
    assert told(SAME, labels=torch.arange(4)) == 4
    assert told({"x": SAME, "labels": torch.arange(4)}) == 4


def test_many_rows_are_compared_to_the_last(monkeypatch):
    monkeypatch.setattr("levada.watching.steps.alike._AT_ONCE", 25)
    many = ROW.repeat(100, 1)
    assert told(many, targets=100) == 100
    many[57, 3] = 9
    assert told(many, targets=100) == 0


def test_all_passes_of_a_step_count():
    alike = Alike()
    alike.open()
    for batch in (SAME, DIFFER, SAME):
        alike.see([(0, batch)])
    assert float(alike.of(4)) == 0
    alike.close()
    alike.see([(0, SAME)])
    assert alike.of(4) is None


@pytest.mark.parametrize(("targets", "rows"), [([64, 32], 32), (32, None), ([64, 32, 32], None), ([], 32)], ids=str)
def test_passes_of_several_lengths_are_told_by_the_targets_of_each(targets, rows):
    alike = Alike()
    alike.open()
    for count in (64, 32):
        alike.see([(0, torch.arange(3.0).expand(count, 3))])
    found = float(alike.of(targets))
    assert (None if math.isnan(found) else found) == rows


@pytest.mark.parametrize("same", [False, True])
def test_micro_batches_of_several_lengths_are_judged(same):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with levada.watch(model, optimizer, every=1, max_overhead=math.inf) as watch:
        for _ in range(4):
            optimizer.zero_grad()
            for count in (16, 8):
                inputs = torch.randn(1, 3).expand(count, 3) if same else torch.randn(count, 3)
                functional.cross_entropy(model(inputs), torch.randint(4, (count,))).backward()
            optimizer.step()
    assert [sample.scalars["alike_rows"] for sample in watch.samples] == [8.0 if same else 0.0] * 4


def rows_of(*told):
    rows = Rows()
    for step, one in enumerate(told):
        rows.sampled(Sample(step, 0.0, {}, {} if one is None else {ALIKE: one}))
    return rows


def test_few_rows_or_a_habit_are_chance():
    assert not rows_of(*[64.0] * 5).sure
    assert rows_of(*[64.0] * 6).sure
    assert not rows_of(*[2.0] * 60).sure, "two values of one feature"
    assert not rows_of(*[0.0, 64.0, 64.0] * 6).sure, "its habit"
    assert rows_of(*[0.0] * 9, 64.0, None, 64.0).sure, "a batch that was not judged between them"


def alike_from(onset, losses):
    def edit(step, values, scalars, found):
        scalars[ALIKE] = 64.0 if step >= onset else 0.0
        scalars["constant_loss"] = 2.0
        found[:] = [(s, losses(s, loss)) for s, loss in found]

    return edit


@pytest.mark.parametrize(
    ("onset", "losses", "severity"),
    [
        pytest.param(0, lambda s, loss: 2.0 + 0.01 * (s % 3), "warn", id="from the start, at a constant"),
        pytest.param(300, lambda s, loss: loss if s < 300 else 1.5, "warn", id="later, and the loss rises"),
        pytest.param(300, lambda s, loss: loss, "info", id="later, and the loss falls on"),
        pytest.param(0, lambda s, loss: loss, None, id="from the start, and the loss falls"),
        pytest.param(10_000, lambda s, loss: 2.0, None, id="never"),
    ],
)
def test_an_alarm_needs_a_loss_that_says_the_same(onset, losses, severity):
    run = Synthetic()
    run.run(40, alike_from(onset, losses))
    assert [f.severity for f in run.judge.findings if f.rule == "constant_inputs"] == ([severity] if severity else [])


def test_rows_that_differ_again_end_it():
    def edit(step, values, scalars, losses):
        alike_from(300, lambda s, loss: 2.0 if 300 <= s < 500 else loss)(step, values, scalars, losses)
        scalars[ALIKE] *= step < 500

    run = Synthetic()
    run.run(40, edit)
    (finding,) = [f for f in run.judge.findings if f.rule == "constant_inputs"]
    assert finding.status == "clear"
    assert finding.evidence["first_sampled"] == 300
    assert finding.evidence["last_that_differed"] == 280


def test_where_it_is_never_seen_it_is_not_judged():
    run = Synthetic()
    run.run(20)
    assert "no batch was seen whose rows" in standing_of(run.judge).unjudged["constant_inputs"]
    run.run(1, alike_from(10_000, lambda s, loss: loss))
    assert "constant_inputs" in standing_of(run.judge).judged


def train(spoil, steps=400, at=250, loss=functional.cross_entropy):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    with levada.watch(net, optimizer) as watch:
        for step in range(steps):
            inputs = torch.randn(32, 12)
            targets = inputs[:, :4].argmax(1) if loss is functional.cross_entropy else inputs[:, :4]
            optimizer.zero_grad()
            loss(net(spoil(inputs) if step >= at else inputs), targets).backward()
            optimizer.step()
    return watch


ZEROS, ONE_ROW = (lambda x: x * 0), (lambda x: x[:1].expand_as(x))


@pytest.mark.parametrize(
    ("spoil", "at", "loss"),
    [
        pytest.param(ZEROS, 250, functional.cross_entropy, id="zeros later"),
        pytest.param(ONE_ROW, 0, functional.cross_entropy, id="one row from the start"),
        pytest.param(ONE_ROW, 250, functional.mse_loss, id="one row later, of numbers"),
    ],
)
def test_a_training_on_one_input_is_told(spoil, at, loss):
    watch = train(spoil, at=at, loss=loss, steps=at + 70 if at else 180)
    (finding,) = [f for f in watch.findings if f.rule == "constant_inputs"]
    assert finding.severity == "warn"
    assert (finding.evidence["rows"], finding.evidence["first_sampled"]) == (32, 0 if at == 0 else 251)
    assert ("up to step 202 they differed" in finding.claim) is (at == 250)
    assert not [f for f in watch.findings if f.rule in ("frozen_layers", "learning_rate_too_high")]


def test_a_sound_training_is_silent():
    watch = train(lambda x: x, steps=120)
    assert watch.findings == []
    assert {sample.scalars[ALIKE] for sample in watch.samples} == {0.0}
