"""Networks of replicas without some of their blocks: deleted after training, or left out at random in training.

A lesion is the sequence of blocks that are run: one left out is deleted, two in each other's place are swapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.study.replicas import SignalNetwork, signal_layout

__all__ = [
    "Draw",
    "RandomBlocks",
    "WeightedBlocks",
    "disorder",
    "lesion_errors",
    "linear_decay",
    "some_blocks",
    "survival_by_block",
    "without",
]

Draw: TypeAlias = Callable[[torch.Generator], Tensor]
"""What says which blocks a step runs: generator -> 1 or 0 for each block."""


def without(num_blocks: int, deleted: Iterable[int]) -> list[int]:
    """Return the lesion that deletes blocks: all others, in their order.

    Args:
        num_blocks: number of blocks.
        deleted: those to delete.

    Example:
        >>> without(5, [0, 3])
        [1, 2, 4]
    """
    gone = set(deleted)
    return [block for block in range(num_blocks) if block not in gone]


def disorder(order: Sequence[int]) -> float:
    """Share of pairs of blocks that are run in the wrong order: 0 as trained, 1 reversed; Kendall's tau is 1 - 2 of it.

    Args:
        order: blocks as they are run, at least two.

    Example:
        >>> disorder([0, 1, 2, 3]), disorder([1, 0, 2, 3]) * 6, disorder([3, 2, 1, 0])
        (0.0, 1.0, 1.0)
    """
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    require_at_least("disorder", "the number of blocks", len(order), 2)
    return sum(a > b for a, b in pairs) / len(pairs)


@torch.no_grad()
def lesion_errors(
    network: SignalNetwork, inputs: Tensor, targets: Tensor, lesions: Sequence[Sequence[int]], chunk: int = 250
) -> Tensor:
    """Share of wrong answers of each replica after each lesion, in evaluation mode, statistics as they are.

    Args:
        network: a trained network of replicas.
        inputs: `(num, length)`.
        targets: `(num,)`.
        lesions: for each the blocks that are run, in order.
        chunk: examples in a batch.

    Shape:
        Returns `(lesions, replicas)`.

    Raises:
        UsageError: if a lesion names a block that is not there.
    """
    depth, replicas = len(network.stack), network.classifier.weight.shape[0]
    for lesion in lesions:
        if not set(lesion) <= set(range(depth)):
            raise UsageError(f"lesion_errors: there are blocks 0 to {depth - 1}, got the lesion {list(lesion)}.")
    network.eval()
    wrong = torch.zeros(len(lesions), replicas, dtype=torch.float64)
    for part, wanted in zip(torch.split(inputs, chunk), torch.split(targets, chunk), strict=True):
        x = part.unsqueeze(1).expand(-1, replicas, -1)
        states = [network.first(signal_layout(x))]  # after 0, 1, ... blocks of the whole network
        for layer in network.stack:
            states.append(layer(states[-1]))
        for i, lesion in enumerate(lesions):
            kept = next((place for place, block in enumerate(lesion) if block != place), len(lesion))
            state = states[kept]
            for block in lesion[kept:]:
                state = network.stack[block](state)
            wrong[i] += (network.classify(state).argmax(-1) != wanted.unsqueeze(1)).sum(0).cpu()
    return wrong / len(inputs)


def linear_decay(num_blocks: int, survival: float) -> Draw:
    """Run each block with a probability that falls linearly to `survival` at the last: stochastic depth.

    Args:
        num_blocks: number of blocks L.
        survival: of the last block.

    Returns:
        The draw: block l = 1 ... L runs with probability `1 - l / L (1 - survival)`, independently.

    Source: Huang, Sun, Liu, Sedra and Weinberger 2016, arXiv 1603.09382.
    """
    alive = survival_by_block(num_blocks, survival)
    return lambda generator: (torch.rand(num_blocks, generator=generator) < alive).float()


def survival_by_block(num_blocks: int, survival: float) -> Tensor:
    """Return the probabilities of stochastic depth's linear decay; they sum to `L - (1 - survival) (L + 1) / 2`.

    Args:
        num_blocks: number of blocks L.
        survival: probability of the last block, in `(0, 1]`.

    Raises:
        UsageError: if `survival` is not in `(0, 1]`.

    Example:
        >>> survival_by_block(4, 0.5)
        tensor([0.8750, 0.7500, 0.6250, 0.5000])
        >>> survival_by_block(54, 0.5).sum().item()
        40.25
    """
    if not 0 < survival <= 1:
        raise UsageError(f"survival_by_block: survival must be in (0, 1], got {survival}.")
    return 1 - torch.arange(1, num_blocks + 1) / num_blocks * (1 - survival)


def some_blocks(num_blocks: int, num_alive: int) -> Draw:
    """Run `num_alive` of the blocks, each set as likely as any other.

    Args:
        num_blocks: number of blocks.
        num_alive: how many of them are run.

    Returns:
        The draw.

    Raises:
        UsageError: if `num_alive` is not between 1 and the number of blocks.

    Example:
        >>> int(some_blocks(54, 23)(torch.Generator().manual_seed(0)).sum())
        23

    Source: Veit, Wilber and Belongie 2016, arXiv 1605.06431.
    """
    if not 1 <= num_alive <= num_blocks:
        raise UsageError(f"some_blocks: num_alive must be between 1 and {num_blocks}, got {num_alive}.")

    def draw(generator: torch.Generator) -> Tensor:
        alive = torch.zeros(num_blocks)
        alive[torch.randperm(num_blocks, generator=generator)[:num_alive]] = 1.0
        return alive

    return draw


@final
class RandomBlocks(nn.Module):
    """A residual network of replicas in training: each replica runs blocks of its own draw, anew in every pass.

    The others' branches are multiplied by zero: replicas share each convolution, so that nothing is saved, and what
    would be is counted in `evaluations`.

    Args:
        network: a residual network; it is trained in place.
        draw: which blocks a pass runs.
        seeds: one for each replica, the seed of its draws.

    Shape:
        `(batch, replicas, length)` -> `(batch, replicas, num_classes)`.

    Raises:
        UsageError: if the network is not residual.

    Example:
        >>> network = SignalNetwork("residual", 12, channels=4, num_classes=10, seeds=[0, 1])
        >>> training = RandomBlocks(network, some_blocks(5, 2), seeds=[0, 1])
        >>> training(torch.randn(8, 2, 40)).shape, training.evaluations, training.passes
        (torch.Size([8, 2, 10]), [2, 2], 1)
    """

    def __init__(self, network: SignalNetwork, draw: Draw, seeds: Sequence[int]) -> None:
        super().__init__()
        require_residual("RandomBlocks", network)
        self.network, self.draw = network, draw
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.evaluations = [0] * len(seeds)
        """Blocks that each replica ran so far."""
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every replica, without the blocks that it does not run."""
        alive = torch.stack([self.draw(generator) for generator in self.generators], 1)
        counts = [int(count) for count in alive.sum(0).tolist()]
        self.evaluations = [before + count for before, count in zip(self.evaluations, counts, strict=True)]
        self.passes += 1
        return _weighted(self.network, x, alive)


@final
class WeightedBlocks(nn.Module):
    """A residual network of replicas whose branches are multiplied by fixed numbers, such as their survival.

    Args:
        network: a residual network.
        weights: one for each block.

    Shape:
        `(batch, replicas, length)` -> `(batch, replicas, num_classes)`.

    Raises:
        UsageError: if the network is not residual, or there is not one weight for each block.

    Source: Huang, Sun, Liu, Sedra and Weinberger 2016, arXiv 1603.09382 (evaluation after stochastic depth).
    """

    def __init__(self, network: SignalNetwork, weights: Tensor) -> None:
        super().__init__()
        require_residual("WeightedBlocks", network)
        if weights.shape != (len(network.stack),):
            raise UsageError(
                f"WeightedBlocks: weights must be one for each of {len(network.stack)} blocks, got a tensor of shape "
                f"{tuple(weights.shape)}."
            )
        self.network = network
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of every replica."""
        replicas = self.network.classifier.weight.shape[0]
        return _weighted(self.network, x, self.weights.unsqueeze(1).expand(-1, replicas))


def require_residual(owner: str, network: SignalNetwork) -> None:
    """Raise unless a network's layers add to a stream.

    Args:
        owner: who asks.
        network: the network.

    Raises:
        UsageError: if they do not.
    """
    kind = type(network.stack[0].connection).__name__
    if kind != "Residual":
        raise UsageError(f"{owner}: the network must be a residual one, got the connection {kind}.")


def _weighted(network: SignalNetwork, x: Tensor, weights: Tensor) -> Tensor:
    """Run a network with its branches multiplied by `weights`, `(blocks, replicas)`."""
    state = network.first(signal_layout(x))
    channels = state.shape[1] // weights.shape[1]
    factors = weights.to(state).repeat_interleave(channels, 1)[:, None, :, None, None]
    for layer, factor in zip(network.stack, factors, strict=True):
        state = torch.addcmul(state, layer.branch(state), factor)
    return network.classify(state)
