"""What R17 draws."""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from typing import Any

from levada.studies.feature_hierarchy_claims import DEPTHS, GABOR
from levada.study import Axis, Figure, Image, Picture, Results, Series, measured_series

__all__ = ["figures"]


def figures(results: Results) -> list[Figure | Picture]:
    """Draw the probes by layer and by share of the depth, the Gabor fits, the filters, and what excites units."""
    return [*_probes(results), _fits(results), _filters(results), _excites(results)]


def _probes(results: Results) -> list[Figure]:
    by_number: list[Series] = []
    by_share: list[Series] = []
    for depth, halved in ((DEPTHS[0], "thirds"), (DEPTHS[1], "thirds"), (DEPTHS[1], "early")):
        fields = {"measures": "digits", "depth": depth, "halved": halved, "start": "small"}
        name = f"{depth} layers{'' if halved == 'thirds' else ', halved early'}"
        by_number += measured_series(results, fields, name, _by_number)
        by_share += measured_series(results, fields, name, _by_share)
        untrained = functools.partial(_by_number, name="probes_before")
        by_number += measured_series(results, fields, f"{name}, untrained", untrained)
    accuracy = Axis("accuracy of a linear probe, %")
    return [
        Figure("probes_by_layer", "What a linear probe reads, by the layer's number", "MNIST, every seed: test "
               "accuracy of a linear classifier of the mean state after the stem and after each block, before and "
               "after training. If the number said what a layer holds, the curves would lie on each other.",
               Axis("layer"), accuracy, tuple(by_number)),
        Figure("probes_by_share", "The same by the share of the depth", "Every seed; 0 is the first layer, 1 the last "
               "block.", Axis("share of the way"), accuracy, tuple(by_share)),
    ]  # fmt: skip


def _by_number(values: Mapping[str, Any], name: str = "probes") -> tuple[list[float], list[float]]:
    return values["layers"], [100 * share for share in values[name]]


def _by_share(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    layers, shares = _by_number(values)
    return [(layer - 1) / (layers[-1] - 1) for layer in layers], shares


def _ranked(values: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    shares = sorted(values[name], reverse=True)
    return [(place + 0.5) / len(shares) for place in range(len(shares))], shares


def _fits(results: Results) -> Figure:
    lines: list[Series] = []
    pretrained = {"measures": "pretrained"}
    lines += measured_series(results, pretrained, "EfficientNet-Lite2", functools.partial(_ranked, name="gabor"))[:1]
    for name, label in (("gabor_scrambled", "its phases scrambled"), ("gabor_shuffled", "its pixels shuffled")):
        lines += measured_series(results, pretrained, label, functools.partial(_ranked, name=name))
    for start in ("small", "He"):
        fields = {"measures": "digits", "depth": DEPTHS[-1], "halved": "thirds", "start": start}
        ranked = functools.partial(_ranked, name="gabor")
        lines += measured_series(results, fields, f"MNIST, {start} start", ranked)
    fields = {"measures": "digits", "depth": DEPTHS[-1], "halved": "thirds", "start": "small"}
    for name, label in (
        ("gabor_scrambled", "small start, phases scrambled"),
        ("gabor_patches", "sums of patches"),
        ("gabor_before", "before training"),
    ):
        lines += measured_series(results, fields, f"MNIST, {label}", functools.partial(_ranked, name=name))
    if lines:
        lines.append(Series(f"R^2 = {GABOR}", "reference", [0.0, 1.0], [GABOR] * 2))
    return Figure(
        "gabor",
        "How much of a first filter is a Gabor function",
        "Filters from the best fitted to the worst, every seed. 3 x 3 filters in three colours (EfficientNet-Lite2), "
        "7 x 7 in grey (MNIST, 20 layers).",
        Axis("share of the filters"),
        Axis("R^2 of the best Gabor function"),
        tuple(lines),
    )


def _first(results: Results, **fields: Any) -> Mapping[str, Any] | None:
    found = results.where(**fields)
    return found[0][1] if found else None


def _filters(results: Results) -> Picture:
    told = (
        "filters",
        "First filters",
        "Grey is 0; each filter is stretched on its own. Networks of 20 layers, of the first seed.",
    )
    digits = {"measures": "digits", "depth": DEPTHS[-1], "halved": "thirds"}
    small, he = (_first(results, **digits, start=start) for start in ("small", "He"))
    lite = _first(results, measures="pretrained")
    wanted = [
        ("EfficientNet-Lite2", "32 filters of 3 x 3: most are edges of one orientation, or colours.", lite, "filters"),
        ("phases scrambled", "The same with their phases at random, colours as they are.", lite, "filters_scrambled"),
        ("MNIST, small start", "16 filters of 7 x 7: smooth stripes and edges.", small, "filters"),
        ("MNIST, He's start", "16 filters of 7 x 7: noise, with faint stripes.", he, "filters"),
    ]
    images = [Image(label, text, _png(found[key])) for label, text, found, key in wanted if found is not None]
    return Picture(*told, images=tuple(images)) if images else Picture(*told, missing="nothing was measured.")


def _excites(results: Results) -> Picture:
    told = (
        "excites",
        "What excites units of a pretrained network most, by depth",
        "EfficientNet-Lite2, the first units of a layer, one below the other. Left of each pair: an image made for the "
        "unit by gradient ascent. Right: the patch of four photographs that excites it most, as wide as what it sees, "
        "or 130 pixels. Nothing is claimed from these.",
    )
    found = _first(results, measures="pictures")
    if found is None:
        return Picture(*told, missing="nothing was made.")
    images = []
    for depth in found["depths"]:
        layer, field = depth["layer"], depth["field"]
        images += [
            Image(f"layer {layer}: made", f"Images made for units of layer {layer}.", _png(depth["made"])),
            Image(f"sees {field} pixels", f"Patches of photographs for units of layer {layer}.", _png(depth["cut"])),
        ]
    return Picture(*told, images=tuple(images))


def _png(text: str) -> bytes:
    return base64.b64decode(text)
