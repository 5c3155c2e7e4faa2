"""Attention whose mask leaves each token itself alone: the block maps every token by itself."""

from __future__ import annotations

from collections.abc import Iterable

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal
from levada.probe.trace import Trace

__all__ = ["blind_attention"]

RULE = "blind_attention"


def blind_attention(trace: Trace) -> Iterable[Finding]:
    """A mask leaves every query one key, its own: the softmax of one number is 1, and queries and keys get no gradient.

    It is exact, and a warning: that no other mask was meant is not tested. Causal masks, whose first token sees itself
    alone, windows, padding and sequences of one token are passed over.

    Args:
        trace: of one check, or of a run.
    """
    attending = facts_of(trace).attending
    blind = attending.blind
    if not blind:
        return
    number = len({*attending.by_site, *blind})
    yield Finding(
        rule=RULE,
        severity="warn",
        status="fired",
        claim=(
            f"At {blind[0]} the mask leaves every token itself alone to attend to: no token sees another. So it is at "
            f"{len(blind)} of {number} blocks with attention."
        ),
        where={"first": blind[0], "last": blind[-1]},
        evidence={
            "visible_keys": 1,
            "blocks": list(blind[:20]),
            "reference": "two keys or more for some query",
            "explained_by": "theory",
        },
        consequence="Nothing passes between tokens here, and queries and keys get a gradient of zero.",
        falsify="Change one token: if the outputs of another change by this block, it is wrong.",
        remedies=(
            Proposal(
                "causal_mask",
                "# True hides a key from torch.nn.MultiheadAttention, and shows it to scaled_dot_product_attention\n"
                "mask = torch.ones(steps, steps, dtype=torch.bool).triu(1)  # hides what comes later",
            ),
        ),
        source="torch.nn.MultiheadAttention, attn_mask; softmax of one number is 1, and its derivative 0",
    )
