"""R21: the maze, its walks and its critic's closed form by hand, replicas that do not mix, and claims that can fail."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.studies import find
from levada.study import Results, claims, execute, failures, figures
from levada.study.goal_reaching import (
    ContrastiveCritic,
    Maze,
    draw_pairs,
    exact_critic,
    random_walks,
    success_rate,
    train_critic,
)

STUDY = find("R21")
SHAPE: dict[str, Any] = {"dim": 8, "embedding": 4}
HOW: dict[str, Any] = {"batch_size": 16, "discount": 0.8, "walkers": 8, "walk": 50}


def test_the_maze_is_a_serpentine():
    maze = Maze(8)
    rows = ["".join("." if [r, c] in maze.cells.tolist() else "#" for c in range(8)) for r in range(8)]
    assert rows == ["........", "........", "#######.", "........", "........", ".#######", "........", "........"]
    assert maze.positions.min() == -1
    assert maze.positions.max() == 1
    index = {tuple(cell): place for place, cell in enumerate(maze.cells.tolist())}
    assert maze.follows[index[1, 7]].tolist() == [index[0, 7], index[2, 7], index[1, 6], index[1, 7]]
    assert maze.follows[index[1, 3]].tolist() == [index[0, 3], index[1, 3], index[1, 2], index[1, 4]]
    walk = torch.zeros(len(index), len(index)).index_put_(
        (torch.arange(len(index))[:, None].expand(-1, 4), maze.follows), torch.tensor(0.25), accumulate=True
    )
    assert torch.equal(walk, walk.T)  # so that all cells are as frequent


@pytest.mark.parametrize("size", [0, 3, 4, 6])
def test_a_maze_of_another_size_is_refused(size):
    with pytest.raises(UsageError, match=f"size must be 2, 5, 8 and so on, got {size}"):
        Maze(size)


def test_the_exact_critic_is_what_walks_show_and_reaches_every_goal():
    maze, generator = Maze(2), torch.Generator().manual_seed(0)
    states, actions = (part[None] for part in random_walks(maze, 2000, 60, generator))
    assert torch.equal(maze.follows[states[..., :-1], actions], states[..., 1:])
    at, taken, goal = draw_pairs(states, actions, 0.5, 200_000, [generator])
    counts = torch.zeros(4, 4, 4).index_put_((at[0], taken[0], goal[0]), torch.tensor(1.0), accumulate=True)
    shares = counts / counts.sum(2, keepdim=True)
    torch.testing.assert_close(shares, exact_critic(maze, 0.5).exp().float() / 4, atol=0.02, rtol=0)
    assert success_rate(Maze(8), exact_critic(Maze(8), 0.95)) == 1
    assert success_rate(Maze(8), -exact_critic(Maze(8), 0.95)) < 0.05


def test_success_is_counted_over_pairs_that_differ():
    values = torch.zeros(4, 4, 4)
    values[:, 3] = 1  # always right: 0 -> 1 and 2 -> 3, of 12 pairs
    assert success_rate(Maze(2), values) == pytest.approx(2 / 12)


def test_a_goal_is_some_moves_later_on_the_same_walk():
    states = torch.arange(3 * 101).view(1, 3, 101)  # a cell for each walker and time
    actions = states[..., :-1]
    at, taken, goal = draw_pairs(states, actions, 0.9, 50_000, [torch.Generator().manual_seed(0)])
    assert torch.equal(at, taken)
    assert torch.equal(at // 101, goal // 101)
    waits = (goal - at).double()
    assert waits.min() == 1
    assert waits.mean().item() == pytest.approx(10, rel=0.02)
    assert (waits == 1).double().mean().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("skips", ["residual", "plain"])
def test_a_replica_is_the_network_of_its_seed_written_out(skips):
    critic = ContrastiveCritic(skips, 8, seeds=[3, 4], **SHAPE)
    alone = ContrastiveCritic(skips, 8, seeds=[4], **SHAPE)
    maze = Maze(5)
    torch.testing.assert_close(critic.table(maze)[1:], alone.table(maze))

    def encoded(x, replica):
        dense = [module for module in critic.modules() if hasattr(module, "weight")]
        assert len(dense) == 10
        kept = x
        for place, layer in enumerate(dense):
            x = x @ layer.weight[replica] + layer.bias[replica, 0]
            if place < 9:
                x = nn.functional.silu(nn.functional.layer_norm(x, (8,)))
            if place in (0, 4, 8):
                x = kept = x + kept if place and skips == "residual" else x
        return x

    state, goal = maze.positions[7], maze.positions[2]
    one_hot, none = torch.tensor([0.0, 0, 1, 0]), torch.zeros(4)
    wanted = encoded(torch.cat([state, one_hot]), 1) @ encoded(torch.cat([goal, none]), 3)
    assert critic.table(maze)[1, 7, 2, 2].item() == pytest.approx(wanted.item(), abs=1e-5)


def test_training_approaches_the_exact_critic_and_is_the_same_again():
    maze, found = Maze(2), []
    for seeds in ([0, 1], [1]):
        critic = ContrastiveCritic("residual", 4, seeds=seeds, dim=16, embedding=8)
        how = {**HOW, "batch_size": 256, "walkers": 400}
        losses = train_critic(critic, maze, seeds=seeds, lr=1e-3, steps=400, **how)
        found.append((losses[:, -1], critic.table(maze)[-1].double()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-3)
    assert losses.shape == (400, 1)
    # What all states and actions share of a goal says nothing of where to go.
    table, exact = (values - values.mean((0, 1)) for values in (found[0][1], exact_critic(maze, 0.8)))
    assert (table - exact).square().mean().sqrt() < 0.3 * exact.std()
    assert success_rate(maze, table) == 1


def test_infonce_of_a_critic_that_knows_nothing_is_the_logarithm_of_the_batch():
    critic = ContrastiveCritic("plain", 4, seeds=[0], **SHAPE)
    critic.last.weight.data.zero_()
    loss = train_critic(critic, Maze(5), seeds=[0], lr=1e-3, steps=1, **HOW)
    assert loss.item() == pytest.approx(math.log(16))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda: ContrastiveCritic("dense", 4, seeds=[0], **SHAPE), "skips must be one of residual, plain"),  # type: ignore[arg-type]
        (lambda: ContrastiveCritic("plain", 6, seeds=[0], **SHAPE), "depth must be a multiple of 4, got 6"),
        (lambda: train_critic(ContrastiveCritic("plain", 4, seeds=[0], **SHAPE), Maze(2), seeds=[0], lr=1.0, steps=1,
                              **{**HOW, "batch_size": 1}), "batch_size must be at least 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(change, told):
    with pytest.raises(UsageError, match=told):
        change()


def made_up(**success: float) -> dict[str, str]:
    """The outcome of each claim, had every seed but one these success rates, and that one .1 more."""
    settings = STUDY.resolve("small")
    cells = list(STUDY.configurations(settings, range(5)))
    values = {
        cell.key(seed): {"success": success[f"{cell.config['skips']}{cell.config['depth']}"] + 0.1 * (seed == 2)}
        for cell in cells
        for seed in cell.seeds
    }
    return {claim.name: claim.test(Results(cells, values)).status for claim in STUDY.claims(settings)}


@pytest.mark.parametrize(
    ("deep", "bare", "statuses"),
    [(0.5, 0.49, ["held", "held"]), (0.49, 0.4, ["not held", "held"]), (0.7, 0.5, ["held", "not held"])],
)
def test_each_claim_is_decided_by_its_criterion(deep, bare, statuses):
    assert list(made_up(residual4=0.5, residual32=deep, plain32=bare, plain4=0.9).values()) == statuses


def test_the_smoke_scale_runs_and_decides_nothing(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        run = execute(STUDY, scale="smoke", out=tmp_path, executor=pool)
    assert failures(run) == {}
    assert {claim["status"] for claim in claims(run).values()} == {"not decided"}
    drawn = figures(run)
    assert [len(drawn[name]["series"]) for name in ("success", "losses")] == [9, 8]
