"""A training loop in plain sight: SGD on several replicas at once, deterministic by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import require_at_least
from levada.study.data import Dataset

__all__ = [
    "Curves",
    "Recipe",
    "batches",
    "constant",
    "cosine",
    "cross_entropies",
    "error",
    "fit",
    "held_out",
    "measure_statistics",
    "train",
]


def constant(progress: float) -> float:
    """Keep the learning rate.

    Args:
        progress: share of the steps that are done.
    """
    return 1.0


def cosine(progress: float) -> float:
    """Let the learning rate fall to zero along half a cosine.

    Args:
        progress: share of the steps that are done.
    """
    return (1 + math.cos(math.pi * progress)) / 2


@final
@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: SGD with momentum.

    Attributes:
        steps: number of steps.
        batch_size: examples in a step.
        lr: the learning rate.
        momentum: SGD's momentum.
        weight_decay: added to the gradient as `weight_decay * weight`, for all parameters.
        schedule: share of the steps done -> factor on the learning rate.
        nesterov: whether the momentum is Nesterov's.

    Raises:
        UsageError: if `steps` or `batch_size` is below 1, or `lr` is negative.
    """

    steps: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Callable[[float], float] = constant
    nesterov: bool = False

    def __post_init__(self) -> None:
        require_at_least("Recipe", "steps", self.steps, 1)
        require_at_least("Recipe", "batch_size", self.batch_size, 1)
        require_at_least("Recipe", "lr", self.lr, 0.0)


@final
@dataclass(frozen=True, slots=True)
class Curves:
    """What training recorded, on the batches themselves, before each step.

    Attributes:
        loss: cross-entropy in nats, `(steps, replicas)`.
        error: share of wrong answers, `(steps, replicas)`.
    """

    loss: Tensor
    error: Tensor

    def thinned(self, num_points: int) -> list[dict[str, list[float]]]:
        """Return each replica's curves with few points, each the mean of the steps since the last point.

        Args:
            num_points: number of points, or one more if it does not divide the steps.

        Returns:
            For each replica "steps", "loss" and "error".

        Example:
            >>> curves = Curves(torch.tensor([[4.0], [2.0], [1.0], [0.0]]), torch.zeros(4, 1))
            >>> curves.thinned(2)
            [{'steps': [2.0, 4.0], 'loss': [3.0, 0.5], 'error': [0.0, 0.0]}]
        """
        window = math.ceil(len(self.loss) / num_points)
        steps = [float(min(start + window, len(self.loss))) for start in range(0, len(self.loss), window)]
        means = [
            torch.stack([part.double().mean(0) for part in torch.split(v, window)], 1) for v in (self.loss, self.error)
        ]
        return [
            {"steps": steps, "loss": loss.tolist(), "error": wrong.tolist()} for loss, wrong in zip(*means, strict=True)
        ]


def batches(num_examples: int, batch_size: int, seeds: Sequence[int]) -> Iterator[Tensor]:
    """Give the indices of batches for ever: each replica goes through the examples in an order of its own.

    A rest that does not fill a batch is left out of its epoch.

    Args:
        num_examples: number of examples.
        batch_size: examples in a batch.
        seeds: one for each replica.

    Yields:
        Indices, `(batch_size, replicas)`.

    Raises:
        UsageError: if there are fewer examples than a batch takes.

    Example:
        >>> both = next(batches(100, 8, [0, 1]))
        >>> torch.equal(both[:, 1:], next(batches(100, 8, [1])))
        True
    """
    require_at_least("batches", "num_examples", num_examples, batch_size, "Use a smaller batch.")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        order = torch.stack([torch.randperm(num_examples, generator=g) for g in generators], dim=1)
        yield from torch.split(order[: num_examples - num_examples % batch_size], batch_size)


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of every replica, in nats.

    Args:
        logits: `(batch, replicas, classes)`.
        targets: `(batch, replicas)`.

    Shape:
        Returns `(replicas,)`.
    """
    loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return loss.view_as(targets).mean(0)


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    recipe: Recipe,
    seeds: Sequence[int],
    optimizer: torch.optim.Optimizer | None = None,
    examples: Tensor | None = None,
) -> Curves:
    """Train a network of replicas by cross-entropy, each on batches in its own seed's order.

    Args:
        model: maps `(batch, replicas, ...)` to logits `(batch, replicas, classes)`.
        inputs: `(num, ...)`.
        targets: `(num,)`.
        recipe: how.
        seeds: one for each replica: the order of its examples.
        optimizer: of the model's parameters, instead of SGD with the recipe's momentum and weight decay; the recipe's
            learning rate and schedule count. It must work by element, so that replicas do not mix.
        examples: `(count, replicas)`, the indices of each replica's own examples, instead of all for all.

    Returns:
        The curves.

    Raises:
        UsageError: if there are fewer examples than a batch takes.
    """
    optimizer = optimizer or torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        foreach=True,
    )
    losses, errors = [], []
    count = len(inputs if examples is None else examples)
    model.train()
    for step, place in zip(range(recipe.steps), batches(count, recipe.batch_size, seeds), strict=False):
        index = place if examples is None else examples.gather(0, place)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * recipe.schedule(step / recipe.steps)
        logits, wanted = model(inputs[index]), targets[index]
        loss = cross_entropies(logits, wanted)
        optimizer.zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
        errors.append((logits.argmax(-1) != wanted).double().mean(0))
    return Curves(torch.stack(losses), torch.stack(errors))


@torch.no_grad()
def measure_statistics(
    model: nn.Module, inputs: Tensor, replicas: int, chunk: int = 250, examples: Tensor | None = None
) -> None:
    """Replace batch normalisation's running statistics by their average over `inputs`, weights as they are.

    After a few hundred steps the running average of a deep net still describes nets of earlier weights.

    Args:
        model: a network of replicas with batch normalisation.
        inputs: `(num, ...)`.
        replicas: number of replicas.
        chunk: examples that are normalised together.
        examples: `(count, replicas)`, the indices of each replica's own examples, instead of all for all.

    Source: Wu and Johnson 2021, arXiv 2105.07576.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all chunks
    model.train()
    for part in _parts(inputs, replicas, chunk, examples):
        model(part)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def error(
    model: nn.Module, inputs: Tensor, targets: Tensor, replicas: int, chunk: int = 250, examples: Tensor | None = None
) -> Tensor:
    """Share of wrong answers of each replica, in evaluation mode.

    Args:
        model: a network of replicas.
        inputs: `(num, ...)`.
        targets: `(num,)`.
        replicas: number of replicas.
        chunk: examples in a batch.
        examples: `(count, replicas)`, the indices of each replica's own examples, instead of all for all.

    Shape:
        Returns `(replicas,)`, on the processor.
    """
    model.eval()
    wrong = torch.zeros(replicas, dtype=torch.float64)
    parts = (_parts(values, replicas, chunk, examples) for values in (inputs, targets))
    for part, wanted in zip(*parts, strict=True):
        wrong += (model(part).argmax(-1) != wanted).sum(0).cpu()
    return wrong / len(inputs if examples is None else examples)


def _parts(values: Tensor, replicas: int, chunk: int, examples: Tensor | None) -> Iterator[Tensor]:
    """Give what every replica sees, in parts of `chunk`: `(chunk, replicas, ...)`."""
    if examples is None:
        for part in torch.split(values, chunk):
            yield part.unsqueeze(1).expand(-1, replicas, *values.shape[1:])
    else:
        for index in torch.split(examples, chunk):
            yield values[index]


def fit(model: nn.Module, data: Dataset, recipe: Recipe, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train a network of replicas and measure its errors, with batch statistics of the whole training set.

    Args:
        model: a network of replicas.
        data: the data set.
        recipe: how to train.
        seeds: one for each replica: the order of its examples.

    Returns:
        For each replica "train_error" and "test_error" (shares) and "curves" of 50 points.
    """
    curves = train(model, data.train_inputs, data.train_targets, recipe, seeds).thinned(50)
    measure_statistics(model, data.train_inputs, len(seeds))
    on_train = error(model, data.train_inputs, data.train_targets, len(seeds)).tolist()
    on_test = error(model, data.test_inputs, data.test_targets, len(seeds)).tolist()
    return [
        {"train_error": a, "test_error": b, "curves": curve}
        for a, b, curve in zip(on_train, on_test, curves, strict=True)
    ]


def held_out(data: Dataset, num_fitted: int) -> Dataset:
    """Return a data set that trains on the first examples of the training set and tests on its others.

    Choose settings on it: the test set stays untouched.

    Args:
        data: the data set.
        num_fitted: how many examples train.

    Raises:
        UsageError: if none would be left on one side.
    """
    inputs, targets = data.train_inputs, data.train_targets
    require_at_least("held_out", "num_fitted", num_fitted, 1)
    require_at_least("held_out", "the number of examples held out", len(inputs) - num_fitted, 1)
    return Dataset(
        f"{data.name}, held out", inputs[:num_fitted], targets[:num_fitted], inputs[num_fitted:], targets[num_fitted:]
    )
