"""Rows taken for time, noise of heavy dropout, masks that leave a token alone: named, and their twins are not."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

import levada
from levada.diagnose import check
from levada.diagnose.check import examine
from levada.diagnose.diagnostics.mixed_rows import mixed_rows
from levada.diagnose.diagnostics.noisy_forward import noisy_forward
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.noise import Noise
from levada.diagnose.rehearsal import Course
from levada.diagnose.rows import Mixed
from levada.probe.attention import sees_itself_alone
from levada.probe.trace import Site, Trace

ROWS, STEPS, WIDTH, CLASSES = 24, 7, 8, 4
GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.randint(CLASSES, (ROWS,), generator=GENERATOR)
# A class is where the size of the steps lies, so that what comes before a row in the batch says nothing of it.
SERIES = 0.3 * torch.randn(ROWS, STEPS, WIDTH, generator=GENERATOR)
SERIES[torch.arange(ROWS), :, LABELS] += 1.0
TOKENS = torch.randint(20, (ROWS, STEPS), generator=GENERATOR)
ADAM = functools.partial(torch.optim.Adam, lr=1e-2)


class Reader(nn.Module):
    """A recurrence whose last state is read; with batch_first=False it is given rows first, if nobody turns them."""

    def __init__(self, kind=nn.GRU, *, batch_first=True, turned=False, norm=False, read=lambda h: h[:, -1], **options):
        super().__init__()
        self.body = kind(WIDTH, 16, batch_first=batch_first, **options)
        wide = 32 if options.get("bidirectional") else 16
        self.norm = nn.BatchNorm1d(wide) if norm else nn.Identity()
        self.head = nn.Linear(wide, CLASSES)
        self.turned, self.read = turned, read

    def forward(self, x):
        states = self.body(x.transpose(0, 1) if self.turned else x)[0]
        return self.head(self.norm(self.read(states.transpose(0, 1) if self.turned else states)))


class Encoder(nn.Module):
    """A transformer of torch, over tokens or series."""

    def __init__(self, *, batch_first=True, turned=False, mask=None, per_token=False, tokens=False, dropout=0.0):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout, batch_first=batch_first, norm_first=True)
        self.embed = nn.Embedding(20, WIDTH) if tokens else nn.Linear(WIDTH, WIDTH)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 20 if per_token else CLASSES)
        self.turned, self.per_token = turned, per_token
        self.register_buffer("mask", mask)

    def forward(self, x):
        x = self.embed(x)
        x = self.body(x.transpose(0, 1) if self.turned else x, mask=self.mask)
        x = x.transpose(0, 1) if self.turned else x
        return self.head(x if self.per_token else x.mean(1))


class Columns(nn.Module):
    """Attention over the steps of each row, and over the rows at each step: mixing rows is what it is made for."""

    def __init__(self):
        super().__init__()
        self.steps = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.rows = nn.MultiheadAttention(WIDTH, 2)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = x + self.steps(x, x, x)[0]
        return self.head((x + self.rows(x, x, x)[0]).mean(1))


class StepsFirst(nn.Module):
    """Inputs (steps, rows, features), and a class for each step or each row."""

    def __init__(self, *, each_step):
        super().__init__()
        self.body, self.head, self.each_step = nn.LSTM(WIDTH, 16), nn.Linear(16, CLASSES), each_step

    def forward(self, x):
        states = self.body(x)[0]
        return self.head(states.flatten(0, 1) if self.each_step == "flat" else states if self.each_step else states[-1])


class Sentence(nn.Module):
    """One sentence: its words are the rows, and the steps of one sequence."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.LSTM(WIDTH, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.head(self.body(x[:, None])[0][:, 0])


def seeded(build):
    torch.manual_seed(0)
    return build()


def fired(report, rule):
    return next((f for f in report.findings if f.rule == rule and f.status == "fired"), None)


FORGOTTEN = {
    "gru": lambda **how: Reader(**how),
    "lstm": lambda **how: Reader(nn.LSTM, **how),
    "rnn": lambda **how: Reader(nn.RNN, **how),
    "two layers, both ways": lambda **how: Reader(nn.LSTM, num_layers=2, bidirectional=True, **how),
    "batch norm": lambda **how: Reader(norm=True, **how),
    "mean over steps": lambda **how: Reader(read=lambda h: h.mean(1), **how),
    "transformer": lambda **how: Encoder(**how),
    "transformer, dropout": lambda **how: Encoder(dropout=0.1, **how),
}


@pytest.mark.parametrize("case", FORGOTTEN)
def test_rows_that_are_taken_for_time_are_named_and_their_twin_is_silent(case):
    build = FORGOTTEN[case]
    report = check(seeded(lambda: build(batch_first=False)), (SERIES, LABELS), optimizer=ADAM)
    finding = fired(report, "mixed_rows")
    assert finding is not None, str(report)
    assert finding.severity in (("warn",) if "transformer" in case else ("warn", "error"))
    assert finding.where["first"].startswith("body")
    assert finding.evidence["gradient_at_other_rows"]["low"] > 0.01
    assert finding.evidence["tests"]["moved_by_other_rows"] > 0.01
    assert finding.evidence["tests"]["with_batch_first"] < 1e-4
    assert any(sentence.startswith("Not batch normalisation") for sentence in finding.ruled_out)
    for how in ({"batch_first": True}, {"batch_first": False, "turned": True}):
        assert fired(check(seeded(lambda how=how: build(**how)), (SERIES, LABELS)), "mixed_rows") is None


def test_tokens_are_followed_from_the_embedding_and_without_targets_too():
    for batch in ((TOKENS, LABELS), (TOKENS, None), TOKENS):
        report = check(seeded(lambda: Encoder(batch_first=False, tokens=True)), batch)
        assert fired(report, "mixed_rows").severity == "warn", str(report)
        assert fired(check(seeded(lambda: Encoder(tokens=True)), batch), "mixed_rows") is None


STEPS_FIRST = {
    "one class for each row": (False, SERIES.transpose(0, 1), LABELS),
    "one class for each step": (True, SERIES.transpose(0, 1), LABELS.expand(STEPS, ROWS)),
    "one class for each step, flat": ("flat", SERIES.transpose(0, 1), LABELS.expand(STEPS, ROWS).flatten()),
    "as many rows as steps": (False, SERIES[:STEPS].transpose(0, 1), LABELS[:STEPS]),
}


@pytest.mark.parametrize("case", STEPS_FIRST)
def test_models_that_take_steps_first_are_silent(case):
    each_step, inputs, targets = STEPS_FIRST[case]

    def loss(out, targets):
        return nn.functional.cross_entropy(out.reshape(-1, CLASSES), targets.reshape(-1))

    for batch in ((inputs.contiguous(), targets), inputs.contiguous()):
        how = {"loss": loss} if isinstance(batch, tuple) else {}
        assert fired(check(seeded(lambda: StepsFirst(each_step=each_step)), batch, **how), "mixed_rows") is None


def test_a_sentence_whose_words_are_the_rows_is_silent():
    assert fired(check(seeded(Sentence), (SERIES[:, 0], LABELS)), "mixed_rows") is None


def test_mixing_that_may_be_meant_is_information():
    report = check(seeded(Columns), (SERIES, LABELS))
    assert fired(report, "mixed_rows").severity == "info"
    walk = SERIES.cumsum(0)  # rows that follow each other, as the steps of one series do
    report = check(seeded(lambda: Reader(batch_first=False)), (walk / walk.std(), LABELS))
    assert fired(report, "mixed_rows").severity == "info"


def test_batch_normalisation_alone_is_no_mixing_of_this_kind():
    assert fired(check(seeded(lambda: Reader(norm=True)), (SERIES, LABELS)), "mixed_rows") is None


def test_a_check_leaves_batch_first_and_dropout_as_they_were():
    model = seeded(lambda: nn.Sequential(Reader(batch_first=False), nn.Dropout(0.99)))
    check(model, (SERIES, LABELS), optimizer=ADAM)
    assert model[0].body.batch_first is False
    assert model[1].p == 0.99
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


FLAT, FALLS = Course((2.0,) * 21, steps=20), Course((2.0, *(1.0,) * 20), steps=20)
MIXED = Mixed(("body",), "recurrent", ROWS, STEPS, (0.5, 0.4), 1.0, False, 0.8, 1e-7, "", FLAT, FALLS)
SITES = Site("body", 0, "GRU", (ROWS, STEPS, 16)), Site("head", 1, "Linear", (ROWS, CLASSES))


def severity(rule, **facts):
    found = list(rule(Trace(SITES, (0,), {}, {"facts": Facts(**facts)})))
    return found[0].severity if found else None


def test_each_leg_of_mixed_rows_is_needed():
    told = functools.partial(severity, mixed_rows)
    assert told(mixed=MIXED) == "error"
    assert told(mixed=None) is None
    assert told(mixed=replace(MIXED, doubt="not known")) is None
    assert told(mixed=replace(MIXED, moved=None)) == told(mixed=replace(MIXED, repaired=None)) == "warn"
    assert told(mixed=replace(MIXED, moved=1e-4, repaired=0.0)) == "warn"  # it hardly reaches the output
    assert told(mixed=replace(MIXED, repaired=0.5)) == "warn"  # something else mixes rows
    assert told(mixed=replace(MIXED, kind="attention")) == "warn"  # it may be meant
    assert told(mixed=replace(MIXED, plain=None)) == told(mixed=replace(MIXED, turned=None)) == "warn"
    assert told(mixed=replace(MIXED, plain=FALLS)) == told(mixed=replace(MIXED, turned=FLAT)) == "warn"
    assert told(mixed=replace(MIXED, steps=2)) == "info"  # sensors
    assert told(mixed=replace(MIXED, aside=True)) == told(mixed=replace(MIXED, succession=0.1)) == "info"


def mlp(rate, depth=1):
    layers = [m for _ in range(depth) for m in (nn.Linear(STEPS * WIDTH, STEPS * WIDTH), nn.ReLU(), nn.Dropout(rate))]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(STEPS * WIDTH, CLASSES))


NOISY = {
    "mlp": lambda rate: mlp(rate),
    "deep mlp": lambda rate: mlp(rate, 3),
    "transformer": lambda rate: Encoder(dropout=rate),
    "recurrent": lambda rate: nn.Sequential(Reader(read=lambda h: h[:, -1]), nn.Dropout(rate), nn.Linear(CLASSES, 4)),
}


@pytest.mark.parametrize("case", NOISY)
def test_dropout_of_nearly_all_is_named_and_common_rates_are_not(case):
    build = NOISY[case]
    report = check(seeded(lambda: build(0.99)), (SERIES, LABELS), optimizer=ADAM)
    finding = fired(report, "noisy_forward")
    assert finding is not None, str(report)
    assert finding.severity in ("warn", "error")
    assert finding.evidence["noise_share"]["low"] >= 0.8
    assert "inf" not in finding.claim
    model = seeded(lambda: build(0.99))
    exec(finding.remedies[0].patch, {"model": model})
    rates = [getattr(m, "p", getattr(m, "dropout", 0.0)) for m in model.modules()]
    assert not any(isinstance(rate, float) and rate > 0.5 for rate in rates)
    for rate in (0.1, 0.5, 0.6):
        assert (
            fired(check(seeded(lambda rate=rate: build(rate)), (SERIES, LABELS), optimizer=ADAM), finding.rule) is None
        )


def test_it_is_an_error_where_theory_agrees_and_steps_with_it_gain_nothing():
    report = check(seeded(lambda: mlp(0.99, 3)), (SERIES, LABELS), optimizer=ADAM)
    finding = fired(report, "noisy_forward")
    assert finding.severity == "error", finding
    share = finding.evidence["noise_share"]
    assert share["low"] <= share["value"] <= share["high"]
    assert share["predicted"] == 0.99 <= share["high"] + 0.02
    assert finding.where["first"] in ("1", "2")


def test_in_evaluation_mode_and_without_a_loss_there_is_no_error():
    assert fired(check(seeded(lambda: mlp(0.99)).eval(), (SERIES, LABELS)), "noisy_forward") is None
    assert fired(check(seeded(lambda: mlp(0.99)), SERIES), "noisy_forward").severity == "warn"


class Sampled(nn.Module):
    """A code that is drawn, as in a variational autoencoder: its noise is larger than its signal, and meant."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.head(self.body(x) + 10 * torch.randn(len(x), WIDTH))


def test_noise_that_is_meant_is_silent():
    assert fired(check(seeded(Sampled), (SERIES[:, 0], SERIES[:, 0])), "noisy_forward") is None


STEADY = Course((2.0,) * 21, 1.0, (2.0, 1.95), 20)
NOISE = Noise({"body": 0.99}, "body", "model.p = 0.1", 0.99, 0.98, 1.0, STEADY, replace(STEADY, aside=(2.0, 1.0)))


def test_each_leg_of_noisy_forward_is_needed():
    told = functools.partial(severity, noisy_forward)
    assert told(noise=NOISE) == "error"
    assert told(noise=replace(NOISE, low=0.5)) is None
    assert told(noise=replace(NOISE, low=0.8, share=0.85, high=0.9)) == "warn"  # theory has more
    assert told(noise=replace(NOISE, calm=None)) == told(noise=replace(NOISE, plain=None)) == "warn"
    assert told(noise=replace(NOISE, plain=replace(STEADY, aside=(2.0, 1.4)))) == "warn"  # it learns
    assert told(noise=replace(NOISE, calm=replace(STEADY, aside=(2.0, 1.99)))) == "warn"  # nothing to gain


DIAGONAL = ~torch.eye(STEPS, dtype=torch.bool)
CAUSAL = torch.ones(STEPS, STEPS, dtype=torch.bool).triu(1)
MASKS = {
    "none": None,
    "causal": CAUSAL,
    "window of two": CAUSAL | torch.ones(STEPS, STEPS, dtype=torch.bool).tril(-2),
    "first token alone": torch.ones(STEPS, STEPS, dtype=torch.bool).index_fill(1, torch.tensor(0), False),
    "all but one alone": DIAGONAL & ~torch.eye(STEPS, dtype=torch.bool).roll(1, 1).tril(-STEPS + 1),
}


def language(mask):
    return seeded(lambda: Encoder(mask=mask, tokens=True, per_token=True))


def test_a_mask_that_leaves_each_token_alone_is_a_warning_and_other_masks_are_not():
    for mask in (DIAGONAL, torch.zeros(STEPS, STEPS).masked_fill(DIAGONAL, -torch.inf), -1e9 * DIAGONAL):
        report = check(language(mask), (TOKENS, TOKENS))
        finding = fired(report, "blind_attention")
        assert finding is not None, str(report)
        assert finding.severity == "warn"
        assert (finding.where["first"], finding.where["last"]) == ("body.layers.0", "body.layers.1")
        assert "attention_collapse" not in report.unknown
    for name, mask in MASKS.items():
        assert fired(check(language(mask), (TOKENS, TOKENS)), "blind_attention") is None, name


def test_one_token_one_key_and_padding_leave_nobody_alone():
    shown = torch.zeros(1, 1, 3, 3)
    hidden = shown.masked_fill(~torch.eye(3, dtype=torch.bool), -torch.inf)
    assert sees_itself_alone(hidden)
    assert not sees_itself_alone(hidden[..., :1, :])
    padded = shown.clone()
    padded[..., 1:] = -torch.inf
    assert not sees_itself_alone(padded)
    assert not sees_itself_alone(torch.cat([hidden, shown]))
    assert not sees_itself_alone(1e5 * torch.eye(3)[None, None])  # attention that has collapsed, not a mask


@pytest.mark.parametrize(
    ("build", "remedy"),
    [
        (lambda: Reader(batch_first=False), "batch_first"),
        (lambda: mlp(0.99), "less_dropout"),
    ],
)
def test_fix_repairs_what_they_find(build, remedy):
    fixed = levada.fix(seeded(build), (SERIES, LABELS), optimizer=ADAM, steps=50)
    assert fixed.outcome == "repaired", str(fixed)
    assert fixed.trials[0].name == remedy


def test_facts_hold_what_was_seen():
    facts = facts_of(examine(seeded(lambda: Encoder(batch_first=False)), (SERIES, LABELS))[1])
    assert facts.mixed.modules == ("body.layers.0.self_attn", "body.layers.1.self_attn")
    assert (facts.mixed.rows, facts.mixed.steps, facts.noise) == (ROWS, STEPS, None)
