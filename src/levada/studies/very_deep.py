"""R10: do hundreds of layers overfit, 1,202 at full scale, and what does stochastic depth change?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from torch import nn

from levada.study import Axis, Cell, Claim, Cost, Figure, Results, Settings, Statistic, Study, measured_series
from levada.study.data import Dataset, mnist1d
from levada.study.devices import preferred_device
from levada.study.lesions import RandomBlocks, WeightedBlocks, linear_decay, survival_by_block
from levada.study.replicas import SignalNetwork
from levada.study.statistics import cliffs_delta, mann_whitney, sign_test, student_interval
from levada.study.training import Recipe, cosine, error, measure_statistics, train

__all__ = ["STUDY"]

HE = "He, Zhang, Ren and Sun 2015, arXiv 1512.03385"
HUANG = "Huang, Sun, Liu, Sedra and Weinberger 2016, arXiv 1603.09382"
SURVIVAL = 0.5  # of the last block
NO_ERROR = 0.1  # %
SIGNIFICANT, NOT_WORSE = 0.05, 1.0
SAVED, STANDARD_ERRORS = 0.15, 3.0


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give one cell per depth, with all blocks in every step and with stochastic depth, all seeds in it."""
    how = {key: settings[key] for key in ("steps", "batch_size", "examples", "tested")}
    return [
        Cell({"depth": depth, "survival": survival, "lr": rate, **how}, seeds)
        for depth, rate in sorted(zip(settings["depths"], settings["lrs"], strict=True), reverse=True)
        for survival in (SURVIVAL, 1.0)
    ]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train all seeds at once, on the first signals of the training set, and measure."""
    device, whole = preferred_device(), mnist1d()
    count, tested, replicas = config["examples"], config["tested"], len(seeds)
    data = Dataset(
        whole.name,
        whole.train_inputs[:count].to(device),
        whole.train_targets[:count].to(device),
        whole.test_inputs[:tested].to(device),
        whole.test_targets[:tested].to(device),
    )
    network = SignalNetwork("residual", config["depth"], channels=16, num_classes=10, seeds=seeds).to(device)
    blocks, survival = len(network.stack), config["survival"]
    recipe = Recipe(config["steps"], config["batch_size"], config["lr"], schedule=cosine)
    if survival < 1:
        random = RandomBlocks(network, linear_decay(blocks, survival), seeds)
        curves = train(random, data.train_inputs, data.train_targets, recipe, seeds)
        run_share = [count / (blocks * random.passes) for count in random.evaluations]
        tested_network: nn.Module = WeightedBlocks(network, survival_by_block(blocks, survival))
    else:
        curves = train(network, data.train_inputs, data.train_targets, recipe, seeds)
        run_share, tested_network = [1.0] * replicas, network
    measure_statistics(tested_network, data.train_inputs, replicas)
    on_train = error(tested_network, data.train_inputs, data.train_targets, replicas).tolist()
    on_test = error(tested_network, data.test_inputs, data.test_targets, replicas).tolist()
    return [
        {"train_error": a, "test_error": b, "evaluations": share, "curves": curve}
        for a, b, share, curve in zip(on_train, on_test, run_share, curves.thinned(50), strict=True)
    ]


def _errors(results: Results, part: str, depth: int, survival: float = 1.0) -> list[float]:
    return [100 * share for share in results.column(f"{part}_error", depth=depth, survival=survival)]


def _depths(results: Results) -> list[int]:
    return sorted({config["depth"] for config in results.configs})


def _powerful(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    found = {depth: _errors(results, "test", depth) for depth in _depths(results)}
    means = [fmean(errors) for errors in found.values()]
    first, *_, last = found.values()
    test = mann_whitney(last, first)
    numbers = {f"{depth} layers, test error, %": errors for depth, errors in found.items()}
    falls = all(deeper < shallower for shallower, deeper in pairwise(means))
    return falls and _significant(test), numbers, test


def _significant(test: Statistic) -> bool:
    return test.p is not None and test.p < SIGNIFICANT


def _optimised(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    found = {depth: _errors(results, "train", depth) for depth in _depths(results)}
    met = [max(of_seed) <= NO_ERROR for of_seed in zip(*found.values(), strict=True)]
    numbers = {f"{depth} layers, training error, %": errors for depth, errors in found.items()}
    return all(met), numbers, sign_test(sum(met), len(met))


def _compared(
    first: Sequence[float], second: Sequence[float], names: tuple[str, str]
) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether the second test errors are above the first."""
    test = mann_whitney(second, first)
    interval = student_interval([b - a for a, b in zip(first, second, strict=True)])
    numbers = {
        f"{names[0]}, test error, %": list(first),
        f"{names[1]}, test error, %": list(second),
        "difference of means, points": interval.value,
        "its 95 % interval, points": [interval.low, interval.high],
        "Cliff's delta": cliffs_delta(second, first),
    }
    return fmean(second) > fmean(first) and _significant(test), numbers, test


def _overfits(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    middle, deepest = _depths(results)[-2:]
    names = (f"{middle} layers", f"{deepest} layers")
    return _compared(_errors(results, "test", middle), _errors(results, "test", deepest), names)


def _dropping_helps(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    (depth,) = _depths(results)
    names = ("stochastic depth", "all blocks")
    return _compared(_errors(results, "test", depth, SURVIVAL), _errors(results, "test", depth), names)


def _deeper_helps(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    middle, deepest = _depths(results)[-2:]
    names = (f"{deepest} layers", f"{middle} layers")
    return _compared(_errors(results, "test", deepest, SURVIVAL), _errors(results, "test", middle, SURVIVAL), names)


def _not_worse(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    apart: list[list[float]] = []
    for depth in _depths(results):
        random, whole = _errors(results, "test", depth, SURVIVAL), _errors(results, "test", depth)
        apart.append([a - b for a, b in zip(random, whole, strict=True)])
        numbers[f"{depth} layers, difference of test errors, points"] = apart[-1]
        numbers[f"{depth} layers, stochastic depth, training error, %"] = _errors(results, "train", depth, SURVIVAL)
    met = all(fmean(differences) <= NOT_WORSE for differences in apart)
    return met, numbers, student_interval(apart[-1], "the difference at the greatest depth, points")


def _saves(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    for depth in _depths(results):
        blocks = depth // 2 - 1
        saved = [1 - share for share in results.column("evaluations", depth=depth)]
        expected, apart = (blocks + 1) / (4 * blocks), STANDARD_ERRORS * _standard_error(blocks, results)
        numbers[f"{depth} layers, share of block evaluations saved"] = saved
        numbers[f"{depth} layers, expected"] = expected
        numbers[f"{depth} layers, {STANDARD_ERRORS:g} standard errors"] = apart
        met = [m and s >= SAVED and abs(s - expected) <= apart for m, s in zip(met, saved, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def _standard_error(blocks: int, results: Results) -> float:
    """Of the share of block evaluations that a training saves: each block of each step is drawn independently."""
    alive = survival_by_block(blocks, SURVIVAL).double()
    steps = results.configs[0]["steps"]
    return (alive * (1 - alive)).sum().div(steps).sqrt().item() / blocks


def claims(settings: Settings) -> list[Claim]:
    """Give the claims; depths are the settings'."""
    depths, count = sorted(settings["depths"]), settings["examples"]
    shallow, middle, deepest = depths
    whole, both = {"survival": 1.0}, (1.0, SURVIVAL)
    apart = f"and the exact p of Mann and Whitney is below {SIGNIFICANT}"
    return [
        Claim(
            "the more layers the better", "“The more layers you add, the more powerful.”",
            f"{count} training signals: mean test error falls from {shallow} to {middle} and to {deepest} layers, "
            f"{apart} between {shallow} and {deepest}", "common in tutorials", _powerful, whole,
            paper_value="CIFAR-10: 8.75, 6.43, 7.93 % at 20, 110, 1202 layers",
            correction="More layers can express more; what training makes of them is another matter.",
        ),
        Claim(
            "the deepest can be trained", f"A residual network of {deepest:,} layers is optimised without difficulty.",
            f"{count} training signals: training error at most {NO_ERROR} % at {shallow}, {middle} and "
            f"{deepest} layers, in every seed", HE, _optimised, whole,
            paper_value="CIFAR-10: below 0.1 % at 1202 layers",
        ),
        Claim(
            "the deepest overfits", f"A network of {deepest:,} layers tests worse than one of {middle}, though both "
            "fit the training set.", f"mean test error at {deepest} layers above that at {middle}, {apart}", HE,
            _overfits, {**whole, "depth": (middle, deepest)}, paper_value="CIFAR-10: 7.93 against 6.43 %",
            correction="Others measured 6.72 % (Huang et al.) and 6.18 % (akamaster's code, best epoch on the test "
            "set) at 1202 layers: the paper's number is no law.",
        ),
        Claim(
            "stochastic depth improves the test error", "Stochastic depth “improves the test error significantly”.",
            f"{deepest} layers: mean test error below that with all blocks, {apart}", HUANG, _dropping_helps,
            {"depth": deepest, "survival": both}, paper_value="CIFAR-10, 1202 layers: 4.91 against 6.72 %",
        ),
        Claim(
            "with stochastic depth more layers pay", "“With stochastic depth we can increase the depth of residual "
            "networks even beyond 1200 layers and still yield meaningful improvements in test error.”",
            f"with stochastic depth, mean test error at {deepest} layers below that at {middle}, {apart}", HUANG,
            _deeper_helps, {"survival": SURVIVAL, "depth": (middle, deepest)},
            paper_value="CIFAR-10: 4.91 % at 1202 layers, 5.25 % at 110",
        ),
        Claim(
            "stochastic depth costs no accuracy", "What a quarter of the blocks' evaluations saves costs no accuracy.",
            f"mean test error at most {NOT_WORSE:.0f} point above that with all blocks, at each of {shallow}, {middle} "
            f"and {deepest} layers", HUANG, _not_worse, {"survival": both},
        ),
        Claim(
            "stochastic depth saves a quarter", "A quarter of the blocks' evaluations is saved in training.",
            f"share saved at least {SAVED:.0%}, and within {STANDARD_ERRORS:g} standard errors, of the draws alone, of "
            "(L + 1)/(4 L), in every seed, at each depth, L blocks", HUANG, _saves, {"survival": SURVIVAL},
            paper_value="about 40 of 54 blocks run",
            correction="Not exactly a quarter: on average (3 L - 1)/(4 L) of the evaluations remain.",
        ),
    ]  # fmt: skip


def figures(results: Results) -> list[Figure]:
    """Draw the test error by depth, and the training loss."""
    by_depth, curves = [], []

    def curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        return values["curves"]["steps"], values["curves"]["loss"]

    for config in results.configs:
        arm = "all blocks" if config["survival"] == 1 else "stochastic depth"
        depth = float(config["depth"])

        def point(values: Mapping[str, Any], depth: float = depth) -> tuple[list[float], list[float]]:
            return [depth], [100 * values["test_error"]]

        by_depth += measured_series(results, config, arm, point)
        curves += measured_series(results, config, f"{config['depth']} layers, {arm}", curve)
    return [
        Figure("test_error", "Test error by depth", "Every seed.", Axis("layers", "log"), Axis("test error, %"),
               tuple(by_depth)),
        Figure("training_loss", "Training loss by depth", "Every seed, on the batches, with the blocks that run; a "
               "point is the mean of a fiftieth of the steps.", Axis("step"), Axis("loss, nats", "log"), tuple(curves)),
    ]  # fmt: skip


STUDY = Study(
    name="R10", slug="very_deep", title="Very deep networks and stochastic depth",
    question="Does a residual network of hundreds of layers overfit, and what does it bring to drop blocks at random?",
    sources=(HE, HUANG, "Huang et al. 2017, arXiv 1608.06993 (table with both)"),
    settings={"seeds": 5, "steps": 700, "batch_size": 50, "examples": 500, "tested": 1000, "depths": (20, 110, 402),
              "lrs": (0.3, 0.3, 0.3)},
    scales={"smoke": {"seeds": 2, "steps": 3, "depths": (6, 10, 22), "tested": 100},
            "full": {"seeds": 10, "steps": 1000, "depths": (20, 110, 1202)}},
    configurations=configurations, run=run, claims=claims, figures=figures,
    method="Residual networks of 20, 110 and 402 layers (full: 1,202) learn 500 signals of MNIST-1D. Each is trained "
    "twice: with all blocks in every step, and with stochastic depth, where block l of L runs with probability "
    "1 - l/(2 L). Errors on 1,000 test signals are compared, and block evaluations counted.",
    costs={"smoke": Cost(0.002), "small": Cost(0.1, measured=True), "full": Cost(0.3, "one H100")},
    notes=("MNIST-1D, the first 500 signals in every seed; 16 channels; batches of 50, SGD with momentum 0.9, weight "
           "decay 1e-4, learning rate 0.3 that falls to 0 along half a cosine. At the scale full, 1,202 layers.",
           "The rate was chosen on seeds 100 and 101 and other signals of the training set, after 300 steps; errors in "
           "% at .03, .1, .3: 23.8, 10.5, 8.7 with 20 layers, 24.6, 10.5, 7.8 with 110. Deeper ones take the same.",
           "After stochastic depth each branch is multiplied by its probability. Errors are measured with batch "
           "statistics of the 500 signals.",
           "A first run asked that the share saved be within a point of what is expected, which forgets chance: with 9 "
           "blocks and 250 steps one standard error is .9 points. Three standard errors were put in its place after "
           "that run.",
           "The first run's 250 steps, 25 epochs, left training errors of .2 to 9.4 % with stochastic depth. 700 were "
           "then chosen on seeds 100 and 101, at 110 layers with stochastic depth and on other signals: both training "
           "errors were 0 after them, and 4.0 and 2.2 % after 350 steps with 8 channels. With 1,202 layers of 8 "
           "channels and stochastic depth a step takes .6 seconds of a core, so that they are left to the scale full."),
)  # fmt: skip
