"""What R17 claims."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from levada.study import Claim, Results, Statistic
from levada.study.statistics import mann_whitney, sign_test

__all__ = ["ALAIN", "DEPTHS", "GABOR", "WIDTH", "YOSINSKI", "ZEILER", "claims", "gabor_fraction"]

ALAIN = "Alain and Bengio 2016, arXiv 1610.01644"
YOSINSKI = "Yosinski, Clune, Bengio and Lipson 2014, arXiv 1411.1792"
ZEILER = "Zeiler and Fergus 2014, arXiv 1311.2901"
DEPTHS = (8, 20)
GABOR, TIMES, LEAST = 0.7, 3.0, 0.25
FALL, APART = 1.0, 5.0  # points
WIDTH = 260  # pixels, of the images that EfficientNet-Lite2 was trained on
TUTORIAL = "Layers 1 and 2 hold edges, 3 and 4 textures, 5 and 6 parts of objects, 7 and later whole objects."


def gabor_fraction(shares: Sequence[float]) -> float:
    """Return the fraction of filters that count as Gabor functions.

    Args:
        shares: R^2 of each.
    """
    return sum(share > GABOR for share in shares) / len(shares)


def _probes(results: Results, depth: int) -> list[dict[int, float]]:
    """Accuracy in % by layer, for each seed."""
    return [
        {layer: 100 * share for layer, share in zip(values["layers"], values["probes"], strict=True)}
        for _, values in results.where(depth=depth, start="small")
    ]


def _rises(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    met = [True] * len(results.seeds)
    for depth in DEPTHS:
        probes = [list(found.values()) for found in _probes(results, depth)]
        falls = [
            max(max(own[:place]) - own[place] for place in range(1, len(own))) for own in probes
        ]  # below the best before
        met = [before and fall <= FALL for before, fall in zip(met, falls, strict=True)]
        numbers[f"{depth} layers: largest fall below an earlier layer, points"] = falls
        numbers[f"{depth} layers: accuracy at the first layer, %"] = [own[0] for own in probes]
        numbers[f"{depth} layers: accuracy at the last block, %"] = [own[-1] for own in probes]
    return all(met), numbers, sign_test(sum(met), len(met))


def _index(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    shallow, deep = (_probes(results, depth) for depth in DEPTHS)
    numbers: dict[str, Any] = {}
    met = [True] * len(shallow)
    for layer in (3, 5, 7):
        gaps = [a[layer] - b[layer] for a, b in zip(shallow, deep, strict=True)]
        met = [before and abs(gap) <= APART for before, gap in zip(met, gaps, strict=True)]
        for depth, probes in zip(DEPTHS, (shallow, deep), strict=True):
            numbers[f"layer {layer} of {depth}: accuracy, %"] = [own[layer] for own in probes]
    return all(met), numbers, sign_test(sum(met), len(met))


def _share(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    """Compare layers of equal number, and layers of equal share of the way from the first to the last block."""
    shallow, deep = (_probes(results, depth) for depth in DEPTHS)
    step = (DEPTHS[1] - 2) // (DEPTHS[0] - 2)
    by_number, by_share = [], []
    for a, b in zip(shallow, deep, strict=True):
        by_number.append(fmean(abs(a[layer] - b[layer]) for layer in a))
        by_share.append(fmean(abs(a[layer] - b[1 + step * (layer - 1)]) for layer in a))
    less = sum(s < n for s, n in zip(by_share, by_number, strict=True))
    numbers = {"mean gap at equal number, points": by_number, "mean gap at equal share of the depth": by_share}
    return less == len(by_share), numbers, sign_test(less, len(by_share))


def _edges(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    met = [True] * len(results.seeds)
    for depth in DEPTHS:
        found, before, spoilt = (
            [gabor_fraction(shares) for shares in results.column(name, depth=depth)]
            for name in ("gabor", "gabor_before", "gabor_shuffled")
        )
        numbers |= {
            f"{depth} layers: fraction of first filters with R^2 > {GABOR}": found,
            f"{depth} layers: before training": before,
            f"{depth} layers: shuffled": spoilt,
            f"{depth} layers: test error, %": [100 * e for e in results.column("test_error", depth=depth)],
        }
        good = [f >= LEAST and f >= TIMES * b and f > s for f, b, s in zip(found, before, spoilt, strict=True)]
        met = [now and also for now, also in zip(met, good, strict=True)]
    return all(met), numbers, sign_test(sum(met), len(met))


def _pretrained(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    own = results.column("gabor")[0]  # the same weights in every seed
    drawn, spoilt = results.column("gabor_random"), results.column("gabor_shuffled")
    fraction = gabor_fraction(own)
    numbers = {
        f"fraction of the 32 filters with R^2 > {GABOR}": fraction,
        "of random filters": [gabor_fraction(shares) for shares in drawn],
        "of the same filters, shuffled": [gabor_fraction(shares) for shares in spoilt],
        "median R^2": sorted(own)[len(own) // 2],
    }
    met = all(
        fraction >= TIMES * gabor_fraction(d) and fraction > gabor_fraction(s)
        for d, s in zip(drawn, spoilt, strict=True)
    )
    return met, numbers, mann_whitney(own, drawn[0])


def _sees_half(results: Results) -> tuple[bool, dict[str, Any], None]:
    field = results.column("field")[0]  # the same network in every seed
    numbers = {f"layer {layer}: receptive field, pixels of {WIDTH}": field[layer - 1] for layer in (1, 3, 5, 7, 10)}
    numbers["first layer whose field spans the image"] = 1 + next(i for i, f in enumerate(field) if f >= WIDTH)
    return field[6] >= WIDTH / 2, numbers, None


EDGES = (
    f"in every seed, with 8 and with 20 layers: at least a quarter of the first layer's 16 filters of 7 x 7 with "
    f"R^2 > {GABOR}, at least {TIMES:g} times the fraction before training, and more than when shuffled"
)


def claims() -> list[Claim]:
    """Give the claims."""
    digits = {"measures": "digits", "start": "small"}
    return [
        Claim(
            "probes rise", "“The linear separability of features increase monotonically along the depth of the model.”",
            f"in every seed, with 8 and with 20 layers: no probe more than {FALL:g} point below one of an earlier "
            "layer, up to the last block", ALAIN, _rises, digits, paper_value="curves only, Inception v3 and ResNet-50",
        ),
        Claim(
            "edges in the pretrained network", "“On the first layer they learn features similar to Gabor filters and "
            "color blobs.”", f"EfficientNet-Lite2: the fraction of first filters with R^2 > {GABOR} at least "
            f"{TIMES:g} times that of as many random ones, and above that of the same ones shuffled, in each of the "
            "seeds' draws", YOSINSKI, _pretrained, {"measures": "pretrained"},
        ),
        Claim(
            "edges here", "“On the first layer they learn features similar to Gabor filters.”",
            f"MNIST, first weights from N(0, 0.01^2): {EDGES}", YOSINSKI, _edges, digits,
        ),
        Claim(
            "edges whatever the start", "The first layer learns edge detectors.",
            f"the same networks, first weights as He draws them: {EDGES}", "common in tutorials", _edges,
            {"measures": "digits", "start": "He"},
            correction="Filters that start large keep the noise that they were drawn with, and the network reads them "
            "as well: its test error is no larger. Edges are what gradient descent adds, not what recognition needs.",
        ),
        Claim(
            "the number says what a layer holds", TUTORIAL, "in every seed: the probes of the networks with 8 and with "
            f"20 layers within {APART:g} points of each other at layers 3, 5 and 7", f"common in tutorials; {ZEILER}",
            _index, digits,
            correction="Layer 7 is the last block of one network and a third of the way in the other. In Zeiler and "
            "Fergus's network of five convolutions, layer 5 shows entire objects.",
        ),
        Claim(
            "the share of the depth says more", "What a layer holds depends on how far along it is.",
            "in every seed: the mean gap between the two networks' probes smaller at an equal share of the way from "
            "the first to the last block than at an equal number", "this project", _share, digits,
        ),
        Claim(
            "whole objects from layer 7 on", TUTORIAL, "a unit of layer 7 of EfficientNet-Lite2 sees at least half of "
            f"the width of its images of {WIDTH} pixels", f"common in tutorials; {ZEILER}", _sees_half,
            {"measures": "pretrained"},
            correction="It sees 11 pixels: no object that is larger can be told there from what is beside it. What a "
            "layer can hold depends on kernels and strides before it, not on its number.",
        ),
    ]  # fmt: skip
