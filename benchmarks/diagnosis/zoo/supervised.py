"""Classifiers and language models of torch.nn and by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.diagnosis.program import Setup
from benchmarks.diagnosis.zoo.entry import Entry, adamw, books, digits, optimizer, sgd, signals, text

__all__ = ["entries"]

CROSS, MEAN_SQUARE, VOCABULARY = functional.cross_entropy, functional.mse_loss, 96
ADAM = optimizer("Adam", lr=1e-3)


def shifted(outputs: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy of the next token."""
    return functional.cross_entropy(outputs[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class Recurrent(nn.Module):
    """A recurrent classifier of signals or tokens."""

    def __init__(self, kind: str, classes: int, tokens: bool, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32) if tokens else nn.Identity()
        self.body = getattr(nn, kind)(32 if tokens else 1, 64, batch_first=True, **options)
        self.head = nn.Linear(128 if options.get("bidirectional") else 64, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(self.embed(x))[0]
        return self.head(out.mean(1) if self.body.bidirectional else out[:, -1])


class TiedLanguageModel(nn.Module):
    """Two LSTM layers whose decoder is their embedding (Press and Wolf 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(VOCABULARY, 64), nn.Dropout(0.2)
        self.body, self.decoder = nn.LSTM(64, 64, 2, batch_first=True, dropout=0.2), nn.Linear(64, VOCABULARY)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        self.decoder.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.drop(self.body(self.drop(self.embed(tokens)))[0]))


class Translator(nn.Module):
    """`nn.Transformer` with sinusoidal positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 64)
        self.body = nn.Transformer(64, 4, 3, 3, 128, 0.1, batch_first=True)
        self.head = nn.Linear(64, VOCABULARY)
        angle = torch.arange(64)[:, None] * torch.exp(torch.arange(0, 64, 2) * (-math.log(1e4) / 64))
        self.register_buffer("position", torch.stack([angle.sin(), angle.cos()], -1).flatten(1))

    def place(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens) * 8 + self.position[: tokens.shape[1]]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.body(self.place(source), self.place(target), tgt_mask=mask, tgt_is_causal=True))


class Encoder(nn.Module):
    """`nn.TransformerEncoder`, norm first, mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.1, batch_first=True, norm_first=True)
        self.embed, self.place = nn.Embedding(VOCABULARY, 64), nn.Parameter(0.02 * torch.randn(64, 64))
        self.body = nn.TransformerEncoder(layer, 6, nn.LayerNorm(64), enable_nested_tensor=False)
        self.head = nn.Linear(64, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens) + self.place).mean(1))


class Bag(nn.Module):
    """fastText: a mean of embeddings and a linear layer."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(VOCABULARY**2, 16, sparse=sparse), nn.Linear(16, 3)
        nn.init.uniform_(self.bag.weight, -1 / 16, 1 / 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.bag(tokens[:, :-1] * VOCABULARY + tokens[:, 1:]))  # pairs of characters


class Residual(nn.Module):
    """A basic block of ResNet-20, its second scale at zero (Goyal et al. 2017)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        stride = out // channels
        self.first, self.second = nn.Conv2d(channels, out, 3, stride, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        nn.init.zeros_(self.norm2.weight)
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.skip(x) + self.norm2(self.second(self.norm1(self.first(x)).relu()))).relu()


def resnet20() -> nn.Module:
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Residual(a, b) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return model


def lenet() -> nn.Module:
    """LeNet-5 with tanh, without its sparse table."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 256), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(256, 10)),
    )


class Temporal(nn.Module):
    """Dilated causal convolutions with weight normalisation (Bai, Kolter and Koltun 2018)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 32, 32, 32, 32]
        self.convolutions = nn.ModuleList(
            weight_norm(nn.Conv1d(a, b, 3, dilation=2**i)) for i, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.skip, self.head = nn.Conv1d(1, 32, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        for i, convolution in enumerate(self.convolutions):
            out = convolution(functional.pad(x, (2 * 2**i, 0))).relu()
            x = (out + (x if i else self.skip(x))).relu()
        return self.head(x[..., -1])


class ReZero(nn.Module):
    """32 residual branches behind a scalar that starts at zero (Bachlechner et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(784, 64), nn.Linear(64, 10)
        self.branches = nn.ModuleList(nn.Linear(64, 64) for _ in range(32))
        self.alpha = nn.Parameter(torch.zeros(32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1))
        for i, branch in enumerate(self.branches):
            x = x + self.alpha[i] * branch(x).relu()
        return self.head(x)


class Highway(nn.Module):
    """Ten highway layers, their gates' biases at -2 (Srivastava et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(784, 50), nn.Linear(50, 10)
        self.layers = nn.ModuleList(nn.Linear(50, 50) for _ in range(10))
        self.gates = nn.ModuleList(nn.Linear(50, 50) for _ in range(10))
        for gate in self.gates:
            nn.init.constant_(gate.bias, -2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1)).relu()
        for layer, gate in zip(self.layers, self.gates, strict=True):
            open_ = gate(x).sigmoid()
            x = open_ * layer(x).relu() + (1 - open_) * x
        return self.head(x)


class Experts(nn.Module):
    """A mixture of experts by hand, the best one of eight for each row, weighed by its gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = nn.Linear(784, 64), nn.Linear(64, 8), nn.Linear(64, 10)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(1)).relu()
        weight, choice = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i in choice.unique().tolist():
            rows = (choice == i).nonzero()[:, 0]
            out = out.index_add(0, rows, self.experts[i](x[rows]))
        return self.head(x + weight[:, None] * out)


class TwoHeads(nn.Module):
    """One trunk, the digit and its ink."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(1568, 64), nn.ReLU()),
        )
        self.digit, self.ink = nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(x)
        return self.digit(hidden), self.ink(hidden)[:, 0]


def two_heads() -> Setup:
    batches = [(x, (y, x.mean((1, 2, 3)))) for x, y in digits()]

    def loss(outputs: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
        return CROSS(outputs[0], targets[0]) + 0.5 * MEAN_SQUARE(outputs[1], targets[1])

    return Setup(TwoHeads(), batches, loss, ADAM)


def translation() -> Setup:
    """Read a text, write it in another alphabet."""
    batches = []
    for tokens in text(24, rows=16):
        other = (tokens - 5 + 13) % 80 + 5
        begun = torch.cat([torch.ones_like(other[:, :1]), other[:, :-1]], 1)
        batches.append(((tokens, begun), other))
    return Setup(Translator(), batches, lambda o, t: CROSS(o.flatten(0, 1), t.flatten()), ADAM)


def entries() -> list[Entry]:
    """Return the entries."""
    bible, mnist, lines = "King James Bible", "MNIST", "MNIST-1D"
    language = optimizer("SGD", lr=20.0)
    return [
        Entry("torch/transformer", translation, bible, steps=40, warmup=8),
        Entry("torch/transformer-encoder", lambda: Setup(Encoder(), books(), CROSS, adamw()), bible, 40, 8),
        Entry("torch/rnn", lambda: Setup(Recurrent("RNN", 10, False), signals(), CROSS, ADAM), lines, 40, clip=1.0),
        Entry("torch/lstm", lambda: Setup(Recurrent("LSTM", 10, False), signals(), CROSS, ADAM), lines, 40, clip=1.0),
        Entry(
            "torch/gru, bidirectional, two layers",
            lambda: Setup(Recurrent("GRU", 3, True, bidirectional=True, num_layers=2), books(), CROSS, ADAM),
            bible,
            40,
            clip=1.0,
        ),
        Entry(
            "torch/lstm language model, tied",
            lambda: Setup(TiedLanguageModel(), [(t, t) for t in text(35, 20)], shifted, language),
            bible,
            40,
            clip=0.25,
        ),
        Entry("torch/embedding bag", lambda: Setup(Bag(False), books(), CROSS, optimizer("SGD", lr=0.5)), bible, 40),
        Entry(
            "torch/embedding bag, sparse", lambda: Setup(Bag(True), books(), CROSS, optimizer("SGD", lr=0.5)), bible, 40
        ),
        Entry("torch/resnet20, zero gamma", lambda: Setup(resnet20(), digits(), CROSS, sgd(0.1)), mnist, 24, 4, 0.1),
        Entry("torch/lenet", lambda: Setup(lenet(), digits(), CROSS, sgd(0.02)), mnist),
        Entry("torch/perceptron with dropout", lambda: Setup(perceptron(), digits(), CROSS, ADAM), mnist),
        Entry("torch/temporal convolutions, weight norm", lambda: Setup(Temporal(), signals(), CROSS, ADAM), lines, 40),
        Entry("torch/rezero", lambda: Setup(ReZero(), digits(), CROSS, ADAM), mnist),
        Entry("torch/highway", lambda: Setup(Highway(), digits(), CROSS, sgd(0.02)), mnist),
        Entry("torch/mixture of experts", lambda: Setup(Experts(), digits(), CROSS, ADAM), mnist),
        Entry("torch/two heads", two_heads, mnist),
        Entry(
            "torch/logistic regression",
            lambda: Setup(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), digits(), CROSS, optimizer("SGD", lr=0.02)),
            mnist,
        ),
    ]
