"""Reaching goals in a maze: a contrastive critic learns from random walks without a reward which action leads where.

It is given the pairs that endless walks bring, each as often as it comes: its objective and its optimum are closed
forms, and a network whose embeddings have enough numbers can express it. What is missed is missed in training.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, TypeAlias, final, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada._errors import UsageError, require_at_least
from levada.connections import Plain, Residual
from levada.stack import Stack
from levada.study.training import cosine

__all__ = ["ContrastiveCritic", "Maze", "Skips", "contrastive_loss", "exact_critic", "success_rate", "train_critic"]

Skips: TypeAlias = Literal["residual", "plain"]
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
BLOCK = 4  # layers that a skip spans, as the authors have it


@final
class Maze:
    """A serpentine on a square grid: corridors two cells high, joined by one cell at alternating ends.

    A move into a wall, or out of the grid, leaves everything where it is.

    Args:
        size: rows and columns, 2, 5, 8 and so on.

    Raises:
        UsageError: if `size` is none of these.

    Example:
        >>> maze = Maze(5)
        >>> len(maze.cells), maze.cells[10].tolist()  # all of two rows, then the passage at the right
        (21, [2, 4])
        >>> maze.follows[10].tolist()  # up, down, left, right
        [9, 15, 10, 10]
    """

    def __init__(self, size: int) -> None:
        if size < 2 or size % 3 != 2:
            raise UsageError(f"Maze: size must be 2, 5, 8 and so on, got {size}.")
        passages = {row: (size - 1) * ((row // 3 + 1) % 2) for row in range(2, size, 3)}
        grid = itertools.product(range(size), range(size))
        free = [(row, column) for row, column in grid if passages.get(row, column) == column]
        index = {cell: place for place, cell in enumerate(free)}
        reached = [[index.get((r + down, c + right), index[r, c]) for down, right in MOVES] for r, c in free]
        self.cells = torch.tensor(free)
        self.follows = torch.tensor(reached)
        self.positions = 2 * self.cells / (size - 1) - 1


def exact_critic(maze: Maze, discount: float) -> Tensor:
    r"""Compute the best critic for walks at random: the value of each state, action and goal.

    $$\log \frac{p(g \mid s, a)}{p(g)}, \qquad
      p(\cdot \mid s, a) = (1-\gamma)\, e_{s'} (I - \gamma P)^{-1}$$

    with $s'$ the cell that follows and $P$ the walk's transitions; $p(g)$ is uniform, as $P$ is symmetric.

    Args:
        maze: where.
        discount: $\gamma$; a goal is drawn after k moves with probability $(1-\gamma)\gamma^{k-1}$.

    Shape:
        Returns `(cells, 4, cells)`, float64.

    Example:
        >>> success_rate(Maze(5), exact_critic(Maze(5), 0.9))
        1.0

    Source: van den Oord, Li and Vinyals 2018, arXiv 1807.03748 (the optimum of InfoNCE).
    """
    num = len(maze.cells)
    walk = functional.one_hot(maze.follows, num).double().mean(1)
    later: Tensor = (1 - discount) * torch.linalg.inv(torch.eye(num, dtype=torch.double) - discount * walk)
    return (later[maze.follows] * num).log()


def success_rate(maze: Maze, values: Tensor) -> float:
    """Share of all pairs of a start and another cell as goal in which the greedy policy arrives.

    It moves to where the value is largest, as many times as there are cells: who is not there by then runs in circles.

    Args:
        maze: where.
        values: `(cells, 4, cells)`, of each state, action and goal.

    Example:
        >>> success_rate(Maze(2), torch.zeros(4, 4, 4))  # always up
        0.16666666666666666
    """
    choice, num = values.argmax(1), len(maze.cells)
    goals = torch.arange(num).expand(num, num)
    places = goals.T
    arrived = places == goals
    for _ in range(num):
        places = maze.follows[places, choice[places, goals]]
        arrived = arrived | (places == goals)
    return (int(arrived.sum()) - num) / (num * num - num)


@final
class _Dense(nn.Module):
    """A linear map for every replica, and, but for the last, normalisation of the layer and Swish."""

    def __init__(self, dim: int, dim_out: int, generators: Sequence[torch.Generator], *, last: bool = False) -> None:
        super().__init__()
        bound = dim**-0.5  # LeCun's, uniform, of variance 1 / (3 fan_in), as the authors draw
        drawn = [bound * (2 * torch.rand(dim, dim_out, generator=generator) - 1) for generator in generators]
        self.weight = nn.Parameter(torch.stack(drawn))
        self.bias = nn.Parameter(torch.zeros(len(generators), 1, dim_out))
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        out = torch.baddbmm(self.bias, x, self.weight)
        return out if self.last else functional.silu(functional.layer_norm(out, out.shape[-1:]))


@final
class ContrastiveCritic(nn.Module):
    r"""$f(s, a) \cdot g(\mathrm{goal})$, for several seeds at once: two networks of one shape for each seed.

    A first layer, blocks of four layers, a last linear map; a layer is a linear map, layer normalisation without
    learned gains and Swish. With "residual" each block has a skip over it.

    Args:
        skips: "residual" or "plain".
        depth: layers in blocks, a multiple of 4.
        dim: their width.
        embedding: numbers that come out.
        seeds: one for each replica, the seed of its weights.

    Raises:
        UsageError: if `skips` is not known, or `depth` is no multiple of 4.

    Example:
        >>> critic = ContrastiveCritic("residual", 8, dim=16, embedding=4, seeds=[0, 1, 2])
        >>> critic.table(Maze(2)).shape
        torch.Size([3, 4, 4, 4])

    Source: Wang, Javali, Bortkiewicz, Trzcinski and Eysenbach 2025, arXiv 2503.14858, and the authors' code.
    """

    def __init__(self, skips: Skips, depth: int, *, dim: int, embedding: int, seeds: Sequence[int]) -> None:
        super().__init__()
        if skips not in get_args(Skips):
            raise UsageError(f"ContrastiveCritic: skips must be one of {', '.join(get_args(Skips))}, got {skips!r}.")
        if depth < BLOCK or depth % BLOCK:
            raise UsageError(f"ContrastiveCritic: depth must be a multiple of {BLOCK}, got {depth}.")
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        both = [*own, *own]  # of states with actions first, then of goals
        self.first = _Dense(2 + len(MOVES), dim, both)
        blocks = [nn.Sequential(*(_Dense(dim, dim, both) for _ in range(BLOCK))) for _ in range(depth // BLOCK)]
        self.stack = Stack(blocks, Residual if skips == "residual" else Plain, dim=dim)
        self.last = _Dense(dim, embedding, both, last=True)

    def forward(self, states: Tensor, actions: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
        """Embed states with actions, and goals.

        Args:
            states: positions, `(replicas, batch, 2)`.
            actions: numbers from 0 to 3, `(replicas, batch)`.
            goals: positions, `(replicas, batch, 2)`.

        Returns:
            Both embeddings, `(replicas, batch, embedding)`.
        """
        taken = functional.one_hot(actions, len(MOVES)).to(states.dtype)
        x = torch.cat([torch.cat([states, taken], 2), functional.pad(goals, (0, len(MOVES)))])
        first, second = self.last(self.stack(self.first(x))).chunk(2)
        return first, second

    def table(self, maze: Maze) -> Tensor:
        """Return the values of every state, action and goal, `(replicas, cells, 4, cells)`."""
        num, replicas, device = len(maze.cells), len(self.first.weight) // 2, self.first.weight.device
        actions = torch.arange(len(MOVES), device=device).repeat(num).expand(replicas, -1)
        states = maze.positions.to(device).repeat_interleave(len(MOVES), 0).expand(replicas, -1, -1)
        goals = maze.positions.to(device).repeat(len(MOVES), 1).expand(replicas, -1, -1)
        first, second = self(states, actions, goals)
        values: Tensor = (first @ second[:, :num].mT).view(replicas, num, len(MOVES), num)
        return values


def contrastive_loss(values: Tensor, exact: Tensor) -> Tensor:
    r"""Compute InfoNCE in both directions over all pairs, less the least that it can be.

    $$\tfrac12 \big[\mathrm{KL}(p(g \mid s, a) \,\|\, \mathrm{softmax}_g f) +
      \mathrm{KL}(p(s, a \mid g) \,\|\, \mathrm{softmax}_{s, a} f)\big]$$

    the mean over states and actions, and over goals: each pair comes as often as on endless walks, and all others are
    what it is told from. It is 0 where the values are the exact critic's, up to one constant.

    Args:
        values: $f$, `(replicas, cells, 4, cells)`.
        exact: `exact_critic` of the maze, `(cells, 4, cells)`.

    Shape:
        Returns `(replicas,)`, nats.

    Example:
        >>> exact = exact_critic(Maze(5), 0.9)
        >>> contrastive_loss(exact[None] + 3, exact).abs().item() < 1e-12
        True

    Source: van den Oord, Li and Vinyals 2018, arXiv 1807.03748 (InfoNCE).
    """
    found, target = values.flatten(1, 2), exact.flatten(0, 1).to(values.dtype)
    apart = [
        functional.kl_div(found.log_softmax(dim), target.log_softmax(dim - 1), reduction="none", log_target=True)
        .sum(dim)
        .mean(1)
        for dim in (2, 1)
    ]
    return (apart[0] + apart[1]) / 2


def train_critic(critic: ContrastiveCritic, maze: Maze, *, discount: float, steps: int, lr: float) -> Tensor:
    """Train by Adam on the contrastive loss; the learning rate falls along half a cosine.

    Args:
        critic: a network of replicas; it is changed.
        maze: where the walks are.
        discount: how far ahead goals are, as in `exact_critic`.
        steps: how many.
        lr: the learning rate of the first step.

    Returns:
        The loss before each step, `(steps, replicas)`, nats.

    Raises:
        UsageError: if there is less than one step.
    """
    require_at_least("train_critic", "steps", steps, 1)
    exact = exact_critic(maze, discount).to(critic.first.weight)
    optimizer = torch.optim.Adam(critic.parameters(), lr=lr, foreach=True)
    losses: list[Tensor] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * cosine(step / steps)
        loss = contrastive_loss(critic.table(maze), exact)
        optimizer.zero_grad()
        loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()
