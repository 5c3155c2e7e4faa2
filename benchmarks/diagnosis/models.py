"""The models of the suite of planted faults, written as in scripts: plain modules of torch."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from benchmarks.diagnosis.architectures import Plan

__all__ = ["LanguageModel", "Recurrent", "ResidualBlock", "build_model", "initialise"]

CLASSES = 10
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "leaky": nn.LeakyReLU}


class ResidualBlock(nn.Module):
    """`x + body(x)`, with an activation after the addition if one is given."""

    def __init__(self, body: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.activation = activation if activation is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.body(x))


class LanguageModel(nn.Module):
    """Tokens -> logits of tokens, by a transformer encoder that is causal or not."""

    def __init__(self, plan: Plan, vocabulary: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, plan.dim)
        self.position = nn.Parameter(0.02 * torch.randn(context, plan.dim))
        self.encoder = encoder(plan)
        self.norm = nn.LayerNorm(plan.dim)
        self.head = nn.Linear(plan.dim, vocabulary)
        causal = torch.ones(context, context, dtype=torch.bool).triu(1)  # True: not seen
        self.register_buffer("mask", causal if plan.data == "text" else None)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        return self.head(self.norm(self.encoder(x, mask=self.mask)))


class VisionTransformer(nn.Module):
    """Patches of an image -> a class, by the mean over tokens."""

    def __init__(self, plan: Plan, side: int, patch: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, plan.dim, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, plan.dim))
        self.encoder = encoder(plan)
        self.norm = nn.LayerNorm(plan.dim)
        self.head = nn.Linear(plan.dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.encoder(x)).mean(1))


class Recurrent(nn.Module):
    """Rows of an image, or a signal, -> a class, by the last state; or tokens -> logits of tokens."""

    def __init__(self, plan: Plan, features: int, vocabulary: int) -> None:
        super().__init__()
        text = plan.data == "text"
        self.embed = nn.Embedding(vocabulary, plan.dim) if text else None
        options = {"nonlinearity": plan.activation} if plan.family == "rnn" else {}
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[plan.family]
        self.recurrent = kind(plan.dim if text else features, plan.dim, plan.depth, batch_first=True, **options)
        self.dropout = nn.Dropout(plan.dropout)
        self.head = nn.Linear(plan.dim, vocabulary if text else CLASSES)
        self.read = -1  # the step whose state is read

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs if self.embed is None else self.embed(inputs)
        states, _ = self.recurrent(x)
        return self.head(self.dropout(states if self.embed is not None else states[:, self.read]))


def encoder(plan: Plan) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        plan.dim,
        4,
        2 * plan.dim,
        plan.dropout,
        activation=plan.activation,
        batch_first=True,
        norm_first=plan.norm == "pre",
    )
    return nn.TransformerEncoder(layer, plan.depth, enable_nested_tensor=False)


def hidden(plan: Plan, before: int, after: int) -> list[nn.Module]:
    """A linear layer with what follows it."""
    layers: list[nn.Module] = [nn.Linear(before, after)]
    if plan.norm != "none":
        layers.append(nn.BatchNorm1d(after) if plan.norm == "batch" else nn.LayerNorm(after))
    layers.append(ACTIVATIONS[plan.activation]())
    return [*layers, nn.Dropout(plan.dropout)] if plan.dropout else layers


def convolution(plan: Plan, before: int, after: int, stride: int = 1) -> list[nn.Module]:
    """A convolution with what follows it."""
    flat = plan.data == "mnist1d"
    conv = nn.Conv1d if flat else nn.Conv2d
    layers: list[nn.Module] = [conv(before, after, 3, stride=stride, padding=1)]
    if plan.norm != "none":
        layers.append((nn.BatchNorm1d if flat else nn.BatchNorm2d)(after))
    return [*layers, ACTIVATIONS[plan.activation]()]


def mlp(plan: Plan, size: int) -> nn.Module:
    widths = [size, *[plan.dim] * plan.depth]
    layers = [m for a, b in itertools.pairwise(widths) for m in hidden(plan, a, b)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(plan.dim, CLASSES))


def cnn(plan: Plan) -> nn.Module:
    layers = convolution(plan, 1, plan.dim, stride=2)
    for i in range(1, plan.depth):
        layers += convolution(plan, plan.dim, plan.dim, stride=2 if i == 1 else 1)
    pool = nn.AdaptiveAvgPool1d(4) if plan.data == "mnist1d" else nn.AdaptiveAvgPool2d(3)
    cells = 4 if plan.data == "mnist1d" else 9
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Dropout(plan.dropout), nn.Linear(cells * plan.dim, CLASSES))


def resnet(plan: Plan, size: int) -> nn.Module:
    """Residual blocks of convolutions; of linear layers on signals. With `skip=False` the same without additions."""

    def normalise() -> nn.Module:
        kinds = {"batch": nn.BatchNorm2d, "layer": nn.LayerNorm, "group": lambda dim: nn.GroupNorm(4, dim)}
        return kinds[plan.norm](plan.dim) if plan.norm != "none" else nn.Identity()

    def block() -> nn.Module:
        act, dim = ACTIVATIONS[plan.activation], plan.dim
        if plan.data == "mnist1d":
            body = nn.Sequential(
                normalise(), nn.Linear(dim, 2 * dim), act(), nn.Dropout(plan.dropout), nn.Linear(2 * dim, dim)
            )
            return ResidualBlock(body) if plan.skip else body
        body = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1), normalise(), act(), nn.Conv2d(dim, dim, 3, padding=1), normalise()
        )
        return ResidualBlock(body, act()) if plan.skip else nn.Sequential(body, act())

    blocks = [block() for _ in range(plan.depth)]
    if plan.data == "mnist1d":
        return nn.Sequential(nn.Linear(size, plan.dim), *blocks, normalise(), nn.Linear(plan.dim, CLASSES))
    stem = [nn.Conv2d(1, plan.dim, 3, stride=2, padding=1), normalise(), ACTIVATIONS[plan.activation]()]
    return nn.Sequential(
        *stem,
        *blocks,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(plan.dropout),
        nn.Linear(4 * plan.dim, CLASSES),
    )


def autoencoder(plan: Plan, side: int) -> nn.Module:
    """Down to a code and up again, `depth` layers each way; of convolutions if `kind` says so."""
    act = ACTIVATIONS[plan.activation]
    if plan.kind == "conv":
        down = convolution(plan, 1, plan.dim, stride=2)
        for _ in range(plan.depth - 1):
            down += convolution(plan, plan.dim, plan.dim)
        up: list[nn.Module] = [nn.ConvTranspose2d(plan.dim, plan.dim, 2, stride=2), act()]
        return nn.Sequential(*down, *up, nn.Conv2d(plan.dim, 1, 3, padding=1))
    code = plan.dim // 2
    widths = [side * side, *[plan.dim] * (plan.depth - 1), code, *[plan.dim] * (plan.depth - 1)]
    layers = [m for a, b in itertools.pairwise(widths) for m in hidden(plan, a, b)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], side * side), nn.Unflatten(1, (1, side, side)))


def build_model(plan: Plan, vocabulary: int, context: int) -> nn.Module:
    """Build the model of a plan; draws from torch's global generator.

    Args:
        plan: what to build.
        vocabulary: number of tokens.
        context: tokens in a row.
    """
    side = 28 if plan.data == "mnist" else 14
    size = 40 if plan.data == "mnist1d" else side * side
    if plan.family == "mlp":
        model = mlp(plan, size)
    elif plan.family == "cnn":
        model = cnn(plan)
    elif plan.family == "resnet":
        model = resnet(plan, size)
    elif plan.family == "transformer":
        model = LanguageModel(plan, vocabulary, context)
    elif plan.family == "vit":
        model = VisionTransformer(plan, side, 7 if side == 28 else 2)
    elif plan.family == "autoencoder":
        model = autoencoder(plan, side)
    else:
        model = Recurrent(plan, side, vocabulary)
    initialise(model, plan)
    return model


def initialise(model: nn.Module, plan: Plan) -> None:
    """Draw the weights again as the plan says; "default" leaves torch's.

    Args:
        model: to be changed.
        plan: `init` is "default", "he", "xavier", "orthogonal", "normal" (0.02), or "identity" (recurrent weights).
    """
    if plan.init == "default":
        return
    gain = "tanh" if plan.activation == "tanh" else "relu"
    for name, p in model.named_parameters():
        if p.dim() < 2 or "position" in name or "embed" in name:
            continue
        if plan.init == "he":
            nn.init.kaiming_normal_(p, nonlinearity=gain)
        elif plan.init == "xavier":
            nn.init.xavier_uniform_(p)
        elif plan.init == "normal":
            nn.init.normal_(p, std=0.02)
        elif "weight_hh" in name:
            for part in p.data.chunk(p.shape[0] // p.shape[1]):
                nn.init.eye_(part) if plan.init == "identity" else nn.init.orthogonal_(part)
        elif plan.init == "orthogonal" and "weight_ih" not in name:
            nn.init.orthogonal_(p, gain=nn.init.calculate_gain(gain))
