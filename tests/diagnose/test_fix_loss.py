"""Faults of the loss are repaired by a loss, and both sides are judged by that one."""

from __future__ import annotations

import math

import pytest
import torch
from tests.diagnose.test_fix import BATCH, CLASSES, LABELS, SGD, STEPS, chain, clusters, same_model, with_dead_units
from torch import nn
from torch.nn import functional

import levada
from levada.diagnose import REMEDIES, Remedy
from levada.diagnose.check import examine
from levada.diagnose.course import Course
from levada.diagnose.facts import facts_of
from levada.diagnose.loss import Loss
from levada.diagnose.objective import examine as examined
from levada.diagnose.remedies import Patch, Subject, calls
from levada.inputs import Batch, read_batches
from levada.report.repair import causes, headline


def net():
    return chain(nn.ReLU, 3, he=True)


def squashed(module):
    return nn.Sequential(net(), module)


def negated(outputs, targets):
    return -functional.cross_entropy(outputs, targets)


def likelihood(outputs, targets):
    return functional.nll_loss(outputs, targets)


def detached(outputs, targets):
    return functional.cross_entropy(outputs.detach(), targets)


def nothing(outputs, targets):
    return 0.0 * functional.cross_entropy(outputs, targets)


def numbers(outputs, targets):
    return (outputs - targets[:, None]).square().mean()


def over_rows(outputs, targets):
    return functional.nll_loss(outputs.log_softmax(0), targets)


def summed(outputs, targets):
    return 2000.0 * functional.cross_entropy(outputs, targets)


def plain(outputs, targets):
    return functional.cross_entropy(outputs, targets)


def crossed(outputs, targets):
    return (outputs.unsqueeze(1) - targets).square().mean()


def overflowing(outputs, targets):
    return functional.nll_loss((1000 * outputs).softmax(-1).log(), targets)


NUMBERS = (clusters(24), clusters(24)[:, :CLASSES].contiguous())
ONE_HOT = (BATCH[0], functional.one_hot(LABELS, CLASSES).float())
OF_THE_LOSS = {n: r for n, r in REMEDIES.items() if n.startswith(("loss.", "softmax", "last_activation"))}
# fault: (model, batch, loss, the remedy, the loss that it must be on other outputs)
FAULTS = {
    "the wrong sign": (net, BATCH, negated, "loss.sign", plain),
    "a likelihood of logits": (net, BATCH, likelihood, "loss.log_softmax", plain),
    "no graph": (net, BATCH, detached, "loss.standard", plain),
    "nothing": (net, BATCH, nothing, "loss.standard", plain),
    "the number of the class": (net, BATCH, numbers, "loss.standard", plain),
    "a softmax over the rows": (net, BATCH, over_rows, "loss.standard", plain),
    "a logarithm of zero": (net, BATCH, overflowing, "loss.standard", plain),
    "a sum": (net, BATCH, summed, "loss.scale", plain),
    "all pairs": (net, NUMBERS, crossed, "loss.pairs", functional.mse_loss),
    "a sigmoid before cross-entropy": (lambda: squashed(nn.Sigmoid()), BATCH, plain, "last_activation", None),
    "a softmax before a loss of one's own": (lambda: squashed(nn.Softmax(-1)), BATCH, plain, "softmax", None),
    "two sigmoids": (lambda: squashed(nn.Sigmoid()), ONE_HOT, nn.BCEWithLogitsLoss(), "last_activation", None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_loss_is_repaired_to_the_twins_loss(fault):
    build, batch, loss, remedy, right = FAULTS[fault]
    how = SGD if loss is summed or right is None else {"optimizer": "Adam", "lr": 1e-3}
    fixed = levada.fix(build(), batch, steps=STEPS, loss=loss, remedies=OF_THE_LOSS, **how)
    assert fixed.outcome == "repaired", str(fixed)
    assert fixed.trials[0].name == remedy, str(fixed)
    outputs = torch.randn(len(LABELS), CLASSES, requires_grad=True)
    names = {"loss": loss}
    exec(fixed.change.loss, names)
    given = names["loss"](outputs, batch[1])
    if right is not None:
        torch.testing.assert_close(given, right(outputs, batch[1]), rtol=1e-3, atol=1e-6)
        given.backward()
        assert bool(outputs.grad.any())
    else:
        same_model(fixed, build(), batch)
        assert names["loss"] is loss  # the model was at fault, and the loss is as it was
    assert ("repaired" in fixed.judged) == (right is not None), fixed.judged


class Softmaxed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        return self.inner(x).softmax(-1)


def test_a_softmax_that_is_no_module_is_undone_by_the_loss():
    fixed = levada.fix(Softmaxed(), BATCH, steps=STEPS, loss=plain, remedies=OF_THE_LOSS, **SGD)
    assert fixed.outcome == "repaired", str(fixed)
    assert fixed.change.build == ""
    logits = torch.randn(len(LABELS), CLASSES)
    mine = fixed.change.loss_function(Loss("plain", lambda out, b: plain(out, b.targets)))(logits.softmax(-1), LABELS)
    torch.testing.assert_close(mine, plain(logits, LABELS))


def test_both_sides_are_judged_by_the_repaired_loss():
    fixed = levada.fix(net(), BATCH, steps=STEPS, loss=nothing, remedies=OF_THE_LOSS, **SGD)
    best = fixed.trials[0]
    untrained = float(plain(net()(BATCH[0]), LABELS).detach())  # what is multiplied by zero trains nothing
    assert best.before["losses"] == pytest.approx([untrained] * 3, rel=1e-5)
    assert best.before["curve"][0] == pytest.approx(untrained, rel=0.3)
    assert "cross-entropy, which is the repaired loss" in fixed.judged
    assert fixed.to_dict()["judged"] == fixed.judged


def test_a_softmax_is_judged_by_the_likelihood_of_what_the_model_says():
    sick = squashed(nn.Softmax(-1))
    fixed = levada.fix(sick, BATCH, steps=STEPS, loss=plain, remedies=OF_THE_LOSS, optimizer="SGD", lr=1e-3)
    softmax = next(t for t in fixed.trials if t.name == "softmax")
    said = functional.nll_loss(sick(BATCH[0]).log(), LABELS)
    assert softmax.before["curve"][0] == pytest.approx(
        float(said.detach()), rel=0.2
    )  # and not ln(1 + (C - 1) / e) and up
    assert softmax.before["curve"][0] == pytest.approx(softmax.after["curve"][0], rel=1e-3)


def test_a_rate_that_lowers_a_wrong_loss_is_not_proposed():
    rates = {name: remedy for name, remedy in REMEDIES.items() if name.startswith(("learning_rate", "loss"))}
    fixed = levada.fix(net(), BATCH, steps=STEPS, loss=negated, optimizer="SGD", lr=1e-6, remedies=rates)
    tried = {t.name: t for t in fixed.trials if t.effect is not None}
    assert tried["learning_rate.update_0.01"].after["loss"] > tried["learning_rate.update_0.01"].before["loss"]
    assert not [name for name, t in tried.items() if t.proposed and name.startswith("learning_rate")], str(fixed)


def test_a_pair_repairs_two_faults_and_beats_the_better_one():
    model, how = with_dead_units(), {**SGD, "loss": negated}
    remedies = {name: REMEDIES[name] for name in ("normalise", "loss.sign")}
    fixed = levada.fix(model, BATCH, steps=STEPS, remedies=remedies, **how)
    pair, alone = fixed.trials[0], next(t for t in fixed.trials if t.name == "normalise")
    assert pair.name == "normalise + loss.sign", str(fixed)
    assert fixed.outcome == "repaired"
    assert pair.low > 0
    assert "helps more than normalise alone" in pair.said
    assert not alone.proposed  # it lowers the loss of the wrong sign
    assert "by the loss that is replaced" in alone.said
    assert {"dead_units", "wrong_loss"} <= set(pair.causes)
    assert all(part in fixed.patch for part in ("nn.LayerNorm", "-given(outputs, targets)"))
    same_model(fixed, model, BATCH)


def nothing_more(subject):
    """Change nothing."""
    return Patch("pass")


def test_a_second_remedy_that_adds_nothing_is_told_and_not_proposed():
    remedies = {
        "initialise.he_there": REMEDIES["initialise.he_there"],
        "clip": REMEDIES["clip"],
        "nothing": Remedy(frozenset({"wrong_loss", "dead_units"}), 1, nothing_more),
    }
    fixed = levada.fix(with_dead_units(), BATCH, steps=STEPS, remedies=remedies, **SGD)
    assert " + " not in fixed.trials[0].name
    assert not [t for t in fixed.trials if t.proposed and " + " in t.name]


def test_a_patch_of_a_loss_after_another_calls_the_first():
    half = Patch(loss="def loss(outputs, targets, given=loss):\n    return 0.5 * given(outputs, targets)")
    given = Loss("sum", lambda outputs, batch: (outputs - batch.targets).sum())
    made = half.then(half).adjust(given)
    assert float(made(torch.full((4,), 2.0), Batch(targets=torch.zeros(4)))) == 2.0


def test_what_spikes_late_is_not_steady_and_settles_where_it_is_worse():
    steady = Course(2.0, tuple(2.0 - 0.1 * i for i in range(16)), 0.4)
    late = Course(2.0, (*steady.losses[:-2], 2.9, 0.5), 0.4)
    early = Course(2.0, (2.0, 4.5, *steady.losses[2:]), 0.4)
    broken = Course(2.0, (*steady.losses[:-1], math.inf), math.inf)
    assert [c.spikes(1.4) for c in (steady, late, early, broken)] == [False, True, False, True]
    assert steady.settled == pytest.approx(0.65)
    assert broken.settled == math.inf


def test_what_helps_and_leaves_a_finding_is_not_called_repaired():
    def smaller(subject):
        """Halve the learning rate."""
        del subject
        return Patch(optimizer="for group in optimizer.param_groups:\n    group['lr'] *= 1e-3")

    remedies = {"smaller": Remedy(frozenset({"dead_units", "no_progress"}), 1, smaller)}
    fixed = levada.fix(with_dead_units(), BATCH, steps=STEPS, optimizer="SGD", lr=30.0, remedies=remedies)
    told = fixed.to_dict()
    assert fixed.trials[0].helps, str(fixed)
    assert (fixed.outcome, "dead_units" in fixed.trials[0].left) == ("helps", True), str(fixed)
    assert headline(told).startswith("smaller takes the loss from ")
    assert "dead_units still fires" in headline(told)
    assert "dead_units (error)" in causes(told)


def test_what_no_remedy_answers_is_said_to_be_advice_only():
    remedies = {"clip": REMEDIES["clip"]}
    fixed = levada.fix(squashed(nn.Softmax(-1)), BATCH, steps=STEPS, remedies=remedies, loss=plain, **SGD)
    assert (fixed.outcome, fixed.trials) == ("not repaired", ())
    assert headline(fixed.to_dict()) == "Nothing was tried: no remedy answers what was found."
    assert fixed.notes[0].startswith("double_softmax: no remedy applies, so nothing was tried. The check's advice")


def test_a_column_in_other_units_is_rescaled_also_where_it_is_constant():
    x = BATCH[0].clone()
    x[:, 3] *= 1000.0
    x[:, 4] = 500.0
    looked = subject(net(), (x, LABELS))
    patch = REMEDIES["rescale_features"].write(looked)
    seen = []
    model = net()
    model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    patch.change(model, x)(x)
    assert float(seen[0].abs().max()) < 30
    torch.testing.assert_close(seen[0][:, :3], x[:, :3])
    assert REMEDIES["rescale_features"].write(subject(net(), BATCH)) is None


def subject(model, batch):
    report, trace = examine(model, batch)
    batches = read_batches(model, batch)
    return Subject(model, report, facts_of(trace), batches, calls(model, batches[0]))


def test_a_rate_says_its_factor_and_the_rates():
    report, trace = examine(net(), BATCH, optimizer="SGD", lr=1e-4)
    batches = read_batches(net(), BATCH)
    looked = Subject(net(), report, facts_of(trace), batches, calls(net(), batches[0]))
    assert (
        REMEDIES["learning_rate.times_0.1"].write(looked).says == "The learning rate times 0.1: 0.0001 becomes 1e-05."
    )
    assert "factor" in REMEDIES["learning_rate.update_0.05"].sentence


@pytest.mark.parametrize(("loss", "best"), [("binary_cross_entropy_with_logits", 0.21456), ("mse_loss", 0.05247)])
def test_the_best_output_that_is_the_same_for_every_row_takes_the_log_odds_where_the_loss_takes_logits(loss, best):
    targets = (torch.arange(180) % 18 == 0).float()[:, None]  # one in eighteen

    def function(outputs, batch):
        return getattr(torch.nn.functional, loss)(outputs, batch.targets)

    outputs = torch.zeros(180, 1, requires_grad=True) + 0.1
    seen = examined(Loss(loss, function, takes_tensor=True), outputs, Batch((torch.zeros(180, 1),), {}, targets), "")
    assert seen.of_prior == pytest.approx(best, abs=1e-5)
