"""What R19 claims and draws: one sentence of one source each, with the criterion that decides it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from levada.study import Axis, Claim, Figure, Results, Series, Statistic, measured_series
from levada.study.products import mean_square_gain
from levada.study.statistics import cliffs_delta, mann_whitney, sign_test, student_interval

__all__ = ["CLAIMS", "figures"]

HC, MHC = "Zhu et al. 2024, arXiv 2409.19606", "Xie et al. 2025, arXiv 2512.24880"
KOLASINSKI = "Kolasinski 2026, taylorkolasinski.com/devlog/mhc-reproduction-session-6"
LEAST_GAIN = {0.05: 2.0, 0.1: 5.0, 0.2: 20.0}
BOUND, EXPLODES = 2.0, 5.0
SURGE = 0.5  # nats that the loss, a mean of a fiftieth of the steps, lies above an earlier one
MARGIN = 0.01  # nats that "as good as" may be worse
DECIDED = 0.05  # the largest p at which a difference of losses counts


def _unconstrained(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    for epsilon, least in LEAST_GAIN.items():
        free = results.column("free", epsilon=epsilon)
        numbers[f"eps {epsilon:g}: median Amax"] = gains = [found["absolute_gain"] for found in free]
        numbers[f"eps {epsilon:g}: median Amax of signed sums"] = [found["gain"] for found in free]
        numbers[f"eps {epsilon:g}: mean square of a row sum"] = [found["mean_square"] for found in free]
        numbers[f"eps {epsilon:g}: its expectation, (1 + 4 eps^2)^60"] = mean_square_gain(epsilon, 60, 4)
        met = [before and gain >= least for before, gain in zip(met, gains, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def _rows_exact(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    drift = [found for _, found in results.where(measures="drift")]
    product = [found["constrained"] for _, found in results.where(measures="product")]
    numbers = {
        "largest |row sum - 1|, near the identity": max(found["row_deviation"] for found in drift),
        "largest |row sum - 1|, of I + eps N as logits": max(found["row_deviation"] for found in product),
    }
    exact = [found["row_deviation"] <= 1e-12 for found in (*drift, *product)]
    return all(exact), numbers, sign_test(sum(exact), len(exact))


def _columns_drift(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    logs = {}
    for iterations in (5, 10, 20, 50, 100):
        found = [values for _, values in results.where(iterations=iterations)]
        logs[iterations] = [values["log_column"] for values in found]
        for name, key in (("largest", "largest_column"), ("smallest", "smallest_column")):
            numbers[f"{iterations} iterations: {name} column sum"] = [values[key] for values in found]
        numbers[f"{iterations} iterations: max |log column sum|, 99th percentile"] = logs[iterations]
    met = [at[2] >= 0.4 and list(at) == sorted(at, reverse=True) for at in zip(*logs.values(), strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def _peak(values: Mapping[str, Any], names: Sequence[str]) -> float:
    """The largest value over layers and over the measurements in training; NaN counts as infinite."""
    found = [gain[name] for gain in values["gains"] for name in names]
    return max((value if not math.isnan(value) else math.inf for value in found), default=math.inf)


_GAINS = ("composite_forward_gain", "composite_backward_gain")


def _gain(results: Results, most: float | None) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether the composite gain stays below `most` throughout, or reaches EXPLODES with clipping."""
    numbers: dict[str, Any] = {}
    met: list[bool] = []
    for clipped in (True, False):
        found = [values for _, values in results.where(clipped=clipped, rate_of=None)]
        how = "with" if clipped else "without"
        for name, keys in (("forward", _GAINS[:1]), ("backward", _GAINS[1:]),
                           ("|log column sum|", ("composite_log_column_sum",))):  # fmt: skip
            numbers[f"{how} clipping: largest composite {name}"] = [_peak(values, keys) for values in found]
        for name in ("forward", "backward"):
            single = [max(values["mixing"][f"mixing_{name}_gain"]) for values in found]
            numbers[f"{how} clipping: largest of a single layer, {name}, after training"] = single
        amax = [_peak(values, _GAINS) for values in found]
        met += [gain <= most for gain in amax] if most else [gain >= EXPLODES for gain in amax if clipped]
    slower = [_peak(values, _GAINS) for _, values in results.where(rate_of="mHC")]
    if slower:
        numbers["with clipping, at mHC's learning rate: largest composite, forward or backward"] = slower
    return all(met), numbers, sign_test(sum(met), len(met))


def _losses(
    results: Results, name: str, matched: bool = True, rate_of: str | None = None
) -> tuple[list[float], list[float]]:
    fields = {"connection": name, "clipped": True, "matched": matched, "rate_of": rate_of}
    return results.column("train_loss", **fields), results.column("test_loss", **fields)


def _difference(a: Sequence[float], b: Sequence[float]) -> Statistic:
    return student_interval([x - y for x, y in zip(a, b, strict=True)], "the difference by seed, nats")


def _told(interval: Statistic) -> dict[str, Any]:
    return {key: value for key, value in interval.to_dict().items() if key != "name"}


def _compare(results: Results, first: str, second: str) -> tuple[dict[str, Any], Statistic, Statistic]:
    """Return the losses of two connections, the interval of their difference by seed, and the exact test."""
    numbers: dict[str, Any] = {}
    (a, held_a), (b, held_b) = _losses(results, first), _losses(results, second)
    for name, losses, held in ((first, a, held_a), (second, b, held_b)):
        numbers[f"{name}, loss"], numbers[f"{name}, held-out loss"] = losses, held
    interval = _difference(a, b)
    numbers[f"{first} - {second}"] = _told(interval)
    numbers[f"{first} - {second}, held-out"] = _told(_difference(held_a, held_b))
    numbers["Cliff's delta"] = cliffs_delta(a, b)
    if "mHC" in (first, second):
        wide = _losses(results, "mHC", matched=False)[0]
        numbers["mHC with the residual network's branches, loss"] = wide
        again = _difference(wide, b) if first == "mHC" else _difference(a, wide)
        numbers[f"{first} - {second}, mHC with those branches"] = _told(again)
    if {first, second} == {"mHC", "HC"}:
        slower = _losses(results, "HC", rate_of="mHC")[0]
        numbers["HC at mHC's learning rate, loss"] = slower
        numbers["mHC - HC, HC at mHC's learning rate"] = _told(_difference(a, slower))
    return numbers, interval, mann_whitney(a, b)


def _beats(results: Results, better: str, worse: str) -> tuple[bool, dict[str, Any], Statistic]:
    numbers, interval, test = _compare(results, better, worse)
    return interval.value < 0 and (test.p or 0.0) <= DECIDED, numbers, test


def _as_good(results: Results, first: str, second: str) -> tuple[bool, dict[str, Any], Statistic]:
    numbers, interval, test = _compare(results, first, second)
    numbers["Mann-Whitney, exact two-sided p"] = test.p
    return (interval.high or 0.0) <= MARGIN, numbers, interval


def _sound(values: Mapping[str, Any]) -> bool:
    return bool(values["finite"]) and float(values["largest_rise"]) <= SURGE


def _surges(results: Results, clipped: bool) -> tuple[bool, dict[str, Any], Statistic]:
    """Decide whether a run without clipping surges, or whether none with it does."""
    numbers = {}
    for name in ("HC", "mHC"):
        for how in (True, False):
            found = results.column("largest_rise", connection=name, clipped=how, rate_of=None)
            if found:
                numbers[f"{name}, {'with' if how else 'without'} clipping: largest rise of the loss, nats"] = found
    own = [_sound(values) for _, values in results.where(connection="HC", clipped=clipped, rate_of=None)]
    count = sum(own) if clipped else len(own) - sum(own)
    return count == len(own) if clipped else count > 0, numbers, sign_test(count, len(own))


def _cheap(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    times = results.column("time")
    first = results.where()[0][1]
    for name in first["time"]:
        numbers[f"{name}: time of a residual step"] = [found[name] for found in times]
        numbers[f"{name}: state, elements per token"] = first["state"][name]
        numbers[f"{name}: parameters, of these the connections'"] = [
            first["parameters"][name], first["of_connections"][name],
        ]  # fmt: skip
    own = [found["mHC"] for found in times]
    met = [ratio <= 1.1 for ratio in own]
    return all(met), numbers, student_interval(own, "mHC's time relative to the residual step's")


# Better, worse, what is said, by whom, with which numbers.
COMPARISONS = (
    ("HC", "residual", "“Hyper-connections show significant performance improvements over residual connections.”",
     f"{HC}, abstract", "7 billion parameters: training loss 2.559 against 2.581"),
    ("mHC", "residual", "mHC is effective, “offering tangible performance improvements”.", f"{MHC}, abstract",
     "27 billion parameters: training loss lower by 0.021"),
    ("mHC", "HC", "mHC improves on HC in most benchmarks.", f"{MHC}, Table 4",
     "27 billion parameters: 7 of 8 benchmarks; HC is ahead in MATH, 26.4 against 26.0"),
    ("gated residual", "mHC", "Gated residual streams, not mixed, are a little ahead of mHC.",
     "Qwen3.8-Flash-Next's report, Table 5", "25 billion parameters: loss 1.590 against 1.594"),
    ("AttnRes", "residual", "Attention over depth improves on the residual stream: “the improvement is consistent "
     "across model sizes”.", "Kimi team 2026, arXiv 2603.15031, abstract", "16 layers: loss 1.737 against 1.766"),
    ("DenseFormer", "residual", "Weighted averages over depth improve on the residual stream.",
     "Pagliardini et al. 2024, arXiv 2402.02622",
     "in the 16 layers of arXiv 2603.15031 they do not: loss 1.767 against 1.766"),
)  # fmt: skip


def _training(**fields: Any) -> dict[str, Any]:
    return {"measures": "training", "matched": True, **fields}


def _pair(*names: str) -> dict[str, Any]:
    return _training(clipped=True, connection=names, matched=(True, False))


_EITHER = (True, False)
_NAMED = ", ".join(f"{least:g} at eps = {epsilon:g}" for epsilon, least in LEAST_GAIN.items())
_OF_MATRICES = (
    Claim("unconstrained products explode", "Without a constraint the product of the layers' mixing matrices amplifies "
          "signals without bound.", "60 matrices I + eps N, 4 streams: median over products of Amax, the largest sum "
          f"of |entries| of a row or column, at least {_NAMED}, in every seed", f"{MHC}, section 3.1", _unconstrained,
          {"measures": "product"}, paper_value="27 billion parameters, trained: about 3000"),
    Claim("Sinkhorn keeps the rows", "Doubly stochastic matrices are closed under multiplication: the composite's row "
          "sums are 1.", "|row sum - 1| <= 1e-12 in every product of 60 matrices, from 5 to 100 iterations",
          f"{MHC}, section 4.1", _rows_exact, {"measures": ("product", "drift")}),
    Claim("Sinkhorn lets the columns drift", "After 20 iterations the matrices are not doubly stochastic: rows come "
          "last, so that what is left undone is all in the columns, and adds up over depth.", "60 layers near the "
          "identity and alike: 99th percentile of max |log column sum| at least 0.4 after 20 iterations, and falling "
          "from each of 5, 10, 20, 50, 100 iterations to the next, in every seed",
          "independent checks of arXiv 2512.24880, Figure 8; arXiv 2601.05732", _columns_drift, {"measures": "drift"},
          paper_value="Figure 8: a column sum of 0.41 over layers 31 to 60"),
)  # fmt: skip
_OF_GAIN = (
    Claim("mHC bounds the gain", "The composite gain stays near 1.", "largest composite gain, forward or backward, "
          f"over layers and over training, at most {BOUND:g} in every seed, with clipping and without",
          f"{MHC}, section 5.4", functools.partial(_gain, most=BOUND), _training(connection="mHC", clipped=_EITHER),
          paper_value="27 billion parameters: at most about 1.6"),
    Claim("HC lets the gain explode", "Unconstrained, the composite gain explodes.", "largest composite "
          f"gain, forward or backward, over layers and training, at least {EXPLODES:g} in every seed with clipping",
          f"{MHC}, section 3.1", functools.partial(_gain, most=None), _training(connection="HC", clipped=_EITHER),
          paper_value="27 billion parameters: about 3000; Kolasinski: 9.2 at 10 million, 10,924 at 1.7 billion"),
)  # fmt: skip
_OF_LOSS = (
    *(
        Claim(f"{better} beats {worse}", statement, f"mean loss({better}) < mean loss({worse}) after training, exact "
              f"two-sided p <= {DECIDED:g}", source, functools.partial(_beats, better=better, worse=worse),
              _pair(better, worse), paper_value=paper)
        for better, worse, statement, source, paper in COMPARISONS
    ),
    Claim("no mixing is as good", "The mixing matrix may be left out: the identity does as well as a doubly stochastic "
          "one, or better.", f"95 % interval of loss(identity HC) - loss(mHC), by seed, ends at {MARGIN:g} nats at "
          "most", "“Your DeepSeek mHC Might Not Need the m”, Zhihu 2026, read in translation",
          functools.partial(_as_good, first="identity HC", second="mHC"), _pair("identity HC", "mHC"),
          paper_value="1.7 and 8 billion parameters: identity ahead of mHC"),
)  # fmt: skip
_OF_STABILITY = (
    Claim("HC is unstable without clipping", "Losing the identity “causes severe training instability”.", "without "
          f"clipping, in one seed at least, HC's loss is not finite or rises by more than {SURGE:g} nats, means of a "
          "fiftieth of the steps being compared", f"{MHC}, abstract", functools.partial(_surges, clipped=False),
          _training(connection=("HC", "mHC"), clipped=_EITHER),
          paper_value="27 billion parameters: the loss surges near step 12,000"),
    Claim("nothing crashed", "“And nothing crashed”: with clipping, hyper-connections train on at gains of thousands.",
          f"gradients clipped to a norm of 1: in every seed HC's loss is finite and rises by {SURGE:g} nats at most",
          KOLASINSKI, functools.partial(_surges, clipped=True), _training(connection=("HC", "mHC"), clipped=True),
          paper_value="1.7 billion parameters: gain 10,924, no crash"),
)  # fmt: skip
_OF_COST = Claim(
    "the constraint is cheap", "mHC with 4 streams takes 6.7 % more time.", "forward and backward pass of mHC at most "
    "1.1 times those of the residual network with as many parameters, side by side, in every seed",
    f"{MHC}, section 4.3", _cheap, {"measures": "cost"},
    paper_value="6.7 %, with fused kernels, recomputation and overlapped communication",
    correction="The 6.7 % are of fused kernels at a width of thousands. Operation by operation, on a processor and at "
    "the width of this run, mHC takes a multiple of the residual network's time.",
)  # fmt: skip
CLAIMS = (*_OF_MATRICES, *_OF_GAIN, *_OF_LOSS, *_OF_STABILITY, _OF_COST)


def figures(results: Results) -> list[Figure]:
    """Draw gain by layer and in training, losses, gradients by layer, and the drift of the columns."""
    by_layer, in_training, norms, losses, lag, gradients, drift = [], [], [], [], [], [], []
    for config in results.configs:
        if config["measures"] != "training":
            continue
        name, mixed = _name(config), config["connection"] in ("HC", "mHC")
        own = config["matched"] and not config.get("rate_of")
        if mixed and config["matched"]:
            in_training += measured_series(results, config, name, _amax_by_step)
        if own and (mixed or config["connection"] == "residual"):
            norms += measured_series(results, config, name, _norm_by_step)
        if config["clipped"]:
            losses += measured_series(results, config, name, lambda v: ([v["train_loss"]], [v["test_loss"]]))
        if config["clipped"] and own:
            gradients += measured_series(results, config, name, _numbered("gradient_after"))
            lag += _behind_residual(results, config, name)
            for way in ("forward", "backward") if mixed else ():
                points = functools.partial(_mixing_by_layer, signal=f"composite_{way}_gain")
                by_layer += measured_series(results, config, f"{name}, {way}", points)
    for label, key in (("99th percentile", "log_column"), ("median", "log_column_median")):
        for seed in results.seeds:
            drift += _drift_of(results, seed, label, key)
    deviation = max(results.column("row_deviation", measures="drift"), default=0.0)
    return [
        Figure("gain_by_layer", "Composite gain by layer", "After training with clipping, every seed. Forward: largest "
               "|row sum| of the product from the first layer to this one; backward: largest |column sum| of that from "
               "this layer to the last.", Axis("layer"), Axis("gain", "log"), tuple(by_layer)),
        Figure("gain_in_training", "Composite gain in training", "Amax, the largest over layers, forward or backward, "
               "measured eleven times; every seed.", Axis("step"), Axis("Amax", "log"), tuple(in_training)),
        Figure("loss_difference", "Training loss beside the residual network's", "Loss on the batches less that of the "
               "residual network of the same seed on the same batches, each at its own learning rate; a point is the "
               "mean of a fiftieth of the steps. Below zero: ahead.",
               Axis("step"), Axis("difference, nats"), tuple(lag)),
        Figure("losses", "Losses after training", "One point per seed, with clipping.",
               Axis("loss on the training text, nats"), Axis("loss on held-out books, nats"), tuple(losses)),
        Figure("gradient_in_training", "Gradient in training", "Norm of the gradient by all parameters, before it is "
               "clipped; a point is the mean of a fiftieth of the steps, every seed.", Axis("step"),
               Axis("gradient norm", "log"), tuple(norms)),
        Figure("gradient_by_layer", "Gradient by layer after training", "Norm of the gradient by a branch's parameters "
               "on the seed's first batch, in float64; every seed.", Axis("layer"), Axis("gradient norm", "log"),
               tuple(gradients)),
        Figure("column_drift", "What Sinkhorn iterations leave in the columns", "Products of 60 matrices near the "
               "identity and alike, every seed: the 99th percentile and the median, over products, of the largest "
               f"|log column sum|. Row sums differ from 1 by {deviation:.0e} at most.",
               Axis("iterations", "log"), Axis("|log column sum|", "log"), tuple(drift)),
    ]  # fmt: skip


def _name(config: Mapping[str, Any]) -> str:
    branches = "" if config["matched"] else ", residual's branches"
    rate = f", {config['rate_of']}'s rate" if config.get("rate_of") else ""
    return f"{config['connection']}{branches}{rate}{'' if config['clipped'] else ', not clipped'}"


def _numbered(column: str) -> Any:
    return lambda values: (list(range(1, len(values[column]) + 1)), values[column])


def _mixing_by_layer(values: Mapping[str, Any], signal: str) -> tuple[list[int], list[float]]:
    found = values["mixing"][signal]
    return list(range(1, len(found) + 1)), found


def _amax_by_step(values: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    return [g["step"] for g in values["gains"]], [max(g[name] for name in _GAINS) for g in values["gains"]]


def _norm_by_step(values: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    return values["curves"]["steps"], values["curves"]["gradient_norm"]


def _behind_residual(results: Results, config: Mapping[str, Any], name: str) -> list[Series]:
    if config["connection"] == "residual":
        return []
    base = dict(results.where(measures="training", connection="residual"))

    def difference(seed: int, values: Mapping[str, Any]) -> list[float]:
        pairs = zip(values["curves"]["loss"], base[seed]["curves"]["loss"], strict=False)  # one may have ended early
        return [a - b for a, b in pairs]

    return [
        Series(f"{name}, seed {seed}", "measured", values["curves"]["steps"], difference(seed, values), name, seed=seed)
        for seed, values in results.where(**config)
        if seed in base
    ]


def _drift_of(results: Results, seed: int, label: str, key: str) -> list[Series]:
    points = []
    for config in results.configs:
        if config["measures"] == "drift":
            points += [(config["iterations"], found[key]) for at, found in results.where(**config) if at == seed]
    if not points:
        return []
    x, y = zip(*sorted(points), strict=True)
    return [Series(f"{label}, seed {seed}", "measured", list(x), list(y), group=label, seed=seed)]
