"""Faults of how a model is put together: activations, depth, normalisation, attention, cuts in the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.diagnosis.architectures import new_model
from benchmarks.diagnosis.models import LanguageModel, Recurrent
from benchmarks.diagnosis.operators.operator import ACTIVATIONS, NORMS, At, activated, blocks, operator
from benchmarks.diagnosis.program import Setup

PLAIN = "mlp cnn autoencoder"
CLASSIFIERS = "mlp cnn resnet transformer vit lstm gru rnn"
UNNORMALISED = "vanishing_signal", "vanishing_gradient", "exploding_signal", "exploding_gradient", "rank_collapse"


class Around(nn.Module):
    """A block with something after it; other attributes are the block's, which nn.TransformerEncoder asks for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Detached(Around):
    """A block whose outputs autograd does not follow."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner(*args, **kwargs).detach()


class WithoutGradient(Around):
    """A block that runs without recording."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            return self.inner(*args, **kwargs)


class Rounded(Around):
    """A block whose outputs are rounded, which has no slope."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.round(8 * self.inner(*args, **kwargs)) / 8


class Squashed(Around):
    """A block whose outputs pass a sigmoid that is far too steep."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.sigmoid(1000 * self.inner(*args, **kwargs))


class Scaled(Around):
    """A block whose outputs are multiplied."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__(inner)
        self.factor = factor

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner(*args, **kwargs) * self.factor


class Bottleneck(Around):
    """A block whose outputs are squeezed through one number."""

    def __init__(self, inner: nn.Module, dim: int) -> None:
        super().__init__(inner)
        self.down = nn.Linear(dim, 1)
        self.up = nn.Linear(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(self.inner(x)))


def wrap(setup: Setup, at: At, wrapper: Callable[[nn.Module], nn.Module]) -> Setup:
    setup.model.set_submodule(at.site, wrapper(setup.model.get_submodule(at.site)))
    return setup


def swap(model: nn.Module, kinds: tuple[type[nn.Module], ...], make: Callable[[], nn.Module]) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, kinds):
                setattr(module, name, make())


def swap_activations(setup: Setup, make: Callable[[], nn.Module]) -> Setup:
    swap(setup.model, ACTIVATIONS, make)
    for module in setup.model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation = make()
    return setup


def rebuild(setup: Setup, at: At, **changes: Any) -> Setup:
    setup.model = new_model(replace(at.plan, **changes), at.seed)
    return setup


@operator(
    "vanishing_gradient",
    "vanishing_signal",
    "saturated_activation",
    families="mlp cnn resnet transformer vit autoencoder",
)
def sigmoids(setup: Setup, at: At) -> Setup:
    """All activations are sigmoids, with the weights as they were."""
    return swap_activations(setup, nn.Sigmoid)


@operator(families="mlp cnn resnet transformer vit autoencoder")
def no_activations(setup: Setup, at: At) -> Setup:
    """The activations were forgotten: the network is linear."""
    return swap_activations(setup, nn.Identity)


@operator("dead_units", "vanishing_signal", families="mlp cnn autoencoder", suits=lambda p: p.norm == "none")
def high_thresholds(setup: Setup, at: At) -> Setup:
    """Activations let through only what is above 5."""
    return swap_activations(setup, lambda: nn.Threshold(5.0, 0.0))


@operator(
    "saturated_activation", "misscaled_weights", families="mlp cnn autoencoder resnet", sites=blocks, suffix=".inner"
)
def squashed_block(setup: Setup, at: At) -> Setup:
    """One block's outputs pass a sigmoid that is a thousand times too steep."""
    return wrap(setup, at, Squashed)


@operator(
    "vanishing_gradient",
    "frozen_layers",
    "dead_units",
    families="mlp cnn resnet vit autoencoder",
    sites=blocks,
    suffix=".inner",
)
def rounded_block(setup: Setup, at: At) -> Setup:
    """One block's outputs are rounded to eighths, which has no gradient."""
    return wrap(setup, at, Rounded)


@operator("vanishing_signal", "vanishing_gradient", families=PLAIN, sites=activated, suffix=".inner")
def shrunk_block(setup: Setup, at: At) -> Setup:
    """One block's outputs are multiplied by 1e-4."""
    return wrap(setup, at, lambda inner: Scaled(inner, 1e-4))


@operator("exploding_signal", "exploding_gradient", families=PLAIN, sites=blocks, suffix=".inner")
def swollen_block(setup: Setup, at: At) -> Setup:
    """One block's outputs are multiplied by 300."""
    return wrap(setup, at, lambda inner: Scaled(inner, 300.0))


@operator("rank_collapse", "vanishing_signal", families="mlp", sites=activated, suffix=".inner")
def bottleneck(setup: Setup, at: At) -> Setup:
    """One block's outputs pass through a layer of one unit."""
    dim = at.plan.dim
    return wrap(setup, at, lambda inner: Bottleneck(inner, dim))


@operator("frozen_layers", families="mlp cnn resnet transformer vit autoencoder", sites=blocks, suffix=".inner")
def detached_block(setup: Setup, at: At) -> Setup:
    """One block's outputs are detached."""
    return wrap(setup, at, Detached)


@operator("frozen_layers", families="mlp cnn resnet transformer vit autoencoder", sites=blocks, suffix=".inner")
def unrecorded_block(setup: Setup, at: At) -> Setup:
    """One block runs under no_grad."""
    return wrap(setup, at, WithoutGradient)


@operator("dead_units", "wrong_loss", families="mlp cnn resnet vit autoencoder lstm gru")
def rectified_outputs(setup: Setup, at: At) -> Setup:
    """The outputs pass a ReLU."""
    setup.model = nn.Sequential(setup.model, nn.ReLU())
    return setup


@operator("wrong_loss", families="mlp cnn resnet transformer vit autoencoder lstm gru rnn")
def squashed_outputs(setup: Setup, at: At) -> Setup:
    """The outputs pass a sigmoid, which logits and standardised pixels must not."""
    setup.model = nn.Sequential(setup.model, nn.Sigmoid())
    return setup


@operator("vanishing_signal", "vanishing_gradient", "learning_rate_too_low", "no_progress", families=CLASSIFIERS)
def cold_logits(setup: Setup, at: At) -> Setup:
    """The logits are divided by 10,000."""
    setup.model = Scaled(setup.model, 1e-4)
    return setup


@operator(
    "vanishing_signal",
    "vanishing_gradient",
    "rank_collapse",
    families=PLAIN,
    suits=lambda p: p.norm == "none" and p.kind != "conv",
)
def much_deeper(setup: Setup, at: At) -> Setup:
    """Thirty layers, with torch's initialisation and nothing that carries the signal."""
    return rebuild(setup, at, depth=15 if at.plan.family == "autoencoder" else 30, init="default")


@operator(
    "vanishing_signal", "vanishing_gradient", "saturated_activation", families=PLAIN, suits=lambda p: p.kind != "conv"
)
def deep_sigmoids(setup: Setup, at: At) -> Setup:
    """Twelve layers of sigmoids without normalisation."""
    depth = 6 if at.plan.family == "autoencoder" else 12
    return swap_activations(rebuild(setup, at, depth=depth, norm="none", init="xavier"), nn.Sigmoid)


@operator(
    "shattered_gradient",
    "exploding_gradient",
    "saturated_activation",
    "misscaled_weights",
    families="mlp autoencoder",
    suits=lambda p: p.kind != "conv",
)
def chaotic(setup: Setup, at: At) -> Setup:
    """Twenty layers of tanh whose weights are four times those of the edge of chaos."""
    depth = 10 if at.plan.family == "autoencoder" else 20
    rebuild(setup, at, depth=depth, activation="tanh", norm="none", init="orthogonal")
    for p in setup.model.parameters():
        p.data.mul_(4.0 if p.dim() > 1 else 1.0)
    return setup


@operator(*UNNORMALISED, families="mlp cnn resnet transformer vit autoencoder", suits=lambda p: p.normalised)
def norms_removed(setup: Setup, at: At) -> Setup:
    """All normalisation layers are gone."""
    swap(setup.model, NORMS, nn.Identity)
    return setup


@operator(*UNNORMALISED, families="mlp cnn autoencoder", suits=lambda p: p.norm != "none")
def norms_removed_deep(setup: Setup, at: At) -> Setup:
    """Thirty layers, without the normalisation that the healthy model has."""
    return rebuild(setup, at, depth=15 if at.plan.family == "autoencoder" else 30, norm="none", init="default")


@operator(*UNNORMALISED, "shattered_gradient", families="resnet")
def skips_removed(setup: Setup, at: At) -> Setup:
    """Residual blocks no longer add their inputs."""
    return rebuild(setup, at, skip=False)


@operator(*UNNORMALISED, "shattered_gradient", families="resnet")
def skips_and_norms_removed(setup: Setup, at: At) -> Setup:
    """Sixteen blocks with neither additions nor normalisation."""
    return rebuild(setup, at, depth=16, skip=False, norm="none", init="default")


@operator(
    "vanishing_signal",
    "vanishing_gradient",
    "misscaled_weights",
    families="mlp cnn resnet autoencoder",
    suits=lambda p: p.norm == "batch",
)
def large_norm_eps(setup: Setup, at: At) -> Setup:
    """Batch normalisation has an eps of 1e4."""
    for module in setup.model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e4
    return setup


@operator(
    "train_mode",
    families="mlp cnn resnet transformer vit autoencoder",
    suits=lambda p: p.norm == "batch" or p.dropout > 0,
)
def eval_mode(setup: Setup, at: At) -> Setup:
    """The model is trained, and judged, in eval mode."""
    setup.model.eval()
    return setup


@operator("noisy_forward", families="mlp cnn resnet transformer vit lstm gru", suits=lambda p: p.dropout > 0)
def dropout_of_nearly_all(setup: Setup, at: At) -> Setup:
    """Dropout leaves one in a hundred; judged with dropout on, as in training."""
    for module in setup.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.99
    return setup


def masked(setup: Setup, mask: Callable[[Tensor], Tensor]) -> Setup:
    assert isinstance(setup.model, LanguageModel)
    assert setup.model.mask is not None
    setup.model.mask = mask(setup.model.mask)
    return setup


@operator(families="transformer", suits=lambda p: p.data == "text")
def inverted_mask(setup: Setup, at: At) -> Setup:
    """The attention mask is inverted: each token sees what it must predict; judged so, which can only help."""
    return masked(setup, torch.logical_not)


@operator("blind_attention", families="transformer", suits=lambda p: p.data == "text")
def lonely_mask(setup: Setup, at: At) -> Setup:
    """Each token may attend to itself alone."""
    return masked(setup, lambda mask: ~torch.eye(len(mask), dtype=torch.bool))


@operator(families="transformer", suits=lambda p: p.data == "text")
def leaking_mask(setup: Setup, at: At) -> Setup:
    """Each token may attend to what it must predict; judged so, which can only help."""
    return masked(setup, torch.zeros_like)


@operator("mixed_rows", families="lstm gru rnn", suits=lambda p: not p.text)
def batch_as_time(setup: Setup, at: At) -> Setup:
    """The recurrent layer takes the rows of the batch for time: batch_first was forgotten."""
    assert isinstance(setup.model, Recurrent)
    setup.model.recurrent.batch_first = False
    return setup


@operator("vanishing_signal", "rank_collapse", families="lstm gru rnn", suits=lambda p: not p.text)
def first_state_read(setup: Setup, at: At) -> Setup:
    """The head reads the state after the first step instead of the last; the first row of a digit is nearly blank."""
    assert isinstance(setup.model, Recurrent)
    setup.model.read = 0
    return setup
