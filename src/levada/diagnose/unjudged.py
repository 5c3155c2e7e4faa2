"""What the rules cannot know, and why: rules that stay silent then, though a user might take silence for health.

A rule says nothing for one of three reasons: nothing is wrong, there is nothing to judge (no softmax before a squared
error, no depth in one layer), or it cannot know. The last is told here. It does not make a verdict "unknown": that is
for a finding of status unknown, where what would have shown the sickness could not be measured at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from levada.diagnose.attempts import ALIKE, FEW_BLOCKS
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding
from levada.diagnose.pairing import PAIRING
from levada.diagnose.redraw import AGAIN
from levada.probe.trace import Trace

__all__ = ["in_one_line", "unjudged"]

NO_LOSS = "there are no targets, and so no loss"
ONE_ROW = "the batch has one row"
NO_OPTIMIZER = "the probe was given no optimizer"
# Rows whose gradients are compared with their neighbours', and directions that a collapse needs to be one.
FEW_ROWS, FEW_DIRECTIONS = 4, 4.0
# Rounding of half precision and wider.
HALF = 2.0**-11
_RATES = "learning_rate_too_high", "learning_rate_too_low", "no_progress"
_MEMORY = "exploding_memory", "short_memory"
_RECIPE = "unoptimised_parameters", "undamped_momentum", "excessive_decay"


def unjudged(trace: Trace, findings: Iterable[Finding]) -> dict[str, str]:
    """Return rule -> why it cannot know, of the rules that say nothing else; nothing if numbers are not finite.

    A learning rate and other settings of an optimizer that nobody chose, and gradients that are kept between steps in
    a check, where there are no steps, are not asked for.

    Args:
        trace: of one check, or of a run.
        findings: what the rules said about it.

    Example:
        >>> import torch
        >>> from levada.probe import Site
        >>> site = Site("0", 0, "Linear", (1, 2))
        >>> unjudged(Trace((site,), (0,), {}, {"facts": Facts(rows=1, floating=True, loss="mse")}), ())["rank_collapse"]
        'the batch has one row'
    """
    spoken = list(findings)
    if any(f.rule == "numerical_overflow" and f.severity == "error" for f in spoken):
        return {}
    reasons = _of_check(trace, facts_of(trace)) if "facts" in trace.context else _of_run(trace)
    known = {finding.rule for finding in spoken}
    # One finding says for both that the gradient's decay is not known.
    reasons["exploding_gradient"] = next(
        (f.claim.rstrip(".") for f in spoken if f.rule == "vanishing_gradient" and f.status == "unknown"), ""
    )
    return {rule: why for rule, why in reasons.items() if why and rule not in known}


def in_one_line(reasons: Mapping[str, str]) -> str:
    """Return one line: rules with the same reason stand together.

    Args:
        reasons: what `unjudged` returned.

    Example:
        >>> in_one_line({"wrong_loss": "no loss", "double_softmax": "no loss", "rank_collapse": "one row"})
        'Not judged: wrong_loss, double_softmax (no loss); rank_collapse (one row).'
    """
    groups: dict[str, list[str]] = {}
    for rule, why in reasons.items():
        groups.setdefault(why, []).append(rule)
    return "Not judged: " + "; ".join(f"{', '.join(rules)} ({why})" for why, rules in groups.items()) + "."


def _of_check(trace: Trace, facts: Facts) -> dict[str, str]:
    loss = "" if facts.loss is not None else NO_LOSS
    alone = loss or _loss_alone(facts)
    rate = loss or facts.unmade.get("courses", "")
    return {
        "wrong_loss": alone,
        "double_softmax": alone,
        "unscaled_input": _input_scale(facts),
        "vanishing_signal": ONE_ROW if facts.rows == 1 and len(trace.sites) > 2 else "",
        "rank_collapse": _rank(facts),
        "shattered_gradient": _shattering(trace, facts),
        "lost_update": _rounding(trace, facts),
        "attention_collapse": _attention(facts),
        **dict.fromkeys(_MEMORY, _memory(facts)),
        "misscaled_weights": loss or _scale(trace),
        "mixed_rows": facts.mixed.doubt if facts.mixed is not None else "",
        "noisy_forward": ONE_ROW if facts.noise is not None and facts.rows == 1 else "",
        "blind_attention": _attention(facts),
        "mispaired_targets": _pairing(trace, facts),
        **dict.fromkeys(_RECIPE, loss),
        **dict.fromkeys(_RATES, rate),
    }


def _loss_alone(facts: Facts) -> str:
    """Whether other outputs could be put into the loss."""
    if facts.loss == "output":
        return "the model returns its loss, into which no other outputs can be put"
    if facts.objective is None or facts.objective.moves is None:
        return "the loss takes the outputs of this model alone, or differs from call to call"
    return ""


def _input_scale(facts: Facts) -> str:
    if facts.flat == "size":
        return "all inputs are zero"
    read = facts.inputs is not None or not facts.floating
    return "" if read else "what reads the floating inputs first is not a linear map alone"


def _rank(facts: Facts) -> str:
    if facts.rows == 1:
        return ONE_ROW
    if facts.flat:
        return "all rows of the batch are the same" if facts.flat == "spread" else "all inputs are zero"
    if facts.input_relation is None:
        return "the inputs cannot be compared"
    rank, most = facts.input_relation.rank, facts.input_relation.attainable
    if most < FEW_DIRECTIONS:
        return f"the batch has {facts.rows} rows" if most == facts.rows - 1 else ""  # few features: nothing to lose
    if math.isnan(rank) or rank < FEW_DIRECTIONS:
        return f"the inputs themselves differ in {0.0 if math.isnan(rank) else rank:.2g} directions only"
    return ""


def _shattering(trace: Trace, facts: Facts) -> str:
    if len(trace.sites) < FEW_BLOCKS:
        return ""
    if facts.loss is None:
        return NO_LOSS
    if not facts.floating:
        return "indices have no neighbours"
    if facts.rows < FEW_ROWS:
        return f"the batch has fewer than {FEW_ROWS} rows"
    found = facts.neighbours
    if found is None:
        return facts.unmade.get("neighbours", "the gradients of neighbours could not be compared")
    undecided = found.high < ALIKE and found.gain_shared is None
    return "the steps that would decide could not be made" if undecided else ""


def _rounding(trace: Trace, facts: Facts) -> str:
    if facts.resolution < HALF:  # no half precision: nobody expects it
        return ""
    if facts.loss is None:
        return NO_LOSS
    lost = trace["lost_fraction"].nanmean(0)
    mostly = bool((lost > 0.5).any()) and facts.rounding is None
    return "the model could not be run in float32 beside it" if mostly else ""


def _attention(facts: Facts) -> str:
    unseen = facts.attending.unseen
    return f"the weights of attention at {unseen[0]} could not be computed again" if unseen else ""


def _scale(trace: Trace) -> str:
    pace = trace.context.get("pace")
    return f"a budget of {pace.budget:g} s did not allow {AGAIN}" if pace is not None and AGAIN in pace.left_out else ""


def _pairing(trace: Trace, facts: Facts) -> str:
    """Tell what is missing where inputs and targets show no relation; else there is nothing to judge."""
    found, pace = facts.pairing, trace.context.get("pace")
    if found is None or found.order:
        return ""
    if pace is not None and PAIRING in pace.left_out:
        return f"a budget of {pace.budget:g} s did not allow {PAIRING}"
    undecided = "the model learned nothing for held-out batches from targets that follow from the inputs either"
    return found.doubt or ("" if found.learned else undecided)


def _memory(facts: Facts) -> str:
    missing = facts.memory.missing if facts.memory is not None else {}
    return next((f"the memory of {name or 'the model'} was not measured: {why}" for name, why in missing.items()), "")


def _of_run(trace: Trace) -> dict[str, str]:
    context = trace.context
    watched = context.get("optimizer") is not None
    counted = context.get("accumulated") or {}
    scale = context.get("loss_scale") or 1.0
    few = "" if counted.get("steps", 0) > 1 else "fewer than two steps after the first were sampled"
    return {
        "train_mode": "" if watched else NO_OPTIMIZER,
        "accumulated_gradients": few if watched else NO_OPTIMIZER,
        "lost_update": "" if watched else NO_OPTIMIZER,
        "gradient_scale": f"the loss was multiplied by {scale:g}, and the probe was given no scaler" * (scale != 1.0),
    }
