"""The difference between inputs dies on its way to the output: the last layers cannot tell them apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from levada.diagnose.decay import AGREEMENT, LEAST_DECADES, Decay, signal_decay
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Severity
from levada.diagnose.repair import repairs
from levada.diagnose.tried import finding_of
from levada.probe.trace import Trace

__all__ = ["vanishing_signal"]

# Inputs that differ at the output by a hundredth of a rounding error are one input to the loss. (A network of 20
# default ReLU layers ends between a half and one rounding error, and an adaptive optimizer may still rescue it.)
INDISTINCT = 0.01
LEAST_BLOCKS = 3
RULE = "vanishing_signal"
SOURCE = "Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232"


def vanishing_signal(trace: Trace) -> Iterable[Finding]:
    """The difference between inputs dies on its way to the output, although the signal may keep its size.

    It speaks if the contiguous blocks that lose most lose three decades, the largest single loss counted as the second
    largest. An error needs a factor over these blocks whose interval excludes criticality, with theory's agreement, or
    an exact place; and an output that is the same for all inputs to well below the resolution of its numbers.

    Less is a warning where a change that restores the difference was tried on this model and helps, in each of three
    orders of the batches: at one block that does not average it falls to a hundredth, and the block's output is
    multiplied; sigmoids stand
    between layers, of which each passes on at most a quarter of it, and are replaced by tanh; or nothing normalises,
    half of it or more is gone behind eight layers or more, and with normalisation behind each but the last the model
    gains so much that as it is it gains less than seven tenths of that, at a rate that somebody chose. On one batch
    alone, which is learned by heart sooner with normalisation, the model must have more blocks than its trainable depth
    with its whole interval, and gain less than a tenth, below the loss of outputs that know how often each class comes
    and nothing of the inputs. This is tried where no other rule names a cause.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    yield from _tried(facts)
    decay = signal_decay(trace)
    if isinstance(decay, str) or len(trace.sites) < LEAST_BLOCKS:
        yield from _blind(trace, facts)
        return
    cut = _cut(trace, decay)
    span = decay.steepest()
    gradual = span is not None and span.spread_out() >= LEAST_DECADES
    if cut is None and not gradual:
        return
    if not gradual and _opens(facts):
        return  # a branch that starts at or near zero, and that the first step opens
    span = decay if span is None or not gradual else span
    names = trace.names()
    indistinct, tested = _indistinct(facts)
    lawful = span.excludes_criticality() and span.agrees(AGREEMENT)
    severity: Severity = "error" if (cut is not None or lawful) and indistinct and not _opens(facts) else "warn"
    first = span.first if span.first == decay.first else span.first + 1
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=_claim(decay, span, names) if cut is None else _cut_claim(names, cut),
        where={"first": names[first], "last": names[span.last]}
        if cut is None
        else {"first": names[cut], "last": names[cut]},
        evidence={
            "signal_decay_per_block": span.told(),
            **decay.decades_of(span),
            "explained_by": "place" if cut is not None else "theory" if span.agrees(AGREEMENT) else None,
            "output_spread": facts.output_spread,
            "output_spread_after_step": facts.output_spread_after,
            "tests": {"output_depends_on_input": tested, "training": "not made"},
        },
        consequence=(
            "The output is the same for every input of the batch: only its mean can be learned."
            if indistinct
            else "Inputs are told apart by small differences only; training starts slowly."
        ),
        falsify=(
            "Compare the outputs for two inputs in float64: if they differ by more than a float32 "
            "rounding error, it is wrong."
        ),
        remedies=repairs(trace, span.value) if cut is None else (),
        source=SOURCE,
    )


def _tried(facts: Facts) -> Iterable[Finding]:
    for name, trial in facts.trials.items():
        told = trial.measured
        if name == "lost":
            seen = f"At {trial.sites[0]} the difference between inputs falls from {told['spread_before']:.3g} to "
            seen += f"{told['spread']:.3g}"
        elif name == "squashed":
            seen = f"{told['sigmoids']} sigmoids stand between layers, with a slope of at most {told['slope']:g}"
        elif name == "unnormalised":
            seen = f"Nothing normalises, and of a difference between inputs of {told['spread_first']:.3g} at "
            seen += f"{trial.sites[0]} {told['spread_last']:.3g} is left at {trial.sites[1]}"
        else:
            continue
        yield finding_of(
            RULE, trial, seen, "Inputs are told apart by small differences: training starts slowly.", SOURCE
        )


def _blind(trace: Trace, facts: Facts) -> Iterable[Finding]:
    """Speak where there is no depth to follow but the output does not depend on the input, now and after a step."""
    spread = trace["signal_spread"]
    lost = [
        i for i in range(len(trace.sites)) if bool((spread[:, i] == 0).any()) and not bool((spread[:, i] > 0).any())
    ]
    indistinct, tested = _indistinct(facts)
    if not (lost and indistinct) or _opens(facts):
        return
    place = trace.names()[lost[0]]
    yield Finding(
        rule=RULE,
        severity="error" if facts.output_spread_after is not None else "warn",
        status="fired",
        claim=f"{place} returns the same for every input of the batch, and so does the model.",
        where={"first": place, "last": place},
        evidence={
            "output_spread": facts.output_spread,
            "output_spread_after_step": facts.output_spread_after,
            "explained_by": "place",
            "tests": {"output_depends_on_input": tested, "training": "not made"},
        },
        consequence="Only the mean of the targets can be learned.",
        falsify=f"Call {place} on two inputs: if what it returns differs, this is wrong.",
        source=SOURCE,
    )


def _cut(trace: Trace, decay: Decay) -> int | None:
    """Return the block across which the spread falls to exactly zero, or by decades at once."""
    after = trace["signal_spread"][:, decay.last + 1 : decay.last + 2]
    if after.numel() and bool((after == 0).all()) and decay.last + 1 < len(trace.sites) - 1:
        return decay.last + 1
    for index, step in enumerate(decay.steps):
        if step <= -LEAST_DECADES + min(0.0, math.log10(decay.value)):
            return decay.first + index + 1
    return None


def _claim(decay: Decay, span: Decay, names: Sequence[str]) -> str:
    whole = "" if len(span.steps) == len(decay.steps) else f"; by 10^{decay.total:.1f} over all blocks measured"
    return (
        f"From {names[span.first]} to {names[span.last]} the difference between inputs shrinks by a factor of "
        f"{span.value:.3g} per block ({span.interval()}), by 10^{span.total:.1f} in all{whole}."
    )


def _cut_claim(names: Sequence[str], cut: int) -> str:
    return f"Inputs that differ before {names[cut]} come out of it all but the same."


def _opens(facts: Facts) -> bool:
    return facts.output_spread_after is not None and facts.output_spread_after > facts.resolution


def _indistinct(facts: Facts) -> tuple[bool, str]:
    if facts.output_spread is None:
        return False, "not made: the batch has one input, or the output could not be measured"
    how = "in float64" if facts.output_spread_exact else "in the model's own precision"
    told = f"spread over size of the output, {how}: {facts.output_spread:.3g}; resolution {facts.resolution:.3g}"
    # In the model's own precision a spread of rounding errors and one of zero are the only ones to tell from a signal.
    limit = INDISTINCT * facts.resolution if facts.output_spread_exact else 0.0
    return facts.output_spread <= limit, told
