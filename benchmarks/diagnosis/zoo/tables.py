"""Regressions, tables of embeddings, sets, graphs, and what is trained beside frozen weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis.program import Setup
from benchmarks.diagnosis.zoo.entry import Entry, adamw, digits, optimizer, text

__all__ = ["entries"]

CROSS, MEAN_SQUARE, VOCABULARY = functional.cross_entropy, functional.mse_loss, 96
ADAM = optimizer("Adam", lr=1e-3)


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


def entries() -> list[Entry]:
    """Return the entries."""
    bible, mnist = "King James Bible", "MNIST"
    return [
        Entry("torch/matrix factorisation", ratings, "synthetic ratings of rank 3", 40),
        Entry("torch/word2vec", skipgram, bible, 40),
        Entry("torch/deep sets", sets, "synthetic points, their largest radius", 40),
        Entry("torch/graph convolutions", graph, "a synthetic graph of four communities", 40),
        Entry("torch/linear regression", linear, "synthetic, linear with noise"),
        Entry("torch/low-rank adaptation", adapted, mnist, 40),
        Entry("torch/frozen backbone", frozen, mnist, 40),
        Entry("torch/wide and deep", clicks, "synthetic clicks on four categories", 40),
    ]
