"""Memories that are too short, or explode, and their healthy twins."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import levada
from levada import fix, initialise
from levada.diagnose import memory
from levada.diagnose.recurrent import Rehearsal

CLASSES, DIM, ROWS = 4, 8, 64
RULES = {"short_memory", "exploding_memory"}


def check(*args, **options):
    """Check with time enough: how fast a machine is that others use as well is not what is judged here."""
    return levada.check(*args, **{"budget": 600.0, **options})


class Last(nn.Module):
    """What is read is the last step's output."""

    def __init__(self, kind, hidden=32, **options):
        super().__init__()
        self.rnn = kind(DIM, hidden, batch_first=True, **options)
        self.head = nn.Linear(hidden * (2 if self.rnn.bidirectional else 1), CLASSES)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Pooled(Last):
    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(1))


class Attended(Last):
    def forward(self, x):
        out = self.rnn(x)[0]
        weights = (out * out[:, -1:]).sum(-1, keepdim=True).softmax(1)
        return self.head((weights * out).sum(1))


class Tagger(Last):
    def forward(self, x):
        return self.head(self.rnn(x)[0]).flatten(0, 1)


class LanguageModel(nn.Module):
    def __init__(self, kind, layers=1):
        super().__init__()
        self.embed, self.head = nn.Embedding(30, DIM), nn.Linear(32, 30)
        self.rnn = kind(DIM, 32, num_layers=layers, batch_first=True)

    def forward(self, tokens):
        return self.head(self.rnn(self.embed(tokens))[0]).flatten(0, 1)


class Cells(nn.Module):
    """An own loop; a cell of one's own has no theory."""

    def __init__(self, cell=nn.GRUCell):
        super().__init__()
        self.cell, self.head = cell(DIM, 32), nn.Linear(32, CLASSES)

    def forward(self, x):
        state = torch.zeros(len(x), 32)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state)


def recall(steps, seed=0):
    """The first symbol is asked for at the end; all that stands between is the same."""
    targets = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(seed))
    x = torch.zeros(ROWS, steps, DIM)
    x[:, 1:, CLASSES] = 1.0
    x[torch.arange(ROWS), 0, targets] = 1.0
    return x, targets


def noise(steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, steps, DIM, generator=generator), torch.arange(ROWS) % CLASSES


def built(make, seed=0):
    torch.manual_seed(seed)
    return make()


def loud(kind, g, hidden=64, **options):
    """Recurrent weights of standard deviation g / sqrt(n)."""
    model = Last(kind, hidden, **options)
    model.rnn.weight_hh_l0.data.normal_(0.0, g / hidden**0.5)
    return model


def told(report):
    return {f.rule: f for f in report.findings if f.rule in RULES and f.status == "fired"}


ADAM = {"optimizer": "Adam", "lr": 1e-2}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_memory_that_is_too_short_for_its_task(kind):
    report = check(built(lambda: Last(kind)), recall(80), **ADAM)
    finding = told(report)["short_memory"]
    assert report.verdict == finding.severity == "error", str(report)
    assert finding.where == {"first": "rnn", "last": "rnn"}
    horizon = finding.evidence["memory_horizon"]
    assert horizon["low"] <= horizon["value"] <= horizon["high"] < 20
    assert finding.evidence["gradient_in_first_half"] < 1e-6
    assert finding.evidence["explained_by"] == "theory"
    trial = finding.evidence["tests"]["repaired_copy"]
    assert trial["repair"] == finding.remedies[0].name == "chrono"
    assert min(trial["loss"]) > 1.3 > 1.25 > trial["loss_repaired"][-1]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_repaired_twin_is_silent(kind):
    model = built(lambda: Last(kind))
    initialise.chrono(model, 80.0, generator=torch.Generator().manual_seed(0))
    report = check(model, recall(80), **ADAM)
    assert not told(report), str(report)
    assert report.summary["memory_horizon"]["value"] > 80


def test_a_plain_network_that_learns_all_the_same_is_information():
    finding = told(check(built(lambda: Last(nn.RNN)), noise(80), **ADAM))["short_memory"]
    assert finding.severity == "info"
    assert finding.remedies[0].name == "orthogonal_recurrence"


def test_a_cell_in_a_loop_is_judged_too():
    report = check(built(Cells), recall(80), **ADAM)
    assert told(report)["short_memory"].severity == "error", str(report)


def test_without_a_loss_it_is_an_information():
    finding = told(check(built(lambda: Last(nn.LSTM)), recall(80)[0]))["short_memory"]
    assert finding.severity == "info"
    assert finding.evidence["tests"]["repaired_copy"] == "not made"


TOKENS = torch.arange(8 * 60).reshape(8, 60) * 7 % 30
HEALTHY = {
    **{f"{k.__name__}, 15 steps": (lambda k=k: Last(k), noise(15)) for k in (nn.RNN, nn.LSTM, nn.GRU)},
    **{f"{k.__name__}, 24 steps": (lambda k=k: Last(k), noise(24)) for k in (nn.RNN, nn.LSTM, nn.GRU)},
    **{f"{k.__name__}, pooled": (lambda k=k: Pooled(k), noise(80)) for k in (nn.RNN, nn.LSTM, nn.GRU)},
    "attended": (lambda: Attended(nn.LSTM), noise(80)),
    "language model": (lambda: LanguageModel(nn.LSTM, 2), (TOKENS, TOKENS.roll(-1, 1).flatten())),
    "language model, gru": (lambda: LanguageModel(nn.GRU), (TOKENS, TOKENS.roll(-1, 1).flatten())),
    "tagger": (
        lambda: Tagger(nn.LSTM, bidirectional=True),
        (noise(60)[0], torch.arange(ROWS * 60) % CLASSES),
    ),
    "cells": (Cells, noise(24)),
    "orthogonal": (lambda: initialise.orthogonal_recurrence(Last(nn.RNN)), noise(24)),
    "identity": (lambda: initialise.orthogonal_recurrence(Last(nn.RNN, nonlinearity="relu"), gain=0.95), noise(80)),
    "chrono": (lambda: initialise.chrono(Last(nn.LSTM), 200.0), noise(200)),
    "edge of chaos": (lambda: loud(nn.RNN, 1.2), noise(60)),
}


# Its last state has less than 1/1000 of the first half of 24 steps: no fault, and worth a word.
INFORMED = {"RNN, 24 steps": {"short_memory": "info"}}


@pytest.mark.parametrize("name", HEALTHY)
def test_silence_on_healthy_memories(name):
    build, batch = HEALTHY[name]
    report = check(built(build), batch, **ADAM)
    assert {rule: f.severity for rule, f in told(report).items()} in ({}, INFORMED.get(name, {})), str(report)
    assert report.summary["memory_horizon"]["steps"] >= 14
    assert not any("over time" in note for note in report.notes)


@pytest.mark.parametrize(("kind", "g"), [(nn.RNN, 3.0), (nn.LSTM, 8.0), (nn.GRU, 8.0)])
def test_a_chaotic_network_that_does_not_learn(kind, g):
    report = check(built(lambda: loud(kind, g)), noise(60), **ADAM)
    finding = told(report)["exploding_memory"]
    assert report.verdict == finding.severity == "error", str(report)
    assert finding.where == {"first": "rnn", "last": "rnn"}
    growth = finding.evidence["growth_per_step"]
    assert 1 < growth["low"] <= growth["value"] <= growth["high"]
    exponent = finding.evidence["lyapunov_exponent"]
    assert exponent["value"] > 2 * exponent["error"] > 0
    assert finding.evidence["decades"] > 3
    trial = finding.evidence["tests"]["repaired_copy"]
    assert min(trial["loss_repaired"]) < 0.95 * min(trial["loss"])


def test_states_that_grow_without_bound():
    report = check(built(lambda: loud(nn.RNN, 2.0, nonlinearity="relu")), noise(60), optimizer="SGD", lr=0.1)
    assert told(report)["exploding_memory"].severity == "error"
    assert {f.rule for f in report.findings if f.status == "fired"} == {"exploding_memory"}


def test_a_growing_gradient_that_trains_is_a_warning():
    report = check(built(lambda: loud(nn.RNN, 3.0)), noise(60), optimizer="SGD", lr=0.1)
    assert told(report)["exploding_memory"].severity == "warn"


def test_orthogonal_weights_end_the_explosion():
    model = initialise.orthogonal_recurrence(built(lambda: loud(nn.RNN, 3.0)))
    report = check(model, noise(60), **ADAM)
    assert "exploding_memory" not in told(report)


def test_fix_repairs_a_short_memory():
    fixed = fix(built(lambda: Last(nn.GRU)), recall(80), steps=60, **ADAM)
    assert "short_memory" in fixed.causes
    assert fixed.outcome == "repaired", str(fixed)
    best = fixed.trials[0]
    assert best.name == "chrono", str(fixed)
    assert best.after["loss"] < 0.7 * best.before["loss"]
    assert best.left == ()


def test_the_summary_tells_the_horizon_of_every_layer():
    model = built(lambda: Last(nn.LSTM, num_layers=2, bidirectional=True))
    told = json.loads(check(model, noise(30)).to_json())["summary"]["memory_horizon"]
    assert [one["site"] for one in told["layers"]] == [
        f"rnn[layer {layer}, {way}]" for layer in range(2) for way in ("forward", "backward")
    ]
    assert told["value"] == max(one["value"] for one in told["layers"])
    assert told["low"] <= told["value"] <= told["high"]
    assert all(0.4 < one["gate"]["mean"] < 0.6 for one in told["layers"])


def test_what_cannot_be_followed_is_said():
    class Doubled(nn.GRU):
        def forward(self, x, hx=None):
            out, h = super().forward(x, hx)
            return 2 * out, h

    Doubled.__name__ = "GRU"
    report = check(built(lambda: Last(Doubled)), noise(20))
    assert "memory_horizon" not in report.summary
    assert any("inside rnn was not measured: step by step" in note for note in report.notes)


class Dropped(Cells):
    def forward(self, x):
        state = torch.zeros(len(x), 32)
        for t in range(x.shape[1]):
            state = nn.functional.dropout(self.cell(x[:, t], state), 0.3)
        return self.head(state)


class Cut(Last):
    """Truncated backpropagation: the loss loses nothing within the last piece."""

    def forward(self, x):
        state = None
        for piece in x.split(18, 1):
            out, state = self.rnn(piece, state)
            state = state.detach()
        return self.head(out.mean(1))


def test_a_state_that_is_changed_between_two_steps_is_not_followed():
    report = check(built(Dropped), noise(20))
    assert any("inside cell was not measured: what it returns is changed" in note for note in report.notes)


def test_of_a_state_that_is_cut_off_the_longest_piece_is_followed():
    report = check(built(lambda: initialise.orthogonal_recurrence(Cut(nn.RNN), gain=0.5)), noise(72), **ADAM)
    assert report.summary["memory_horizon"]["steps"] == 18
    assert report.summary["memory_horizon"]["value"] < 18 / 2 + 2
    assert not told(report), str(report)


def test_a_trial_that_would_take_too_long_is_not_made(monkeypatch):
    monkeypatch.setattr(memory, "SHARE", 0.0)
    report = check(built(lambda: Last(nn.GRU)), recall(80), **ADAM)
    finding = told(report)["short_memory"]
    assert finding.severity == "warn"
    assert finding.evidence["tests"]["repaired_copy"] == "not made"


def test_the_model_comes_back_as_it_was():
    model = built(lambda: Last(nn.LSTM, num_layers=2, dropout=0.3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check(model, recall(80), **ADAM)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.rnn.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("before", "after", "confirms", "thrown"),
    [
        ((1.4, 1.4, 1.4, 1.4), (1.4, 0.5, 0.4, 0.4), True, False),  # only the copy learns
        ((1.4, 1.4, 1.4, 1.4), (1.4, 0.5, 0.4, 0.4, 2.0, 2.0), True, False),  # and overshoots
        ((1.4, 0.5, 0.4, 0.4), (1.4, 0.5, 0.4, 0.3), False, False),  # both do
        ((1.4, 1.4, 1.4, 1.4), (1.4, 1.4, 1.4, 1.35), False, False),  # neither does
        ((1.4, float("nan")), (1.4, 1.4, 1.39, 1.39), False, True),
        ((1.4, 9.0, 9.0, 9.0), (1.4, 1.4, 1.39, 1.39), False, True),
        ((1e9, 500.0, 400.0, 300.0), (1.4, 1.4, 1.39, 1.39), False, True),  # falls, to where no training should be
    ],
)
def test_what_a_trial_shows(before, after, confirms, thrown):
    trial = Rehearsal("chrono", before, after)
    assert (trial.confirms, trial.thrown) == (confirms, thrown)
