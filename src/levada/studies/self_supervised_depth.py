"""R21: deep networks in self-supervised reinforcement learning, as far as a processor can ask: a critic in a maze."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, get_args

import torch

from levada.study import Axis, Cell, Claim, Cost, Figure, Results, Series, Settings, Statistic, Study, measured_series
from levada.study.goal_reaching import (
    ContrastiveCritic,
    Maze,
    Skips,
    exact_critic,
    success_rate,
    train_critic,
)
from levada.study.statistics import cliffs_delta, mann_whitney

__all__ = ["STUDY"]

WANG = "Wang, Javali, Bortkiewicz, Trzcinski and Eysenbach 2025, arXiv 2503.14858"
LEARNING_RATES: dict[tuple[str, int], float] = {}


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give one cell for each depth, with skips and without, all seeds in it; the deepest first."""
    keys = ("size", "dim", "embedding", "steps", "batch_size", "discount", "walkers", "walk")
    shared = {key: settings[key] for key in keys}
    return [
        Cell({"skips": skips, "depth": depth, "lr": LEARNING_RATES.get((skips, depth), 3e-4), **shared}, seeds)
        for depth in sorted(settings["depths"], reverse=True)
        for skips in get_args(Skips)
    ]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train the critics of all seeds at once, and let the policy that is greedy in each go from and to every cell."""
    maze, device = Maze(config["size"]), "cuda" if torch.cuda.is_available() else "cpu"
    shape = {key: config[key] for key in ("dim", "embedding")}
    critic = ContrastiveCritic(config["skips"], config["depth"], seeds=seeds, **shape).to(device)
    how = {key: config[key] for key in ("steps", "batch_size", "discount", "walkers", "walk")}
    losses = train_critic(critic, maze, seeds=seeds, lr=config["lr"], **how)
    exact = success_rate(maze, exact_critic(maze, config["discount"]))
    window = -(-config["steps"] // 50)
    ends = [float(min(start + window, len(losses))) for start in range(0, len(losses), window)]
    curves = torch.stack([part.double().mean(0) for part in torch.split(losses, window)], 1).tolist()
    return [
        {"success": success_rate(maze, table), "exact": exact, "steps": ends, "loss": curve}
        for table, curve in zip(critic.table(maze), curves, strict=True)
    ]


def claims(settings: Settings) -> list[Claim]:
    """Give the claims: what depth brings with skips, and without."""
    shallow, deep = min(settings["depths"]), max(settings["depths"])

    def compared(results: Results, skips: str) -> tuple[float, dict[str, Any], Statistic]:
        known = results.column("success", skips="residual", depth=shallow)
        asked = results.column("success", skips=skips, depth=deep)
        numbers = {
            f"residual, {shallow} layers, success rate": known,
            f"{skips}, {deep} layers, success rate": asked,
            "Cliff's delta": cliffs_delta(asked, known),
        }
        return fmean(asked) - fmean(known), numbers, mann_whitney(asked, known)

    def keeps(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
        apart, numbers, test = compared(results, "residual")
        return apart >= 0, numbers, test

    def loses(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
        apart, numbers, test = compared(results, "plain")
        return apart < 0, numbers, test

    return [
        Claim(
            "a deep critic reaches as many goals", "“Increasing the depth up to 1024 layers can significantly boost "
            "performance.”", f"mean success rate(residual, {deep} layers) >= mean success rate(residual, {shallow} "
            "layers)", WANG, keeps, {"skips": "residual", "depth": (shallow, deep)},
            paper_value="Humanoid: 12.6 with 4 layers, 649 with 64",
        ),
        Claim(
            "and not without skips", "Depth pays with residual connections, layer normalisation and Swish together.",
            f"mean success rate(plain, {deep} layers) < mean success rate(residual, {shallow} layers)", WANG, loses,
            {"depth": (shallow, deep)},
        ),
    ]  # fmt: skip


def figures(results: Results) -> list[Figure]:
    """Draw the success rate by depth, and the losses."""
    success: list[Series] = []
    losses: list[Series] = []
    for config in results.configs:
        depth, skips = config["depth"], config["skips"]
        success += measured_series(results, config, skips, functools.partial(_reached, depth=depth))
        losses += measured_series(results, config, f"{skips}, {depth}", _curve)
    depths = [float(config["depth"]) for config in results.configs]
    exact = results.column("exact")
    if exact:
        success.append(Series("exact critic", "predicted", [min(depths), max(depths)], [exact[0]] * 2))
    return [
        Figure("success", "Goals that the greedy policy reaches", "Every seed, all pairs of a start and a goal. The "
               "line is the policy that is greedy in the critic's closed form.", Axis("layers", "log"),
               Axis("success rate"), tuple(success)),
        Figure("losses", "Training the critic", "Every seed, on the batches; a point is the mean of a fiftieth of the "
               "steps.", Axis("step"), Axis("InfoNCE, nats"), tuple(losses)),
    ]  # fmt: skip


def _reached(values: Mapping[str, Any], depth: int) -> tuple[list[float], list[float]]:
    return [float(depth)], [values["success"]]


def _curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return values["steps"], values["loss"]


STUDY = Study(
    name="R21", slug="self_supervised_depth", title="Depth in self-supervised reinforcement learning",
    question="Does a contrastive critic of many layers reach more goals, and does it need its skips?",
    method="Contrastive critics of 4 and 32 layers, with a skip over every four layers or without skips, learn from "
    "random walks in a maze which goals follow a state and an action; nobody tells them where walls are, nor a reward. "
    "The policy that is greedy in the critic then goes from every cell to every other. The share of goals that it "
    "reaches is compared; the critic's closed form reaches all.",
    sources=(WANG,),
    settings={"seeds": 5, "depths": (4, 32), "size": 8, "dim": 32, "embedding": 16, "steps": 3000, "batch_size": 128,
              "discount": 0.95, "walkers": 64, "walk": 500},
    scales={"smoke": {"seeds": 2, "depths": (4, 8), "size": 5, "dim": 8, "embedding": 4, "steps": 3, "batch_size": 8,
                      "walkers": 4, "walk": 20},
            "full": {"seeds": 10, "depths": (4, 16, 64, 256, 1024), "size": 20, "dim": 256, "embedding": 64,
                     "steps": 100_000, "batch_size": 256, "discount": 0.99, "walkers": 512, "walk": 1000}},
    configurations=configurations, run=run, claims=claims, figures=figures,
    costs={"smoke": Cost(2 / 3600), "small": Cost(0.05), "full": Cost(15, "one 80 GB GPU")},
    notes=("This is no reproduction of the paper. There agents explore simulated robots' worlds by themselves, with an "
           "actor beside the critic, for up to 134 hours on one GPU of 80 GB (the hours from secondary notes), and at "
           "1,024 layers the actor's loss diverged, so that the actor was held at 512. Here walks are random and "
           "given, actions are four, and there is no actor: nothing follows about exploration, or about robots.",
           "Data that is given is also where the paper found no gain (secondary notes): a small effect is expected.",
           "The critic is the inner product of two networks; the layers are the authors', less learned gains.",
           "The scale full asks the same of 1,024 layers in a larger maze; its hours are reckoned from the number of "
           "operations, and it has not been run. Learning rates there are the authors', 0.0003."),
)  # fmt: skip
