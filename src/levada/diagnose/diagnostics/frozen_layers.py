"""Parameters that act on the output and should learn, but that no gradient, or none but zero, reaches."""

from __future__ import annotations

from collections.abc import Iterable

from levada.diagnose.facts import Cut, facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.probe.trace import Trace

__all__ = ["frozen_layers"]

RULE = "frozen_layers"
SOURCE = "torch.autograd: a tensor made under no_grad, by detach or from .data carries no gradient"


def frozen_layers(trace: Trace) -> Iterable[Finding]:
    """Parameters that act on the output ask for a gradient and get none: the graph is cut behind them.

    A rounding and what else has no slope cuts as well: the gradient is there, and zero. It counts where every way to
    the loss goes through such operations, as none does in a straight-through estimator.

    An error needs three: the operation that cuts, through which alone what enters it reaches the loss; that changing
    those parameters changes the loss; and that nothing tells intent. Where the gradient goes around the cut, as in a
    straight-through estimator or beside a target network, it is a warning; so it is where gradients were enabled for
    these parameters, and disabled for a block behind them. Under `torch.no_grad()`, and for parameters that ask for no
    gradient, it is information. Parameters that do not act on the loss are passed over.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    if facts.fixed:
        yield Finding(
            RULE,
            "info",
            "fired",
            f"{len(facts.fixed)} parameters have requires_grad=False and are left out, {facts.fixed[0]} first.",
            evidence={"parameters": list(facts.fixed[:20]), "number": len(facts.fixed)},
            falsify="Look at requires_grad of these parameters.",
        )
    yield from (_finding(cut) for cut in facts.cuts)


def _finding(cut: Cut) -> Finding:
    lost, first, last = cut.parameters, cut.sites[0], cut.sites[-1]
    sure = bool(cut.operations) and not cut.around and not cut.paused
    severity: Severity = "info" if cut.quiet else "error" if sure else "warn"
    blocks = first if first == last else f"{first} to {last}"
    who = lost[0] if len(lost) == 1 else f"{len(lost)} parameters of {blocks}, {lost[0]} first,"
    place = _place(cut)
    several = len(lost) > 1
    acts, gets = ("act", "get") if several else ("acts", "gets")
    what, nothing = ("a gradient of zeros", "zero") if cut.flat else ("no gradient", "None")
    return Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=f"{who} {acts} on the loss but {gets} {what}: {place}.",
        where={"first": cut.at or first, "last": cut.at or last},
        evidence={
            "parameters": list(lost[:20]),
            "number": len(lost),
            "cut": list(cut.operations),
            "gradient_goes_around": cut.around,
            "explained_by": "place" if sure else None,
            "tests": {"loss_after_changing_them": "differs", "gradient": "zero" if cut.flat else "None, not zero"},
        },
        consequence=f"{'They do' if several else 'It does'} not learn, whatever the optimizer.",
        falsify=f"After loss.backward(), model.get_parameter({lost[0]!r}).grad is not {nothing}.",
        remedies=(
            Proposal(
                "attach",
                f"# {place[:1].upper()}{place[1:]}: {_repair(cut)}.\n"
                "# If these parameters are meant to stay as they are, or something else updates them, say so:\n"
                f"for name in {list(lost[:3])!r}{' + [...]' if len(lost) > 3 else ''}:\n"
                "    model.get_parameter(name).requires_grad_(False)",
                {"parameters_without_gradient": len(lost)},
                {"parameters_without_gradient": 0},
            ),
        ),
        source=SOURCE,
    )


def _repair(cut: Cut) -> str:
    return "remove it, or let the gradient by: x + (torch.round(x) - x).detach()" if cut.flat else "remove the cut"


def _place(cut: Cut) -> str:
    if cut.quiet:
        return "the forward runs them with gradients disabled"
    if not cut.operations:
        return "the graph ends where no operation was seen, as in a conversion to Python numbers"
    more = f" and {len(cut.operations) - 1} more" if len(cut.operations) > 1 else ""
    ends = f"the graph is cut at {cut.operations[0]}{more}"
    if cut.flat:
        ends = f"{cut.operations[0]}{more} has no slope"
    if cut.paused:
        ends = f"what they give is read with gradients disabled, by {cut.operations[0]}{more}"
    return f"{ends}, and other paths go around it" if cut.around else ends
