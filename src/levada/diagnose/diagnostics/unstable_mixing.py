"""The mixing of streams, multiplied over the layers, grows or shrinks what passes through it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.streams import MixedChain, latest, mixed_chains
from levada.probe.trace import Trace

__all__ = ["unstable_mixing"]

RULE = "unstable_mixing"
# Of 35 small nets that had trained well (6 to 48 layers, rates of 1e-3 and 3e-3) 27 had free mixing: 25 stayed at 8.0
# or below, two of 48 layers reached 11 and 28; those with constrained mixing or none stayed below 1.8 (their paper: 1.6
# at 60 layers, where free mixing reached 3000). At 1e-2 the free mixing reached 210 and 890, at 3e-2 2e6 and 3e6.
LARGE = 30.0
# Two decades, by the mixing alone: what an error needs.
EXTREME = 100.0
# Attenuation. The same 35 nets kept norms of 0.43 or more; what averages n streams keeps 1 / sqrt(n). Column sums tell
# less: those of mixing that turns the streams, or that has trained well, may lie near zero on either side, and 4 of the
# 35 had one of less than a hundredth.
ATTENUATED = 0.1
# The share of the mixing's decades that gradient or signal must show to be said to follow it.
FOLLOWED = 0.5
SOURCE = "Zhu et al. 2024, arXiv 2409.19606 (free mixing); Xie et al. 2025, arXiv 2512.24880 (the gains, constrained)"


@dataclass(frozen=True, slots=True)
class _Case:
    """One direction: what mixing does to the signal on its way forward, or to the gradient on its way back."""

    way: Literal["forward", "backward"]
    gain: float
    low: float
    span: tuple[int, int]
    followed: float | None


def unstable_mixing(trace: Trace) -> Iterable[Finding]:
    """The product of the layers' mixing matrices grows, so that signal or gradient does, whatever the branches do.

    It speaks if that product multiplies equal streams, or a gradient that is equal in all streams, by thirty, or leaves
    to one stream less than a tenth of a gradient that points anywhere. An error needs a hundredfold gain in every
    draw, and a measured cotangent, or signal, that grows by half of its decades at least. Each chain of layers is
    judged by itself.

    Args:
        trace: of one check, or of a run.
    """
    for chain in mixed_chains(trace):
        yield from _of_chain(trace, chain)


def _of_chain(trace: Trace, chain: MixedChain) -> Iterable[Finding]:
    cases = [_backward(trace, chain.sites), _forward(trace, chain.sites)]
    case = max(cases, key=lambda one: one.gain)
    norms = latest(trace, "composite_column_norm")[chain.sites].nan_to_num(nan=math.inf)
    left = float(norms.amin())
    grows = case.gain > LARGE  # NaN, of a product that overflowed both ways, does not
    if not grows and left >= ATTENUATED:
        return
    names = trace.names()
    follows = case.followed is not None and case.followed >= FOLLOWED * math.log10(max(case.gain, 1.0))
    severity: Severity = "error" if grows and case.low >= EXTREME and follows else "warn"
    first, last = case.span if grows else (chain.sites[int(norms.argmin())], chain.sites[-1])
    layers = f"From {chain.first[first]} to {chain.last[last]}, of {_layers(chain.count)} with streams,"
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=_claim(case, layers) if grows else _lost_claim(layers, left),
        where={"first": names[first], "last": names[last]},
        evidence={
            **{f"composite_{one.way}_gain": one.gain for one in cases},
            "composite_column_norm": left if math.isfinite(left) else math.nan,
            "reference": "gains of 1 for mixing whose rows and columns sum to 1, a norm of 1 for orthogonal mixing",
            "explained_by": "theory",
            "tests": {"growth_beside_the_mixing": _tested(case) if grows else "not made"},
        },
        consequence=_consequence(case, follows) if grows else "That stream's part learns from next to no gradient.",
        falsify=(
            "Replace every mixing matrix by the identity and check again: if signal and gradient grow as much, the "
            "mixing is not the cause."
        ),
        remedies=(_constrained(case, None if grows else (left, chain.streams**-0.5)),),
        source=SOURCE,
    )


def _backward(trace: Trace, sites: list[int]) -> _Case:
    """Return what the products from a layer to the last do to a gradient, where they do most."""
    gains = _known(latest(trace, "composite_backward_gain"), sites)
    site = int(gains.argmax())
    low = _low(trace, "composite_backward_gain", site)
    # The gradient at the boundary before a layer has passed the product from that layer on. Before the first layer
    # there is one stream, and its gradient is the sum of theirs.
    logs = facts_of(trace).cotangent_log10
    followed = None
    if len(sites) > 1 and logs is not None and logs.shape[1] == len(gains):
        start = max(sites[1:], key=lambda i: float(gains[i])) - 1
        followed = _least(logs[:, start] - logs[:, sites[-1]])
    return _Case("backward", float(gains[site]), low, (site, sites[-1]), followed)


def _forward(trace: Trace, sites: list[int]) -> _Case:
    """Return what the products from the first layer to one do to the signal, where they do most."""
    gains = _known(latest(trace, "composite_forward_gain"), sites)
    site = int(gains.argmax())
    low = _low(trace, "composite_forward_gain", site)
    signal = trace["signal_rms"].log10()
    followed = _least(signal[:, site] - signal[:, sites[0] - 1]) if sites[0] > 0 else None
    return _Case("forward", float(gains[site]), low, (sites[0], site), followed)


def _known(gains: Tensor, sites: list[int]) -> Tensor:
    kept = torch.full_like(gains, -1.0)
    kept[sites] = gains[sites].nan_to_num(nan=-1.0, posinf=math.inf)
    return kept


def _low(trace: Trace, signal: str, site: int) -> float:
    values = trace[signal][:, site]
    values = values[~values.isnan()]
    return float(values.amin()) if len(values) else math.nan


def _least(decades: Tensor) -> float | None:
    """Return the mean over draws, less two standard errors."""
    known = decades[decades.isfinite()]
    if not len(known):
        return None
    error = float(known.std()) / math.sqrt(len(known)) if len(known) > 1 else 0.0
    return float(known.mean()) - 2 * error


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _claim(case: _Case, layers: str) -> str:
    whom = "a gradient equal in all streams" if case.way == "backward" else "equal streams"
    return f"{layers} the product of the mixing matrices multiplies {whom} by up to {case.gain:.3g}."


def _lost_claim(layers: str, left: float) -> str:
    return (
        f"{layers} the product of the mixing matrices leaves {left:.2g} of a gradient to one stream, wherever the "
        "gradient points."
    )


def _tested(case: _Case) -> dict[str, float] | str:
    if case.followed is None:
        return "not made: no boundary before these layers was measured"
    return {"decades_of_the_mixing": math.log10(max(case.gain, 1.0)), "decades_measured_at_least": case.followed}


def _consequence(case: _Case, follows: bool) -> str:
    what = "gradient" if case.way == "backward" else "signal"
    if follows:
        return f"The measured {what} grows with it: its scale is a matter of depth and of a few learned numbers."
    return f"The measured {what} does not grow as much: the streams cancel, or the branches do, which may not last."


def _constrained(case: _Case, left: tuple[float, float] | None) -> Proposal:
    key, (before, after) = f"composite_{case.way}_gain", (case.gain, 1.0)
    if left is not None:  # a column that sums to 1 has the norm 1 / sqrt(n) at least
        key, (before, after) = "composite_column_norm", left
    return Proposal(
        "constrain the mixing",
        "from levada import ManifoldHyperConnection, Stack\n"
        "net = Stack(blocks, ManifoldHyperConnection, dim=dim)"
        "  # rows and columns of each mixing matrix, and so of the product, sum to 1",
        {key: before},
        {key: after},
    )
