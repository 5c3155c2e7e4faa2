"""R21: deep networks in self-supervised reinforcement learning, as far as a processor can ask: a critic in a maze."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from levada.study import (
    Axis,
    Cell,
    Claim,
    Cost,
    Figure,
    Results,
    Series,
    Settings,
    Statistic,
    Study,
    Undecided,
    measured_series,
)
from levada.study.devices import preferred_device
from levada.study.goal_reaching import ContrastiveCritic, Maze, exact_critic, success_rate, train_critic
from levada.study.statistics import cliffs_delta, mann_whitney, student_interval

__all__ = ["STUDY"]

WANG = "Wang, Javali, Bortkiewicz, Trzcinski and Eysenbach 2025, arXiv 2503.14858"
PAPERS_DEPTH = 1024
SIGNIFICANT = 0.05 / 3  # three comparisons
CEILING = 0.99  # who reaches so many goals leaves nothing to gain
AUTHORS_RATE = 3e-4
# Of skips, layers and width, at the scale small; chosen on seeds 100 and 101.
LEARNING_RATES: dict[tuple[str, int, int], float] = {
    ("residual", 4, 32): 3e-3, ("plain", 4, 32): 1e-2, ("residual", 4, 89): 3e-3,
    ("residual", 32, 32): 1e-3, ("plain", 32, 32): 3e-4,
}  # fmt: skip


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give one cell for each depth, with skips and without, and one that is as large and shallow; the deepest first."""
    shared = {key: settings[key] for key in ("size", "discount", "embedding", "steps")}
    dim, shallow, deep = settings["dim"], min(settings["depths"]), max(settings["depths"])
    arms = [(skips, depth, dim) for depth in settings["depths"] for skips in ("residual", "plain")]
    arms.append(("residual", shallow, as_large(shallow, deep, dim, settings["embedding"])))
    return [
        Cell({"skips": skips, "depth": depth, "dim": width, "lr": rate, **shared}, seeds)
        for skips, depth, width in sorted(arms, key=lambda arm: -arm[1])
        for rate in [LEARNING_RATES.get((skips, depth, width), AUTHORS_RATE)]
    ]


def as_large(shallow: int, deep: int, dim: int, embedding: int) -> int:
    """Return the least width at which `shallow` layers have as many weights as `deep` ones of width `dim`.

    Args:
        shallow: layers in blocks.
        deep: layers in blocks of the other.
        dim: the width of the other.
        embedding: numbers that come out of both.

    Example:
        >>> as_large(4, 4, 32, 16), as_large(4, 32, 32, 32)
        (32, 89)
    """

    def count(depth: int, width: int) -> int:
        return width * (depth * (width + 1) + 7 + embedding)  # but for the last biases; a state and an action: 6

    width = dim
    while count(shallow, width) < count(deep, dim):
        width += 1
    return width


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train the critics of all seeds at once, and let the policy that is greedy in each go from and to every cell."""
    maze, device = Maze(config["size"]), preferred_device()
    shape = {key: config[key] for key in ("dim", "embedding")}
    critic = ContrastiveCritic(config["skips"], config["depth"], seeds=seeds, **shape).to(device)
    losses = train_critic(critic, maze, discount=config["discount"], steps=config["steps"], lr=config["lr"])
    with torch.no_grad():
        tables = critic.table(maze).cpu()
    exact = success_rate(maze, exact_critic(maze, config["discount"]))
    window = -(-config["steps"] // 50)
    ends = [float(min(start + window, len(losses))) for start in range(0, len(losses), window)]
    curves = torch.stack([part.double().mean(0) for part in torch.split(losses, window)], 1).tolist()
    return [
        {"success": success_rate(maze, table), "exact": exact, "steps": ends, "loss": curve}
        for table, curve in zip(tables, curves, strict=True)
    ]


def claims(settings: Settings) -> list[Claim]:
    """Give the claims: what depth brings with skips, next to width, and what skips bring."""
    shallow, deep, dim = min(settings["depths"]), max(settings["depths"]), settings["dim"]
    wide = as_large(shallow, deep, dim, settings["embedding"])
    tested = {"skips": "residual", "depth": deep, "dim": dim}
    few = {"skips": "residual", "depth": shallow, "dim": dim}
    large = {**few, "dim": wide}
    bare = {**tested, "skips": "plain"}

    def decides(other: Mapping[str, Any], *, papers: bool = False) -> Any:
        return functools.partial(_more_goals, tested=tested, other=other, papers=papers)

    deeper = f"the mean success rate with {deep} layers and skips is above that with"
    less = f"exact p < {SIGNIFICANT:.4f} (.05 over three comparisons)"
    return [
        Claim(
            "the paper's claim",
            "“Increasing the depth up to 1024 layers can significantly boost performance” (here of a critic, with data "
            "that is given).",
            f"{deeper} {shallow}, {less}; decided with {PAPERS_DEPTH:,} layers or more", WANG,
            decides(few, papers=True), {"skips": "residual", "depth": (shallow, deep), "dim": dim},
            paper_value="Humanoid: 12.6 with 4 layers, 649 with 64 (from secondary notes)",
            correction="The authors' agents explore and learn from what they find; this critic is given everything.",
        ),
        Claim(
            "a deep critic reaches more goals",
            f"With {deep} layers and skips a contrastive critic leads to more goals of a maze than with {shallow}.",
            f"{deeper} {shallow}, {less}", WANG, decides(few),
            {"skips": "residual", "depth": (shallow, deep), "dim": dim},
        ),
        Claim(
            "depth brings more than width",
            f"{deep} layers lead to more goals than {shallow} wider ones of as many weights.",
            f"{deeper} {shallow} layers of width {wide} and skips, {less}", WANG, decides(large),
            {"skips": "residual", "depth": (shallow, deep), "dim": (dim, wide)},
        ),
        Claim(
            "depth needs skips",
            f"Of {deep} layers, those with skips lead to more goals.",
            f"{deeper} {deep} layers without, {less}", WANG, decides(bare), {"depth": deep},
        ),
    ]  # fmt: skip


def _more_goals(
    results: Results, tested: Mapping[str, Any], other: Mapping[str, Any], *, papers: bool
) -> tuple[bool | Undecided, dict[str, Any], Statistic]:
    """Decide whether one arm reaches more goals than another that does not reach (nearly) all."""
    first, second = results.column("success", **tested), results.column("success", **other)
    interval = student_interval([a - b for a, b in zip(first, second, strict=True)])
    numbers = {
        f"{_name(tested)}, success rate": first,
        f"{_name(other)}, success rate": second,
        "difference of means": interval.value,
        "its 95 % interval": [interval.low, interval.high],
        "Cliff's delta": cliffs_delta(first, second),
    }
    test = mann_whitney(first, second)
    if papers and tested["depth"] < PAPERS_DEPTH:
        reason = (
            f"the deepest critic here has {tested['depth']} layers and is given all data; the sentence is about "
            f"{PAPERS_DEPTH:,} layers and agents that explore"
        )
        return Undecided(reason), numbers, test
    if fmean(second) >= CEILING:
        return Undecided(f"{_name(other)} reach {CEILING:.0%} of all goals or more already"), numbers, test
    return interval.value > 0 and test.p is not None and test.p < SIGNIFICANT, numbers, test


def _name(arm: Mapping[str, Any]) -> str:
    return f"{arm['depth']} layers of width {arm['dim']}, {arm['skips']}"


def figures(results: Results) -> list[Figure]:
    """Draw the success rate by depth, and the losses."""
    success: list[Series] = []
    losses: list[Series] = []
    narrow = min((config["dim"] for config in results.configs), default=0)
    for config in results.configs:
        depth = config["depth"]
        arm = config["skips"] if config["dim"] == narrow else "residual, as many weights as the deepest"
        success += measured_series(results, config, arm, functools.partial(_reached, depth=depth))
        losses += measured_series(results, config, f"{depth} layers, {arm}", _curve)
    depths = [float(config["depth"]) for config in results.configs]
    exact = results.column("exact")
    if exact:
        success.append(Series("exact critic", "predicted", [min(depths), max(depths)], [exact[0]] * 2))
    return [
        Figure("success", "Goals that the greedy policy reaches", "Every seed, all pairs of a start and a goal. The "
               "line is the policy that is greedy in the critic's closed form.", Axis("layers", "log"),
               Axis("success rate"), tuple(success)),
        Figure("losses", "Training the critic", "Every seed; a point is the mean of a fiftieth of the steps.",
               Axis("step"), Axis("InfoNCE above its least, nats", "log"), tuple(losses)),
    ]  # fmt: skip


def _reached(values: Mapping[str, Any], depth: int) -> tuple[list[float], list[float]]:
    return [float(depth)], [values["success"]]


def _curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return values["steps"], values["loss"]


STUDY = Study(
    name="R21", slug="self_supervised_depth", title="Depth in self-supervised reinforcement learning",
    question="Does a contrastive critic of many layers lead to more goals, and does it need its skips?",
    method="Contrastive critics of 4 and 32 layers, with a skip over every four or without, and one of 4 layers and as "
    "many weights as 32, learn which goals follow a state and an action on endless random walks in a maze, without a "
    "reward. The policy that is greedy in a critic then goes from every cell to every other. The shares of goals that "
    "it reaches are compared; the critic's closed form reaches all.",
    sources=(WANG, "van den Oord, Li and Vinyals 2018, arXiv 1807.03748 (the objective)"),
    settings={"seeds": 5, "depths": (4, 32), "size": 8, "discount": 0.95, "dim": 32, "embedding": 32, "steps": 3000},
    scales={"smoke": {"seeds": 2, "depths": (4, 8), "size": 5, "dim": 8, "embedding": 4, "steps": 3},
            "full": {"depths": (4, 16, 64, 256, 1024), "size": 14, "dim": 256, "embedding": 64, "steps": 20_000}},
    configurations=configurations, run=run, claims=claims, figures=figures,
    costs={"smoke": Cost(2 / 3600), "small": Cost(0.0431, measured=True), "full": Cost(6, "one 80 GB GPU")},
    check={"skips": "residual", "depth": 4, "dim": 8},
    notes=("This is no reproduction of the paper. There agents explore simulated robots' worlds by themselves, with "
           "an actor beside the critic, for up to 134 hours on one GPU of 80 GB (the hours from secondary notes), "
           "and at 1,024 layers the actor's loss diverged, so that the actor was held at 512. Here walks are random, "
           "actions are four, and there is no actor: nothing follows about exploration, or about robots.",
           "The paper found no gain where data is given (secondary notes), as it is here.",
           "The design was changed after a review and before any run that is reported. At first batches of pairs "
           "were drawn from walks: on seeds 100 and 101 the frequencies of as many pairs, 192,000, led to .38 and "
           ".39 of the goals, and networks to .31 to .51, so that the number of pairs decided most of it. Now every "
           "pair comes as often as on endless walks. An embedding had 16 numbers, and the closed form, cut to that "
           "rank, leads to .957 of the goals; with 32 it leads to all. A difference of means, which noise decides, "
           "was the criterion; it is now an exact test.",
           "The critic is the inner product of two networks; the layers are the authors', less learned gains. Adam's "
           "rate falls to 0 along half a cosine. Seeds differ in their first weights alone.",
           "Each arm has the rate of .0001, .0003, .001, .003, .01 and .03 (as far as needed for the best not to be "
           "the first or last that was tried) with the highest mean success rate on seeds 100 and 101, after 1,500 "
           "steps: 4 layers .003 (.701, .782, .770 at .001, .003, .01), without skips .01 (.804, .810, .742 at .003, "
           ".01, .03), of width 89 .003 (.809, .839, .786 at .001, .003, .01); 32 layers .001 (.569, .712, .658 at "
           ".0003, .001, .003), without skips .0003 (.581, .664, .415, .039 at .0001, .0003, .001, .003; at .001 one "
           "seed came to .727 and one to .103). 3,000 steps were then taken, since 4 layers still gained (.841 with "
           "the same rate).",
           "The scale full asks the same of 1,024 layers in a larger maze; its hours are reckoned from the number of "
           "operations, and it has not been run. Learning rates there are the authors', 0.0003.",),
    answer="No: in 3,000 steps, given all data, 32 layers lead to 72 to 76 % of the goals with skips, 73 to 80 "
    "% without; 4 layers to 79 to 88 %, wider ones to 86 to 91 %.",
)  # fmt: skip
