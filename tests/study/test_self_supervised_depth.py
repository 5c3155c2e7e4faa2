"""R21: the maze, its walks and its critic's closed form by hand, replicas that do not mix, and claims that can fail."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

from levada._errors import UsageError
from levada.studies import find, self_supervised_depth
from levada.study import Results, claims, execute, failures, figures
from levada.study.goal_reaching import (
    ContrastiveCritic,
    Maze,
    contrastive_loss,
    exact_critic,
    success_rate,
    train_critic,
)

STUDY = find("R21")
SHAPE: dict[str, Any] = {"dim": 8, "embedding": 4}


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
    maze, generator, discount = Maze(2), torch.Generator().manual_seed(0), 0.5
    start, taken = (torch.randint(4, (200_000,), generator=generator) for _ in range(2))
    goal, walking = maze.follows[start, taken], torch.ones(200_000, dtype=torch.bool)
    for _ in range(30):  # a goal is k moves away with probability (1 - discount) discount^(k - 1)
        walking = walking & (torch.rand(200_000, generator=generator) < discount)
        goal = torch.where(walking, maze.follows[goal, torch.randint(4, (200_000,), generator=generator)], goal)
    counts = torch.zeros(4, 4, 4).index_put_((start, taken, goal), torch.tensor(1.0), accumulate=True)
    shares = counts / counts.sum(2, keepdim=True)
    torch.testing.assert_close(shares, exact_critic(maze, discount).exp().float() / 4, atol=0.02, rtol=0)
    assert success_rate(Maze(8), exact_critic(Maze(8), 0.95)) == 1
    assert success_rate(Maze(8), -exact_critic(Maze(8), 0.95)) < 0.05


@pytest.mark.parametrize("scale", ["small", "full"])
def test_the_embeddings_have_numbers_enough_for_every_goal(scale):
    settings = STUDY.resolve(scale)
    maze, rank = Maze(settings["size"]), settings["embedding"]
    exact = exact_critic(maze, settings["discount"])
    left, values, right = torch.linalg.svd(exact.flatten(0, 1), full_matrices=False)
    assert success_rate(maze, ((left[:, :rank] * values[:rank]) @ right[:rank]).view_as(exact)) > 0.999


def test_the_loss_is_written_out_and_least_at_the_exact_critic():
    exact = exact_critic(Maze(5), 0.8)
    values = torch.randn(2, *exact.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    pairs = exact.exp() / 21 / 84  # of a state, an action and a goal together

    def infonce(table):
        told = [-(pairs * table.log_softmax(2)).sum(), -(pairs * (table - table.logsumexp((0, 1)))).sum()]
        return (told[0] + told[1]) / 2

    expected = torch.stack([infonce(table) - infonce(exact) for table in values])
    torch.testing.assert_close(contrastive_loss(values, exact), expected)
    assert contrastive_loss(exact[None] - 2, exact).item() == pytest.approx(0, abs=1e-12)
    assert (contrastive_loss(exact + 1e-3 * values, exact) > 1e-9).all()


def test_success_is_counted_over_pairs_that_differ():
    values = torch.zeros(4, 4, 4)
    values[:, 3] = 1  # always right: 0 -> 1 and 2 -> 3, of 12 pairs
    assert success_rate(Maze(2), values) == pytest.approx(2 / 12)


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


def test_training_approaches_the_exact_critic_and_is_the_same_alone():
    maze, found = Maze(2), []
    for seeds in ([0, 1], [1]):
        critic = ContrastiveCritic("residual", 4, seeds=seeds, dim=16, embedding=8)
        losses = train_critic(critic, maze, discount=0.8, steps=300, lr=3e-3)
        found.append((losses[:, -1], critic.table(maze)[-1].detach().double()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-2, atol=1e-5)
    assert losses.shape == (300, 1)
    assert losses[-1] < 0.02 * losses[0]
    # The constant that all share says nothing of where to go.
    table, exact = (values - values.mean() for values in (found[0][1], exact_critic(maze, 0.8)))
    assert (table - exact).square().mean().sqrt() < 0.3 * exact.std()
    assert success_rate(maze, table) == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda: ContrastiveCritic("dense", 4, seeds=[0], **SHAPE), "skips must be one of residual, plain"),  # type: ignore[arg-type]
        (lambda: ContrastiveCritic("plain", 6, seeds=[0], **SHAPE), "depth must be a multiple of 4, got 6"),
        (lambda: train_critic(ContrastiveCritic("plain", 4, seeds=[0], **SHAPE), Maze(2), discount=0.9, steps=0, lr=1),
         "steps must be at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(change, told):
    with pytest.raises(UsageError, match=told):
        change()


@pytest.mark.parametrize(("shallow", "deep", "dim", "embedding"), [(4, 32, 32, 32), (4, 8, 8, 4), (4, 1024, 16, 64)])
def test_the_wide_critic_is_the_least_that_is_as_large(shallow, deep, dim, embedding):
    def weights(depth, width):
        critic = ContrastiveCritic("residual", depth, dim=width, embedding=embedding, seeds=[0])
        return sum(weight.numel() for weight in critic.parameters()) / 2

    width = self_supervised_depth.as_large(shallow, deep, dim, embedding)
    assert weights(shallow, width - 1) < weights(deep, dim) <= weights(shallow, width)


FAR = (0.0, 0.1, -0.1, 0.05, -0.05)  # what is added to each seed


def outcomes(scale="small", apart=0.3, **success: float) -> dict[str, Any]:
    """The outcome of each claim for these mean success rates of the arms; seeds differ by at most `apart` / 3."""
    settings = STUDY.resolve(scale)
    shallow, deep = min(settings["depths"]), max(settings["depths"])
    cells = list(STUDY.configurations(settings, range(5)))
    values = {}
    for cell in cells:
        depth, width = cell.config["depth"], cell.config["dim"]
        arm = "wide" if width > settings["dim"] else cell.config["skips"]
        arm += {shallow: "" if arm == "wide" else "_shallow", deep: "_deep"}.get(depth, "_between")
        for seed in cell.seeds:
            values[cell.key(seed)] = {"success": success.get(arm, 0.2) + apart / 3 * FAR[seed] / 0.1}
    return {claim.name: claim.test(Results(cells, values)) for claim in STUDY.claims(settings)}


PAPER, GOALS, WIDTH, SKIPS = [claim.name for claim in STUDY.claims(STUDY.resolve("small"))]


@pytest.mark.parametrize(
    ("claim", "success", "status"),
    [
        (GOALS, {"residual_shallow": 0.3, "residual_deep": 0.6}, "held"),
        (GOALS, {"residual_shallow": 0.3, "residual_deep": 0.4}, "not held"),  # above, and by chance
        (GOALS, {"residual_shallow": 0.6, "residual_deep": 0.3}, "not held"),  # as clear, and the other way
        (GOALS, {"residual_shallow": 0.3, "residual_deep": 0.6, "wide": 0.9, "plain_deep": 0.9}, "held"),
        (WIDTH, {"wide": 0.3, "residual_deep": 0.6}, "held"),
        (WIDTH, {"wide": 0.6, "residual_deep": 0.6, "residual_shallow": 0.1}, "not held"),
        (SKIPS, {"plain_deep": 0.3, "residual_deep": 0.6}, "held"),
        (SKIPS, {"plain_deep": 0.6, "residual_deep": 0.6, "plain_shallow": 0.1}, "not held"),
        (PAPER, {"residual_shallow": 0.3, "residual_deep": 0.9}, "not decided"),
    ],
)
def test_each_claim_is_decided_by_its_criterion(claim, success, status):
    assert outcomes(**success)[claim].status == status


def test_with_the_papers_depth_its_claim_is_decided():
    assert outcomes("full", residual_shallow=0.3, residual_deep=0.6)[PAPER].status == "held"
    assert outcomes("full", residual_shallow=0.3, residual_deep=0.3)[PAPER].status == "not held"
    assert "the deepest critic here has 32 layers" in outcomes()[PAPER].reason


def test_where_the_other_reaches_all_goals_nothing_is_decided():
    found = outcomes(apart=0, residual_deep=1.0, residual_shallow=0.99, wide=1.0, plain_deep=0.98)
    assert found[GOALS].status == found[WIDTH].status == "not decided"
    assert "99% of all goals or more already" in found[GOALS].reason
    assert found[SKIPS].status == "held"


def test_the_smoke_scale_runs_and_decides_nothing(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        run = execute(STUDY, scale="smoke", out=tmp_path, executor=pool)
    assert failures(run) == {}
    assert {claim["status"] for claim in claims(run).values()} == {"not decided"}
    drawn = figures(run)
    assert [len(drawn[name]["series"]) for name in ("success", "losses")] == [11, 10]
