"""What R13 decides, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, median
from typing import Any

from levada.study import Axis, Claim, Figure, Results, Series, Settings, Statistic, measured_series
from levada.study.lags import ADDING_BASELINE
from levada.study.statistics import sign_test, spearman

__all__ = ["BEGIN", "END", "LAGS", "LEARNED", "PIXEL_CELLS", "claims", "figures"]

BEGIN, END = 8, 40  # steps back between which slopes are taken; whole multiples of the dilation
LAGS = (5, 7, 10, 14, 20, 28, 40, 56, 80, 112, 160)
LEARNED = 0.9  # share of right answers; chance is 1/4
WITHIN, PER_STEP = 0.1, 0.005
FALLING = ("tanh", "tanh, orthogonal", "leaky", "dilated", "LSTM, forget bias 0", "LSTM, forget bias 1", "GRU")
LSTMS = ("LSTM, forget bias 0", "LSTM, forget bias 1", "LSTM, forget bias 3")
PIXEL_CELLS = ("tanh", "tanh, orthogonal", "residual in time", "LSTM, forget bias 1", "GRU")
SKIPS = {"leaky": "tanh", "residual in time": "tanh", "dilated": "tanh, four layers"}  # and what they are around


def _slope(curve: Sequence[float]) -> float:
    return (math.log(curve[END]) - math.log(curve[BEGIN])) / (END - BEGIN)


def _slopes(results: Results, law: Mapping[str, float] | None) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide on mean slopes, by carry and gain or by a law by cell; the statistic counts seeds by themselves."""
    numbers: dict[str, Any] = {}
    good, alone = [], [True] * len(results.seeds)
    for config in results.configs:
        name, own = config["cell"], results.where(**config)
        measured = [_slope(values["curve"]) for _, values in own]
        predicted = _slope(own[0][1]["predicted"]) if law is None else law[name]
        numbers[f"{name}: measured"], numbers[f"{name}: predicted"] = measured, predicted
        most = max(WITHIN * abs(predicted), PER_STEP)
        good.append(abs(fmean(measured) - predicted) <= most)
        alone = [ok and abs(one - predicted) <= most for ok, one in zip(alone, measured, strict=True)]
    return all(good), numbers, sign_test(sum(alone), len(alone))


def _law(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    return _slopes(results, None)


def _gate_alone(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    first = {config["cell"]: results.where(**config)[0][1]["gate"] for config in results.configs}
    return _slopes(results, {name: math.log(gate) for name, gate in first.items()})


def _longest(results: Results, cell: str) -> list[int]:
    return [int(lag) for lag in results.column("longest", cell=cell)]


def _no_skip(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide on medians; the statistic counts seeds in which all three skips learn a longer lag."""
    found = {config["cell"]: _longest(results, config["cell"]) for config in results.configs}
    numbers: dict[str, Any] = {f"longest lag learned, {name}": lags for name, lags in found.items()}
    above = [[a > b for a, b in zip(found[name], found[plain], strict=True)] for name, plain in SKIPS.items()]
    held = all(median(found[name]) <= median(found[plain]) for name, plain in SKIPS.items())
    return held, numbers, sign_test(sum(map(all, zip(*above, strict=True))), len(above[0]))


def _ranks(results: Results) -> tuple[bool, dict[str, Any], None]:
    numbers: dict[str, Any] = {}
    sides: dict[str, list[float]] = {"measured": [], "predicted": []}
    lags = []
    for config in results.configs:
        most = config["longest_lag"]
        own = [min(horizon, most) for horizon in results.column("horizon", **config)]
        longest = _longest(results, config["cell"])
        numbers[f"{config['cell']}: horizon"], numbers[f"{config['cell']}: longest lag learned"] = own, longest
        numbers[f"{config['cell']}: predicted horizon"] = predicted = results.column("predicted", **config)[0]
        sides["measured"].append(median(own))
        sides["predicted"].append(predicted)
        lags.append(median(longest))
    found = {f"Spearman's rank correlation, {name} horizon": _correlation(side, lags) for name, side in sides.items()}
    return min(found.values()) >= 0.9, {**found, **numbers}, None


def _correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; -1 where one side is all the same, which ranks nothing."""
    return -1.0 if len(set(one)) == 1 or len(set(other)) == 1 else spearman(one, other)


def _adding(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {"of always answering 1": ADDING_BASELINE}
    for config in results.configs:
        numbers[f"mean squared error, {config['cell']}"] = results.column("score", **config)
    gated, plain = results.column("score", cell="LSTM, forget bias 1"), results.column("score", cell="tanh")
    met = [g <= ADDING_BASELINE / 2 and p >= 0.9 * ADDING_BASELINE for g, p in zip(gated, plain, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def _order(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers = {f"accuracy, {c['cell']}": results.column("score", **c) for c in results.configs}
    gated, plain = results.column("score", cell="LSTM, forget bias 1"), results.column("score", cell="tanh")
    met = [g >= LEARNED > p for g, p in zip(gated, plain, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def _gates_ahead(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers = {f"accuracy, {c['cell']}": results.column("score", **c) for c in results.configs}
    gated = results.column("score", cell="GRU")
    others = [results.column("score", cell=name) for name in PIXEL_CELLS if name not in ("GRU", LSTMS[1])]
    met = [g > max(rest) for g, *rest in zip(gated, *others, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


PIXELS = Claim(
    "images pixel by pixel", "Over the 784 pixels of an image gates are needed.",
    "accuracy on all of MNIST's test images of a GRU above that of each cell without a gate, in every seed",
    "Le, Jaitly and Hinton 2015, arXiv 1504.00941", _gates_ahead,
    {"measures": "pixels"},
)  # fmt: skip
# Written before any network had read a pressure.
PRESSURES = Claim(
    "pressures step by step", "Over the 2,000 steps of a measured signal gates are needed.",
    "which of 52 pigs a series of its central venous pressure is of: accuracy of a GRU on later series of the same "
    "pigs above that of each cell without a gate, in every seed",
    "data: Guillame-Bert and Dubrawski 2017; question: Le, Jaitly and Hinton 2015, arXiv 1504.00941", _gates_ahead,
    {"measures": "pressure"},
)  # fmt: skip


def _long_tasks() -> tuple[Claim, Claim]:
    """Return what is decided of cells of which one must have a gate, and one none."""
    return (
        Claim(
            "adding needs a gate", "Over a long sequence a plain cell does not learn to add, and an LSTM does.",
            f"mean squared error of the LSTM (forget bias 1) at most half of {ADDING_BASELINE:.4f}, what always "
            "answering 1 gives, and that of the plain cell at least 0.9 of it, in every seed",
            "Hochreiter and Schmidhuber 1997", _adding, {"measures": "adding"},
        ),
        Claim(
            "order needs more than a plain cell", "Over a long sequence a plain cell does not learn the order of two "
            "symbols, and an LSTM does.", f"at least {LEARNED:.0%} of fresh sequences right for the LSTM (forget bias "
            "1), fewer for the plain cell, in every seed; chance is 25 %",
            "Hochreiter and Schmidhuber 1997", _order, {"measures": "temporal order"},
            correction="A short way through time is enough, and a gate is not the best one: see the leaky and the "
            "dilated cell.",
        ),
    )  # fmt: skip


def claims(settings: Settings) -> tuple[Claim, ...]:
    """Return what is decided at these settings; images and pressures are read at the scale full alone."""
    slopes = f"of the logarithm of the gradient's size between {BEGIN} and {END} steps back"
    return (
        Claim(
            "carry and gain", "What is left of a gradient after k steps follows from what a unit carries on itself and "
            "from the gain of the recurrent weights.", f"the slope {slopes}, mean over the seeds, within {WITHIN:.0%} "
            f"of the prediction, or {PER_STEP} per step where that is more, in each cell whose memory falls. "
            "Predictions know biases and the gain of the initialisation; nothing is measured or fitted",
            "Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063; for gates levada.theory.carried_gradient", _law,
            {"measures": "slope", "cell": FALLING},
        ),
        Claim(
            "the forget gate alone", "Along an LSTM's cell the gradient shrinks by the forget gate, sigma(b) a step.",
            f"the slope {slopes}, mean over the seeds, within {WITHIN:.0%} of ln sigma(b) for b = 0, 1 and 3",
            "common in tutorials, after Gers, Schmidhuber and Cummins 2000", _gate_alone,
            {"measures": "slope", "cell": LSTMS},
            correction="The gate is one of two ways. The other leads through the half-open gates and the recurrent "
            "weights, of gain 0.144 as torch draws them, and both add up: about sigma(b) + 0.144 a step. An LSTM of "
            "forget bias 1 remembers twice as long as sigma(1) says, and one of forget bias 3 loses nothing.",
        ),
        Claim(
            "no skip in time", "Adding a skip connection in time does not make sense.",
            "the median longest lag learned by a leaky, a residual and a dilated cell is in no case above that of the "
            "plain cells that they are around", "a tutorial's sentence, against Chang et al. 2017, arXiv 1710.02224",
            _no_skip, {"measures": "lags", "cell": ("tanh", "tanh, four layers", *SKIPS)},
            correction="It is what an LSTM's cell is: c = f c + ..., an identity in time with a gate. The longest "
            "lags of the other skips stand above.",
        ),
        Claim(
            "horizon and lag", "How far back the gradient reaches before training says how long a lag will be learned.",
            "Spearman's rank correlation of at least 0.9 over the cells, of the median longest lag learned with the "
            "median horizon (steps until the gradient is down to 1/1000, measured on the untrained cell), and with the "
            f"horizon that carry and gain predict; all capped at {settings['longest_lag']}",
            "Pascanu, Mikolov and Bengio 2013, arXiv 1211.5063", _ranks, {"measures": "lags"},
            correction="It is no bound: a GRU with a horizon of 14 steps learns lags of 14 to 20. Leaky cells and "
            "LSTMs learn a quarter to four fifths of theirs in so few steps; cells that lose nothing at the start "
            "differ among themselves.",
        ),
        *(_long_tasks() if {"tanh", LSTMS[1]} <= set(settings["task_cells"]) else ()),
        *([PIXELS] if settings["pixel_steps"] else []),
        *([PRESSURES] if settings["pressure_steps"] else []),
    )  # fmt: skip


def figures(results: Results) -> list[Figure]:
    """Draw the curves of the gradient, horizon against lag, and the long tasks."""
    curves, points, tests = [], [], []
    back = list(range(END + 1))
    for config in results.configs:
        name = config["cell"]
        if config["measures"] == "slope":
            curves += measured_series(results, config, name, lambda values: (back, values["curve"]))
            for _, values in results.where(**config)[:1]:
                curves.append(Series(f"{name}, predicted", "predicted", back, values["predicted"], name))
        elif config["measures"] == "lags":
            points += measured_series(results, config, name, partial(_point, config["longest_lag"]))
        elif config["measures"] == "adding":
            tests += measured_series(results, config, name, lambda values: values["curve"])
    tests.append(Series("always answering 1", "reference", [0, _last(tests)], [ADDING_BASELINE] * 2))
    points.append(Series("lag = horizon", "reference", [1, LAGS[-1]], [1, LAGS[-1]]))
    return [
        Figure("gradient_by_step", "What is left of a gradient", "Untrained cells, by steps back from the last; every "
               "seed, and the prediction from carry and gain; where it grows it is a bound, as states leave zero.",
               Axis("steps back"),
               Axis("size of the gradient relative to the last step's", "log"), tuple(curves)),
        Figure("horizon_and_lag", "Horizon before training, and longest lag learned", "One point per cell and seed; "
               "a cell that learns no lag is drawn at 1.", Axis("horizon, steps", "log"),
               Axis("longest lag learned, steps", "log"), tuple(points)),
        Figure("adding", "The adding problem", "Mean squared error on fresh sequences, every seed.", Axis("step"),
               Axis("mean squared error", "log"), tuple(tests)),
    ]  # fmt: skip


def _point(most: int, values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return [min(values["horizon"], most)], [max(values["longest"], 1)]


def _last(series: Sequence[Series]) -> float:
    return max((float(one.x[-1]) for one in series if len(one.x)), default=1.0)
