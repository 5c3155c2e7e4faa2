"""Parameters that act on the output and should learn, but that no gradient reaches."""

from __future__ import annotations

from collections.abc import Iterable

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal
from levada.probe.trace import Trace

__all__ = ["frozen_layers"]

RULE = "frozen_layers"
SOURCE = "torch.autograd: a tensor made under no_grad, by detach or from .data carries no gradient"


def frozen_layers(trace: Trace) -> Iterable[Finding]:
    """Parameters that act on the output ask for a gradient and get none: the graph is cut behind them.

    An error needs the place, which is exact, and that changing those parameters does change the output. Parameters that
    ask for no gradient are mentioned, no more; those that do not act on the output are passed over.

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
    order = [name for name in trace.names() if name in facts.unreached]
    if not order:
        return
    names = trace.names()
    last = order[-1]
    after = names[names.index(last) + 1] if last != names[-1] else "the output"
    lost = [parameter for site in order for parameter in facts.unreached[site]]
    yield Finding(
        rule=RULE,
        severity="error",
        status="fired",
        claim=(
            f"{len(lost)} parameters of {len(order)} blocks, {order[0]} to {last}, change the "
            "output but get no gradient: "
            f"the graph is cut between {last} and {after}."
        ),
        where={"first": order[0], "last": last},
        evidence={
            "parameters": lost[:20],
            "number": len(lost),
            "explained_by": "place",
            "tests": {"output_after_changing_them": "differs", "gradient": "None, not zero"},
        },
        consequence=f"Nothing from {order[0]} to {last} learns, whatever the optimizer.",
        falsify=f"After loss.backward(), model.get_parameter({lost[0]!r}).grad is not None.",
        remedies=(
            Proposal(
                "attach",
                f"# Between {last} and {after}: remove .detach(), .data, torch.no_grad() or a conversion to numpy.\n"
                "# If these layers are meant to stay as they are, say so:\n"
                f"for name in {lost[:3]!r}{' + [...]' if len(lost) > 3 else ''}:\n"
                "    model.get_parameter(name).requires_grad_(False)",
                {"parameters_without_gradient": len(lost)},
                {"parameters_without_gradient": 0},
            ),
        ),
        source=SOURCE,
    )
