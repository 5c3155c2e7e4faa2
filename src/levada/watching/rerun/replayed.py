"""What a step that was run again shows: data that are not finite, a loss that is lost, what a check would say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from torch import Tensor, nn

from levada._numbers import written
from levada.diagnose.diagnostics import diagnose
from levada.diagnose.facts import Facts
from levada.diagnose.finding import Finding, Proposal
from levada.probe.origin import Origin
from levada.probe.trace import Trace
from levada.watching.measure.given import LOOK, Unfit, listed, sizes, unfit_inputs, unfit_targets
from levada.watching.verdict.bundle import Bundle
from levada.watching.verdict.nonfinite import RULE

__all__ = ["far_off", "found_again", "unfit_data"]

# What a pass alone tells; the other rules of `check` need an optimizer's step, or tests that train.
_RULES: Final = (
    RULE,
    "dead_units",
    "saturated_activation",
    "exploding_signal",
    "vanishing_signal",
    "vanishing_gradient",
    "exploding_gradient",
)
# Batches of one training are alike; one that is as many times as large as the one before is no chance.
_FAR: Final = 100.0
_LOSS: Final = Proposal(
    "run the loss again",
    "watch.note(targets=targets)  # in the loop, before the step\n"
    "levada replay BUNDLE --model MODEL --loss file.py:loss  # names the operation",
)


def unfit_data(kept: Bundle, model: nn.Module) -> list[Unfit]:
    """Return what a step was given that is not finite, of its inputs and of the targets that were noted.

    Args:
        kept: the step.
        model: it was given to it.
    """
    given = {**dict(enumerate(kept.values["args"])), **(kept.values.get("kwargs") or {})}
    return [*unfit_inputs(given, model), *unfit_targets(kept.values.get("targets"))]


def far_off(kept: Bundle, model: nn.Module) -> str:
    """Say which input of a step is a hundred times or more as large as that of the step before; "" if none is.

    Args:
        kept: the step.
        model: it was given to it.
    """
    before = kept.facts.get("inputs_before") or {}
    given = {**dict(enumerate(kept.values["args"])), **(kept.values.get("kwargs") or {})}
    then, now = before.get("rms", {}), sizes(given, model)
    times = {name: now[name] / size for name, size in then.items() if size > 0 and name in now}
    name = max(times, key=lambda one: times[one], default="")
    if not name or times[name] < _FAR:
        return ""
    return (
        f"The batch is unlike the one before: the argument {name} is {times[name]:.2g} times as large as that of step "
        f"{before['step']} (root mean squares of {now[name]:.3g} and {then[name]:.3g})."
    )


def found_again(
    kept: Bundle,
    trace: Trace,
    loss: float | None,
    origin: Origin | None,
    broken: Mapping[str, str],
    data: list[Unfit],
    behind: Origin | None = None,
) -> tuple[Finding, ...]:
    """Return what holds of a step that was run again.

    Data that are not finite explain a step that is not: NaN in them does, and Inf too, if no operation makes NaN or Inf
    out of numbers that are all finite, as one does where the Inf is a mask.

    Args:
        kept: the step.
        trace: its signals by block.
        loss: its loss now; None if no loss function was given.
        origin: the operation that makes the first NaN or Inf of a step that is not finite; None if none does.
        broken: parameters that hold NaN or Inf, with which of them.
        data: what it was given that is not finite.
        behind: that operation, where it runs behind a block whose output is finite.
    """
    was = _lost(kept)
    clean = not bool((trace["gradient_nonfinite"] > 0).any() or (trace["nonfinite"] > 0).any())
    finite = clean and was is None and (loss is None or math.isfinite(loss))
    made = origin is not None and not origin.fed
    if data and not finite and (any(one.nan for one in data) or not made):
        return (_data(kept, broken, data),)
    several = int(kept.facts.get("pass", 1)) > 1
    value = was if loss is None and not (several and clean) else loss
    facts = Facts(nonfinite_parameters=tuple(broken), loss_value=value, behind=behind)
    seen = Trace(trace.sites, trace.steps, trace.values, {**trace.context, "facts": facts})
    fired = (f for f in diagnose(seen) if f.status == "fired" and f.rule in _RULES)
    found = tuple(_told(f, kept, loss, origin, data, trace) for f in fired)
    if was is not None and not any(f.rule == RULE for f in found):
        return (_vanished(kept, was, loss, several=several), *found)
    return found


def _lost(kept: Bundle) -> float | None:
    """Return the loss of the step if it was seen and is not finite."""
    seen = kept.facts.get("loss_of") == kept.step
    return kept.loss if seen and not math.isfinite(kept.loss) else None


def _data(kept: Bundle, broken: Mapping[str, str], data: list[Unfit]) -> Finding:
    tensor = "targets" if all(one.name.endswith("targets") for one in data) else "inputs"
    also = "its parameters are finite"
    if broken:
        also = f"{len(broken)} of its parameters held NaN or Inf too before the step, {next(iter(broken))} first"
    told = f"The batch of step {kept.step} is not finite: {listed(data)}; {also}."
    return Finding(
        rule=RULE,
        severity="error",
        status="fired",
        claim=told + (" A mask of -Inf may be meant." if all(one.meant for one in data) else ""),
        evidence={
            "tensor": tensor,
            "values": {one.name: one.nan + one.above + one.below for one in data},
            "explained_by": "data",
            "tests": {"values": "counted exactly in this batch"},
        },
        consequence="Every parameter becomes NaN with an update from this batch; nothing here speaks of the model.",
        falsify="Replace these values by finite ones and run the step again: if it is still not finite, this is wrong.",
        remedies=(LOOK,),
        source="IEEE 754: a NaN stays one through every sum and product",
    )


def _told(
    finding: Finding, kept: Bundle, loss: float | None, origin: Origin | None, data: list[Unfit], trace: Trace
) -> Finding:
    """Say of what is not finite which operation makes it, in the place of how to find out."""
    if finding.rule != RULE:
        return finding
    if finding.evidence.get("tensor") == "loss" and loss is None:
        return replace(finding, claim=_not_run(kept, origin, data), remedies=(_LOSS,))
    told = "" if origin is None else f" {origin}{_held_back(finding, origin, trace)}"
    return replace(finding, claim=f"{finding.claim}{told}", remedies=())


def _held_back(finding: Finding, origin: Origin, trace: Trace) -> str:
    """Say of a NaN or Inf that is made in a block before the first bad output that it does not come out of there."""
    site, names = finding.where.get("first", ""), trace.names()
    module = origin.module.rpartition(" (")[0]
    block = next((name for name in names if f"{module}.".startswith(f"{name}.")), "")
    if finding.evidence.get("tensor") != "signal" or origin.backward or not block or block == site:
        return ""
    if bool((trace["nonfinite"][:, names.index(block)] > 0).any()):
        return ""
    return (
        f" The output of {block} is finite all the same, as where a ReLU makes 0 of -Inf: that of {site} is the first "
        "that is not."
    )


def _not_run(kept: Bundle, origin: Origin | None, data: list[Unfit]) -> str:
    """Say where a loss that was not run again has its NaN or Inf from: it may be from the targets that it was given."""
    targets = [one for one in data if one.name.endswith("targets")]
    noted = "targets" in kept.values
    also = "" if noted and not targets else f": {listed(targets)}" if noted else ", which were not noted"
    claim = (
        f"The loss of step {kept.step} was {written(kept.loss)}, although every block's output is finite: it arises in "
        f"the loss{f', or comes with the targets{also}' if also else ', and the noted targets are finite'}."
    )
    gradient = kept.values.get("output_gradient")
    # What runs behind a gradient that is not finite already only follows from it.
    fed = isinstance(gradient, Tensor) and not bool(gradient.isfinite().all())
    return claim if origin is None or (origin.backward and fed) else f"{claim} {origin}"


def _vanished(kept: Bundle, was: float, loss: float | None, *, several: bool) -> Finding:
    """Say that the loss was not finite, and that nothing of what was run again is so."""
    now = "every number of this pass is finite" if loss is None else f"it is {written(loss)} now"
    why = "What made it is not among what is kept."
    if several:
        why = f"Pass {kept.facts['pass']} of the step is kept: it arose in one of those before, or in the loss."
    return Finding(
        rule=RULE,
        severity="warn",
        status="fired",
        claim=f"The loss of step {kept.step} was {written(was)}, and run again {now}. {why}",
        evidence={"tensor": "loss", "explained_by": None, "tests": {"values": "counted exactly in this pass"}},
        consequence="This pass does not show where it arose.",
        falsify="Give --loss the function that the loop uses: if the loss is not finite then, this is wrong.",
        source="IEEE 754: a NaN stays one through every sum and product",
    )
