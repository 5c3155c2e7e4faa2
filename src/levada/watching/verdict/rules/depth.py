"""Signals and gradients that vanish or explode over depth, or at a block in the course of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from levada.diagnose.decay import LEAST_DECADES, Decay, gradient_decay, size_decay
from levada.diagnose.finding import Finding, Severity
from levada.diagnose.trainable import GRADIENT_SCALES
from levada.probe.trace import Trace
from levada.watching.verdict.baseline import octaves, times
from levada.watching.verdict.view import View, at_rest, loss_falls

__all__ = [
    "NEGLIGIBLE",
    "exploding_gradient",
    "exploding_signal",
    "is_far",
    "vanishing_gradient",
    "vanishing_signal",
]

NEGLIGIBLE: Final = 2.0**-24
"""A hundred thousand steps of this size, all in one direction, move the weights by less than one part in a hundred."""

# Octaves, three decades: as over depth, and more than a healthy block was seen to move.
FAR: Final = LEAST_DECADES * math.log2(10)
# Share of the log gradient's variance over depth that a constant factor per block must explain to be a law of depth.
LAWFUL: Final = 0.95
# Steps as large as a tenth of the weights do not follow a gradient that is local.
LARGE: Final = 0.1
# Of what was learned, so much is lost again: the loss rises, and does not merely jitter.
RISEN: Final = 0.25
# Scales of the gradient's mean square, a tenth above those to which nets train: one at ten was seen to start late.
BEYOND: Final = 1.1 * GRADIENT_SCALES
# Blocks that lose the three decades without a common factor: fewer are a place, and no depth.
UNEVEN: Final = 3
# Samples in a row on each of which they do.
LASTING: Final = 3
_DEPTH = "Schoenholz et al. 2017, arXiv 1611.01232"


def vanishing_gradient(view: View) -> Iterable[Finding]:
    """The gradient shrinks over depth until the first blocks stand still, or dies at one block while the run goes on.

    Over depth it speaks if, in the last samples, the contiguous blocks that lose most lose three decades, the largest
    single loss counted as the second largest; an error needs a constant factor per block that explains the fall,
    updates of the first block that move nothing while those of later ones do, and a loss that has not fallen. It speaks
    of less where an optimizer that does not rescale gradients trains, the loss stands where it began after 128 steps or
    more, and a constant factor per block, with its whole interval, is one by which such blocks train to no such depth:
    the span is longer than eleven scales of the mean square. Where blocks lose too unevenly for a common factor, it
    speaks if three or more lose three decades on each of the last samples, and the loss neither falls nor is at rest;
    that is a warning. In time it speaks if a block's gradient, beside the median block's, falls by three decades below
    the run's own baseline; that is information while the loss does not suffer, as at a head whose task is solved, and
    an error needs updates of that block that move nothing while the others' do.
    """
    stands = not view.blocks.adaptive and view.stands
    decay = _over_depth(view, "gradient_rms", gradient_decay, BEYOND / (2 * math.log(10)) if stands else None)
    span = decay.steepest() if decay is not None else None
    far = span is not None and (span.spread_out() >= LEAST_DECADES or (stands and _too_deep(span)))
    if span is not None and far and span.excludes_criticality():
        yield _starved(view, span, stands=stands)
        return
    if span is not None and _lasts(span) and loss_falls(view) is False and not at_rest(view):
        yield _uneven(view, span)
        return
    fallen = -_beside_others(view, "gradient_rms")
    hit = ((fallen >= FAR) & (view["gradient_rms"] > 0)).nonzero().flatten().tolist()
    if hit:
        yield _dying(view, hit, fallen)


def _too_deep(span: Decay) -> bool:
    """Whether these blocks are more than their factor lets train, wherever in its interval it lies, and it is a law."""
    return -2 * math.log(span.high) * len(span.steps) > BEYOND and _lawful(span) >= LAWFUL


def _lasts(span: Decay) -> bool:
    """Whether the fall is there on each of the last samples: it needs no factor per block that it could be due to."""
    if len(span.steps) < UNEVEN or len(span.rows) < LASTING:
        return False
    return all(replace(span, steps=row).spread_out() >= LEAST_DECADES for row in span.rows)


def _uneven(view: View, span: Decay) -> Finding:
    names, ratio = view.blocks.names, view["update_ratio"]
    first, last = names[span.first], names[span.last]
    fallen = [-sum(row) for row in span.rows]
    return Finding(
        rule="vanishing_gradient",
        severity="warn",
        status="fired",
        claim=(
            f"From {last} back to {first} the gradient shrinks by 10^{span.total:.1f}, by 10^{min(fallen):.1f} or more "
            f"on each of the last {len(fallen)} samples, and the loss, {view.loss.now:.4g}, does not fall."
        ),
        where={"first": first, "last": last},
        evidence={
            "decades": span.total,
            "decades_by_sample": fallen,
            "decades_by_block": [-step for step in span.steps],
            "explained_by": None,
            "tests": {"first_update_ratio": float(ratio[span.first]), "loss": _losses(view)},
        },
        consequence=f"{first} hardly hears of the loss; an optimizer that rescales its gradient rescales noise too.",
        falsify=f"Freeze {first} and train on: if the loss falls less far than without, this is wrong.",
        source=f"Hochreiter 1991; {_DEPTH}",
    )


def _starved(view: View, span: Decay, *, stands: bool) -> Finding:
    names, ratio = view.blocks.names, view["update_ratio"]
    first, last = span.first, span.last
    still = bool(ratio[first] < NEGLIGIBLE) and bool((ratio[last:] >= NEGLIGIBLE).any())
    law = _lawful(span)
    nothing = view.nothing_learned or view.stands or view.stuck
    agree = span.excludes_criticality() and law >= LAWFUL and still and nothing
    return Finding(
        rule="vanishing_gradient",
        severity="error" if agree else "warn",
        status="fired",
        claim=(
            f"From {names[last]} back to {names[first]} the gradient shrinks by a factor of {span.value:.3g} per block "
            f"({span.interval()}), by 10^{span.total:.1f} in all, on the last {len(view.rows)} samples"
            f"{_standing(view) if stands else _stuck(view)}."
        ),
        where={"first": names[first], "last": names[last]},
        evidence={
            "gradient_decay_per_block": span.told(),
            "decades": span.total,
            "explained_by": "depth" if law >= LAWFUL else None,
            "law": law,
            "tests": {"first_update_ratio": float(ratio[first]), "loss": _losses(view)},
        },
        consequence=(
            f"The steps leave the weights of {names[first]} as they are."
            if still
            else f"{names[first]} learns more slowly than the last blocks, unless the optimizer rescales its gradient."
        ),
        falsify=f"Freeze {names[first]} and train on: if the loss falls less far than without, this is wrong.",
        source=f"Hochreiter 1991; {_DEPTH}",
    )


def _standing(view: View) -> str:
    loss = view.loss
    of = f"a median of {loss.median:.4g} over the last {loss.kept}"
    return f"; in {loss.steps} steps the loss has gone from {loss.start:.4g} to {of}, and no lower"


def _stuck(view: View) -> str:
    loss = view.loss
    if not view.stuck:
        return ""
    return (
        f"; after {loss.steps} steps the loss, a median of {loss.recent:.4g} over the last {len(loss.latest)}, is not "
        f"clearly below that of a constant prediction, {loss.constant:.4g}"
    )


def _dying(view: View, hit: list[int], fallen: Tensor) -> Finding:
    names, ratio, first = view.blocks.names, view["update_ratio"], hit[-1]
    others = torch.tensor([i for i in range(view.sites) if i not in hit])
    suffers = view.given_back >= RISEN or view.nothing_learned
    still = bool(ratio[first] < NEGLIGIBLE) and len(others) > 0 and bool(ratio[others].nanmedian() > NEGLIGIBLE)
    return Finding(
        rule="vanishing_gradient",
        severity="info" if not suffers else "error" if still else "warn",
        status="fired",
        claim=(
            f"The gradient of {names[first]} is {times(-float(fallen[first]))} this run's own baseline, beside the "
            f"other blocks'{'' if len(hit) == 1 else f', as at {len(hit) - 1} more blocks'}."
        ),
        where={"first": names[first], "last": names[first]},
        evidence={
            "gradient_rms": float(view["gradient_rms"][first]),
            "octaves_below_baseline": float(fallen[first]),
            "reference": f"its first baseline, {float(view.anchor('gradient_rms')[first]):.3g}, moved with the others",
            "blocks": [names[i] for i in hit],
            "explained_by": "baseline",
            "tests": {"update_ratio": float(ratio[first])},
        },
        consequence=(
            f"The steps leave the weights of {names[first]} as they are."
            if still
            else "The block learns more slowly than it did, unless the optimizer rescales its gradient."
        ),
        falsify="Look at this block's gradient for some hundred steps: if it comes back by itself, nothing is broken.",
        source=_DEPTH,
    )


def exploding_gradient(view: View) -> Iterable[Finding]:
    """The gradient grows by three decades, over depth or at a block above the run's own baseline, and the loss suffers.

    It speaks only where the loss shows harm: it has not come below its start, or has given back a quarter of what was
    learned. An error needs updates as large as a tenth of the weights of the block, and a loss above its start.
    """
    yield from _explodes(view, "gradient", gradient_decay, "From {last} back to {first}", "gradient_decay_per_block")


def vanishing_signal(view: View) -> Iterable[Finding]:
    """The signal shrinks by three decades, over depth or at a block below the run's own baseline.

    It speaks only where the loss shows harm, as `exploding_gradient` does. An error needs a constant factor per block
    that explains the fall over depth, and a loss that has not fallen.
    """
    if not (view.given_back >= RISEN or view.nothing_learned):
        return
    names = view.blocks.names
    decay = _over_depth(view, "signal_rms", size_decay)
    span = decay.steepest() if decay is not None else None
    if span is not None and span.spread_out() >= LEAST_DECADES:
        law = _lawful(span)
        agree = span.excludes_criticality() and law >= LAWFUL and view.nothing_learned
        first, last = names[span.first], names[span.last]
        claim = (
            f"From {first} to {last} the signal shrinks by a factor of {span.value:.3g} per block "
            f"({span.interval()}), by 10^{span.total:.1f} in all."
        )
        told: dict[str, Any] = {"signal_decay_per_block": span.told(), "explained_by": "depth", "law": law}
    else:
        fallen = -view.rise_from_start("signal_rms")
        dead = view["zero_fraction"] == 1  # which dead_units tells
        hit = ((fallen >= FAR) & ~dead).nonzero().flatten().tolist()
        if not hit:
            return
        agree, first, last = False, names[hit[0]], names[hit[-1]]
        claim = f"The signal of {first} is {times(-float(fallen[hit[0]]))} this run's own baseline."
        told = {"octaves_below_baseline": float(fallen[hit[0]]), "explained_by": "baseline"}
    yield Finding(
        rule="vanishing_signal",
        severity="error" if agree else "warn",
        status="fired",
        claim=claim,
        where={"first": first, "last": last},
        evidence={**told, "tests": {"loss": _losses(view)}},
        consequence="What comes out of the blocks depends less and less on what went in.",
        falsify="Divide the signal at this place by its root mean square and train: if nothing improves, it is wrong.",
        source=_DEPTH,
    )


def exploding_signal(view: View) -> Iterable[Finding]:
    """The signal grows by three decades, over depth or at a block above the run's own baseline, and the loss suffers.

    It speaks only where the loss shows harm, as `exploding_gradient` does. An error needs updates as large as a tenth
    of the weights of the block, and a loss above its start.
    """
    yield from _explodes(view, "signal", size_decay, "From {first} to {last}", "growth_per_block")


def _explodes(view: View, what: str, measure: Callable[[Trace], Decay | str], way: str, key: str) -> Iterable[Finding]:
    """Say where signal or gradient grows, over depth or above the run's own baseline; way and key are of the former."""
    if not (view.given_back >= RISEN or view.nothing_learned):
        return
    decay = _over_depth(view, f"{what}_rms", measure)
    span = decay.steepest(grows=True) if decay is not None else None
    if span is not None and span.spread_out(grows=True) >= LEAST_DECADES:
        claim = (
            f"{way} the {what} grows by a factor of {span.value:.4g} per block "
            f"({span.interval(4)}), by 10^{-span.total:.1f} in all"
        )
        told = {key: span.told(), "explained_by": "depth", "law": _lawful(span)}
        yield _grown(view, f"exploding_{what}", claim, span.first, span.last, told)
        return
    risen = view.rise_from_start(f"{what}_rms")
    hit = (risen >= FAR).nonzero().flatten().tolist()
    if hit:
        first = hit[-1] if what == "gradient" else hit[0]  # where it comes from
        told = {
            "octaves_above_baseline": float(risen[first]),
            "blocks": [view.blocks.names[i] for i in hit],
            "explained_by": "baseline",
        }
        claim = f"The {what} of {{first}} is {times(float(risen[first]))} this run's own baseline"
        yield _grown(view, f"exploding_{what}", claim, first, first, told)


def _grown(view: View, rule: str, claim: str, first: int, last: int, told: dict[str, Any]) -> Finding:
    names, ratio = view.blocks.names, view["update_ratio"]
    moved = float(ratio[first : last + 1].nan_to_num(0.0).amax())
    above = view.loss.ready and view.loss.now > view.loss.start
    severity: Severity = "error" if moved >= LARGE and above and view.given_back >= 1 else "warn"
    return Finding(
        rule=rule,
        severity=severity,
        status="fired",
        claim=f"{claim.format(first=names[first], last=names[last])}, and the loss is {view.loss.now:.4g}.",
        where={"first": names[first], "last": names[last]},
        evidence={**told, "tests": {"update_ratio": moved, "loss": _losses(view)}},
        consequence="One learning rate does not fit all blocks: a step that suits the others destroys what these hold.",
        falsify="Clip the gradient at its baseline from here on: if the loss stays up, this is not why it rose.",
        source="Pascanu et al. 2013, arXiv 1211.5063",
    )


def is_far(view: View) -> bool:
    """Say whether signal or gradient spans three decades, over depth or from its first baseline: whatever the loss."""
    for signal in ("signal_rms", "gradient_rms"):
        logs, moved = octaves(view[signal]), view.rise_from_start(signal).abs()
        logs = logs[logs.isfinite()]
        if bool((moved >= FAR).any()) or (len(logs) and float(logs.max() - logs.min()) >= FAR):
            return True
    return False


def _over_depth(
    view: View, signal: str, measure: Callable[[Trace], Decay | str], least: float | None = None
) -> Decay | None:
    """Return the decay over depth, if the signal spans three decades at all: a fit for every sample would cost time.

    `least` decades are asked for where they are given.
    """
    if view.sites < 4 or len(view.rows) < 2:
        return None
    logs = octaves(view[signal])
    freed = logs + 0.5 * view.blocks.sizes.log2() if signal == "gradient_rms" else logs
    freed = freed[freed.isfinite()]
    if not len(freed) or float(freed.max() - freed.min()) < (FAR if least is None else least * math.log2(10)):
        return None
    found = measure(view.trace)
    return found if isinstance(found, Decay) else None


def _lawful(span: Decay) -> float:
    """Return the share of the log signal's variance over these blocks that a constant factor per block explains."""
    heights = torch.cumsum(torch.tensor((0.0, *span.steps), dtype=torch.float64), 0)
    depth = torch.arange(len(heights), dtype=torch.float64)
    return float(torch.corrcoef(torch.stack([heights, depth]))[0, 1] ** 2) if len(heights) > 2 else 0.0


def _beside_others(view: View, signal: str) -> Tensor:
    """Return how many octaves each block has risen above its first baseline, beyond the median block."""
    risen = view.rise_from_start(signal)
    return risen - risen.nanmedian()


def _losses(view: View) -> dict[str, float]:
    return {"start": view.loss.start, "best": view.loss.best, "now": view.loss.now}
