"""What a finding says was ruled out: true of the model at hand, and left out where it was not tested."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import levada
from levada.diagnose.check import examine
from levada.diagnose.diagnostics import DIAGNOSTICS
from levada.diagnose.exclusion import EXCLUSIONS, NOTHING_ELSE, ruled_out
from levada.diagnose.facts import facts_of
from levada.probe.trace import Trace

DIM = 8
X = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 10


def chain(depth, act=nn.ReLU, variance=1.0):
    torch.manual_seed(0)
    net = nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(64, 64), act())], nn.Linear(64, 10))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, (variance / 64) ** 0.5)
    return net


def streams(connection, depth, **options):
    torch.manual_seed(0)

    def branch(dim):
        return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    stack = levada.Stack(branch, connection, dim=DIM, depth=depth, **options)
    return nn.Sequential(nn.Linear(64, DIM), stack, nn.LayerNorm(DIM), nn.Linear(DIM, 10))


def mixed():
    net = streams(levada.HyperConnection, 30, dynamic=False, head="mean")
    for name, p in net.named_parameters():
        if name.endswith("static_mix"):
            p.data *= 1.2
    return net


def alike():
    net = streams(levada.ManifoldHyperConnection, 6)
    with torch.no_grad():
        for one in net.modules():
            if hasattr(one, "projection"):
                one.projection.zero_()
                pair = torch.tensor([-math.log(one.streams - 1), 0.0])
                one.bias[: 2 * one.streams] = pair.repeat_interleave(one.streams)
    return net


class Evaluated(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
        self.net[1].running_var.fill_(100.0)
        self.eval()

    def forward(self, x):
        return self.net(x)


# Rule -> a model with that fault, how it is checked, and what must have been excluded.
CASES = {
    "wrong_loss": (lambda: nn.Linear(64, 1), X[:, 0], {"loss": lambda o, t: ((o - t) ** 2).mean()}, "Not the model"),
    "learning_rate_too_low": (lambda: chain(2), Y, {"optimizer": "SGD", "lr": 1e-9}, "Not a minimum"),
    "shattered_gradient": (lambda: chain(20, nn.Tanh, 9.0), Y, {"lr": 1e-4}, "Not normalisation or a skip"),
    "unstable_mixing": (mixed, Y, {}, "Not cancelled by the branches"),
    "stream_collapse": (alike, Y, {}, "Not a head that parts them"),
    "train_mode": (Evaluated, Y, {}, "Not without effect"),
}


@pytest.mark.parametrize("rule", CASES)
def test_what_was_excluded_is_said(rule):
    build, targets, how, sentence = CASES[rule]
    report = levada.check(build(), (X, targets), **how)
    (found,) = [f for f in report.findings if f.rule == rule and f.severity != "info"]
    assert any(one.startswith(sentence) for one in found.ruled_out), found.ruled_out


def test_every_rule_says_what_it_excluded_or_why_there_is_nothing():
    assert set(EXCLUSIONS) | set(NOTHING_ELSE) == set(DIAGNOSTICS)
    assert not set(EXCLUSIONS) & set(NOTHING_ELSE)


def sick():
    """A chain whose gradient dies, its finding, and what was measured."""
    report, trace = examine(chain(40, nn.Sigmoid), (X, Y), optimizer="SGD", lr=0.1)
    return next(f for f in report.findings if f.rule == "vanishing_gradient"), trace


def without(trace, signal="", **changes):
    values = {name: torch.full_like(v, torch.nan) if name == signal else v for name, v in trace.values.items()}
    return Trace(trace.sites, trace.steps, values, {**trace.context, "facts": replace(facts_of(trace), **changes)})


def test_what_was_not_tested_is_not_said():
    found, trace = sick()
    told = ruled_out(found, trace)
    assert {one.split(":")[0] for one in told} == {
        "Not saturation",
        "Not dead units",
        "Not a cut in the graph",
        "Not the loss, nor one draw",
        "Not underflow",
    }
    assert not any("saturation" in one for one in ruled_out(found, without(trace, "saturated_fraction")))
    assert not any("cut" in one for one in ruled_out(found, without(trace, untested={"frozen_layers": "why"})))
    assert not any("underflow" in one for one in ruled_out(found, without(trace, cotangent_log10=None)))
    assert ruled_out(replace(found, severity="info"), trace) == ()
    assert ruled_out(replace(found, rule="another"), trace) == ()


def test_what_is_the_case_is_not_excluded():
    found, trace = sick()
    saturated = {**trace.values, "saturated_fraction": torch.ones_like(trace["saturated_fraction"])}
    told = ruled_out(found, Trace(trace.sites, trace.steps, saturated, trace.context))
    assert not any("saturation" in one for one in told)


def test_weights_that_move_a_little_are_not_said_to_stay_as_they_are():
    model = chain(40)
    report, _ = examine(model, (X, Y), optimizer="SGD", lr=0.1)
    found = next(f for f in report.findings if f.rule == "vanishing_gradient")
    most = found.evidence["tests"]["optimizer_first_step"]["still_at_most"]
    nn.functional.cross_entropy(model(X), Y).backward()
    last = found.consequence.partition(" as they are")[0].rpartition(" to ")[2]
    weights = [layer.weight for layer in model[: int(last) + 1] if isinstance(layer, nn.Linear)]
    moved = [(w.detach() - 0.1 * w.grad - w.detach()).norm() / w.norm() for w in weights]
    assert most["update_ratio"] == pytest.approx(max(one.item() for one in moved), rel=0.01)
    assert 0 < most["share_changed"] < 1
    assert f"at most {most['update_ratio']:.2g} of their size" in found.consequence


def test_what_shows_a_finding_wrong_freezes_what_its_consequence_names():
    found, _ = sick()
    span = found.consequence.partition("the weights of ")[2].partition(" as they are")[0]
    assert " to " in span
    assert f"once with {span} frozen" in found.falsify


class Last(nn.Module):
    """A recurrence of which the last step is read."""

    def __init__(self, kind=nn.GRU, g=0.0, **options):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = kind(DIM, 64 if g else 32, batch_first=True, **options), nn.Linear(64 if g else 32, 4)
        if g:
            self.rnn.weight_hh_l0.data.normal_(0.0, g / 8)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Attending(nn.Module):
    """A transformer that reads one token, with queries and keys thirty times too large."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.embed, self.place = nn.Embedding(50, 32), nn.Parameter(torch.randn(12, 32))
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 10)
        with torch.no_grad():
            for block in self.encoder.layers:
                block.self_attn.in_proj_weight[:64] *= 30.0

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens) + self.place)[:, 0])


def tiny():
    net = chain(3)
    with torch.no_grad():
        for p in net.parameters():
            p *= 0.01
    return net


def recall(steps=80, rows=64):
    targets = torch.arange(rows) % 4
    x = torch.zeros(rows, steps, DIM)
    x[:, 1:, 4] = 1.0
    x[torch.arange(rows), 0, targets] = 1.0
    return x, targets


SEQUENCES = torch.randn(64, 60, DIM, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4
TOKENS = torch.randint(50, (16, 12), generator=torch.Generator().manual_seed(0)), torch.arange(16) % 10
LEARNABLE, ADAM = (X, X[:, :10].argmax(1)), {"optimizer": "Adam", "lr": 1e-3}


def sgd(lr=0.1, **options):
    return {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=lr, **options)}


def accused(rule, model, batch, **how):
    report, trace = examine(model, batch, **how)
    return next(f for f in report.findings if f.rule == rule and f.severity != "info"), trace


def ends(losses):
    return sorted(losses[-3:])[1]


def spoken(found, trace, **changes):
    return [one.partition(":")[0] for one in ruled_out(found, without(trace, **changes))]


COMMON = "Not the learning rate, the loss or the data"


def test_weights_that_were_drawn_again_exclude_the_rate_and_one_draw():
    found, trace = accused("misscaled_weights", tiny(), LEARNABLE, **ADAM)
    curves = found.evidence["curves"]["drawn_again"]
    told = ruled_out(found, trace)
    worst, plain = max(map(ends, curves)), ends(found.evidence["tests"]["loss_as_it_is"])
    assert told[0].startswith(COMMON)
    assert told[0].endswith(f"end at {worst:.3g} or lower, and at {plain:.3g} as it is.")
    assert f"{found.evidence['suspected']} of the parameters" in told[0]
    assert told[1] == f"Not one lucky draw: 3 draws end at {', '.join(f'{e:.3g}' for e in sorted(map(ends, curves)))}."
    assert len(told) == 2  # most of the model is suspected, and no half of it was drawn alone
    one = facts_of(trace).redrawn
    part = without(trace, redrawn=replace(one, culprits=one.culprits[:1]))
    assert f"the named 1 of {len(one.suspects)} bring" in ruled_out(found, part)[2]
    assert spoken(found, trace, redrawn=None) == []


def test_attention_excludes_a_mask_and_what_was_learned():
    found, trace = accused("attention_collapse", Attending(), TOKENS, **ADAM)
    seen = facts_of(trace).attending
    assert found.severity == "error"
    told = ruled_out(found, trace)
    assert "12 on average" in told[0]
    assert [one.partition(":")[0] for one in told] == [
        "Not a mask",
        "Not attention that was learned to be sharp",
        COMMON,
    ]
    assert f"by {seen.scaled.gain:.2g}, and by {seen.plain.gain:.2g} as it is" in told[2]
    assert spoken(found, trace, attending=replace(seen, plain=None, scaled=None)) == ["Not a mask"]
    learns = replace(seen, plain=seen.scaled)
    assert COMMON not in spoken(found, trace, attending=learns)
    high = replace(seen.scaled, losses=tuple(2 * value for value in seen.scaled.losses))
    assert "Not attention that was learned to be sharp" not in spoken(
        found, trace, attending=replace(seen, scaled=high)
    )


def test_a_short_memory_excludes_a_loss_that_reads_all_steps():
    found, trace = accused("short_memory", Last(), recall(), optimizer="Adam", lr=1e-2)
    memory = facts_of(trace).memory
    told = ruled_out(found, trace)
    assert [one.partition(":")[0] for one in told] == ["Not a loss that reads all steps", "Not one draw", COMMON]
    arrival = memory.arrival["rnn"]
    assert f"{float(arrival[:40].max() / arrival.max()):.1g} of its largest" in told[0]
    assert f"ends at {memory.curves[0].horizon.high:.3g}, below 40" in told[1]
    low, low_repaired = memory.rehearsals["short_memory"].lowest
    assert f"a loss of {low_repaired:.3g} on the same batch, and the model gets to {low:.3g}" in told[2]
    assert COMMON not in spoken(found, trace, memory=replace(memory, rehearsals={}))
    trial = memory.rehearsals["short_memory"]
    learns = {"short_memory": replace(trial, before=trial.after)}
    assert COMMON not in spoken(found, trace, memory=replace(memory, rehearsals=learns))
    assert "Not a loss that reads all steps" not in spoken(found, trace, loss=None)
    both = replace(memory, curves=(memory.curves[0], memory.curves[0]))
    assert "Not one layer or direction" in spoken(found, trace, memory=both)
    far = replace(memory.curves[0], horizon=replace(memory.curves[0].horizon, value=50.0))
    assert "Not one layer or direction" not in spoken(found, trace, memory=replace(memory, curves=(far, far)))


def test_an_exploding_memory_excludes_a_growth_that_passes_or_that_the_loss_does_not_see():
    found, trace = accused("exploding_memory", Last(nn.RNN, 3.0), SEQUENCES, optimizer="Adam", lr=1e-2)
    memory = facts_of(trace).memory
    told = [one.partition(":")[0] for one in ruled_out(found, trace)]
    assert told == [
        "Not one draw",
        "Not a growth that the loss does not see",
        "Not these steps alone",
        COMMON,
        "Not overflow",
    ]
    assert "Not a growth that the loss does not see" not in spoken(found, trace, memory=replace(memory, arrival={}))
    assert "Not a growth that the loss does not see" not in spoken(found, trace, loss=None)
    assert COMMON not in spoken(found, trace, memory=replace(memory, rehearsals={}))
    mild = {**found.evidence, "lyapunov_exponent": {"value": 0.1, "error": 0.06}}
    assert "Not these steps alone" not in spoken(replace(found, evidence=mild), trace)
    assert "Not these steps alone" not in spoken(
        replace(found, evidence={**found.evidence, "lyapunov_exponent": None}), trace
    )


def test_a_growth_that_the_loss_sees_is_at_least_what_is_said():
    found, trace = accused("exploding_memory", Last(nn.RNN, 3.0), SEQUENCES, optimizer="Adam", lr=1e-2)
    (told,) = [one for one in ruled_out(found, trace) if one.startswith("Not a growth")]
    arrival = facts_of(trace).memory.arrival["rnn"]
    decades = float((arrival[:30].max() / arrival[-6:].median()).log10())
    assert decades >= float(told.partition("10^")[2].split()[0]) - 0.05


def test_parameters_that_are_left_out_ask_for_a_gradient_and_have_one():
    model = chain(2)
    body = [*model[0].parameters(), *model[2].parameters()]
    how = {"optimizer": lambda parameters: torch.optim.SGD(list(parameters)[4:], lr=0.1)}
    found, trace = accused("unoptimised_parameters", model, LEARNABLE, **how)
    assert [one.partition(":")[0] for one in ruled_out(found, trace)] == [
        "Not frozen",
        "Not without effect on the loss",
    ]
    nn.functional.cross_entropy(model(X), LEARNABLE[1]).backward()
    assert found.evidence["number"] == len(body)
    assert all(p.requires_grad and p.grad.abs().sum() > 0 for p in body)


def test_decay_excludes_the_rate_where_steps_without_it_gain():
    found, trace = accused("excessive_decay", chain(2), LEARNABLE, **sgd(weight_decay=2.0))
    with_decay, free = (ends(found.evidence[f"loss_{one}_decay"]) for one in ("with", "without"))
    (told,) = ruled_out(found, trace)
    assert told.startswith(COMMON)
    assert told.endswith(f"end at {free:.4g}, and at {with_decay:.4g} with it.")
    recipe = facts_of(trace).recipe
    assert spoken(found, trace, recipe=replace(recipe, courses={})) == []
    assert (
        spoken(found, trace, recipe=replace(recipe, courses=dict.fromkeys(("decay", "none"), recipe.courses["none"])))
        == []
    )


def test_a_setting_that_is_read_excludes_nothing():
    found, _ = accused("undamped_momentum", chain(2), LEARNABLE, **sgd(lr=0.01, momentum=1.01))
    assert found.ruled_out == ()
