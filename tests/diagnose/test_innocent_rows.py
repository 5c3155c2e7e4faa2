"""Models that mix rows on purpose, need no memory, or train with heavy dropout: no error, and most are information."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from levada.diagnose import check
from levada.diagnose.diagnostics.noisy_forward import noisy_forward
from levada.diagnose.facts import Facts
from levada.diagnose.noise import Noise
from levada.diagnose.recurrent import Rehearsal
from levada.diagnose.rehearsal import Course
from levada.probe.trace import Site, Trace

DIM = 16
ADAM = functools.partial(torch.optim.Adam, lr=1e-3)


class Samples(nn.Module):
    """Attention over the columns of a table, turned by hand, and then over its rows."""

    def __init__(self):
        super().__init__()
        self.embed, self.bias = nn.Parameter(torch.randn(7, DIM)), nn.Parameter(torch.zeros(7, DIM))
        self.column, self.row = nn.MultiheadAttention(DIM, 2), nn.MultiheadAttention(DIM, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(2))
        self.head = nn.Linear(DIM, 3)

    def forward(self, x):
        h = x[:, :, None] * self.embed + self.bias
        turned = self.norms[0](h).transpose(0, 1)
        h = h + self.column(turned, turned, turned)[0].transpose(0, 1)
        q = self.norms[1](h)
        return self.head((h + self.row(q, q, q)[0]).mean(1))


class AcrossBatch(nn.Module):
    """An encoder layer along the batch, beside the features that it adds to."""

    def __init__(self):
        super().__init__()
        self.embed, self.place = nn.Linear(16, DIM), nn.Parameter(0.02 * torch.randn(9, DIM))
        self.encoder, self.head = nn.TransformerEncoderLayer(DIM, 4, DIM, dropout=0.1), nn.Linear(DIM, 4)

    def forward(self, x):
        h = self.embed(x)[:, None] + self.place
        return self.head(h.mean(1) + self.encoder(h).mean(1))


class Divided(nn.Module):
    """Attention over time, then over space, of frames that come first."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(12, DIM), nn.Linear(DIM, 5)
        self.time, self.space = nn.MultiheadAttention(DIM, 4), nn.MultiheadAttention(DIM, 4)

    def forward(self, x):
        h = self.embed(x)
        h = h + self.time(h, h, h)[0]
        turned = h.transpose(0, 1)
        return self.head((h + self.space(turned, turned, turned)[0].transpose(0, 1)).mean(1))


class Graph(nn.Module):
    """Attention over the nodes of a graph, for each kind of relation."""

    def __init__(self, relations):
        super().__init__()
        self.relations, self.embed = relations, nn.Linear(8, DIM * relations)
        self.attention, self.head = nn.MultiheadAttention(DIM, 4), nn.Linear(DIM * relations, 3)

    def forward(self, x):
        h = self.embed(x).view(len(x), self.relations, DIM)
        return self.head((h + self.attention(h, h, h)[0]).flatten(1))


class Recording(nn.Module):
    """One recording, whose steps come first, with a label for each; its sensors stand where a batch does."""

    def __init__(self, sensors):
        super().__init__()
        self.body, self.head = nn.LSTM(3, 16), nn.Linear(16 * sensors, 5)

    def forward(self, x):
        return self.head(self.body(x)[0].flatten(1))


class Last(nn.Module):
    """The last state of a recurrence."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.head = kind(4, 32, batch_first=True), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


def labels(rows, classes):
    return torch.randint(classes, (rows,))


def told(build, batch, rule, **options):
    """Return the severity of a rule's finding on a model that is built from a fixed random state; None if silent."""
    torch.manual_seed(0)
    report = check(build(), batch(), **{"optimizer": ADAM, **options})
    return next((f.severity for f in report.findings if f.rule == rule and f.status == "fired"), None)


def table():
    x = torch.randn(32, 7)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def recording(sensors, how):
    x = torch.randn(50, sensors, 3)
    if how == "random":
        return x, labels(50, 5)
    level = x[:, :, 0].cumsum(0).mean(1) if how == "memory" else x[:, :, 0].mean(1)
    return x, torch.bucketize(level, level.quantile(torch.tensor([0.2, 0.4, 0.6, 0.8])))


MEANT = {
    "rows of a table": (Samples, table, "info"),
    "along the batch": (AcrossBatch, lambda: (torch.randn(32, 16), labels(32, 4)), "warn"),
    "divided space and time": (Divided, lambda: (torch.randn(24, 9, 12), labels(24, 5)), "info"),
    "nodes and three relations": (lambda: Graph(3), lambda: (torch.randn(30, 8), labels(30, 3)), "info"),
    "nodes and six relations": (lambda: Graph(6), lambda: (torch.randn(30, 8), labels(30, 3)), "warn"),
    "two sensors": (lambda: Recording(2), lambda: recording(2, "random"), "info"),
    "eight sensors": (lambda: Recording(8), lambda: recording(8, "random"), "warn"),
    "eight sensors, labels of a step": (lambda: Recording(8), lambda: recording(8, "step"), "warn"),
    "eight sensors, labels that need memory": (lambda: Recording(8), lambda: recording(8, "memory"), "warn"),
}


@pytest.mark.parametrize("case", MEANT)
def test_rows_that_are_mixed_on_purpose_are_no_error(case):
    build, batch, expected = MEANT[case]
    assert told(build, batch, "mixed_rows", optimizer=functools.partial(torch.optim.Adam, lr=1e-2)) == expected


@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN])
def test_a_task_that_needs_no_memory_and_is_learned_is_no_warning(kind):
    def batch():
        x = torch.randn(32, 60, 4)
        return x, x[:, -3:].mean(1).argmax(1)

    assert told(lambda: Last(kind), batch, "short_memory", optimizer=functools.partial(torch.optim.Adam, lr=1e-2)) in (
        None,
        "info",
    )


def test_what_acquits_a_short_memory():
    flat, falls, falls_far = (1.0,) * 9, (1.0, *(0.8,) * 8), (1.0, *(0.1,) * 8)
    little = (1.0, *(0.97,) * 8)
    assert Rehearsal("chrono", falls, falls).acquits
    assert Rehearsal("chrono", falls, flat).acquits
    assert Rehearsal("chrono", little, little).acquits  # the copy is no better
    assert not Rehearsal("chrono", little, (1.0, *(0.92,) * 8)).acquits
    assert not Rehearsal("chrono", flat, flat).acquits  # neither learned: nothing is shown
    assert not Rehearsal("chrono", falls, falls_far).acquits  # the copy gains more than twice as much


class Masked(nn.Module):
    """An autoencoder whose inputs are mostly masked."""

    def __init__(self, rate):
        super().__init__()
        self.mask, self.body = nn.Dropout(rate), nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, x):
        return self.body(self.mask(x))


def wide(rate):
    return nn.Sequential(nn.Linear(16, 512), nn.ReLU(), nn.Dropout(rate), nn.Linear(512, 4))


def low_rank():
    x = torch.randn(128, 4) @ torch.randn(4, 64)
    return x, x


def argmax():
    x = torch.randn(128, 16)
    return x, x[:, :4].argmax(1)


@pytest.mark.parametrize("rate", [1e-4, 1e-3])
def test_dropout_of_nine_tenths_is_no_warning(rate):
    optimizer = functools.partial(torch.optim.Adam, lr=rate)
    masked = told(lambda: Masked(0.9), low_rank, "noisy_forward", optimizer=optimizer, loss=nn.functional.mse_loss)
    assert masked == "info"
    for batch in (argmax, lambda: (torch.randn(128, 16), labels(128, 4))):
        assert told(lambda: wide(0.9), batch, "noisy_forward", optimizer=optimizer) == "info"


def test_from_which_rate_noise_is_a_warning():
    assert told(lambda: wide(0.95), argmax, "noisy_forward") == "warn"
    site = Site("body", 0, "Dropout", (8, 4))

    def severity(noise):
        (found,) = noisy_forward(Trace((site,), (0,), {}, {"facts": Facts(noise=noise)}))
        return found.severity

    steps = Course((2.0,) * 21, 1.0, (2.0, 1.97), 20)
    noise = Noise({"body": 0.9}, "body", "", 0.9, 0.88, 1.0, steps, replace(steps, aside=(2.0, 1.0)))
    assert severity(noise) == "error"
    learns, gains_less = replace(steps, aside=(2.0, 1.85)), replace(steps, aside=(2.0, 1.82))
    assert severity(replace(noise, plain=learns)) == severity(replace(noise, calm=gains_less)) == "info"
    assert severity(replace(noise, calm=None)) == "info"
    for heavier in (replace(noise, modules={"body": 0.95}), replace(noise, modules={"body": 0.99})):
        assert severity(replace(heavier, plain=learns)) == severity(replace(heavier, calm=None)) == "warn"
