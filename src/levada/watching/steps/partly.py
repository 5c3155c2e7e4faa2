"""Blocks that learn and are never seen to run, among others that are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, final

from levada.probe.trace import Site
from levada.watching.measure.sample import Sample

__all__ = ["Partly"]

SAMPLES: Final = 3  # at which a block had a gradient and did not run


@final
class Partly:
    """Finds the blocks whose signals are missing though their weights learn, and says so once.

    A block that rests on a sampled step has no gradient. One whose weights have one, on three samples, and that never
    ran, nor shares them with one that did, is called past its hooks, or gives numbers that are not measured.

    Args:
        tell: called with the names of such blocks.

    Example:
        >>> import torch
        >>> nan, partly = torch.nan, Partly(print)
        >>> sites = [Site(name, i, "Linear", (), (f"{name}.weight",)) for i, name in enumerate("ab")]
        >>> values = {"nonfinite": torch.tensor([0.0, nan]), "weight_gradient_rms": torch.tensor([1.0, 1.0])}
        >>> for step in range(3):
        ...     partly.sampled(Sample(step, 0.0, values, {}, ()), sites)
        ['b']
    """

    def __init__(self, tell: Callable[[list[str]], None]) -> None:
        self._tell = tell
        self._over = False
        self._ran, self._learned = set[str](), Counter[str]()

    def sampled(self, sample: Sample, sites: Sequence[Site]) -> None:
        """Hear of a sample.

        Args:
            sample: the sample.
            sites: its blocks.
        """
        if self._over or "nonfinite" not in sample.values:
            return
        missing = sample.values["nonfinite"].isnan()
        if bool(missing.all()) or not bool(missing.any()):
            return
        learns = (sample.values["weight_gradient_rms"] > 0).tolist()
        self._ran |= {site.name for site, gone in zip(sites, missing.tolist(), strict=True) if not gone}
        shared = {name for site in sites if site.name in self._ran for name in site.parameters}
        for site, gone, learned in zip(sites, missing.tolist(), learns, strict=True):
            if gone and learned and site.name not in self._ran and not shared.intersection(site.parameters):
                self._learned[site.name] += 1
        told = [name for name, count in self._learned.items() if count >= SAMPLES and name not in self._ran]
        if told:
            self._over = True
            self._tell(told)
