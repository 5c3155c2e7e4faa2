"""Faults of the loop: optimizer, learning rate, loss, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.architectures import Plan
from benchmarks.diagnosis.operators.operator import At, operator
from benchmarks.diagnosis.program import Setup

CLASSIFIERS = "mlp cnn resnet transformer vit lstm gru rnn"
ALL = CLASSIFIERS + " autoencoder"


def adaptive(plan: Plan) -> bool:
    return plan.optimizer != "sgd"


def sgd(plan: Plan) -> bool:
    return plan.optimizer == "sgd"


def of_classes(plan: Plan) -> bool:
    return not plan.text


def with_groups(setup: Setup, change: Callable[[dict[str, Any]], None]) -> Setup:
    """Change the options of every parameter group of the optimizer that will be built."""
    healthy = setup.optimizer

    def build(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = healthy(parameters)
        for group in optimizer.param_groups:
            change(group)
        return optimizer

    return replace(setup, optimizer=build)


def with_rate(setup: Setup, factor: float) -> Setup:
    return with_groups(setup, lambda group: group.update(lr=factor * group["lr"]))


def with_loss(setup: Setup, loss: Callable[[Any, Any], Tensor]) -> Setup:
    """Train by another loss, and judge by the healthy one."""
    return replace(setup, loss=loss, criterion=setup.criterion or setup.loss)


@operator("learning_rate_too_high", "numerical_overflow", families=ALL)
def rate_100_times(setup: Setup, at: At) -> Setup:
    """The learning rate is a hundred times too high."""
    return with_rate(setup, 100.0)


@operator("learning_rate_too_high", "numerical_overflow", families=ALL)
def rate_10_times(setup: Setup, at: At) -> Setup:
    """The learning rate is ten times too high."""
    return with_rate(setup, 10.0)


@operator("learning_rate_too_low", "lost_update", families=ALL)
def rate_of_1e_4(setup: Setup, at: At) -> Setup:
    """The learning rate is 1e-4 times what it should be."""
    return with_rate(setup, 1e-4)


@operator("learning_rate_too_low", families=ALL)
def rate_of_1e_2(setup: Setup, at: At) -> Setup:
    """The learning rate is a hundredth of what it should be."""
    return with_rate(setup, 1e-2)


@operator("learning_rate_too_low", families=ALL, suits=adaptive)
def eps_of_1(setup: Setup, at: At) -> Setup:
    """The adaptive optimizer's eps is 1."""
    return with_groups(setup, lambda group: group.update(eps=1.0))


@operator("excessive_decay", "learning_rate_too_high", families=ALL)
def enormous_decay(setup: Setup, at: At) -> Setup:
    """Weight decay takes away a fifth of the weights at each step, or outweighs the gradient."""
    return with_groups(setup, lambda group: group.update(weight_decay=0.2 / group["lr"]))


@operator("undamped_momentum", "learning_rate_too_high", families=ALL, suits=sgd)
def momentum_of_1(setup: Setup, at: At) -> Setup:
    """The momentum is 1: steps only grow."""
    return with_groups(setup, lambda group: group.update(momentum=1.0))


@operator("learning_rate_too_low", "lost_update", families=ALL)
def clipped_to_nothing(setup: Setup, at: At) -> Setup:
    """Gradients are clipped to a norm of 1e-8 before each step."""
    healthy = setup.optimizer

    def clip(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1e-8)

    def build(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = healthy(parameters)
        optimizer.register_step_pre_hook(clip)
        return optimizer

    return replace(setup, optimizer=build)


@operator("unoptimised_parameters", "frozen_layers", "lost_update", families=ALL)
def head_alone_optimised(setup: Setup, at: At) -> Setup:
    """The optimizer was given the last layer's parameters alone."""
    healthy = setup.optimizer
    return replace(setup, optimizer=lambda parameters: healthy(list(parameters)[-2:]))


@operator("accumulated_gradients", families=ALL)
def no_zero_grad(setup: Setup, at: At) -> Setup:
    """Gradients are never cleared."""
    return replace(setup, zero_grad=False)


@operator("double_softmax", families=CLASSIFIERS)
def double_softmax(setup: Setup, at: At) -> Setup:
    """The model ends in a softmax, and the loss takes another."""
    right = setup.loss
    setup = with_loss(setup, setup.loss)
    setup.model = nn.Sequential(setup.model, nn.Softmax(-1))
    return replace(setup, criterion=lambda p, targets: right(p.clamp_min(1e-30).log(), targets))


@operator(families=CLASSIFIERS)
def double_log_softmax(setup: Setup, at: At) -> Setup:
    """The model ends in a log-softmax, and the loss takes another, which changes nothing."""
    setup.model = nn.Sequential(setup.model, nn.LogSoftmax(-1))
    return setup


@operator("wrong_loss", families=CLASSIFIERS, suits=of_classes)
def likelihood_without_log(setup: Setup, at: At) -> Setup:
    """The negative log-likelihood is given logits: it falls without end."""
    return with_loss(setup, functional.nll_loss)


@operator("numerical_overflow", families=CLASSIFIERS, suits=of_classes)
def log_of_softmax(setup: Setup, at: At) -> Setup:
    """Logits, multiplied by 1,000, pass a softmax and then a logarithm, which meets zeros."""
    return replace(setup, loss=lambda x, y: functional.nll_loss((1000 * x).softmax(-1).log(), y), criterion=setup.loss)


@operator("wrong_loss", families=CLASSIFIERS, suits=of_classes)
def negated_loss(setup: Setup, at: At) -> Setup:
    """The loss has the wrong sign."""
    right = setup.loss
    return with_loss(setup, lambda x, y: -right(x, y))


@operator("wrong_loss", families=ALL)
def loss_without_graph(setup: Setup, at: At) -> Setup:
    """The loss is of detached outputs."""
    right = setup.loss
    return with_loss(setup, lambda x, y: right(x.detach(), y))


@operator("wrong_loss", families=ALL)
def loss_of_nothing(setup: Setup, at: At) -> Setup:
    """The loss is multiplied by zero."""
    right = setup.loss
    return with_loss(setup, lambda x, y: 0.0 * right(x, y))


@operator("wrong_loss", families=CLASSIFIERS, suits=of_classes)
def loss_over_the_batch(setup: Setup, at: At) -> Setup:
    """The softmax of the loss runs over the rows of the batch."""
    return with_loss(setup, lambda x, y: functional.nll_loss(x.log_softmax(0), y))


@operator("wrong_loss", families=CLASSIFIERS, suits=of_classes)
def squared_error_of_predicted_class(setup: Setup, at: At) -> Setup:
    """The loss is the squared distance between the numbers of the predicted and of the right class."""
    return with_loss(setup, lambda x, y: (x.argmax(-1).float() - y).square().mean())


@operator("wrong_loss", families=CLASSIFIERS, suits=of_classes)
def squared_error_of_indices(setup: Setup, at: At) -> Setup:
    """The loss is the squared distance of every output to the number of the class."""
    return with_loss(setup, lambda x, y: (x - y[:, None]).square().mean())


@operator("wrong_loss", families="autoencoder")
def broadcast_error(setup: Setup, at: At) -> Setup:
    """Every output is compared with every target of the batch, by broadcasting."""
    return with_loss(setup, lambda x, y: (x.unsqueeze(1) - y).square().mean())


@operator("learning_rate_too_high", "wrong_loss", families=ALL)
def summed_loss(setup: Setup, at: At) -> Setup:
    """The loss is the sum over the batch, times the number of outputs, with the learning rate of a mean."""
    right = setup.loss
    return with_loss(setup, lambda x, y: right(x, y) * x.numel())


@operator("learning_rate_too_low", "lost_update", families=ALL)
def faint_loss(setup: Setup, at: At) -> Setup:
    """The loss is multiplied by 1e-8."""
    right = setup.loss
    return with_loss(setup, lambda x, y: 1e-8 * right(x, y))


def in_precision(setup: Setup, dtype: torch.dtype, loss_scale: float = 1.0) -> Setup:
    """Weights, inputs and optimizer in a half precision; the loss of the outputs in single precision."""
    right = setup.loss
    setup.model.to(dtype)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    batches = [(cast(x), y) for x, y in setup.batches]
    return replace(
        setup,
        batches=batches,
        loss=lambda x, y: loss_scale * right(x.float(), y),
        criterion=lambda x, y: right(x.float(), y),
    )


@operator("lost_update", families=ALL)
def bfloat16_weights(setup: Setup, at: At) -> Setup:
    """Weights and their updates are bfloat16."""
    return in_precision(setup, torch.bfloat16)


@operator("lost_update", "learning_rate_too_low", families=ALL)
def bfloat16_weights_short_steps(setup: Setup, at: At) -> Setup:
    """Weights are bfloat16, and the learning rate is a thirtieth: most updates are rounded away."""
    return with_rate(in_precision(setup, torch.bfloat16), 1 / 30)


@operator("numerical_overflow", "lost_update", families="mlp cnn transformer vit lstm gru autoencoder")
def float16_weights(setup: Setup, at: At) -> Setup:
    """Weights, optimizer and its eps are float16, where 1e-8 is zero."""
    return in_precision(setup, torch.float16)


@operator("lost_update", "learning_rate_too_low", "numerical_overflow", families="mlp cnn vit autoencoder")
def float16_flushed(setup: Setup, at: At) -> Setup:
    """Weights are float16, and the loss is so small that gradients are flushed to zero; Adam then divides 0 by 0."""
    return in_precision(setup, torch.float16, loss_scale=1e-5)
