"""Weights, biases or gains that no initialisation draws like that, and that hold training up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.redraw import STANDS, Redrawn, code_of
from levada.diagnose.scales import Suspect
from levada.probe.trace import Trace

__all__ = ["asked", "misscaled_weights", "one_cause"]

RULE = "misscaled_weights"
# What names a cause with evidence of its own: where one speaks, one finding is enough.
_NAMED = frozenset(
    {
        "wrong_loss",
        "double_softmax",
        "unscaled_input",
        "accumulated_gradients",
        "frozen_layers",
        "dead_units",
        "stream_collapse",
        "exploding_signal",
        "unoptimised_parameters",
        "undamped_momentum",
        "excessive_decay",
        "mixed_rows",
        "noisy_forward",
        "blind_attention",
    }
)
# What names a cause, unless most of the model's matrices are of a wrong scale.
_LOCAL = frozenset({"saturated_activation", "attention_collapse"})
# Errors that are exact: rows that are equal, and gradients that share nothing.
_EXACT = frozenset({"rank_collapse", "shattered_gradient"})
# What lies below this may have been set to zero, or next to it, on purpose.
NOTHING = 1e-4
# What follows from weights of a wrong scale.
_FOLLOWS = frozenset(
    {
        "vanishing_signal",
        "rank_collapse",
        "vanishing_gradient",
        "exploding_gradient",
        "shattered_gradient",
        "lost_update",
        "learning_rate_too_high",
        "learning_rate_too_low",
        "no_progress",
    }
)
SOURCE = (
    "Glorot and Bengio 2010; He et al. 2015, arXiv 1502.01852 (what fan-in asks for); Mishkin and Matas 2016, arXiv "
    "1511.06422"
)


def misscaled_weights(trace: Trace) -> Iterable[Finding]:
    """Parameters lie far off what their fan-in asks for, and with those drawn again the model learns.

    Suspected are, of what asks for a gradient and is not all zero: matrices and convolutions with sqrt(fan) * rms
    below 0.02 or above 3, with what the model multiplies their output by (PyTorch's default has 0.58, He 1.4), the
    larger or the smaller of both fans deciding; equal rows or columns, but for depthwise kernels; embeddings with a
    root mean square below 2e-5 or above 10; a norm's weight above 10, or below 0.03, unless a skip may be there and
    others are not; biases of three times the signal that they are added to, unless they are one constant between
    -10 and 0 or go into a sigmoid, as gates start closed; forget gates below -3 and other gates beyond 4.5; in a
    chain also matrices of zeros; and an eps of ten times the variance that a normalisation adds it to. A small or
    zero last layer alone is not. A suspicion is silent, for trained weights are anything, and skips and
    normalisation forgive much: the model as it is and the model with the suspects drawn again train for 60 steps,
    on up to four of the batches in turn, and all of three draws must end lower, by a tenth of what there is to gain
    and of the last loss. It is an error if several batches were given and the model as it is gains less than 15 %
    of what it gains drawn again, at a learning rate that somebody chose; and a warning else, or where all of them
    are zeros or next to it, which somebody may have meant. The test is made where no other rule names the fault, or
    only saturation or attention does and most matrices are suspected. The place is that of the smallest half of
    halves that brings 90 % of the gain, or of all, where most of the model is suspected.

    Args:
        trace: of one check, or of a run.
    """
    found = facts_of(trace).redrawn
    if found is None:
        return
    names = trace.names()
    sites = {name: site.name for site in reversed(trace.sites) for name in site.parameters}
    hit = sorted({names.index(sites[s.near]) for s in found.culprits if s.near in sites}) or [0]
    meant = all(s.value < NOTHING and math.isfinite(s.high) for s in found.culprits)
    severity: Severity = (
        "error" if found.plain.batches > 1 and found.share < STANDS and found.chosen and not meant else "warn"
    )
    end = sorted(course.end for course in found.courses)[len(found.courses) // 2]
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"{_told(found)}. With {'it' if len(found.culprits) == 1 else 'them'} {_done(found)}, "
            f"{len(found.plain.losses) - 1} steps take the loss to {end:.3g}, and to {found.plain.end:.3g} as it is."
        ),
        where={"first": names[hit[0]], "last": names[hit[-1]]},
        evidence={
            "scale": {s.name: s.value for s in found.culprits},
            "reference": [f"{s.quantity}: {_range(s.low, s.high)}" for s in _kinds(found)],
            "suspected": len(found.suspects),
            "most_of_the_model": found.most,
            "gain": {"value": found.gain, "low": found.low},
            "share_as_it_is": found.share,
            "explained_by": "place",
            "curves": {"drawn_again": [list(course.losses) for course in found.courses]},
            "tests": {
                "loss_as_it_is": list(found.plain.losses),
                "loss_drawn_again": [course.end for course in found.courses],
                "rate": "chosen" if found.chosen else "assumed: nobody chose one",
            },
        },
        consequence="It passes on next to nothing, or a constant, or drowns the rest, which training must undo first.",
        falsify="Train to the end with and without these parameters drawn again: if both learn alike, it is wrong.",
        remedies=(
            Proposal(
                "redraw",
                code_of(found.culprits, "torch.Generator().manual_seed(0)"),
                {"loss": found.plain.end},
                {"loss": end},
                verified=False,
            ),
        ),
        source=SOURCE,
    )


def _told(found: Redrawn) -> str:
    first = found.culprits[0]
    more = len(found.culprits) - 1
    if not math.isfinite(first.high) and first.value == 0:
        told = f"The rows or columns of {first.name} are all equal"
    elif first.of_eps:
        told = f"{first.name} is {first.value:.3g} times the variance that it is added to"
    else:
        told = (
            f"{first.name} has a {first.quantity} of {first.value:.3g}, where {_range(first.low, first.high)} is usual"
        )
    return told + (f", and {more} more lie as far off" if more > 1 else ", and one more" if more else "")


def _done(found: Redrawn) -> str:
    return "set to 1e-5" if all(s.of_eps for s in found.culprits) else "drawn again"


def _range(low: float, high: float) -> str:
    if not math.isfinite(high):
        return f"at least {low:g}"
    return f"at most {high:g}" if low == 0 else f"{low:g} to {high:g}"


def _kinds(found: Redrawn) -> list[Suspect]:
    return list({s.quantity: s for s in found.culprits}.values())


def asked(found: Sequence[Finding]) -> Literal["", "most", "any"]:
    """Return whose weights to suspect: nobody's where a rule names another cause, or where most of the model's are.

    Args:
        found: without what this rule says.
    """
    fired = [f for f in found if f.status == "fired" and f.severity != "info"]
    follows = _FOLLOWS | _LOCAL
    others = [f for f in fired if f.rule not in follows or (f.rule in _EXACT and f.severity == "error")]
    if any(f.severity == "error" or f.rule in _NAMED or f.evidence.get("explained_by") == "place" for f in others):
        return ""
    return "most" if any(f.rule in _LOCAL for f in fired) else "any"


def one_cause(found: Sequence[Finding]) -> list[Finding]:
    """Leave out what follows from weights of a wrong scale and is no graver, where the test confirms those.

    Args:
        found: in causal order.
    """
    confirmed = next((f for f in found if f.rule == RULE and f.status == "fired"), None)
    if confirmed is None:
        return list(found)
    follows = _FOLLOWS | _LOCAL if confirmed.evidence["most_of_the_model"] else _FOLLOWS
    graver = "error" if confirmed.severity == "warn" else None
    return [f for f in found if f.rule not in follows or f.status != "fired" or f.severity == graver]
