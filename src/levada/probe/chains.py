"""Chains: layers that hand the same streams on, one after the other. A model may have several."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from levada.probe.streams import Sample

__all__ = ["Chain", "chains_of"]


@dataclass(frozen=True, slots=True)
class Chain:
    """The layers of one chain in one pass.

    Attributes:
        samples: in order; what each reads is under its own name, whoever made it.
        places: where they lie among the pass's samples.
        head: size of the weights that put the streams together at the end, `(tokens, n)`, where the last layer makes
            them, or None.
    """

    samples: list[Sample]
    places: list[int]
    head: Tensor | None = None


def chains_of(samples: Sequence[Sample]) -> list[Chain]:
    """Divide the layers of one pass into chains.

    A layer goes on the chain that waits for its index, among those with as many layers, streams and channels. Of
    several that run by turns it is the one whose names are most alike. Layer 0 begins a chain, and so does a layer that
    no chain waits for. Layers without an index follow one another.

    Args:
        samples: of one pass, in the order in which the layers were called, on the host.

    Example:
        >>> one = torch.full((1, 2), 0.5)
        >>> called = [("a.0", 0), ("b.0", 0), ("a.1", 1), ("b.1", 1)]
        >>> samples = [Sample(name, i, None, one, one, torch.eye(2)[None], one) for name, i in called]
        >>> [[s.name for s in chain.samples] for chain in chains_of(samples)]
        [['a.0', 'a.1'], ['b.0', 'b.1']]
    """
    found: list[list[int]] = []
    for place, sample in enumerate(samples):
        waiting = [chain for chain in found if _follows(sample, samples[chain[-1]])]
        if waiting:
            # The nearest index first, then the names, then the chain that was touched last.
            max(waiting, key=lambda chain: _likeness(sample, samples[chain[-1]], chain[-1])).append(place)
        else:
            found.append([place])
    return [_with_own_reads([samples[place] for place in chain], chain) for chain in found]


def _kind(sample: Sample) -> tuple[object, ...]:
    return sample.depth, sample.width, sample.read.shape[-1], sample.ahead


def _follows(sample: Sample, last: Sample) -> bool:
    if _kind(sample) != _kind(last) or (sample.layer is None) != (last.layer is None):
        return False
    return sample.layer is None or last.layer is None or sample.layer > last.layer


def _likeness(sample: Sample, last: Sample, place: int) -> tuple[int, int, int]:
    gap = (sample.layer or 0) - (last.layer or 0)
    pairs = zip(sample.name.split("."), last.name.split("."), strict=False)
    return -gap, len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))), place


def _with_own_reads(samples: list[Sample], places: list[int]) -> Chain:
    """Put what a layer reads under its own name, where it is made by the one before."""
    if not samples[0].ahead:
        return Chain(samples, places)
    first = torch.zeros_like(samples[0].read)
    first[..., 0] = 1.0
    if samples[0].layer:  # the layers before it were not seen
        first.fill_(torch.nan)
    reads = [first]
    for before, sample in itertools.pairwise(samples):
        known = (sample.layer or 0) - (before.layer or 0) == 1
        reads.append(before.read if known else torch.full_like(before.read, torch.nan))
    own = [replace(sample, read=read) for sample, read in zip(samples, reads, strict=True)]
    return Chain(own, places, samples[-1].read)
