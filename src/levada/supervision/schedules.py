"""How the weights of intermediate losses change over training: functions of its progress and of the head's depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Schedule", "constant", "linear_decay", "until_half_depth"]

Schedule: TypeAlias = Callable[[float, float], float]


def constant(progress: float, depth: float) -> float:
    """Keep the weight: `1`.

    Args:
        progress: share of the training that is done.
        depth: share of the depth that lies before the head.

    Source: Szegedy et al. 2014, arXiv 1409.4842 (GoogLeNet), with the weight 0.3.
    """
    return 1.0


def linear_decay(progress: float, depth: float) -> float:
    """Let the weight fall to zero at the end: `1 - progress`.

    Args:
        progress: share of the training that is done.
        depth: share of the depth that lies before the head.

    Example:
        >>> linear_decay(0.25, 0.5)
        0.75

    Source: after Lee et al. 2015, arXiv 1409.5185 (deeply-supervised nets), whose weights decay as training goes on.
    """
    return 1.0 - progress


def until_half_depth(progress: float, depth: float) -> float:
    """Let layer `l` of `n` contribute until `l / (2 n)` of the training is done: `1 if progress < depth / 2 else 0`.

    Args:
        progress: share of the training that is done.
        depth: share of the depth that lies before the head, `l / n`.

    Example:
        >>> [until_half_depth(progress, 0.5) for progress in (0.0, 0.24, 0.25, 1.0)]
        [1.0, 1.0, 0.0, 0.0]

    Source: Al-Rfou et al. 2018, arXiv 1808.04444.
    """
    return float(progress < depth / 2)
