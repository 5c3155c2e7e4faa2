"""Classifiers, regressions and language models of torch.nn and by hand."""

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


class Factors(nn.Module):
    """Matrix factorisation with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 8), nn.Embedding(80, 8)
        self.user_bias, self.item_bias = nn.Embedding(50, 1), nn.Embedding(80, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, 0.0, 0.1)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        biases = self.user_bias(user) + self.item_bias(item)
        return (self.user(user) * self.item(item)).sum(-1) + biases[:, 0]


def ratings() -> Setup:
    users, items = torch.randn(50, 3), torch.randn(80, 3)
    batches = []
    for _ in range(6):
        user, item = torch.randint(50, (128,)), torch.randint(80, (128,))
        truth = (users[user] * items[item]).sum(-1) + users[user, 0] + 0.1 * torch.randn(128)
        batches.append(((user, item), truth))
    return Setup(Factors(), batches, MEAN_SQUARE, optimizer("Adam", lr=1e-2))


class Skipgram(nn.Module):
    """word2vec with negative sampling; the output vectors start at zero, as in the authors' program."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Embedding(VOCABULARY, 32, sparse=True), nn.Embedding(VOCABULARY, 32, sparse=True)
        nn.init.uniform_(self.inner.weight, -0.5 / 32, 0.5 / 32)
        nn.init.zeros_(self.outer.weight)

    def forward(self, centre: Tensor, context: Tensor) -> Tensor:
        return (self.inner(centre)[:, None] * self.outer(context)).sum(-1)


def skipgram() -> Setup:
    batches = []
    for tokens in text(64):
        centre = tokens[:, 1:-1].flatten()
        around = torch.stack([tokens[:, :-2].flatten(), tokens[:, 2:].flatten()], 1)
        noise = tokens.flatten()[torch.randint(tokens.numel(), (len(centre), 5))]
        truth = torch.cat([torch.ones_like(around), torch.zeros_like(noise)], 1).float()
        batches.append(((centre, torch.cat([around, noise], 1)), truth))
    return Setup(
        Skipgram(), batches, lambda o, t: LOGISTIC(o, t, reduction="sum") / len(o), optimizer("SparseAdam", lr=0.02)
    )


LOGISTIC = functional.binary_cross_entropy_with_logits


class Sets(nn.Module):
    """Deep sets: a sum over elements between two perceptrons (Zaheer et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        self.all = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, points: Tensor) -> Tensor:
        return self.all(self.each(points).sum(1))[:, 0]


def sets() -> Setup:
    batches = []
    for _ in range(6):
        points = torch.randn(32, 10, 2) * torch.rand(32, 1, 1) * 2
        batches.append((points, points.norm(dim=-1).amax(1)))
    return Setup(Sets(), batches, MEAN_SQUARE, ADAM)


class Graph(nn.Module):
    """Two graph convolutions (Kipf and Welling 2016)."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.first, self.second = nn.Linear(64, 16), nn.Linear(16, 4)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.dropout((self.adjacency @ self.first(features)).relu(), 0.5, self.training)
        return self.adjacency @ self.second(hidden)


def graph() -> Setup:
    """Four communities of 30, words that lean towards their own, labels of every fifth node."""
    label = torch.arange(120) % 4
    link = torch.where(label[:, None] == label, 0.2, 0.02)
    edges = (torch.rand(120, 120) < link).triu(1).float()
    edges = edges + edges.T + torch.eye(120)
    scale = edges.sum(1).rsqrt()
    words = (torch.rand(120, 64) < torch.where(label[:, None] == torch.arange(64) % 4, 0.15, 0.05)).float()
    words = words / words.sum(1, keepdim=True).clamp(min=1)
    known = torch.where(torch.arange(120) % 5 < 2, label, -100)
    model = Graph(scale[:, None] * edges * scale)
    return Setup(model, [(words, known)], CROSS, optimizer("Adam", lr=0.01, weight_decay=5e-4))


def linear() -> Setup:
    """Linear regression on eight features."""
    weight = torch.randn(8)
    batches = []
    for _ in range(6):
        x = torch.randn(32, 8)
        batches.append((x, (x @ weight + 0.5 + 0.1 * torch.randn(32))[:, None]))
    return Setup(nn.Linear(8, 1), batches, MEAN_SQUARE, optimizer("SGD", lr=0.05))


class LowRank(nn.Module):
    """A frozen linear layer with an adapter of rank 4 that starts at zero (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.up(self.down(x))


def adapted() -> Setup:
    """Digits below five are learned in full, the others by adapters."""
    model = nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()),
        *(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    batches = digits(rows=64, batches=12)
    pretrain(model, [(x[y < 5], y[y < 5]) for x, y in batches])
    for i in (1, 3, 5, 7):
        model[i] = LowRank(model[i])
    return Setup(model, [(x[y >= 5][:24], y[y >= 5][:24]) for x, y in batches[:6]], CROSS, adamw(2e-3, 0.0))


def frozen() -> Setup:
    """A convolutional backbone that learned digits below five, and a new head."""
    backbone = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32)),
        *(nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    batches = digits(rows=64, batches=12)
    pretrain(nn.Sequential(backbone, nn.Linear(64, 5)), [(x[y < 5], y[y < 5]) for x, y in batches])
    model = nn.Sequential(backbone.requires_grad_(False), nn.Linear(64, 10))
    model[0].eval()
    return Setup(model, [(x[y >= 5][:24], y[y >= 5][:24]) for x, y in batches[:6]], CROSS, optimizer("Adam", lr=1e-2))


def pretrain(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    step = torch.optim.Adam(model.parameters(), lr=2e-3)
    for x, y in batches * 3:
        step.zero_grad()
        CROSS(model(x), y).backward()
        step.step()


class WideAndDeep(nn.Module):
    """Categories embedded for a perceptron, and weighed one by one beside it (Cheng et al. 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(4))
        self.deep = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        self.wide = nn.EmbeddingBag(80, 1, mode="sum")

    def forward(self, fields: Tensor) -> Tensor:
        deep = self.deep(torch.cat([table(fields[:, i]) for i, table in enumerate(self.tables)], 1))
        return (deep + self.wide(fields + 20 * torch.arange(4)))[:, 0]


def clicks() -> Setup:
    weights = torch.randn(4, 20)
    batches = []
    for _ in range(6):
        fields = torch.randint(20, (128, 4))
        truth = (
            weights[torch.arange(4), fields].sum(1) + weights[0, fields[:, 0]] * weights[1, fields[:, 1]]
        ).sigmoid()
        batches.append((fields, (torch.rand(128) < truth).float()))
    return Setup(WideAndDeep(), batches, LOGISTIC, optimizer("Adagrad", lr=0.02))


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
        Entry("torch/matrix factorisation", ratings, "synthetic ratings of rank 3", 40),
        Entry("torch/word2vec", skipgram, bible, 40),
        Entry("torch/deep sets", sets, "synthetic points, their largest radius", 40),
        Entry("torch/graph convolutions", graph, "a synthetic graph of four communities", 40),
        Entry("torch/linear regression", linear, "synthetic, linear with noise"),
        Entry(
            "torch/logistic regression",
            lambda: Setup(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), digits(), CROSS, optimizer("SGD", lr=0.02)),
            mnist,
        ),
        Entry("torch/low-rank adaptation", adapted, mnist, 40),
        Entry("torch/frozen backbone", frozen, mnist, 40),
        Entry("torch/wide and deep", clicks, "synthetic clicks on four categories", 40),
    ]
