"""What rules ask of layers with several streams: how far the mixing goes over depth, and whether streams can part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from levada.probe.streams import Mixing, reads_streams
from levada.probe.trace import Trace

__all__ = ["MixedChain", "can_part", "latest", "mixed_chains", "mixed_sites", "symmetric"]

# Streams and weights that differ by less are equal: float32 keeps copies of one stream to 1e-7, and what was drawn at
# random, scaled down by a hundred as published, differs by more than 1e-4.
EQUAL = 1e-6


def latest(trace: Trace, signal: str) -> Tensor:
    """Return a signal's mean over the draws of the last step, `(sites,)`; NaN where it was not measured."""
    rows = [row for row, step in enumerate(trace.steps) if step == trace.steps[-1]]
    return trace[signal][rows].nanmean(0)


def mixed_sites(trace: Trace) -> list[int]:
    """Return which sites hold layers with several streams."""
    return (~latest(trace, "mixing_forward_gain").isnan()).nonzero().flatten().tolist()


@dataclass(frozen=True, slots=True)
class MixedChain:
    """One chain of layers with several streams, as far as its blocks were measured.

    Attributes:
        sites: indices of its blocks, in order.
        first: name of the first layer in each of them.
        last: name of the last layer in each of them.
        count: number of its layers.
        streams: number of its streams.
    """

    sites: list[int]
    first: Mapping[int, str]
    last: Mapping[int, str]
    count: int
    streams: int


def mixed_chains(trace: Trace) -> list[MixedChain]:
    """Return the chains of layers with several streams; of a trace that names none, all its layers are one.

    Args:
        trace: of one check, or of a run.
    """
    names, known = trace.names(), set(mixed_sites(trace))
    matrices = trace.context.get("mixing") or {}
    usual = [names[i] for i in sorted(known)]
    found = []
    for told in trace.context.get("chains") or [{"layers": usual, "sites": usual}]:
        index = {name: i for i, name in enumerate(names)}
        at = [(index[s], layer) for layer, s in zip(told["layers"], told["sites"], strict=True) if s in index]
        at = [(i, layer) for i, layer in at if i in known]
        if at:
            last = dict(at)
            first = dict(reversed(at))
            streams = len(matrices.get(told["layers"][0], "1"))
            found.append(MixedChain(sorted(last), first, last, len(told["layers"]), streams))
    return found


def symmetric(trace: Trace) -> bool:
    """Whether at every layer all streams are equal, are read alike and written alike.

    Args:
        trace: of one check, or of a run.
    """
    sites = mixed_sites(trace)
    weights = trace.context.get("stream_weights") or {}
    if not sites or not weights:
        return False
    # What the first layer reads of equal streams keeps none of them apart, and where layers say what the next one reads
    # it is stream 0 alone.
    told = [chain["layers"][0] for chain in trace.context.get("chains") or () if chain["reads_ahead"]]
    learned = [
        w for name, one in weights.items() for key, w in one.items() if (name, key) not in {(n, "read") for n in told}
    ]
    alike = all(max(w) - min(w) <= EQUAL for w in learned)
    cosine, ratio = latest(trace, "stream_cosine")[sites], latest(trace, "stream_rms_ratio")[sites]
    return alike and bool((cosine >= 1 - EQUAL).all()) and bool((ratio <= 1 + EQUAL).all())


def can_part(model: nn.Module, run: Callable[[], Any], objective: Callable[[Any], Tensor]) -> dict[str, float] | None:
    """Return how much the gradients of what is read, mixed and written differ between streams.

    Streams that are equal, and whose weights get equal gradients, are equal after any step: by symmetry, for ever.

    Args:
        model: the model.
        run: calls it.
        objective: what its outputs are differentiated by.

    Returns:
        The largest difference over layers and tokens for "read", "mix" (within a row) and "write", relative to the
        layer's largest gradient of the three; what gets no gradient is left out, and None is returned if nothing gets
        one.
    """
    held: list[tuple[str, str, Tensor]] = []

    def take(name: str, module: nn.Module, state: Tensor, coefficients: Any) -> None:
        if not any(p.requires_grad for p in module.parameters()):
            return  # it is not meant to learn
        read, mix, write = coefficients
        by_stream = reads_streams(module, read, state)
        for key, tensor in (("read", read if by_stream else None), ("mix", mix), ("write", write)):
            if tensor is not None and tensor.requires_grad:
                held.append((name, key, tensor))

    mixing = Mixing(model, take)
    mixing.attach()
    mixing.begin(1)
    try:
        outputs = run()
    finally:
        mixing.detach()
    target = objective(outputs) if held else None
    if target is None or not target.requires_grad:
        return None
    found = torch.autograd.grad(target, [tensor for _, _, tensor in held], allow_unused=True)
    gradients = [(name, key, g.double()) for (name, key, _), g in zip(held, found, strict=True) if g is not None]
    # Before a normalisation the gradient of what is read is a sum of large terms that is zero: rounding, and nothing to
    # be compared with itself.
    sizes: dict[str, float] = {}
    for name, _, g in gradients:
        sizes[name] = max(sizes.get(name, 0.0), float(g.abs().amax()))
    differences: dict[str, float] = {}
    for name, key, g in gradients:
        if sizes[name] > 0:
            difference = float((g.amax(-1) - g.amin(-1)).amax()) / sizes[name]
            differences[key] = max(differences.get(key, 0.0), difference)
    return differences or None
