"""Small real trainings, healthy and with a planted fault, for the rules of a watched run."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.watch_verdicts.models import conv, gated, he, mlp, transformer
from levada.study.data import king_james, mnist, mnist1d

__all__ = ["FAULTS", "HEALTHY", "Training", "train"]


@dataclass
class Training:
    """A training loop's parts.

    Attributes:
        model: what is trained.
        batch: step -> inputs and targets.
        optimizer: made of parameters.
        rate: step -> factor on the learning rate.
        clip: largest norm of the gradient.
        autocast: type of the forward pass.
        scale: first scale of a GradScaler.
        loss: of outputs and targets.
        before: called with (training, step) before a step's forward pass: plants a fault, or changes the course.
        steps: how many.
    """

    model: nn.Module
    batch: Callable[[int], tuple[Tensor, Tensor]]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    rate: Callable[[int], float] = lambda step: 1.0
    clip: float | None = None
    autocast: torch.dtype | None = None
    scale: float | None = None
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    before: Callable[[Training, int], None] = lambda training, step: None
    steps: int = 600


def train(training: Training, watch: Callable[[Training, torch.optim.Optimizer, Any], Any]) -> None:
    """Run a training.

    Args:
        training: its parts.
        watch: makes of (training, optimizer, scaler) the context in which the loop runs.
    """
    optimizer = training.optimizer(training.model.parameters())
    base = [group["lr"] for group in optimizer.param_groups]
    scaler = torch.amp.GradScaler("cpu", init_scale=training.scale) if training.scale else None
    with watch(training, optimizer, scaler):
        for step in range(training.steps):
            training.before(training, step)
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * training.rate(step)
            inputs, targets = training.batch(step)
            optimizer.zero_grad()
            with torch.autocast("cpu", training.autocast or torch.bfloat16, enabled=training.autocast is not None):
                loss = training.loss(training.model(inputs), targets)
            (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is not None:
                scaler.unscale_(optimizer)
            if training.clip is not None:
                nn.utils.clip_grad_norm_(training.model.parameters(), training.clip)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()


# Data.


def signals(seed, size=64, rows=None, classes=10):
    data = mnist1d()
    inputs, targets = data.train_inputs, data.train_targets
    keep = (targets < classes).nonzero().flatten()[:rows]
    inputs, targets = inputs[keep], targets[keep]
    draw = torch.Generator().manual_seed(seed)
    order = torch.randint(len(inputs), (700, size), generator=draw)
    return lambda step: (inputs[order[step]], targets[order[step]])


def images(seed, size=32):
    data = mnist()
    draw = torch.Generator().manual_seed(seed)
    order = torch.randint(len(data.train_inputs), (700, size), generator=draw)
    return lambda step: (data.train_inputs[order[step]][:, None].float() / 255, data.train_targets[order[step]])


def characters(seed, size=16, length=32):
    text = king_james().train
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - length - 1, (700, size), generator=draw)
    at = torch.arange(length)
    return lambda step: (text[starts[step][:, None] + at], text[starts[step][:, None] + at + 1])


def token_loss(outputs, targets):
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def warm_cosine(steps=600, warm=60):
    return lambda step: min(1.0, step / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))


def make(model, batch, optimizer, **options):
    return Training(model, batch, optimizer, **options)


def adam(lr=1e-3, **options):
    return functools.partial(torch.optim.AdamW, lr=lr, **options)


def sgd(lr=0.05, **options):
    return functools.partial(torch.optim.SGD, lr=lr, **{"momentum": 0.9, **options})


# Healthy courses.


def curriculum(seed):
    easy, hard = signals(seed, classes=3), signals(seed + 1)
    return make(mlp(), lambda step: (easy if step < 300 else hard)(step), adam())


def resumed(seed):
    """Weights of a training that was cut off, and a fresh optimizer."""
    training = make(mlp(), signals(seed), adam())
    train(training, lambda *_: contextlib.nullcontext())
    return make(training.model, signals(seed + 1), adam())


def thawed(seed):
    training = make(mlp(), signals(seed), adam())
    training.model.blocks[:3].requires_grad_(False)

    def before(one, step):
        if step == 300:
            one.model.blocks[:3].requires_grad_(True)

    return replace(training, before=before)


def frozen(seed):
    training = make(mlp(), signals(seed), adam())
    training.model.stem.requires_grad_(False)
    training.model.blocks[:3].requires_grad_(False)
    return training


def density(outputs, targets):
    """A likelihood's loss, which falls below zero."""
    mean, log_deviation = outputs[:, 0], outputs[:, 1]
    return (log_deviation + 0.5 * ((targets / 10 - mean) * (-log_deviation).exp()).square()).mean()


HEALTHY: Mapping[str, Callable[[int], Training]] = {
    "mlp sgd": lambda s: make(mlp(), signals(s), sgd()),
    "mlp adam dropout warm-up cosine": lambda s: make(mlp(dropout=0.3), signals(s), adam(3e-3), rate=warm_cosine()),
    "mlp easy": lambda s: make(mlp(), signals(s, rows=200), adam()),
    "mlp rows of 4": lambda s: make(mlp(), signals(s, size=4), sgd(0.01)),
    "mlp step decay": lambda s: make(
        mlp(), signals(s), sgd(weight_decay=1e-3), rate=lambda t: 1.0 if t < 300 else 0.03
    ),
    "mlp one cycle": lambda s: make(
        mlp(norm=True), signals(s), adam(1e-2), rate=lambda t: max(1e-3, 1 - abs(t - 250) / 250)
    ),
    "mlp tanh": lambda s: make(mlp(8, activation=nn.Tanh), signals(s), adam()),
    "mlp likelihood": lambda s: make(mlp(), signals(s), adam(), loss=density),
    "mlp scaler": lambda s: make(mlp(), signals(s), adam(), scale=2.0**24, autocast=torch.float16),
    "mlp curriculum": curriculum,
    "mlp resumed": resumed,
    "mlp thawed": thawed,
    "rezero 24": lambda s: make(mlp(24, residual=True, scale=0.0), signals(s), adam()),
    "residual 24 layer drop": lambda s: make(mlp(24, residual=True, norm=True, drop=0.2), signals(s), adam()),
    "mlp frozen start": frozen,
    "mlp warm restarts": lambda s: make(
        mlp(), signals(s), adam(3e-3), rate=lambda t: 0.005 + 0.5 * (1 + math.cos(math.pi * (t % 200) / 200))
    ),
    "plain he 20": lambda s: make(he(mlp(20)), signals(s), adam(3e-4), clip=1.0),
    "residual 12 whole batches dropped": lambda s: make(
        gated(mlp(12, residual=True, norm=True), 0.5), signals(s), adam()
    ),
    "conv sgd warm-up cosine clip": lambda s: make(conv(), images(s), sgd(0.1), rate=warm_cosine(), clip=1.0),
    "transformer adam warm-up clip": lambda s: make(
        transformer(), characters(s), adam(3e-3), rate=warm_cosine(), clip=1.0, loss=token_loss
    ),
    "transformer bf16": lambda s: make(
        transformer(dropout=0.0), characters(s), adam(1e-3), autocast=torch.bfloat16, loss=token_loss
    ),
}
"""Name -> seed -> a training that nothing is wrong with."""


# Faults: what is planted, and the rules and the block that name it.


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    Attributes:
        build: seed -> training.
        rules: those that name it.
        step: when it is planted.
        block: where; "" for the whole model.
    """

    build: Callable[[int], Training]
    rules: frozenset[str]
    step: int = 0
    block: str = ""


def raised(training, factor=30.0, at=300):
    rate = training.rate
    return replace(training, rate=lambda step: rate(step) * (factor if step >= at else 1.0))


def rounded(training):
    model = training.model.bfloat16()
    batch = training.batch

    def cast(step):
        inputs, targets = batch(step)
        return (inputs.bfloat16() if inputs.is_floating_point() else inputs), targets

    return replace(
        training, model=model, batch=cast, optimizer=adam(1e-5), loss=lambda o, t: training.loss(o.float(), t)
    )


def edited(training, at, edit):
    def before(one, step):
        if step == at:
            with torch.no_grad():
                edit(one.model)

    return replace(training, before=before)


def spoiled(training, at, spoil):
    batch = training.batch
    return replace(training, batch=lambda step: spoil(*batch(step)) if step == at else batch(step))


def scaled(model, factor):
    with torch.no_grad():
        for block in model.blocks:
            block.parts[0].weight.mul_(factor)
    return model


def cut(model, block):
    model.cut = block


def nan_weight(block):
    return lambda model: next(model.blocks[block].parameters()).view(-1)[:1].fill_(math.nan)


def dead(block):
    return lambda model: next(m for m in model.blocks[block].parts if isinstance(m, nn.Linear)).bias.sub_(30.0)


_HIGH = frozenset({"learning_rate_too_high", "loss_spike", "numerical_overflow"})
_NAN = frozenset({"numerical_overflow"})


FAULTS: Mapping[str, Fault] = {
    "rate x30: mlp adam": Fault(lambda s: raised(make(mlp(), signals(s), adam(3e-3))), _HIGH, 300),
    "rate x30: mlp sgd": Fault(lambda s: raised(make(mlp(), signals(s), sgd())), _HIGH, 300),
    "rate x30: transformer": Fault(
        lambda s: raised(make(transformer(), characters(s), adam(3e-3), loss=token_loss)), _HIGH, 300
    ),
    "rate x30: conv": Fault(lambda s: raised(make(conv(), images(s), adam(3e-3))), _HIGH, 300),
    "rate too high from the start": Fault(lambda s: make(mlp(), signals(s), adam(0.3)), _HIGH),
    "rate too high from the start: transformer": Fault(
        lambda s: make(transformer(), characters(s), adam(0.3), loss=token_loss), _HIGH
    ),
    "saturated tanh": Fault(
        lambda s: make(scaled(mlp(activation=nn.Tanh), 30.0), signals(s), sgd()), frozenset({"saturated_activation"})
    ),
    "rate too low": Fault(
        lambda s: make(mlp(), signals(s), sgd(1e-8, momentum=0.0)),
        frozenset({"learning_rate_too_low", "lost_update"}),
    ),
    "bf16 weights: mlp": Fault(lambda s: rounded(make(mlp(), signals(s), adam())), frozenset({"lost_update"})),
    "bf16 weights: transformer": Fault(
        lambda s: rounded(make(transformer(dropout=0.0), characters(s), adam(), loss=token_loss)),
        frozenset({"lost_update"}),
    ),
    "cut: chain": Fault(
        lambda s: edited(make(mlp(), signals(s), adam()), 200, functools.partial(cut, block=2)),
        frozenset({"frozen_layers"}),
        200,
        "blocks.2",
    ),
    "cut: branch": Fault(
        lambda s: edited(
            make(mlp(8, residual=True, norm=True), signals(s), adam()), 200, functools.partial(cut, block=5)
        ),
        frozenset({"frozen_layers"}),
        200,
        "blocks.5",
    ),
    "cut: branch, sgd": Fault(
        lambda s: edited(
            make(mlp(8, residual=True, norm=True), signals(s), sgd(0.02)), 200, functools.partial(cut, block=5)
        ),
        frozenset({"frozen_layers"}),
        200,
        "blocks.5",
    ),
    "small weights": Fault(
        lambda s: make(scaled(mlp(12), 0.2), signals(s), sgd()), frozenset({"vanishing_gradient", "vanishing_signal"})
    ),
    "40 layers, no normalisation": Fault(
        lambda s: make(mlp(40), signals(s), sgd()), frozenset({"vanishing_gradient", "vanishing_signal"})
    ),
    "40 layers, no normalisation, adam": Fault(
        lambda s: make(mlp(40), signals(s), adam()), frozenset({"vanishing_gradient", "vanishing_signal"})
    ),
    "large weights": Fault(
        lambda s: make(scaled(mlp(20), 10.0), signals(s), sgd(1e-3)),
        frozenset({"exploding_signal", "exploding_gradient", *_NAN}),
    ),
    "NaN in a weight: mlp": Fault(
        lambda s: edited(make(mlp(), signals(s), adam()), 253, nan_weight(3)), _NAN, 253, "blocks.3"
    ),
    "NaN in a weight: transformer": Fault(
        lambda s: edited(make(transformer(), characters(s), adam(), loss=token_loss), 253, nan_weight(1)),
        _NAN,
        253,
        "blocks.1",
    ),
    "NaN in the inputs": Fault(
        lambda s: spoiled(make(mlp(), signals(s), adam()), 257, lambda x, y: (x * math.nan, y)), _NAN, 257
    ),
    "corrupted batch: mlp": Fault(
        lambda s: spoiled(make(mlp(), signals(s), adam()), 311, lambda x, y: (1000 * x, y)),
        frozenset({"loss_spike"}),
        311,
    ),
    "corrupted batch: conv": Fault(
        lambda s: spoiled(make(conv(), images(s), sgd(0.05)), 311, lambda x, y: (255 * x, y)),
        frozenset({"loss_spike"}),
        311,
    ),
    "dying units: mlp": Fault(
        lambda s: edited(make(mlp(), signals(s), adam()), 250, dead(2)), frozenset({"dead_units"}), 250, "blocks.2"
    ),
    "dying units: residual": Fault(
        lambda s: edited(make(mlp(8, residual=True, norm=True), signals(s), adam()), 250, dead(4)),
        frozenset({"dead_units"}),
        250,
        "blocks.4",
    ),
}
"""Name -> planted fault."""
