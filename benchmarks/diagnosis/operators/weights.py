"""Faults of the weights that a model begins with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.models import ResidualBlock
from benchmarks.diagnosis.operators.operator import (
    NORMS,
    At,
    activated,
    blocks,
    draws,
    embedding,
    head,
    matrices,
    operator,
    recurrent,
)
from benchmarks.diagnosis.program import Setup

PLAIN = "mlp cnn autoencoder"
ALL = "mlp cnn resnet transformer vit lstm gru rnn autoencoder"


def scale(module: nn.Module, factor: float) -> None:
    for weight in matrices(module):
        weight.mul_(factor)


def weight_at(setup: Setup, at: At) -> Tensor:
    weight = setup.model.get_submodule(at.site).weight
    assert isinstance(weight, Tensor)
    return weight.data


@operator("vanishing_signal", "vanishing_gradient", "misscaled_weights", "short_memory", families=ALL)
def small_weights(setup: Setup, at: At) -> Setup:
    """All weights are a hundredth of what they should be."""
    scale(setup.model, 0.01)
    return setup


@operator(
    "exploding_signal",
    "exploding_gradient",
    "saturated_activation",
    "misscaled_weights",
    "numerical_overflow",
    "exploding_memory",
    families=ALL,
)
def large_weights(setup: Setup, at: At) -> Setup:
    """All weights are ten times what they should be."""
    scale(setup.model, 10.0)
    return setup


@operator("rank_collapse", "vanishing_signal", "vanishing_gradient", "misscaled_weights", families=ALL)
def zero_weights(setup: Setup, at: At) -> Setup:
    """All weights are zero."""
    scale(setup.model, 0.0)
    return setup


@operator("rank_collapse", "vanishing_signal", "misscaled_weights", families=ALL)
def constant_weights(setup: Setup, at: At) -> Setup:
    """All weights are 0.05."""
    for weight in matrices(setup.model):
        weight.fill_(0.05)
    return setup


@operator(
    "exploding_signal",
    "exploding_gradient",
    "saturated_activation",
    "misscaled_weights",
    "numerical_overflow",
    "exploding_memory",
    families=ALL,
)
def unit_normal_weights(setup: Setup, at: At) -> Setup:
    """Weights are standard normal, as randn gives them, whatever the fan-in."""
    for weight in matrices(setup.model):
        weight.normal_(generator=draws(at))
    return setup


@operator("exploding_signal", "rank_collapse", "misscaled_weights", "saturated_activation", families=ALL)
def positive_weights(setup: Setup, at: At) -> Setup:
    """Weights are uniform between 0 and 1, as rand gives them."""
    for weight in matrices(setup.model):
        weight.uniform_(generator=draws(at))
    return setup


@operator("vanishing_signal", "vanishing_gradient", "misscaled_weights", families=ALL, sites=blocks)
def small_block(setup: Setup, at: At) -> Setup:
    """The weights of one block are a thousandth of what they should be."""
    scale(setup.model.get_submodule(at.site), 1e-3)
    return setup


@operator(
    "exploding_signal", "exploding_gradient", "saturated_activation", "misscaled_weights", families=ALL, sites=blocks
)
def large_block(setup: Setup, at: At) -> Setup:
    """The weights of one block are a hundred times what they should be."""
    scale(setup.model.get_submodule(at.site), 100.0)
    return setup


@operator("vanishing_signal", "rank_collapse", "vanishing_gradient", "misscaled_weights", families=PLAIN, sites=blocks)
def zero_block(setup: Setup, at: At) -> Setup:
    """The weights of one block are zero."""
    scale(setup.model.get_submodule(at.site), 0.0)
    return setup


@operator("rank_collapse", "misscaled_weights", families="mlp cnn autoencoder vit", sites=blocks)
def equal_rows(setup: Setup, at: At) -> Setup:
    """All units of one block have the same weights."""
    for weight in matrices(setup.model.get_submodule(at.site)):
        weight.copy_(weight[:1].expand_as(weight).clone())
    return setup


@operator("rank_collapse", "vanishing_signal", families=PLAIN, sites=activated)
def rank_one_block(setup: Setup, at: At) -> Setup:
    """One block's weights are an outer product of two vectors, of the usual size."""
    for weight in matrices(setup.model.get_submodule(at.site)):
        flat = weight.flatten(1)
        outer = flat[:, :1].sign() * flat[:1]
        flat.copy_(outer * flat.square().mean().sqrt() / outer.square().mean().sqrt())
    return setup


def bias_before_activation(model: nn.Module, site: str) -> Tensor:
    after = model.get_submodule(str(int(site) + 1))
    bias = (after if isinstance(after, NORMS) else model.get_submodule(site)).bias
    assert isinstance(bias, Tensor)
    return bias.data


@operator("dead_units", "misscaled_weights", families=PLAIN, suits=lambda p: p.activation != "tanh", sites=activated)
def dead_block(setup: Setup, at: At) -> Setup:
    """The biases before one rectifier are -20, so that it lets nothing through."""
    bias_before_activation(setup.model, at.site).fill_(-20.0)
    return setup


@operator("dead_units", "misscaled_weights", families=PLAIN, suits=lambda p: p.activation != "tanh")
def dead_biases(setup: Setup, at: At) -> Setup:
    """The biases before all rectifiers are -5."""
    for site in activated(setup.model):
        bias_before_activation(setup.model, site).fill_(-5.0)
    return setup


@operator(
    "saturated_activation", "misscaled_weights", families=PLAIN, suits=lambda p: p.activation == "tanh", sites=activated
)
def saturated_biases(setup: Setup, at: At) -> Setup:
    """The biases before one tanh are 10 or -10."""
    bias = bias_before_activation(setup.model, at.site)
    bias.copy_(10.0 * bias.sign())
    return setup


@operator("misscaled_weights", "exploding_signal", families=ALL, sites=head)
def large_head(setup: Setup, at: At) -> Setup:
    """The weights of the last layer are a hundred times what they should be."""
    scale(setup.model.get_submodule(at.site), 100.0)
    return setup


@operator("misscaled_weights", families="mlp cnn resnet transformer vit lstm gru", sites=head)
def large_head_bias(setup: Setup, at: At) -> Setup:
    """The last layer's bias prefers one class by 100."""
    bias = setup.model.get_submodule(at.site).bias
    assert isinstance(bias, Tensor)
    bias.data[3] += 100.0
    return setup


@operator(
    "misscaled_weights", "exploding_signal", families="transformer lstm gru", suits=lambda p: p.text, sites=embedding
)
def large_embedding(setup: Setup, at: At) -> Setup:
    """Embeddings have a size of 1,000."""
    weight_at(setup, at).mul_(1e3)
    return setup


@operator(
    "misscaled_weights", "vanishing_signal", families="transformer lstm gru", suits=lambda p: p.text, sites=embedding
)
def small_embedding(setup: Setup, at: At) -> Setup:
    """Embeddings have a size of 1e-6."""
    weight_at(setup, at).mul_(1e-6)
    return setup


@operator(
    "rank_collapse", "misscaled_weights", families="transformer lstm gru", suits=lambda p: p.text, sites=embedding
)
def equal_embedding(setup: Setup, at: At) -> Setup:
    """Embeddings differ by 1e-4 around a common vector."""
    weight = weight_at(setup, at)
    weight.copy_(weight[:1] + 1e-4 * weight)
    return setup


@operator(
    "attention_collapse", "misscaled_weights", "saturated_activation", "rank_collapse", families="transformer vit"
)
def sharp_attention(setup: Setup, at: At) -> Setup:
    """Queries and keys are twenty times too large, so that every softmax picks one token."""
    for module in setup.model.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.in_proj_weight.data[: 2 * module.embed_dim] *= 20.0
    return setup


@operator("vanishing_signal", "misscaled_weights", families="mlp resnet transformer vit", suits=lambda p: p.normalised)
def small_norms(setup: Setup, at: At) -> Setup:
    """The gains of all normalisations are a thousandth."""
    for module in setup.model.modules():
        if isinstance(module, NORMS):
            module.weight.data.mul_(1e-3)
    return setup


@operator("exploding_signal", "misscaled_weights", families="resnet transformer vit")
def large_branches(setup: Setup, at: At) -> Setup:
    """The last weights of every residual branch are thirty times what they should be."""
    for module in setup.model.modules():
        last = None
        if isinstance(module, nn.TransformerEncoderLayer):
            last = module.linear2
        elif isinstance(module, ResidualBlock):
            last = [m for m in module.modules() if hasattr(m, "weight") and m.weight is not None][-1]
        if last is not None:
            last.weight.data.mul_(30.0)
    return setup


@operator("numerical_overflow", families=ALL, sites=blocks)
def nan_weight(setup: Setup, at: At) -> Setup:
    """One number of one block's weights is NaN."""
    weight = next(setup.model.get_submodule(at.site).parameters()).data.view(-1)
    weight[int(torch.randint(len(weight), (1,), generator=draws(at)))] = float("nan")
    return setup


@operator(
    "numerical_overflow", "exploding_signal", "misscaled_weights", families="mlp cnn autoencoder lstm gru", sites=head
)
def overflowing_head(setup: Setup, at: At) -> Setup:
    """The last layer's weights are 1e38 times what they should be."""
    scale(setup.model.get_submodule(at.site), 1e38)
    return setup


@operator("exploding_memory", "misscaled_weights", families="lstm gru rnn", sites=recurrent)
def exploding_recurrence(setup: Setup, at: At) -> Setup:
    """The recurrent weights are ten times what they should be."""
    for name, p in setup.model.named_parameters():
        if "weight_hh" in name:
            p.data.mul_(10.0)
    return setup


@operator("short_memory", "misscaled_weights", families="lstm gru rnn", suits=lambda p: not p.text, sites=recurrent)
def forgetting(setup: Setup, at: At) -> Setup:
    """The forget gate is shut (its bias is -5); of a plain recurrence the weights are a hundredth."""
    gate = {"lstm": 1, "gru": 1, "rnn": None}[at.plan.family]
    dim = at.plan.dim
    for name, p in setup.model.named_parameters():
        if gate is None and "weight_hh" in name:
            p.data.mul_(0.01)
        elif gate is not None and "recurrent.bias_ih" in name:
            p.data[gate * dim : (gate + 1) * dim] = -5.0
    return setup


@operator(
    "vanishing_signal",
    "vanishing_gradient",
    "misscaled_weights",
    "saturated_activation",
    families="lstm gru",
    sites=recurrent,
)
def closed_gates(setup: Setup, at: At) -> Setup:
    """The gates that let inputs into the state are shut (biases of 10 the wrong way)."""
    gate, bias = (0, -10.0) if at.plan.family == "lstm" else (1, 10.0)
    dim = at.plan.dim
    for name, p in setup.model.named_parameters():
        if "recurrent.bias_ih" in name:
            p.data[gate * dim : (gate + 1) * dim] = bias
    return setup
