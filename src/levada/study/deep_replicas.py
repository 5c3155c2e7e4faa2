"""Deep networks without normalisation or with it, of several seeds at once: batched products, one branch a layer.

A replica is the network of its seed: its weights are drawn from its own generator, layer after layer, as
`levada.initialise` draws those of an `nn.Linear`, and replicas never mix. Layers are those of a `Stack`, so that its
connections and its checkpointing serve 10,000 of them; `levada.study.replicas` says which other networks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError, require_at_least
from levada.connection import Connection
from levada.connections import Plain, Residual, ReZero
from levada.stack import Stack
from levada.study.training import batches, cross_entropies

__all__ = [
    "Arm",
    "DeepReplicas",
    "Descent",
    "Design",
    "Draw",
    "ReplicaDense",
    "ReplicaNorm",
    "descend",
    "profile",
    "thin",
    "training_loss",
]

Arm: TypeAlias = Literal["plain", "plain with norm", "shared norm", "residual", "pre-norm residual", "ReZero"]
Draw: TypeAlias = Callable[..., nn.Module]  # draw(module, generator=...), such as levada.initialise.orthogonal
Function: TypeAlias = Callable[[Tensor], Tensor]

_CONNECTIONS: dict[str, Callable[..., Connection]] = {  # of all others Plain
    "residual": Residual, "pre-norm residual": Residual, "ReZero": ReZero,
}  # fmt: skip
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adagrad": torch.optim.Adagrad, "Adam": torch.optim.Adam, "SGD": torch.optim.SGD,
}  # fmt: skip


@final
class ReplicaDense(nn.Module):
    """One fully connected layer for every replica: `activation(norm_out(norm_in(x) W + b))`.

    Args:
        dim: number of inputs of a replica.
        dim_out: number of outputs of a replica.
        draw: sets the weights and biases of an `nn.Linear`, from a generator.
        generators: one for each replica.
        activation: the function; none if left out.
        norm: "in" normalises what a replica's layer reads, "out" what it makes, without learned factors.

    Shape:
        `(replicas, batch, dim)` -> `(replicas, batch, dim_out)`.

    Example:
        >>> from levada.initialise import orthogonal
        >>> both = ReplicaDense(4, 4, orthogonal, [torch.Generator().manual_seed(s) for s in (0, 1)])
        >>> alone = orthogonal(nn.Linear(4, 4), generator=torch.Generator().manual_seed(1))
        >>> x = torch.randn(2, 3, 4)
        >>> torch.allclose(both(x)[1], alone(x[1]), atol=1e-6)
        True
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        draw: Draw,
        generators: Sequence[torch.Generator],
        *,
        activation: Function | None = None,
        norm: Literal["", "in", "out"] = "",
    ) -> None:
        super().__init__()
        linear = nn.Linear(dim, dim_out, device="meta").to_empty(device="cpu")
        weights, biases = [], []
        for generator in generators:
            draw(linear, generator=generator)
            weights.append(linear.weight.detach().T.clone())
            biases.append(linear.bias.detach().clone())
        self.weight = nn.Parameter(torch.stack(weights))
        self.bias = nn.Parameter(torch.stack(biases).unsqueeze(1))
        self.activation, self.norm = activation, norm

    def forward(self, x: Tensor) -> Tensor:
        """Apply each replica's layer."""
        if self.norm == "in":
            x = functional.layer_norm(x, x.shape[-1:])
        out = torch.baddbmm(self.bias, x, self.weight)
        if self.norm == "out":
            out = functional.layer_norm(out, out.shape[-1:])
        return out if self.activation is None else self.activation(out)


@final
class ReplicaNorm(nn.Module):
    """Layer normalisation with learned factors and offsets of its own in each replica.

    Args:
        replicas: their number.
        dim: number of features.

    Shape:
        `(replicas, batch, dim)` -> the same.
    """

    def __init__(self, replicas: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(replicas, 1, dim))
        self.bias = nn.Parameter(torch.zeros(replicas, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each example of each replica."""
        return torch.addcmul(self.bias, functional.layer_norm(x, x.shape[-1:]), self.weight)


@final
@dataclass(frozen=True, slots=True)
class Design:
    """A fully connected network: a linear map in, layers of one width, a linear map out.

    Attributes:
        arm: the layer. "plain": `activation(W x + b)`; "plain with norm": the same with layer normalisation before the
            activation; "shared norm": one normalisation, with factors that learn, after the activation of
            every layer; "residual": `x + activation(W x + b)`; "pre-norm residual": the branch reads the normalised
            stream; "ReZero": the branch is scaled by a number, zero at first, of its own in each replica.
        depth: number of layers, the maps in and out not counted.
        dim: width.
        inputs: number of features that come in.
        outputs: number of features that go out.
        draw: sets the weights of an `nn.Linear` from a generator.
        activation: the function.
        weights: number of weights in a branch; of several, the last has no activation after it.
        scale_in: root mean square of the first state for inputs of mean square 1; the logits are as if it were 1.
        draw_in: as `draw`, of the map in; `N(0, 1 / fan_in)` without biases if left out.
        draw_out: the same, of the map out.
        activate_in: whether the activation follows the map in.

    Raises:
        UsageError: if `arm` is not known.

    Source: Bachlechner, Majumder, Mao, Cottrell and McAuley 2020, arXiv 2003.04887 (the arms).
    """

    arm: Arm
    depth: int
    dim: int
    inputs: int
    outputs: int
    draw: Draw
    activation: Function = torch.relu
    weights: int = 1
    scale_in: float = 1.0
    draw_in: Draw | None = None
    draw_out: Draw | None = None
    activate_in: bool = False

    def __post_init__(self) -> None:
        if self.arm not in get_args(Arm):
            raise UsageError(f"Design: arm must be one of {', '.join(get_args(Arm))}, got {self.arm!r}.")

    def branch(self, generators: Sequence[torch.Generator]) -> nn.Module:
        """Draw the branch of one layer.

        Args:
            generators: one for each replica.
        """
        norm: Any = {"plain with norm": "out", "pre-norm residual": "in"}.get(self.arm, "")
        first = ReplicaDense(self.dim, self.dim, self.draw, generators, activation=self.activation, norm=norm)
        rest = [ReplicaDense(self.dim, self.dim, self.draw, generators) for _ in range(self.weights - 1)]
        return nn.Sequential(first, *rest) if rest else first


@final
class DeepReplicas(nn.Module):
    """The network of a design for every replica.

    Args:
        design: the network.
        seeds: one for each replica.
        checkpoint: as of a `Stack`.

    Shape:
        `(batch, replicas, ...)` -> `(batch, replicas, outputs)`; the features of an example are flattened.

    Example:
        >>> from levada.initialise import he
        >>> net = DeepReplicas(Design("ReZero", 9, 4, inputs=40, outputs=10, draw=he), [0, 1, 2])
        >>> net(torch.randn(5, 3, 40)).shape, net.stack[0].connection.scale.shape
        (torch.Size([5, 3, 10]), torch.Size([3, 1, 1]))
    """

    def __init__(self, design: Design, seeds: Sequence[int], *, checkpoint: int | bool = False) -> None:
        super().__init__()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        first = design.activation if design.activate_in else None
        self.first = ReplicaDense(design.inputs, design.dim, design.draw_in or _unit, generators, activation=first)
        branches = [design.branch(generators) for _ in range(design.depth)]
        if design.arm == "shared norm":
            norm = ReplicaNorm(len(seeds), design.dim)
            branches = [nn.Sequential(branch, norm) for branch in branches]
        self.stack = Stack(branches, _CONNECTIONS.get(design.arm, Plain), dim=design.dim, checkpoint=checkpoint)
        for layer in self.stack if design.arm == "ReZero" else ():
            layer.connection.scale = nn.Parameter(torch.zeros(len(seeds), 1, 1))
        self.last = ReplicaDense(design.dim, design.outputs, design.draw_out or _unit, generators)
        self.scale_in = design.scale_in

    def begin(self, x: Tensor) -> Tensor:
        """Return the first state of the stack, `(replicas, batch, dim)`."""
        return self.scale_in * self.first(x.flatten(2).transpose(0, 1))  # type: ignore[no-any-return]

    def end(self, state: Tensor) -> Tensor:
        """Return the logits that the last state leads to, `(batch, replicas, outputs)`."""
        return self.last(state / self.scale_in).transpose(0, 1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every replica."""
        return self.end(self.stack(self.begin(x)))


@torch.no_grad()
def _unit(module: nn.Linear, *, generator: torch.Generator) -> nn.Module:
    module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
    module.bias.zero_()
    return module


@final
@dataclass(frozen=True, slots=True)
class Descent:
    """How to train.

    Attributes:
        optimizer: "SGD", "Adam" or "Adagrad", with PyTorch's other settings.
        lr: the learning rate, kept.
        steps: number of steps.
        batch_size: examples in a step.

    Raises:
        UsageError: if the optimizer is not known.
    """

    optimizer: str
    lr: float
    steps: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS:
            raise UsageError(f"Descent: optimizer must be one of {', '.join(_OPTIMIZERS)}, got {self.optimizer!r}.")


def descend(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    descent: Descent,
    seeds: Sequence[int],
    before_step: Callable[[], None] | None = None,
) -> Tensor:
    """Train a network of replicas by cross-entropy, each on batches in its own seed's order.

    Args:
        model: maps `(batch, replicas, ...)` to logits `(batch, replicas, classes)`.
        inputs: `(num, ...)`, where the model is.
        targets: `(num,)`.
        descent: how.
        seeds: one for each replica: the order of its examples.
        before_step: called when the gradients are there.

    Returns:
        The loss on the batches before each step, `(steps, replicas)`, float64.

    Raises:
        UsageError: if there are fewer examples than a batch takes.
    """
    # Of 20,000 small tensors the fused step takes half the time; Adagrad's is there for processors alone.
    kind: dict[str, Any] = {"foreach": True} if inputs.is_cuda else {"fused": True}
    optimizer = _OPTIMIZERS[descent.optimizer](model.parameters(), lr=descent.lr, **kind)
    losses = []
    for _, index in zip(range(descent.steps), batches(len(inputs), descent.batch_size, seeds), strict=False):
        index = index.to(inputs.device)
        loss = cross_entropies(model(inputs[index]), targets[index])
        optimizer.zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        if before_step is not None:
            before_step()
        optimizer.step()
        losses.append(loss.detach().double())
    return torch.stack(losses).cpu()


@torch.no_grad()
def training_loss(model: nn.Module, inputs: Tensor, targets: Tensor, replicas: int, chunk: int = 500) -> list[float]:
    """Cross-entropy of each replica over all examples; infinite where it is not a number.

    Args:
        model: a network of replicas.
        inputs: `(num, ...)`.
        targets: `(num,)`.
        replicas: number of replicas.
        chunk: examples in a batch.
    """
    total = torch.zeros(replicas, dtype=torch.float64)
    for part, wanted in zip(torch.split(inputs, chunk), torch.split(targets, chunk), strict=True):
        logits = model(part.unsqueeze(1).expand(-1, replicas, *part.shape[1:]))
        total += len(part) * cross_entropies(logits, wanted.unsqueeze(1).expand(-1, replicas)).double().cpu()
    return (total / len(inputs)).nan_to_num(nan=torch.inf).tolist()


def profile(
    network: DeepReplicas, x: Tensor, targets: Tensor, segments: int = 1, *, by_example: bool = False
) -> tuple[Tensor, Tensor]:
    """Root mean square of state and gradient at every boundary of the layers, of each replica, input's side first.

    The backward pass goes segment by segment, each computed again from its first state, so that memory grows as the
    root of the depth where there are as many segments; it shares nothing with the checkpointing of a `Stack`.

    Args:
        network: the network.
        x: `(batch, replicas, ...)`.
        targets: `(batch, replicas)`.
        segments: number of segments.
        by_example: give each example's own.

    Shape:
        Returns two of `(replicas, depth + 1)`, by example `(replicas, depth + 1, batch)`: the states', and those of the
        gradient of each replica's mean loss.

    Raises:
        UsageError: if there is less than one segment, or more than layers.

    Example:
        >>> from levada.initialise import he
        >>> net = DeepReplicas(Design("ReZero", 9, 4, inputs=2, outputs=3, draw=he), [0])
        >>> states, gradients = profile(net, torch.randn(5, 1, 2), torch.zeros(5, 1, dtype=torch.long), 3)
        >>> states.shape, len(gradients.unique())
        (torch.Size([1, 10]), 1)
    """
    layers, size = [*network.stack], _rms_by_example if by_example else _rms
    require_at_least("profile", "segments", segments, 1)
    require_at_least("profile", "the number of layers", len(layers), segments, "Use fewer segments.")
    bounds = [i * len(layers) // segments for i in range(segments + 1)]
    with torch.no_grad():
        state = network.begin(x)
        firsts, forward = [], [size(state)]
        for place, layer in enumerate(layers):
            if place in bounds:
                firsts.append(state)
            state = layer(state)
            forward.append(size(state))
    state.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropies(network.end(state), targets).sum(), state)
    backward = [size(gradient)]
    for start, stop, first in zip(reversed(bounds[:-1]), reversed(bounds[1:]), reversed(firsts), strict=True):
        states = [first.requires_grad_()]
        for layer in layers[start:stop]:
            states.append(layer(states[-1]))
        found = torch.autograd.grad(states[-1], states[:-1], gradient)
        gradient = found[0]
        backward += [size(g) for g in reversed(found)]
    return torch.stack(forward, 1), torch.stack(backward[::-1], 1)


def _rms(x: Tensor) -> Tensor:
    return x.detach().square().mean((1, 2)).sqrt()


def _rms_by_example(x: Tensor) -> Tensor:
    return x.detach().square().mean(2).sqrt()


def thin(values: Tensor, num_points: int = 40, summary: Callable[[Tensor], Tensor] = torch.mean) -> dict[str, Any]:
    """Return a series by step with few points.

    Args:
        values: one number a step.
        num_points: about how many points.
        summary: what a point is of the steps since the last one.

    Returns:
        "steps" and "values".

    Example:
        >>> thin(torch.tensor([4.0, 2.0, 1.0, 0.0]), 2)
        {'steps': [2, 4], 'values': [3.0, 0.5]}
    """
    parts = torch.split(values.double().cpu(), max(1, round(len(values) / num_points)))
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    return {"steps": ends.tolist(), "values": [float(summary(part)) for part in parts]}
