"""Each planted fault is repaired by a named remedy to the loss of its healthy twin; what is healthy is left alone."""

from __future__ import annotations

import copy
import json
import math
import time
from statistics import fmean

import pytest
import torch
from torch import nn

import levada
from levada import initialise
from levada._errors import MeasurementError, UsageError
from levada.diagnose import REMEDIES, Patch, Remedy, Trial
from levada.diagnose.course import Clock, Training
from levada.diagnose.loss import resolve_loss
from levada.diagnose.update import resolve_optimizer
from levada.diagnose.verify import effect_of, ranked
from levada.inputs import read_batches

DIM, CLASSES, STEPS = 24, 4, 50
LABELS = torch.arange(48) % CLASSES


def clusters(*shape):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, *shape, generator=generator)
    return torch.randn(48, *shape, generator=generator) + centres[LABELS]


BATCH = (clusters(DIM), LABELS)
SHIFTED = (300 * clusters(DIM) + 1000, LABELS)
IMAGES = (clusters(2, 6, 6), LABELS)


def chain(activation, depth, *, deviation=None, he=False):
    torch.manual_seed(1)
    layers = [m for _ in range(depth) for m in (nn.Linear(DIM, DIM), activation())]
    model = nn.Sequential(*layers, nn.Linear(DIM, CLASSES))
    if he:
        initialise.he(model)
    for p in model.parameters() if deviation is not None else ():
        nn.init.normal_(p, 0.0, deviation) if p.dim() > 1 else nn.init.zeros_(p)
    return model


class Branches(nn.Module):
    """A residual network written by hand."""

    def __init__(self, depth, scale=1.0):
        super().__init__()
        torch.manual_seed(1)
        branches = [nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM)) for _ in range(depth)]
        self.branches, self.head, self.scale = nn.ModuleList(branches), nn.Linear(DIM, CLASSES), scale
        initialise.he(self)

    def forward(self, x):
        for branch in self.branches:
            x = x + self.scale * branch(x)
        return self.head(x)


class Softmaxed(nn.Module):
    """Its forward ends in a softmax that is no module."""

    def __init__(self, softmax=True):
        super().__init__()
        self.inner, self.softmax = chain(nn.ReLU, 3, he=True), softmax

    def forward(self, x):
        return self.inner(x).softmax(-1) if self.softmax else self.inner(x)


def images(deviation=None):
    torch.manual_seed(1)
    blocks = [m for _ in range(5) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), *blocks, nn.Flatten(), nn.Linear(288, CLASSES))
    initialise.he(model)
    for p in model.parameters() if deviation is not None else ():
        nn.init.normal_(p, 0.0, deviation) if p.dim() > 1 else nn.init.zeros_(p)
    return model


def with_dead_units():
    model = chain(nn.ReLU, 6, he=True)
    nn.init.constant_(model[4].bias, -100.0)
    return model


def with_nan():
    model = chain(nn.ReLU, 4, he=True)
    model[2].weight.data[0, 0] = math.nan
    return model


# fault: (the sick model, its healthy twin, what it is trained with, the twin's if it differs, remedies that may win)
SGD = {"optimizer": "SGD", "lr": 0.05}
FAULTS = {
    "default-initialised ReLU of 50 layers": (lambda: chain(nn.ReLU, 50), None, SGD, None, {"rezero"}),
    "sigmoid stack": (lambda: chain(nn.Sigmoid, 10), lambda: chain(nn.ReLU, 10, he=True), SGD, None, {"rezero"}),
    "exploding initialisation": (
        lambda: chain(nn.ReLU, 12, deviation=1.0),
        lambda: chain(nn.ReLU, 12, he=True),
        SGD,
        None,
        {"initialise.he", "initialise.lsuv", "normalise"},
    ),
    "learning rate too high": (
        lambda: chain(nn.ReLU, 4, he=True),
        lambda: chain(nn.ReLU, 4, he=True),
        {"optimizer": "AdamW", "lr": 0.5},
        {"optimizer": "AdamW", "lr": 1e-3},
        {"learning_rate.times_0.1", "learning_rate.update_0.01", "learning_rate.update_0.05"},
    ),
    "learning rate too low": (
        lambda: chain(nn.ReLU, 3, he=True),
        lambda: chain(nn.ReLU, 3, he=True),
        {"optimizer": "SGD", "lr": 1e-6},
        {"optimizer": "SGD", "lr": 0.1},
        {"learning_rate.update_0.01", "learning_rate.update_0.05"},
    ),
    "dead units": (with_dead_units, lambda: chain(nn.ReLU, 6, he=True), SGD, None, {"initialise.he_there"}),
    "tiny weights": (
        lambda: chain(nn.Tanh, 6, deviation=0.005),
        lambda: initialise.critical(chain(nn.Tanh, 6), activation="tanh"),
        SGD,
        None,
        {"initialise.critical", "initialise.lsuv", "activation.relu", "initialise.glorot"},
    ),
    "tiny weights of convolutions": (
        lambda: images(0.005),
        images,
        SGD,
        None,
        {"initialise.he", "initialise.lsuv", "normalise", "rezero"},
    ),
    "softmax before cross-entropy": (
        lambda: nn.Sequential(*chain(nn.ReLU, 3, he=True), nn.Softmax(-1)),
        lambda: chain(nn.ReLU, 3, he=True),
        {**SGD, "loss": "cross_entropy"},
        None,
        {"softmax"},
    ),
    "softmax in the forward": (
        Softmaxed,
        lambda: Softmaxed(softmax=False),
        {**SGD, "loss": nn.CrossEntropyLoss()},
        None,
        {"softmax"},
    ),
    "residual branches without a scale": (
        lambda: Branches(12),
        lambda: Branches(20, scale=12**-0.5),
        {"optimizer": "SGD", "lr": 0.02},
        None,
        {"scale_branches", "gate_branches", "initialise.lsuv", "initialise.pytorch_default"},
    ),
    "inputs that are not normalised": (
        lambda: chain(nn.Tanh, 3),
        lambda: chain(nn.Tanh, 3),
        {"optimizer": "SGD", "lr": 0.2},
        None,
        {"standardise"},
    ),
    "a weight that is NaN": (
        with_nan,
        lambda: chain(nn.ReLU, 4, he=True),
        SGD,
        None,
        {"initialise.he", "initialise.lsuv", "normalise"},
    ),
}


def trained(model, batch, how, seeds):
    """Return the mean loss that `fix` would measure for a model."""
    batches = read_batches(model, batch)
    loss = resolve_loss(how.get("loss"), model(batch[0]), batches[0])
    training = Training(loss, batches, resolve_optimizer(how["optimizer"], how["lr"]), torch.float32)
    return fmean(training(copy.deepcopy(model), Patch(), s, STEPS, Clock(60)).end for s in seeds)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_repaired_to_its_twins_loss(fault):
    sick, twin, how, twins, remedies = FAULTS[fault]
    model = sick()
    batch = IMAGES if "convolutions" in fault else SHIFTED if "inputs" in fault else BATCH
    fixed = levada.fix(model, batch, steps=STEPS, **how)
    assert fixed.outcome == "repaired", str(fixed)
    best = fixed.trials[0]
    assert best.name in remedies, str(fixed)
    assert best.proposed
    assert best.low > 0
    assert len(best.seeds) == 3
    zeros = math.log(CLASSES)
    if twin is not None:
        healthy = trained(twin(), BATCH if batch is SHIFTED else batch, twins or how, best.seeds)
        assert best.after["loss"] < healthy + 0.1 * zeros, (best.after["loss"], healthy)
    assert best.after["loss"] < 0.75 * zeros
    assert not any(f.severity == "error" for f in fixed.after.findings if f.status == "fired")
    same_model(fixed, model, batch)


def same_model(fixed, model, batch):
    """Run the patch as a reader would, and compare with what was verified."""
    names = {"model": copy.deepcopy(model), "inputs": batch[0], "loss": nn.functional.cross_entropy}
    names["optimizer"] = torch.optim.SGD(names["model"].parameters(), lr=1.0)
    exec(fixed.patch, names)
    mine, theirs = names["model"].state_dict(), fixed.model.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    with torch.no_grad():
        assert torch.equal(names["model"](batch[0]), fixed.model(batch[0]))


def test_a_healthy_model_is_left_alone():
    for build, how in (
        (lambda: chain(nn.ReLU, 4, he=True), {"optimizer": "AdamW", "lr": 1e-3}),
        (lambda: Branches(6, scale=6**-0.5), {}),
    ):
        fixed = levada.fix(build(), BATCH, steps=STEPS, **how)
        assert (fixed.outcome, fixed.model, fixed.patch, fixed.after, fixed.trials) == ("healthy", None, "", None, ())
        assert "nothing to repair" in fixed.notes[0]


def spoil(subject):
    """Make all weights zero."""
    return Patch("import torch\nwith torch.no_grad():\n    for p in model.parameters():\n        p.zero_()")


def broken(subject):
    """Raise."""
    return Patch("model.no_such_thing()")


def empty(subject):
    """Draw random numbers, and change nothing."""
    return Patch("import torch\nmodel.register_forward_hook(lambda *_: torch.rand(1) and None)")


def lucky(subject):
    """Help with the first seed, and with no other."""
    return REMEDIES["learning_rate.update_0.01"].write(subject) if subject.seed == 0 else spoil(subject)


def test_what_hurts_fails_or_does_nothing_is_told_and_not_proposed():
    remedies = {
        remedy.__name__: Remedy(frozenset({"learning_rate_too_high"}), 1, remedy)
        for remedy in (spoil, broken, empty, lucky)
    }
    model = nn.Sequential(*chain(nn.ReLU, 4, he=True), nn.Dropout(0.1))
    fixed = levada.fix(model, BATCH, steps=STEPS, optimizer="AdamW", lr=0.5, remedies=remedies)
    assert fixed.outcome == "not repaired"
    assert fixed.model is None
    told = {trial.name: trial for trial in fixed.trials}
    assert told.keys() == remedies.keys()
    assert not any(trial.proposed for trial in fixed.trials)
    assert told["empty"].effect == 0.0  # the same batches and random numbers, bit for bit
    assert "AttributeError" in told["broken"].said
    assert told["broken"].effect is None
    assert len(told["lucky"].seeds) == 3


def test_a_remedy_that_learns_but_brings_an_error_is_not_proposed():
    def cut(subject):
        """Train the last layer alone, behind a cut."""
        del subject
        return Patch(
            "from levada import initialise\nimport torch\n"
            "initialise.he(model, generator=torch.Generator().manual_seed(0))\n"
            "model[-2].register_forward_hook(lambda module, args, out: out.detach())"
        )

    remedies = {"cut": Remedy(frozenset({"exploding_signal", "learning_rate_too_high"}), 1, cut)}
    fixed = levada.fix(chain(nn.ReLU, 12, deviation=1.0), BATCH, steps=STEPS, remedies=remedies, **SGD)
    (trial,) = fixed.trials
    assert trial.helps
    assert not trial.proposed
    assert trial.said == "helps, but brings frozen_layers"
    assert fixed.outcome == "not repaired"


def test_findings_hold_what_was_verified():
    fixed = levada.fix(chain(nn.ReLU, 20), BATCH, steps=STEPS, **SGD)
    finding = next(f for f in fixed.before.findings if f.rule == "vanishing_gradient")
    first = finding.remedies[0]
    assert first.verified
    assert first.name == fixed.trials[0].name
    assert first.after["loss"] == fixed.trials[0].after["loss"] < first.before["loss"]
    tried = {trial.name for trial in fixed.trials if not trial.proposed}
    assert not tried & {proposal.name for proposal in finding.remedies}
    told = json.loads(fixed.to_json())
    assert told["outcome"] == "repaired"
    assert len(told["trials"][0]["after"]["curve"]) == STEPS
    assert told["before"]["findings"][0]["remedies"]


def state(model):
    values = {name: t.clone() for name, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    return values, modes, gradients, hooks, torch.get_rng_state()


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return all(same(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, list | tuple) else a == b


@pytest.mark.parametrize("stop", [None, KeyboardInterrupt, RuntimeError])
def test_the_model_comes_back_as_it_was(stop):
    model = nn.Sequential(nn.BatchNorm1d(DIM), nn.Dropout(0.1), *chain(nn.ReLU, 12, deviation=0.01))
    model[0].eval()
    nn.functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
    before = state(model)

    def progress(done, total):
        assert 0 < done <= total
        if stop is not None and done == 3:
            raise stop

    if stop is None:
        levada.fix(model, BATCH, steps=STEPS, progress=progress, **SGD)
    else:
        with pytest.raises(stop):
            levada.fix(model, BATCH, steps=STEPS, progress=progress, **SGD)
    assert same(before, state(model))


class Slow(nn.Module):
    now = 0.0  # seconds, by a clock that stands but where a pass moves it

    def __init__(self):
        super().__init__()
        self.inner = chain(nn.ReLU, 2, he=True)

    def forward(self, x):
        Slow.now += 0.002
        return self.inner(x)


def test_the_budget_is_kept(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: Slow.now)
    how, start = {"optimizer": "SGD", "lr": 1e-6}, Slow.now
    fixed = levada.fix(Slow(), BATCH, budget=8.0, steps=1000, **how)
    assert Slow.now - start < 1.2 * 8.0
    assert fixed.outcome == "repaired", str(fixed)
    assert len(fixed.trials[0].after["curve"]) < 1000  # fewer steps, where the time is short
    start = Slow.now
    fixed = levada.fix(Slow(), BATCH, budget=0.4, **how)
    assert Slow.now - start < 1.2 * 0.4
    assert fixed.outcome == "unknown"
    assert "budget" in fixed.notes[0]


def test_batches_that_can_be_read_once_are_enough():
    batches = [(BATCH[0][i::2], BATCH[1][i::2]) for i in range(2)]
    fixed = levada.fix(with_dead_units(), iter(batches), steps=STEPS, **SGD)
    assert fixed.outcome == "repaired", str(fixed)


def test_a_loss_that_differs_little_is_ranked_by_what_it_changes():
    assert effect_of(math.inf, 1.0) == 1.0
    assert effect_of(1.0, math.inf) == -1.0
    assert effect_of(-1.0, -2.0) == 0.5
    trials = [
        Trial(n, (), size, "", after={"loss": loss}) for n, size, loss in (("a", 5, 1.0), ("b", 1, 1.03), ("c", 1, 9.0))
    ]
    assert [t.name for t in ranked(trials)] == ["b", "a", "c"]


class Uncopyable(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("there is only one of me")


BAD = {
    "no targets": (lambda: levada.fix(chain(nn.ReLU, 3), BATCH[0]), "must hold targets"),
    "trials": (lambda: levada.fix(chain(nn.ReLU, 3), BATCH, trials=2), "trials must be an integer of at least 3"),
    "steps": (lambda: levada.fix(chain(nn.ReLU, 3), BATCH, steps=10), "steps must be an integer of at least 50"),
    "budget": (lambda: levada.fix(chain(nn.ReLU, 3), BATCH, budget=0), "budget must be a positive number"),
    "unknown word": (lambda: levada.fix(chain(nn.ReLU, 3), BATCH, learning_rate=0.1), "no argument 'learning_rate'"),
    "rate": (lambda: levada.fix(chain(nn.ReLU, 3), BATCH, lr=-1.0), "lr must be a positive finite number"),
    "model": (lambda: levada.fix(nn.Linear, BATCH), "must be an nn.Module"),
    "shape": (lambda: levada.fix(chain(nn.ReLU, 3), (torch.randn(4, 3), LABELS[:4])), "must run on the batch"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_says_so(case):
    attempt, said = BAD[case]
    with pytest.raises(UsageError, match=said) as caught:
        attempt()
    message = str(caught.value)
    assert message.startswith("fix: ")
    assert "\n" not in message


def test_a_model_that_cannot_be_copied_cannot_be_measured():
    with pytest.raises(MeasurementError, match="only one of me"):
        levada.fix(Uncopyable(DIM, CLASSES), BATCH)


def test_every_remedy_says_what_it_does_and_what_it_answers():
    for name, remedy in REMEDIES.items():
        assert remedy.sentence.endswith("."), name
        assert remedy.causes, name
        assert 1 <= remedy.size <= 5, name
