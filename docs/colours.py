"""How far the pages' colours are apart, as eyes see them that tell all colours apart, and as three others do.

Contrast is that of WCAG 2.2; the colours of a dichromat are those of Machado, Oliveira and Fernandes, "A
Physiologically-based Model for Simulation of Color Vision Deficiency", 2009, at full severity; a distance is CIEDE2000,
of which 1 is about the least that anyone sees.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab

__all__ = ["SIGHTS", "contrast", "distances", "seen"]

SIGHTS = {
    "all colours": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""Sight -> what it makes of linear RGB."""


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21.

    Example:
        >>> contrast("#000000", "#ffffff"), round(contrast("#777777", "#ffffff"), 2)
        (21.0, 4.48)
    """
    dark, light = sorted(float(_linear(_rgb(colour)) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def seen(colour: str, sight: str) -> np.ndarray:
    """Return a colour in CIELAB, as one of `SIGHTS` sees it."""
    linear = np.clip(np.array(SIGHTS[sight]) @ _linear(_rgb(colour)), 0, 1)
    rgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return rgb2lab(rgb[None, None])[0, 0]


def distances(colours: list[str], sight: str) -> list[tuple[float, str, str]]:
    """Return every pair of colours with its distance, the nearest first."""
    labs = {colour: seen(colour, sight) for colour in colours}
    pairs = combinations(colours, 2)
    return sorted((float(deltaE_ciede2000(labs[one], labs[other])), one, other) for one, other in pairs)
