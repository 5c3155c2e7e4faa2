"""NaN or Inf, and the first place that has it: everything after it follows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from levada._numbers import written
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal
from levada.diagnose.rounding import Broken
from levada.probe.origin import Origin
from levada.probe.trace import Trace

__all__ = ["numerical_overflow"]

RULE = "numerical_overflow"
SOURCE = "IEEE 754: a NaN stays one through every sum and product"


def numerical_overflow(trace: Trace) -> Iterable[Finding]:
    """A value is NaN or Inf; the first place in order of execution is named, what follows from it is not.

    An error needs a loss or an output that is not finite, or a parameter that is not: facts, at an exact place. So is a
    first step of the optimizer that makes finite weights NaN or Inf out of finite gradients, as where weights, and with
    them Adam's state, are float16: there an eps of 1e-8 is zero, and so are squares of gradients below 2e-4. It is made
    in float32 too, and is a warning where that could not be done.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    names = trace.names()
    forward = trace["nonfinite"].nan_to_num(0.0).amax(0)
    backward = trace["gradient_nonfinite"].nan_to_num(0.0).amax(0)
    bad_loss = facts.loss_value is not None and not math.isfinite(facts.loss_value)
    places = [i for i in range(len(names)) if float(forward[i]) > 0]
    if places:
        output_bad = bool(forward[-1] > 0) or bad_loss
        yield _forward(trace, facts, places[0], float(forward[places[0]]), certain=output_bad)
    elif facts.nonfinite_parameters:
        parameter = facts.nonfinite_parameters[0]
        yield _finding(
            f"The parameter {parameter} holds NaN or Inf, though no block boundary shows it on this batch.",
            next((s.name for s in trace.sites if parameter in s.parameters), parameter),
            {"tensor": "weight", "parameters": list(facts.nonfinite_parameters[:20])},
        )
    elif bad_loss:
        value = written(facts.loss_value or 0.0)
        yield _finding(
            f"The loss{f' {facts.loss}' if facts.loss else ''} is {value} although every block's output is finite: it "
            "arises in the loss itself, or comes with targets that could not be read.",
            names[-1],
            {"tensor": "loss", "loss": facts.loss_value},
            falsify="Print the terms of the loss: if all of them are finite, this is wrong.",
            spreads=not bool((backward == 0).all()),
        )
    elif bool((backward > 0).any()):
        last = max(i for i in range(len(names)) if float(backward[i]) > 0)
        yield _finding(
            f"The gradient is NaN or Inf at the output of {names[last]}, the first on its way "
            "back; the forward pass is finite.",
            names[last],
            {"tensor": "gradient", "share": float(backward[last])},
        )
    elif facts.broken is not None:
        yield _step(trace, facts, facts.broken)


def _forward(trace: Trace, facts: Facts, place: int, share: float, *, certain: bool) -> Finding:
    site = trace.sites[place]
    holders = [p for p in facts.nonfinite_parameters if p in site.parameters]
    cause = f", because its parameter {holders[0]} does" if holders else "; its input and its parameters are finite"
    if not holders and place == 0 and facts.nonfinite_parameters:
        cause = ""
    after = len(trace.sites) - place - 1
    evidence = {"share": share, "parameters": holders, "blocks_after": after}
    if facts.behind is not None and not holders:
        finding = _behind(trace, place, facts.behind, evidence)
    else:
        finding = _finding(
            f"{share:.1%} of the output of {site.name} ({site.kind}) is NaN or Inf, the first block to have any"
            f"{cause}.",
            site.name,
            {"tensor": "weight" if holders else "signal", **evidence},
        )
    if certain or holders:
        return finding
    return Finding(
        rule=RULE,
        severity="warn",
        status="fired",
        claim=finding.claim + " The model's output is finite: it may be meant, as in a mask.",
        where=finding.where,
        evidence=finding.evidence,
        consequence="None seen on this batch.",
        falsify=finding.falsify,
        source=SOURCE,
    )


def _behind(trace: Trace, place: int, made: Origin, evidence: Mapping[str, object]) -> Finding:
    """Speak of what arises between two blocks."""
    names = trace.names()
    last = place + 1 == len(names)
    end = "the model's output" if last else f"the input of {names[place + 1]}"
    kind, share = trace.sites[place].kind, evidence["share"]
    return _finding(
        f"NaN or Inf arises between the output of {names[place]} ({kind}), which is finite, and {end}, of which it is "
        f"{share:.1%}: {made.operation} in {made.module} makes it, out of numbers without one.",
        names[place if last or not made.around(names[place]) else place + 1],
        {"tensor": "signal", **evidence, "behind": names[place], "operation": made.operation},
        falsify=f"Hook {names[place]}: if what it returns is not finite, or {end} is, this is wrong.",
    )


def _step(trace: Trace, facts: Facts, broken: Broken) -> Finding:
    """Speak of weights that the optimizer's step breaks."""
    hit = [i for i, site in enumerate(trace.sites) if set(site.parameters) & set(broken.parameters)]
    names = trace.names()
    eps = f" An eps of {facts.eps or 0.0:g} is zero in these numbers, and it divides by it." if broken.no_eps else ""
    exact = {True: ", and in float32 it breaks none", False: ", and in float32 too", None: ""}[broken.exact]
    return Finding(
        rule=RULE,
        severity="warn" if broken.exact is None else "error",
        status="fired",
        claim=(
            f"The first step of {facts.optimizer} at lr {facts.lr or 0.0:g} makes {broken.share:.1%} of the weights "
            f"NaN or Inf, though they and their gradients are finite{exact}.{eps}"
        ),
        where={"first": names[hit[0]], "last": names[hit[-1]]} if hit else {},
        evidence={
            "share": broken.share,
            "parameters": list(broken.parameters[:20]),
            "explained_by": "step",
            "tests": {"gain_of_exact_step": broken.gain if math.isfinite(broken.gain) else "not made"},
        },
        consequence="Outputs and loss are NaN from the second step on, and stay so.",
        falsify="Make one step and look for a parameter that torch.isfinite rejects: if there is none, this is wrong.",
        remedies=(
            Proposal(
                "float32 weights",
                "model.float()\nwith torch.autocast(device_type, dtype=torch.float16):\n    loss = ...",
                {"share": broken.share},
                {"share": 0.0} if broken.exact else {},
            ),
        ),
        source="Kingma and Ba 2015, arXiv 1412.6980; Micikevicius et al. 2018, arXiv 1710.03740 (float32 weights)",
    )


def _finding(claim: str, site: str, evidence: dict[str, object], *, falsify: str = "", spreads: bool = True) -> Finding:
    every = "Every parameter becomes NaN with the next optimizer step; nothing after this place could be measured."
    return Finding(
        rule=RULE,
        severity="error",
        status="fired",
        claim=claim,
        where={"first": site, "last": site},
        evidence={**evidence, "explained_by": "place", "tests": {"values": "counted exactly on this batch"}},
        consequence=every if spreads else "The gradients are finite all the same: what is learned is not this loss.",
        falsify=falsify or f"Hook {site} and look for the first value that torch.isfinite rejects.",
        remedies=(
            Proposal(
                "locate",
                "with torch.autograd.detect_anomaly():\n    loss = loss_function(model(inputs), "
                "targets)\n    loss.backward()",
            ),
        ),
        source=SOURCE,
    )
