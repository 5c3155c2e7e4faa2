"""What R17 claims."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from levada.study import Claim, Results, Statistic, Undecided
from levada.study.statistics import sign_test, student_interval

__all__ = ["ALAIN", "DEPTHS", "GABOR", "WIDTH", "YOSINSKI", "ZEILER", "claims", "gabor_fraction"]

ALAIN = "Alain and Bengio 2016, arXiv 1610.01644"
YOSINSKI = "Yosinski, Clune, Bengio and Lipson 2014, arXiv 1411.1792"
ZEILER = "Zeiler and Fergus 2014, arXiv 1311.2901"
DEPTHS = (8, 20)
GABOR, TIMES, LEAST = 0.7, 3.0, 0.25
FALL, APART = 1.0, 5.0  # points
ABOVE = 0.95  # of its own controls a filter must be above
WIDTH = 260  # pixels, of the images that EfficientNet-Lite2 was trained on
TUTORIAL = "Layers 1 and 2 hold edges, 3 and 4 textures, 5 and 6 parts of objects, 7 and later whole objects."


def gabor_fraction(shares: Sequence[float]) -> float:
    """Return the fraction of filters that count as Gabor functions.

    Args:
        shares: R^2 of each.
    """
    return sum(share > GABOR for share in shares) / len(shares)


def _probes(results: Results, depth: int, halved: str = "thirds", name: str = "probes") -> list[dict[int, float]]:
    """Accuracy in % by layer, for each seed."""
    return [
        {layer: 100 * share for layer, share in zip(values["layers"], values[name], strict=True)}
        for _, values in results.where(depth=depth, halved=halved, start="small")
    ]


def _rises(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    met = [True] * len(results.seeds)
    for depth in DEPTHS:
        probes, before = (
            [list(found.values()) for found in _probes(results, depth, name=name)]
            for name in ("probes", "probes_before")
        )
        falls = [
            max(max(own[:place]) - own[place] for place in range(1, len(own))) for own in probes
        ]  # below the best before
        gains, untrained = ([own[-1] - own[0] for own in part] for part in (probes, before))
        good = [fall <= FALL and a > b for fall, a, b in zip(falls, gains, untrained, strict=True)]
        met = [now and also for now, also in zip(met, good, strict=True)]
        numbers[f"{depth} layers: largest fall below an earlier layer, points"] = falls
        numbers[f"{depth} layers: accuracy at the first layer, %"] = [own[0] for own in probes]
        numbers[f"{depth} layers: accuracy at the last block, %"] = [own[-1] for own in probes]
        numbers[f"{depth} layers, untrained: accuracy at the first layer, %"] = [own[0] for own in before]
        numbers[f"{depth} layers, untrained: accuracy at the last block, %"] = [own[-1] for own in before]
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
    shallow, step = _probes(results, DEPTHS[0]), (DEPTHS[1] - 2) // (DEPTHS[0] - 2)
    numbers: dict[str, Any] = {}
    met = [True] * len(shallow)
    for halved, told in (("thirds", "halved after thirds"), ("early", "halved at the same layers")):
        by_number, by_share = [], []
        for a, b in zip(shallow, _probes(results, DEPTHS[1], halved), strict=True):
            by_number.append(fmean(abs(a[layer] - b[layer]) for layer in a))
            by_share.append(fmean(abs(a[layer] - b[1 + step * (layer - 1)]) for layer in a))
        met = [now and s < n for now, s, n in zip(met, by_share, by_number, strict=True)]
        numbers |= {f"{told}: mean gap at equal number, points": by_number, f"{told}: at equal share": by_share}
    return all(met), numbers, sign_test(sum(met), len(met))


def _edges(results: Results) -> tuple[bool | Undecided, dict[str, Any], Statistic]:
    numbers: dict[str, Any] = {}
    met, ahead = True, []
    for depth in DEPTHS:
        found, before, *controls = (
            [gabor_fraction(shares) for shares in results.column(name, depth=depth)]
            for name in ("gabor", "gabor_before", "gabor_scrambled", "gabor_patches")
        )
        numbers |= {
            f"{depth} layers: fraction of first filters with R^2 > {GABOR}": found,
            f"{depth} layers: before training": before,
            f"{depth} layers: phases scrambled": controls[0],
            f"{depth} layers: random sums of patches": controls[1],
            f"{depth} layers: test error, %": [100 * e for e in results.column("test_error", depth=depth)],
        }
        met = met and all(f >= LEAST and f >= TIMES * b for f, b in zip(found, before, strict=True))
        for control, told in zip(controls, ("scrambled filters", "sums of patches"), strict=True):
            apart = [a - b for a, b in zip(found, control, strict=True)]
            ahead.append(student_interval(apart, f"the fraction above that of {told}, {depth} layers"))
    least = min(ahead, key=lambda one: one.low or 0.0)
    if not met or any((one.high or 0.0) < 0 for one in ahead):
        return False, numbers, least
    behind = sum((one.low or 0.0) <= 0 for one in ahead)
    if behind:
        return Undecided(f"intervals that do not tell learned filters from controls: {behind} of 4"), numbers, least
    return True, numbers, least


def _pretrained(results: Results) -> tuple[bool | Undecided, dict[str, Any], None]:
    own = results.column("gabor")[0]  # the same weights in every seed
    draws = sum(results.column("controls"))
    fraction, kinds = gabor_fraction(own), ("shuffled", "scrambled")
    shares = [[sum(counts) / draws for counts in zip(*results.column(f"below_{kind}"), strict=True)] for kind in kinds]
    clear = sum(min(both) >= ABOVE for both in zip(*shares, strict=True))
    numbers = {
        f"fraction of the {len(own)} filters with R^2 > {GABOR}": fraction,
        "of the same, pixels shuffled": results.column("fraction_shuffled"),
        "of the same, phases scrambled": results.column("fraction_scrambled"),
        f"filters above {ABOVE:.0%} of their own controls of both kinds": clear,
        "median R^2": sorted(own)[len(own) // 2],
    }
    if fraction < 0.5:
        return False, numbers, None
    if 2 * clear < len(own):
        return Undecided(
            f"{clear} of {len(own)} filters are above {ABOVE:.0%} of their own controls: what is left of a filter of "
            "3 x 3 with its colours is nearly always near a Gabor function, and one network is no sample"
        ), numbers, None  # fmt: skip
    return True, numbers, None


def _sees_half(results: Results) -> tuple[bool, dict[str, Any], None]:
    field, wide = results.column("field")[0], results.column("wide")[0]  # the same network in every seed
    numbers: dict[str, Any] = {}
    seen = []
    for told, own in (
        ("layer", field),
        ("layer wider than 1 x 1, number", [f for f, spans in zip(field, wide, strict=True) if spans]),
    ):
        seen.append(own[6])
        numbers |= {f"{told} {layer}: receptive field, pixels of {WIDTH}": own[layer - 1] for layer in (1, 3, 5, 7, 10)}
        numbers[f"first {told} whose field spans the image"] = 1 + next(i for i, f in enumerate(own) if f >= WIDTH)
    return max(seen) >= WIDTH / 2, numbers, None


EDGES = (
    f"with 8 and with 20 layers: in every seed at least a quarter of the first layer's 16 filters of 7 x 7 with R^2 > "
    f"{GABOR}, and at least {TIMES:g} times the fraction before training; and the mean fraction above that of the same "
    "filters with their phases scrambled and above that of random sums of the patches that they see, 95 % intervals "
    "over seeds without 0 (not held if one lies below 0, else not decided)"
)


def claims() -> list[Claim]:
    """Give the claims."""
    every = {"measures": "digits", "start": "small"}
    digits = {**every, "halved": "thirds"}
    return [
        Claim(
            "probes rise", "“The linear separability of features increase monotonically along the depth of the model.”",
            f"in every seed, with 8 and with 20 layers: no probe more than {FALL:g} point below one of an earlier "
            "layer, up to the last block, and a larger rise from the first layer to the last block than in the same "
            "network before training", ALAIN, _rises, digits, paper_value="curves only, Inception v3 and ResNet-50",
        ),
        Claim(
            "edges in the pretrained network", "“On the first layer they learn features similar to Gabor filters and "
            "color blobs.”", f"EfficientNet-Lite2: at least half of its 32 first filters with R^2 > {GABOR}, else "
            f"not held; and at least half above {ABOVE:.0%} of their own controls, both with their pixels in another "
            "order and with their phases scrambled, colours as they are, else not decided", YOSINSKI, _pretrained,
            {"measures": "pretrained"},
        ),
        Claim(
            "edges here", "“On the first layer they learn features similar to Gabor filters.”",
            f"MNIST, first weights from N(0, 0.01^2): {EDGES}", YOSINSKI, _edges, digits,
        ),
        Claim(
            "edges whatever the start", "The first layer learns edge detectors.",
            f"the same networks, first weights as He draws them: {EDGES}", "common in tutorials", _edges,
            {"measures": "digits", "start": "He", "halved": "thirds"},
            correction="Filters that start large keep much of the noise that they were drawn with, and the network "
            "recognises digits all the same.",
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
            "in every seed: the mean gap between the probes of 8 and of 20 layers smaller at an equal share of the way "
            "from the first to the last block than at an equal number, both where the two halve the image after equal "
            "shares of their depth and where they halve it at the same layers", "this project", _share, every,
            correction="It says more where both networks halve the image after equal shares of their depth. Where they "
            "halve it at the same layers, the number says more: probes follow where images are halved.",
        ),
        Claim(
            "whole objects from layer 7 on", TUTORIAL, "a unit of layer 7 of EfficientNet-Lite2, whether all "
            f"convolutions or those wider than 1 x 1 are counted, sees at least half of the width of {WIDTH} pixels",
            f"common in tutorials; {ZEILER}", _sees_half, {"measures": "pretrained"},
            correction="It sees 11 pixels, or 75 where convolutions of 1 x 1 are not counted: less than a third of the "
            "image. What a layer can hold depends on the kernels and strides before it, not on its number.",
        ),
    ]  # fmt: skip
