"""What R20 claims, and what it draws."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from math import exp, isfinite, log
from statistics import fmean
from typing import Any, cast

from levada.study import Axis, Claim, Figure, Results, Series, Settings, Statistic, Undecided, measured_series
from levada.study.statistics import mann_whitney, sign_test, student_interval

__all__ = ["BACHLECHNER", "WANG", "XIONG", "claims", "figures"]

WANG = "Wang, Ma, Dong, Huang, Zhang and Wei 2022, arXiv 2203.00555"
BACHLECHNER = "Bachlechner, Majumder, Mao, Cottrell and McAuley 2021, arXiv 2003.04887"
XIONG = "Xiong et al. 2020, arXiv 2002.04745"
BOUND, GROWTH, LEARNT, MOST_GAIN = 2.0, 10.0, 0.2, 0.1
UPDATE = "what one step changes in the last state, root mean square over the learning rate"


def _updates(results: Results, optimizer: str, arrangement: str) -> dict[int, list[float]]:
    """Updates of every seed, by depth."""
    depths = sorted({c["sublayers"] for c in results.configs if c["arrangement"] == arrangement})
    return {depth: results.column(optimizer, arrangement=arrangement, sublayers=depth) for depth in depths}


def _numbers(optimizer: str, arrangement: str, updates: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    told: dict[str, Any] = {f"{arrangement}, {depth} sub-layers": own for depth, own in updates.items()}
    return {**told, f"{arrangement}: exponent of the depth, {optimizer}": exponents(updates)}


def exponents(updates: Mapping[int, Sequence[float]]) -> list[float]:
    """Return the slope of the logarithm of the update by that of the depth, by least squares, for each seed.

    Args:
        updates: of every seed, by depth.

    Example:
        >>> [round(slope, 6) + 0.0 for slope in exponents({10: [1.0, 2.0], 1000: [10.0, 2.0]})]
        [0.5, 0.0]
    """
    x = [log(depth) for depth in updates]
    away = [value - fmean(x) for value in x]
    columns = zip(*updates.values(), strict=True)
    return [sum(a * log(u) for a, u in zip(away, own, strict=True)) / sum(a * a for a in away) for own in columns]


def _bounded(results: Results, optimizer: str, arrangement: str) -> tuple[bool, dict[str, Any], Statistic]:
    updates = _updates(results, optimizer, arrangement)
    ratios = [max(own) / min(own) for own in zip(*updates.values(), strict=True)]
    numbers = {**_numbers(optimizer, arrangement, updates), "largest over smallest": ratios}
    slopes = exponents(updates)
    return max(ratios) <= BOUND, numbers, student_interval(slopes, "the exponent of the depth")


def _grows(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    updates = _updates(results, "SGD", "post-norm")
    ratios = [last / first for first, last in zip(updates[min(updates)], updates[max(updates)], strict=True)]
    numbers = {**_numbers("SGD", "post-norm", updates), "deepest over shallowest": ratios}
    return min(ratios) >= GROWTH, numbers, sign_test(sum(r >= GROWTH for r in ratios), len(ratios))


def _less(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    pre, post = (_updates(results, "SGD", arrangement) for arrangement in ("pre-norm", "post-norm"))
    deepest = max(pre)
    less = [a < b for a, b in zip(pre[deepest], post[deepest], strict=True)]
    numbers = {**_numbers("SGD", "pre-norm", pre), **_numbers("SGD", "post-norm", post)}
    return all(less), numbers, mann_whitney(pre[deepest], post[deepest])


def _last(results: Results, arrangement: str, frozen: bool) -> list[float]:
    """Mean loss of each seed over the last ten steps."""
    losses = results.column("loss", measures="training", arrangement=arrangement, frozen=frozen)
    return [fmean(own[-10:]) for own in losses]


def _gains(results: Results, arrangement: str) -> tuple[list[float], float, dict[str, Any], Statistic | None]:
    """Loss of each seed, the entropy of letters, all numbers, and the interval of what training sub-layers gains.

    The gain is the loss with sub-layers as they were drawn less that with sub-layers that train, of the same seed:
    embeddings and head, which learn in both, cannot make it. Without an interval where a loss is not finite.
    """
    last, frozen = (_last(results, arrangement, own) for own in (False, True))
    entropy: float = results.column("letter_entropy", arrangement=arrangement)[0]
    gains = [still - own for own, still in zip(last, frozen, strict=True)]
    numbers = {
        "entropy of letters, nats": entropy,
        "loss of the last ten steps": last,
        "the same, with frozen sub-layers": frozen,
        "gain over frozen sub-layers": gains,
        "squared cosine of last state and input, before training": results.column(
            "kept", arrangement=arrangement, frozen=False
        ),
    }
    finite = all(isfinite(gain) for gain in gains)
    return last, entropy, numbers, student_interval(gains, "the gain over frozen sub-layers") if finite else None


def _learns(results: Results, arrangement: str) -> tuple[bool | Undecided, dict[str, Any], Statistic | None]:
    last, entropy, numbers, interval = _gains(results, arrangement)
    if interval is None or not all(own <= entropy - LEARNT for own in last):
        return False, numbers, interval
    if cast(float, interval.low) <= 0:
        steps = results.configs[0]["steps"]
        return (
            Undecided(f"{steps} steps do not show that sub-layers learn: their gain is not above 0"),
            numbers,
            interval,
        )
    return True, numbers, interval


def _stays(results: Results) -> tuple[bool, dict[str, Any], Statistic | None]:
    last, entropy, numbers, interval = _gains(results, "post-norm")
    stuck = not any(own <= entropy - LEARNT for own in last)  # a loss that is not finite has not fallen either
    return stuck and (interval is None or cast(float, interval.high) <= MOST_GAIN), numbers, interval


def claims(settings: Settings) -> list[Claim]:
    """Give the claims: on the first update, then on training the deepest."""
    depths = sorted(settings["sublayers"])
    every = ", ".join(map(str, depths[:-1])) + f" and {depths[-1]}"
    update = {"measures": "update"}
    bounded = f"largest over smallest at {every} sub-layers at most {BOUND:g} in every seed"
    deep = depths[-1]
    return [
        Claim(
            "post-norm's update grows", "The update of a post-norm transformer explodes with its depth.",
            f"{UPDATE}, SGD: at {deep} sub-layers at least {GROWTH:g} times that at {depths[0]}, in every seed", WANG,
            _grows, {**update, "arrangement": "post-norm"},
        ),
        Claim(
            "DeepNorm's update is bounded", "“Model updates can be bounded in a stable way.”", f"{UPDATE}, SGD: "
            f"{bounded}", WANG, functools.partial(_bounded, optimizer="SGD", arrangement="DeepNorm"),
            {**update, "arrangement": "DeepNorm"}, paper_value="bounded by a constant, for SGD",
        ),
        Claim(
            "and by Adam's step", "“Model updates can be bounded in a stable way.”", f"{UPDATE}, Adam: {bounded}", WANG,
            functools.partial(_bounded, optimizer="Adam", arrangement="DeepNorm"),
            {**update, "arrangement": "DeepNorm"},
            correction="The bound is on SGD's step. Adam's first step moves every weight by the learning rate whatever "
            "its gradient, and the update grows about as the root of the depth: the rate must fall with it.",
        ),
        Claim(
            "ReZero's update is bounded", "A network that starts as the identity is changed by O(1), at any depth.",
            f"{UPDATE}, SGD: {bounded}", f"this project's documents; {BACHLECHNER}",
            functools.partial(_bounded, optimizer="SGD", arrangement="ReZero"), {**update, "arrangement": "ReZero"},
            correction="Its start is the same at any depth, its first step is not: all scalars move at once, each by "
            "its branch's alignment with the gradient, and the changes add up: in proportion to the depth where there "
            "are many.",
        ),
        Claim(
            "pre-norm's update is smaller", "Pre-norm is more stable than post-norm.", f"{UPDATE}, SGD, {deep} "
            "sub-layers: pre-norm's below post-norm's in every seed", XIONG, _less,
            {**update, "arrangement": ("pre-norm", "post-norm")},
        ),
        *_training_claims(deep, settings["steps"]),
    ]  # fmt: skip


def _training_claims(deep: int, steps: int) -> list[Claim]:
    training = {"measures": "training"}
    trained = f"{deep} sub-layers, {steps} steps of Adam at constant rates: loss of the last ten steps"
    below = f"{LEARNT:g} nats below the entropy of letters"
    interval = "the 95 % interval of what it gains over the same network, of the same seed, with frozen sub-layers"
    learning = f"{trained} at least {below} in every seed, and {interval} above 0"
    return [
        Claim(
            "DeepNorm learns", "“We successfully scale Transformers up to 1,000 layers.”", learning, WANG,
            functools.partial(_learns, arrangement="DeepNorm"), {**training, "arrangement": "DeepNorm"},
            paper_value="2,500 sub-layers, trained on translation",
        ),
        Claim(
            "ReZero learns", f"A network of {deep} sub-layers that starts as the identity trains.", learning,
            BACHLECHNER, functools.partial(_learns, arrangement="ReZero"), {**training, "arrangement": "ReZero"},
            paper_value="128 layers on enwik8, 1.08 bits per character",
        ),
        Claim(
            "pre-norm learns", f"Pre-norm transformers of {deep} sub-layers learn: their gradients “are well-behaved "
            "at initialization”.", learning, XIONG, functools.partial(_learns, arrangement="pre-norm"),
            {**training, "arrangement": "pre-norm"},
            correction="Gradients are not all: what leaves the sub-layers at the start has little to do with what "
            "entered them, so that with frozen sub-layers the head learns next to nothing, and what these learn in the "
            "steps given here does not mend it.",
        ),
        Claim(
            "post-norm does not", f"Post-norm transformers of {deep} sub-layers do not learn.",
            f"{trained} in no seed {below}, and {interval} at most {MOST_GAIN:g} nats at its upper end",
            f"{XIONG}; {WANG}", _stays, {**training, "arrangement": "post-norm"},
        ),
    ]  # fmt: skip


def figures(results: Results) -> list[Figure]:
    """Draw the first update by depth, for both optimizers, the losses, and what sub-layers gain by training."""
    updates: dict[str, list[Series]] = {"SGD": [], "Adam": []}
    losses: list[Series] = []
    gains: list[Series] = []
    for config in results.configs:
        arrangement = config["arrangement"]
        if config["measures"] == "update":
            for name, lines in updates.items():
                at = functools.partial(_update_at, name=name, depth=config["sublayers"])
                lines += measured_series(results, config, arrangement, at)
        elif not config["frozen"]:
            losses += measured_series(results, config, arrangement, _curve)
            gains += _gained(results, arrangement)
    for name, lines in updates.items():
        lines += _guides(results, name)
    if losses:
        entropy = results.column("letter_entropy", measures="training")[0]
        losses.append(Series("entropy of letters", "reference", [0.0, max(losses[0].x)], [entropy] * 2))
    depth, change = Axis("sub-layers", "log"), Axis("change of the last state over the learning rate", "log")
    told = "Every seed, before training. The lines have the slopes {} and {}, and were laid through what {} and {} do."
    return [
        Figure("sgd", "What the first step of SGD changes", told.format(1, 0, "ReZero", "DeepNorm"), depth, change,
               tuple(updates["SGD"])),
        Figure("adam", "What the first step of Adam changes", told.format("1/2", 1, "DeepNorm", "ReZero"), depth,
               change, tuple(updates["Adam"])),
        Figure("losses", "Training the deepest", "Every seed, on the batches before each step.", Axis("step"),
               Axis("cross-entropy, nats"), tuple(losses)),
        Figure("gains", "What sub-layers gain by training", "Every seed: loss with sub-layers as they were drawn less "
               "that with sub-layers that train, on the same batches; a point is the mean of ten steps. Embeddings "
               "and head train in both.", Axis("step"), Axis("gain, nats"), tuple(gains)),
    ]  # fmt: skip


def _gained(results: Results, arrangement: str) -> list[Series]:
    """Mean of the gain over each ten steps, of every seed that has both losses."""
    own, frozen = (
        dict(results.where(measures="training", arrangement=arrangement, frozen=frozen)) for frozen in (False, True)
    )
    found = []
    for seed in (seed for seed in own if seed in frozen):
        gain = [b - a for a, b in zip(own[seed]["loss"], frozen[seed]["loss"], strict=True)]
        parts = [gain[start : start + 10] for start in range(0, len(gain), 10)]
        ends = [float(min(10 * (place + 1), len(gain))) for place in range(len(parts))]
        label = f"{arrangement}, seed {seed}"
        found.append(Series(label, "measured", ends, [fmean(part) for part in parts], arrangement, seed=seed))
    return found


def _guides(results: Results, optimizer: str) -> list[Series]:
    """Powers of the depth through what was measured: their place is fitted, so that they predict nothing."""
    found = []
    slopes = {"SGD": {"DeepNorm": 0.0, "ReZero": 1.0}, "Adam": {"DeepNorm": 0.5, "ReZero": 1.0}}[optimizer]
    own = Results([c for c in results.cells if c.config["measures"] == "update"], results.values)
    for arrangement, slope in slopes.items():
        updates = {depth: values for depth, values in _updates(own, optimizer, arrangement).items() if values}
        if len(updates) < 2:
            continue
        through = sorted(updates)[-2]  # where ReZero's sum has begun to grow in proportion
        middle = fmean(log(value) for value in updates[through])
        ends = [float(min(updates)), float(max(updates))]
        label = f"depth^{slope:g}, through {arrangement}"
        line = [exp(middle + slope * log(depth / through)) for depth in ends]
        found.append(Series(label, "reference", ends, line, arrangement))
    return found


def _update_at(values: Mapping[str, Any], name: str, depth: int) -> tuple[list[float], list[float]]:
    return [float(depth)], [values[name]]


def _curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return [float(step) for step in range(len(values["loss"]))], values["loss"]
