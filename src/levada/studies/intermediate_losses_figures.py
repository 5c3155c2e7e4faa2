"""What R16 draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from levada._errors import MeasurementError, UsageError
from levada.study import Axis, Figure, Image, Picture, Results, Series, measured_series
from levada.study.edges import MEAN, photograph, pretrained_edge_detector
from levada.study.picture import encode_png

__all__ = ["figures"]

WIDTH = 160  # pixels, of the pictures


def figures(results: Results) -> list[Figure | Picture]:
    """Draw the gradient by layer, the accuracy of the heads by depth, the losses, the tagger by arm, HED's outputs."""
    reach, heads, curves, tagging = [], [], [], []
    for config in results.configs:
        if config["measures"] == "tagging":
            tagging += measured_series(results, config, _site(config), _tags(config))
            continue
        name = f"{config['network']}, {config['arm']}"
        curves += measured_series(results, config, name, _curve)
        if config["arm"] != "supervised":
            continue
        for label, key in (("without", "gradient"), ("with", "supervised_gradient")):
            reach += measured_series(
                results, config, f"{config['network']}, {label} intermediate losses", _by_layer(key)
            )
        heads += measured_series(results, config, config["network"], _heads(config["depth"]))
    return [
        Figure("reach", "Gradient by layer before training", "Every seed; norm of the gradient of a layer's weights. "
               "Layer 0 is the map in; the last is the output.", Axis("layer"), Axis("gradient norm", "log"),
               tuple(reach)),
        Figure("heads", "Accuracy by depth", "After training with intermediate losses: each head, and at the right end "
               "the output; every seed.", Axis("layer"), Axis("test accuracy, %"), (*heads, *_chance(heads))),
        Figure("losses", "The output's loss", "Every seed; a point is the mean of a twentieth of the steps. Chance is "
               "ln 10 = 2.30.", Axis("step"), Axis("cross-entropy, nats"), tuple(curves)),
        Figure("tagging", "Where parts of speech are learned", "Accuracy of dependency relations on test sentences; a "
               "point is a seed.", Axis("layer of the head for parts of speech (0: none)"),
               Axis("accuracy, %"), tuple(tagging)),
        _edges(),
    ]  # fmt: skip


def _edges() -> Picture:
    """Show what HED, a pretrained network with five losses inside, sees at each of them."""
    told = (
        "edges",
        "Edges by depth: a network that was trained with five losses inside",
        "HED (Xie and Tu 2015), pretrained: what its five side outputs and their fusion say of a photograph "
        f"{WIDTH} pixels wide; black is an edge of probability 1. Nothing here is trained or claimed.",
    )
    try:
        pixels, detector = photograph(), pretrained_edge_detector(side_outputs=True)
    except (UsageError, MeasurementError) as error:
        return Picture(*told, missing=f"left out. {error}")
    size = round(pixels.shape[1] * WIDTH / pixels.shape[2]), WIDTH
    small = interpolate(pixels[None].float(), size=size, mode="area").round()
    with torch.no_grad():
        found = detector(small[:, [2, 1, 0]] - torch.tensor(MEAN).view(3, 1, 1))[0].sigmoid()
    maps = [encode_png(own) for own in (255 * (1 - found)).round().byte()]
    images = [
        Image("the photograph", "A woman in a naval officer's uniform and cap, a flag behind her.",
              encode_png(small[0].byte().permute(1, 2, 0))),
    ]  # fmt: skip
    depth = 0
    for number, (block, png) in enumerate(zip(detector.blocks, maps, strict=False), 1):
        depth += sum(isinstance(layer, nn.Conv2d) for layer in block.children())
        images.append(
            Image(f"side output {number}, after {depth} convolutions", f"Edges by side output {number} of 5.", png)
        )
    images.append(Image("all five, fused", "Edges by the fusion of the five side outputs.", maps[-1]))
    return Picture(*told, images=tuple(images))


def _by_layer(key: str) -> Any:
    return lambda values: (list(range(len(values[key]))), values[key])


def _heads(depth: int) -> Any:
    def points(values: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        return [*values["heads"], depth], [100 * share for share in (*values["head_accuracy"], values["accuracy"])]

    return points


def _chance(series: list[Series]) -> list[Series]:
    ends = [max(own.x) for own in series]
    return [Series("chance", "reference", [0, max(ends)], [10, 10])] if ends else []


def _curve(values: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    return values["curve"]["steps"], values["curve"]["loss"]


def _site(config: Mapping[str, Any]) -> str:
    return "none" if config["site"] is None else f"layer {config['site'] + 1}"


def _tags(config: Mapping[str, Any]) -> Any:
    place = 0 if config["site"] is None else config["site"] + 1
    return lambda values: ([place], [100 * sum(values["correct"]) / sum(values["tokens"])])
