"""Fully connected networks, plain and highway, that train many trials at once: each with its seed, rate and gate bias.

Trials are the first axis of every tensor and of every weight; a batched matrix product never mixes them, so that each
is the network that it would be alone. A search trains its trials side by side; `levada.study.replicas` says which other
networks there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError, require_at_least
from levada.connections import Highway, Plain
from levada.stack import Stack
from levada.study.training import Curves, batches

__all__ = ["WORST", "DenseNetwork", "Kind", "Trial", "TrialDense", "evaluate", "train_trials"]

Kind: TypeAlias = Literal["plain", "highway"]
_ACTIVATIONS: dict[str, tuple[type[nn.Module], float]] = {"relu": (nn.ReLU, 2.0), "tanh": (nn.Tanh, 1.0)}

WORST = 1e6
"""The cross-entropy, in nats, that a network is given whose own is not finite or larger."""


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """What differs between the networks that train at once.

    Attributes:
        seed: of the weights and of the order of the examples.
        lr: the learning rate.
        bias: where the bias of the transform gates starts; of no account in a plain network.
    """

    seed: int
    lr: float
    bias: float = -2.0


@final
class TrialDense(nn.Module):
    """A fully connected layer for every trial; weights from N(0, variance / dim).

    Args:
        dim: number of inputs.
        dim_out: number of outputs.
        variance: of the weights, times `dim`.
        generators: one for each trial.
        biases: where the biases start, one number for each trial; 0 if left out.

    Shape:
        `(trials, batch, dim)` -> `(trials, batch, dim_out)`.

    Example:
        >>> both = TrialDense(3, 2, 1.0, [torch.Generator().manual_seed(s) for s in (0, 1)], [-1.0, -2.0])
        >>> alone = TrialDense(3, 2, 1.0, [torch.Generator().manual_seed(1)], [-2.0])
        >>> x = torch.randn(2, 5, 3)
        >>> torch.allclose(both(x)[1:], alone(x[1:]))
        True
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        variance: float,
        generators: Sequence[torch.Generator],
        biases: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        drawn = [torch.randn(dim, dim_out, generator=generator) for generator in generators]
        self.weight = nn.Parameter(torch.stack(drawn) * math.sqrt(variance / dim))
        starts = torch.tensor(biases or [0.0] * len(generators), dtype=torch.float32)
        self.bias = nn.Parameter(starts.view(-1, 1, 1).repeat(1, 1, dim_out))

    def forward(self, x: Tensor) -> Tensor:
        """Apply each trial's layer to its own inputs."""
        return torch.baddbmm(self.bias, x, self.weight)


@final
class DenseNetwork(nn.Module):
    """A fully connected layer, `depth - 1` more that are plain or highway layers, and a linear classifier.

    `x_1 = f(W x + b)`, then `x' = f(W x + b)` (plain) or `x' = T(x) f(W x + b) + (1 - T(x)) x` with
    `T(x) = sigmoid(V x + c)`, where `c` starts at the trial's bias (highway)

    Weights `W` are from N(0, 2/n) for ReLU and N(0, 1/n) for tanh, those of gates and classifier from N(0, 1/n).

    Args:
        kind: "plain" or "highway".
        depth: number of hidden layers.
        trials: what the networks differ in.
        width: number of units of a hidden layer.
        activation: "relu" or "tanh".
        inputs: number of inputs.
        classes: number of classes.

    Shape:
        `(trials, batch, inputs)` -> `(trials, batch, classes)`.

    Raises:
        UsageError: if `kind` or `activation` is not known, or `depth` is below 2.

    Example:
        >>> trials = [Trial(seed=0, lr=0.1, bias=-1.0), Trial(seed=1, lr=0.1, bias=-4.0)]
        >>> network = DenseNetwork("highway", 10, trials, width=5, activation="tanh", inputs=7)
        >>> network(torch.randn(2, 3, 7)).shape, len(network.stack)
        (torch.Size([2, 3, 10]), 9)

    Source: Srivastava, Greff and Schmidhuber 2015, arXiv 1505.00387.
    """

    def __init__(
        self,
        kind: Kind,
        depth: int,
        trials: Sequence[Trial],
        *,
        width: int,
        activation: str = "relu",
        inputs: int = 784,
        classes: int = 10,
    ) -> None:
        super().__init__()
        for name, value, known in (("kind", kind, get_args(Kind)), ("activation", activation, tuple(_ACTIVATIONS))):
            if value not in known:
                raise UsageError(f"DenseNetwork: {name} must be one of {', '.join(known)}, got {value!r}.")
        require_at_least("DenseNetwork", "depth", depth, 2)
        function, variance = _ACTIVATIONS[activation]
        generators = [torch.Generator().manual_seed(trial.seed) for trial in trials]
        biases = [trial.bias for trial in trials]

        def layer(dim: int) -> nn.Module:
            return nn.Sequential(TrialDense(dim, width, variance, generators), function())

        def gate(dim: int) -> nn.Module:
            return TrialDense(dim, dim, 1.0, generators, biases)

        self.first = layer(inputs)
        options: dict[str, Any] = {"bias": None, "gate": gate} if kind == "highway" else {}
        self.stack = Stack(layer, Highway if kind == "highway" else Plain, dim=width, depth=depth - 1, **options)
        self.classifier = TrialDense(width, classes, 1.0, generators)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every trial."""
        return self.classifier(self.stack(self.first(x)))  # type: ignore[no-any-return]

    @torch.no_grad()
    def changes(self, x: Tensor) -> Tensor:
        """Return how much each layer of the stack changes the stream: `|x' - x| / |x|`, norms over the batch.

        Args:
            x: `(trials, batch, inputs)`.

        Shape:
            Returns `(trials, depth - 1)`.
        """
        state, found = self.first(x), []
        for layer in self.stack:
            new = layer(state)
            found.append((new - state).norm(dim=(1, 2)) / state.norm(dim=(1, 2)))
            state = new
        return torch.stack(found, dim=1)


def train_trials(
    network: DenseNetwork, inputs: Tensor, targets: Tensor, trials: Sequence[Trial], *, steps: int, batch_size: int
) -> Curves:
    """Train by SGD with momentum 0.9; the rates fall exponentially, to a tenth at the end.

    Args:
        network: whose trials these are.
        inputs: `(num, inputs)`, where the network is.
        targets: `(num,)`.
        trials: each with its learning rate and the seed of its order of the examples.
        steps: number of steps.
        batch_size: examples in a step.

    Returns:
        Loss and error on the batches before each step.

    Raises:
        UsageError: if there are fewer examples than a batch takes.
    """
    # SGD is linear in the gradient: a factor on a trial's loss is its learning rate.
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, foreach=True)
    rates = torch.tensor([trial.lr for trial in trials], device=inputs.device)
    losses, errors = [], []
    order = batches(len(inputs), batch_size, [trial.seed for trial in trials])
    for step, index in zip(range(steps), order, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 ** (step / steps)
        chosen = index.T.to(inputs.device)
        logits, wanted = network(inputs[chosen]), targets[chosen]
        loss = functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(1)
        optimizer.zero_grad()
        (loss @ rates).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
        errors.append((logits.detach().argmax(-1) != wanted).double().mean(1))
    return Curves(_bounded(torch.stack(losses)).cpu(), torch.stack(errors).cpu())


@torch.no_grad()
def evaluate(
    network: DenseNetwork, inputs: Tensor, targets: Tensor, num_trials: int, chunk: int = 500
) -> list[dict[str, Any]]:
    """Return each trial's mean cross-entropy in nats, at most `WORST`, and its share of wrong answers.

    Args:
        network: the network.
        inputs: `(num, inputs)`.
        targets: `(num,)`.
        num_trials: number of trials.
        chunk: examples in a batch.

    Returns:
        For each trial "loss" and "error".
    """
    loss = torch.zeros(num_trials, dtype=torch.float64, device=inputs.device)
    wrong = torch.zeros_like(loss)
    for x, wanted in zip(torch.split(inputs, chunk), torch.split(targets, chunk), strict=True):
        logits = network(x.expand(num_trials, *x.shape)).double()
        wanted = wanted.expand(num_trials, -1)
        loss += functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").sum(1)
        wrong += (logits.argmax(-1) != wanted).sum(1)
    means = _bounded(loss / len(inputs)).tolist()
    return [{"loss": a, "error": b} for a, b in zip(means, (wrong / len(inputs)).tolist(), strict=True)]


def _bounded(loss: Tensor) -> Tensor:
    return torch.nan_to_num(loss, nan=WORST, posinf=WORST).clamp(max=WORST)
