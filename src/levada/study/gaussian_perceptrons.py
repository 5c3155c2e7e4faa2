"""Perceptrons with normal weights of a given variance, several seeds side by side, each at its own learning rate.

Hidden layers lie in one tensor, which at a depth of 80 spares the optimizer most of its work, and training ends as soon
as all replicas answer half of their questions; `levada.study.replicas` says which other networks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.study.training import batches, cross_entropies

__all__ = ["GaussianPerceptron", "steps_to_accuracy"]

EXAMPLES, EVERY, TARGET = 500, 20, 0.5  # how many are asked, after how many steps, and the share to reach


@final
class GaussianPerceptron(nn.Module):
    r"""Hidden layers $\phi(W h + b)$ of one width, and a linear classifier, for every replica.

    $W \sim N(0, \sigma_w^2/\mathrm{fan\_in})$ and $b \sim N(0, \sigma_b^2)$ in the hidden layers; the classifier's
    weights have variance 1/dim and its biases are 0.

    Args:
        dim_in: number of inputs.
        dim: width of the hidden layers.
        dim_out: number of classes.
        depth: number of hidden layers.
        weight_variance: $\sigma_w^2$.
        bias_variance: $\sigma_b^2$.
        activation: $\phi$, elementwise.
        seeds: one for each replica, the seed of its weights.

    Shape:
        `(batch, replicas, dim_in)` -> `(batch, replicas, dim_out)`.

    Raises:
        UsageError: if a size or a variance is too small, or there is no seed.

    Example:
        >>> net = GaussianPerceptron(4, 8, 3, 5, weight_variance=1.0, bias_variance=0.0, seeds=[0, 1])
        >>> net(torch.randn(6, 2, 4)).shape
        torch.Size([6, 2, 3])

    Source: Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, arXiv 1611.01232 (the initialisation).
    """

    def __init__(
        self,
        dim_in: int,
        dim: int,
        dim_out: int,
        depth: int,
        *,
        weight_variance: float,
        bias_variance: float,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        seeds: Sequence[int],
    ) -> None:
        super().__init__()
        for name, number in (("dim_in", dim_in), ("dim", dim), ("dim_out", dim_out), ("depth", depth)):
            require_at_least("GaussianPerceptron", name, number, 1)
        require_at_least("GaussianPerceptron", "weight_variance", weight_variance, 0.0)
        require_at_least("GaussianPerceptron", "bias_variance", bias_variance, 0.0)
        if not seeds:
            raise UsageError("GaussianPerceptron: there must be a seed for each replica, got none.")
        self.activation = activation
        hidden = weight_variance**0.5, bias_variance**0.5
        # Layers of one shape lie in one tensor, so that the optimizer sees few of them.
        drawn = [
            (
                *_draw(generator, 1, dim_in, dim, *hidden),
                *_draw(generator, depth - 1, dim, dim, *hidden),
                *_draw(generator, 1, dim, dim_out, 1.0, 0.0),
            )
            for generator in (torch.Generator().manual_seed(seed) for seed in seeds)
        ]
        first, first_bias, weights, biases, last, last_bias = (
            nn.Parameter(torch.stack(part, 1)) for part in zip(*drawn, strict=True)
        )
        self.weights = nn.ParameterList([first, weights, last])
        self.biases = nn.ParameterList([first_bias, biases, last_bias])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every replica."""
        x = x.transpose(0, 1)
        *hidden, last = (
            layer
            for weights, biases in zip(self.weights, self.biases, strict=True)
            for layer in zip(weights.unbind(), biases.unbind(), strict=True)
        )
        for weight, bias in hidden:
            x = self.activation(torch.baddbmm(bias, x, weight))
        return torch.baddbmm(last[1], x, last[0]).transpose(0, 1)


def _draw(
    generator: torch.Generator, num: int, dim_in: int, dim_out: int, weight: float, bias: float
) -> tuple[Tensor, Tensor]:
    """Draw the weights and biases of `num` layers; `weight` and `bias` are deviations, the first times sqrt(fan_in)."""
    weights = torch.randn(num, dim_in, dim_out, generator=generator) * (weight / dim_in**0.5)
    return weights, torch.randn(num, 1, dim_out, generator=generator) * bias


def steps_to_accuracy(
    network: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    steps: int,
    batch_size: int,
    until: Callable[[Tensor], bool] | None = None,
) -> Tensor:
    """Train each replica at a rate of its own; return after how many steps it answers half of its questions right.

    SGD with momentum 0.9 and cross-entropy. Every 20 steps the first 500 examples are asked.

    Args:
        network: maps `(batch, replicas, ...)` to logits `(batch, replicas, classes)`.
        inputs: `(num, ...)`.
        targets: `(num,)`.
        rates: the learning rate of each replica.
        seeds: one for each replica: the order of its examples.
        steps: the most steps that are made.
        batch_size: examples in a step.
        until: given the steps of the replicas so far, says whether to stop before all are there.

    Returns:
        A number of steps for each replica, -1 where these steps were not enough; `(replicas,)`, int64.

    Raises:
        UsageError: if there are fewer examples than a batch takes.

    Example:
        >>> inputs, targets = torch.tensor([[1.0], [-1.0]]).repeat(32, 1), torch.tensor([0, 1]).repeat(32)
        >>> net = GaussianPerceptron(1, 4, 2, 1, weight_variance=1.0, bias_variance=0.0, seeds=[0, 0])
        >>> found = steps_to_accuracy(net, inputs, targets, rates=[0.1, 0.0], seeds=[0, 0], steps=40, batch_size=8)
        >>> 0 <= int(found[0]) <= 40
        True
    """
    own_rates = torch.tensor(rates, device=inputs.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9)
    reached = torch.full((len(seeds),), -1)
    asked, wanted = inputs[:EXAMPLES].unsqueeze(1).expand(-1, len(seeds), *inputs.shape[1:]), targets[:EXAMPLES, None]
    order = batches(len(inputs), batch_size, seeds)
    for step in range(steps + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                share = (network(asked).argmax(-1) == wanted).double().mean(0).cpu()
            reached[(reached < 0) & (share > TARGET)] = step
            if bool((reached >= 0).all()) or (until is not None and until(reached)):
                break
        if step == steps:
            break
        index = next(order).to(inputs.device)
        loss = cross_entropies(network(inputs[index]), targets[index])
        optimizer.zero_grad()
        # A rate on the loss is a rate on the step, and each replica has its own.
        (loss * own_rates).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return reached
