"""Attention in which every token attends to one: the softmax passes no gradient to queries and keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from levada.diagnose.attending import Attending, collapsed
from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.probe.trace import Trace

__all__ = ["attention_collapse"]

RULE = "attention_collapse"
# Queries and keys trained alone gain this share of what they gain with logits of deviation 1, or less, and that is at
# least this share of the loss.
BEHIND, WORTH = 0.5, 0.01
# Scaling logits that were learned to be large raises the loss by this share of it, and drawn ones by less.
LEARNED = 0.1
SOURCE = (
    "Zhai et al. 2023, arXiv 2303.06296 (entropy collapse); Dehghani et al. 2023, arXiv 2302.05442 (logits and qk "
    "norm); Derrida 1981 (the slope of the softmax of large normal logits)"
)


def attention_collapse(trace: Trace) -> Iterable[Finding]:
    r"""Logits are so large that every query attends to one key, and the softmax passes no gradient to it.

    The slope of a softmax is $p (1 - p)$; of $n$ normal logits of deviation $\sigma > \sqrt{2 \ln n}$ its sum is
    $\sqrt{2 \ln n} / \sigma$. It speaks where the mean entropy of a block's attention is below a tenth of $\ln n$ and
    theory's slope for these logits is below a quarter. An error needs that ten steps of queries and keys alone, all
    other parameters held, gain less than half of what they gain after the weights were scaled to logits of deviation 1,
    where that gain is worth 1 % of the loss. Where the scaling alone raises the loss by a tenth, as in a model that has
    learned to attend sharply, or where fewer than half of the blocks with attention are so, which the others make up
    for, it is an information. Attention that is uniform is what every standard transformer starts with, and is passed
    over.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    seen = facts.attending
    hit = [name for name in trace.names() if (one := seen.by_site.get(name)) is not None and collapsed(one)]
    if not hit:
        return
    severity, test = _tested(seen)
    severity = "info" if 2 * len(hit) < len(seen.by_site) else severity
    first = seen.by_site[hit[0]]
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"At {hit[0]} the entropy of attention is {first.entropy:.2g} of its largest value: the logits of a query "
            f"vary by {first.logit_std:.3g}, up to {first.logit_max:.3g}, and the softmax has a slope of "
            f"{first.slope:.2g}. So it is at {len(hit)} of {len(seen.by_site)} blocks with attention."
        ),
        where={"first": hit[0], "last": hit[-1]},
        evidence={
            "attention_entropy": {name: seen.by_site[name].entropy for name in hit},
            "attention_slope": {"value": first.slope, "predicted": first.slope_predicted},
            "attention_logit_max": first.logit_max,
            "reference": "logits of deviation 1 or less, as standard initialisations give",
            "explained_by": "theory",
            "tests": test,
        },
        consequence="Which token attends to which is set by the first weights, and hardly learned.",
        falsify="Scale queries and keys to logits of deviation 1 and train: if the loss falls no faster, it is wrong.",
        remedies=(
            Proposal(
                "qk_scale",
                "# normalise queries and keys before their product, or draw their weights smaller\n"
                "q, k = torch.nn.functional.rms_norm(q, q.shape[-1:]), torch.nn.functional.rms_norm(k, k.shape[-1:])",
                {"attention_entropy": first.entropy},
            ),
        ),
        source=SOURCE,
    )


def _tested(seen: Attending) -> tuple[Severity, dict[str, Any]]:
    plain, scaled = seen.plain, seen.scaled
    if plain is None or scaled is None:
        return "warn", {"steps_of_queries_and_keys": "not made"}
    told = {"steps_of_queries_and_keys": {"loss": list(plain.losses), "loss_scaled": list(scaled.losses)}}
    size = abs(scaled.losses[0])
    if scaled.losses[0] - plain.losses[0] > LEARNED * size:
        return "info", told
    harmed = plain.gain < BEHIND * scaled.gain and scaled.gain > WORTH * size
    return ("error" if harmed else "warn"), told
