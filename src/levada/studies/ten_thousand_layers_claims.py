"""What R9 claims: one sentence of one source each, with the criterion that decides it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log, log10
from typing import Any, cast

from levada.study import Claim, Results, Settings, Statistic, Undecided
from levada.study.statistics import mann_whitney, sign_test, student_interval
from levada.theory import gaussian_drift, orthogonal_tanh

__all__ = ["BACHLECHNER", "CHANCE", "FIXUP", "XIAO", "claims"]

XIAO = "Xiao et al. 2018, arXiv 1806.05393"
BACHLECHNER = "Bachlechner et al. 2021, arXiv 2003.04887"
FIXUP = "Zhang, Dauphin and Ma 2019, arXiv 1901.09321"
CHANCE = log(10)
LEARNED, STAYS = CHANCE / 2, 0.02
LEAST, LARGEST, TOLERANCE, EXACT = 0.1, 10.0, 0.005, 1e-5


def _every_seed(met: Sequence[bool]) -> tuple[bool, Statistic]:
    return all(met), sign_test(sum(met), len(met))


def _identity(results: Results) -> tuple[bool, dict[str, Any], None]:
    same = results.column("same")
    return all(same), {"state and gradient equal at all boundaries": same}, None


def _ratios(results: Results) -> tuple[list[float], list[float], list[bool]]:
    """Signal and gradient at the far end relative to where they begin, and whether all between are within bounds."""
    ends = [*zip(results.column("first"), results.column("last"), strict=True)]
    signal = [last[0] / first[0] for first, last in ends]
    gradient = [first[1] / last[1] for first, last in ends]
    bounds = zip(ends, results.column("least"), results.column("largest"), strict=True)
    within = [
        least[0] >= LEAST * first[0] and largest[0] <= LARGEST * first[0]
        and least[1] >= LEAST * last[1] and largest[1] <= LARGEST * last[1]
        for (first, last), least, largest in bounds
    ]  # fmt: skip
    return signal, gradient, within


def _carries(results: Results) -> tuple[bool, dict[str, Any], None]:
    """Decide whether sizes stay within bounds, and whether every example's end where the closed form says."""
    signal, gradient, within = _ratios(results)
    config = results.configs[0]
    far = [
        [_departures(config["depth"], config["dim"], example) for example in own] for own in results.column("examples")
    ]
    states, gradients = ([max(pair[i] for pair in own) for own in far] for i in (0, 1))
    numbers = {
        "signal, last over first": signal,
        "gradient, first over last": gradient,
        "signal: largest departure of an example from the closed form": states,
        "gradient: largest departure of an example from the closed form": gradients,
    }
    near = all(own <= TOLERANCE for own in (*states, *gradients))
    return all(within) and near, numbers, None


def _departures(depth: int, dim: int, example: Sequence[float]) -> tuple[float, float]:
    """How far one example's signal and gradient are from the closed form, relative to it.

    Of a gradient at an angle to the state the part across it shrinks as the state does, `S^(-1/2)`, and the part along
    it by `S^(-3/2)`.
    """
    first, last, gradient_first, gradient_last, aligned = example
    signal = orthogonal_tanh(depth, dim, first**2).signal
    gradient = signal * (1 - aligned * (1 - signal**4)) ** 0.5
    return abs(last / first / signal - 1), abs(gradient_first / gradient_last / gradient - 1)


def _gaussian(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    signal, gradient, within = _ratios(results)
    config = results.configs[0]
    drift = gaussian_drift(config["depth"], config["dim"])
    numbers = {
        "signal, decades": [log10(s) for s in signal],
        "gradient, decades": [log10(g) for g in gradient],
        "closed form at this width, decades": drift.mean / log(10),
        "its standard deviation between networks, decades": drift.deviation / log(10),
    }
    held, statistic = _every_seed(within)
    return held, numbers, statistic


def _exact(results: Results) -> tuple[bool, dict[str, Any], None]:
    numbers: dict[str, Any] = {}
    met = [True] * len(results.seeds)
    for config in results.configs:
        name = config["network"]
        differ, finite, apart = (results.column(key, **config) for key in ("differ", "finite", "apart"))
        numbers[f"{name}: derivatives computed"] = results.column("gradients", **config)[0]
        numbers[f"{name}: of these, changed by checkpointing"] = differ
        numbers[f"{name}: relative distance from the difference of the loss"] = apart
        met = [m and d == 0 and f and a <= EXACT for m, d, f, a in zip(met, differ, finite, apart, strict=True)]
    return all(met), numbers, None


def _no_skips(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    networks = ("orthogonal", "Gaussian", "PyTorch's default")
    losses = {network: results.column("loss", network=network) for network in networks}
    own, *others = losses.values()
    met = [
        loss <= LEARNED and all(abs(other - CHANCE) <= STAYS for other in rest)
        for loss, *rest in zip(own, *others, strict=True)
    ]
    numbers = {f"{network}: training loss": loss for network, loss in losses.items()}
    return all(met), numbers, mann_whitney(own, [min(seed) for seed in zip(*others, strict=True)])


def _learns(results: Results) -> tuple[bool | Undecided, dict[str, Any], Statistic | None]:
    """Decide whether training the layers lowers the loss: the maps in and out train with frozen layers as well."""
    network, depth = results.configs[0]["network"], results.configs[0]["depth"]
    losses, frozen = (results.column("loss", frozen=own) for own in (False, True))
    gains = [still - own for own, still in zip(losses, frozen, strict=True)]
    numbers = {
        f"{network}, {depth:,} layers: training loss": losses,
        "the same, with frozen layers": frozen,
        "gain over frozen layers": gains,
    }
    if not all(isfinite(gain) for gain in gains):
        return False, numbers, None
    interval = student_interval(gains, "the gain over frozen layers")
    low, high = cast(float, interval.low), cast(float, interval.high)
    if low <= 0 <= high:
        return Undecided("the interval of the gain over frozen layers holds 0"), numbers, interval
    return low > 0, numbers, interval


def _convolutions(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    met = [True] * len(results.seeds)
    for config in results.configs:
        losses = results.column("loss", **config)
        numbers[f"{config['draw']}, {config['depth']:,} layers: training loss"] = losses
        learns = config["draw"] == "delta-orthogonal"
        met = [
            m and (loss <= LEARNED if learns else abs(loss - CHANCE) <= STAYS)
            for m, loss in zip(met, losses, strict=True)
        ]
    held, statistic = _every_seed(met)
    return held, numbers, statistic


def claims(settings: Settings) -> list[Claim]:
    """Give the claims, with the depths of these settings."""
    depth, deep = settings["depth"], settings["deep"]
    start, trained = {"measures": "start"}, {"measures": "training"}
    steps, deep_steps = settings["steps"], settings["deep_steps"]
    convolutions = " and ".join(f"{own:,}" for own in settings["convolution_depths"])
    gained = (
        "the 95 % interval of what its training loss gains over the same network, of the same seed, with frozen "
        "layers lies above 0"
    )
    half = f"training loss at most ln(10) / 2 = {LEARNED:.3f} nats in every seed"
    bounds = f"between {LEAST:g} and {LARGEST:g} times what it begins with at every one of {deep:,} layers"
    found = [
        Claim("ReZero starts as the identity", "With ReZero signal and gradient pass any number of layers unchanged.",
              f"before training: size of state and gradient the very same number at all {deep + 1:,} boundaries, in "
              "every seed", BACHLECHNER, _identity, {**start, "network": "ReZero"}),
        Claim("orthogonal weights carry a signal without skips", "At criticality, with weights that keep every norm, "
              f"a signal passes {deep:,} layers without skips.", f"before training: state and, backwards, gradient "
              f"{bounds}, and those of every example at the end within {TOLERANCE:.1%} of the closed form, in every "
              "seed", XIAO, _carries,
              {**start, "network": "orthogonal"}),
        Claim("criticality is enough", "At criticality a signal passes any number of layers.",
              f"Gaussian weights of variance 1/n: state and gradient {bounds}, in every seed",
              "mean-field theory of infinite width: Schoenholz et al. 2017, arXiv 1611.01232", _gaussian,
              {**start, "network": "Gaussian"},
              correction="Only at infinite width. In one network of width n the typical norm falls by about 1/(2n) "
              "nats a layer, though its mean square is kept: what matters is the depth over the width. Orthogonal "
              "weights have no such loss."),
        Claim("the gradient is exact", f"The backward pass through {deep:,} layers is exact, and recomputing "
              "activations changes nothing.", "float64, ReZero and orthogonal: every derivative finite and bitwise "
              "the same with and without checkpointing, and their product with a random direction within "
              f"{EXACT:g} of the difference of the loss along it, in every seed", "no public log was found", _exact,
              {"measures": "exactness"}),
        Claim("a thousand layers without skips", f"Networks of {depth:,} layers train without skips where the weights "
              "are orthogonal, and not from other starts.", f"orthogonal: {half}; Gaussian at the same criticality, "
              f"and PyTorch's default: within {STAYS:g} of ln 10 = {CHANCE:.3f}", XIAO, _no_skips,
              {**trained, "depth": depth, "network": ("orthogonal", "Gaussian", "PyTorch's default")}),
        Claim("a thousand layers of ReZero", f"Networks of {depth:,} layers train with ReZero.",
              f"{steps} steps: {gained}", BACHLECHNER, _learns, {**trained, "depth": depth, "network": "ReZero"}),
        Claim("ten thousand layers of ReZero", "Skips let networks have 152, 1,000, even 10,000 layers.",
              f"{deep:,} layers with ReZero, {deep_steps} steps: {gained}", BACHLECHNER, _learns,
              {**trained, "depth": deep, "network": "ReZero"},
              paper_value="10,000 layers overfit the training set; the released notebook holds no output",
              correction="They do, and not as residual networks of 2015, which were trained up to 1,202 layers, there "
              "with a larger test error than at 110 (7.93 % and 6.43 %). 10,000 layers were trained without skips "
              "(Xiao et al.), with Fixup and with ReZero."),
        Claim("convolutions without skips", f"Plain convolutional networks of {convolutions} layers train where their "
              "weights are delta-orthogonal.", f"delta-orthogonal: {half}; PyTorch's default: within {STAYS:g} of "
              "ln 10", f"{XIAO}, abstract", _convolutions, {"measures": "convolution"},
              paper_value="“vanilla CNNs with ten thousand layers or more”"),
    ]  # fmt: skip
    if "orthogonal" in settings["deep_networks"]:
        found.append(
            Claim(
                "ten thousand layers without skips", f"Networks of {deep:,} layers train without any skip.",
                f"orthogonal weights, {deep_steps} steps: {gained}", f"{XIAO}, abstract", _learns,
                {**trained, "depth": deep, "network": "orthogonal"},
            )
        )  # fmt: skip
    return found
