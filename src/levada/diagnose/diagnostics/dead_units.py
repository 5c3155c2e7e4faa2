"""Units that are flat for every input of the batch: no gradient reaches their weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

from levada.diagnose.diagnostics.saturated_activation import saturated
from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.probe.trace import Trace

__all__ = ["dead_units"]

# Deep in a healthy network inputs are so alike that half of all units are off for a whole batch.
MOSTLY = 0.9
# Chance that as many are off with probability one half each, over all blocks: below it, chance is no explanation.
BY_CHANCE = 1e-6
RULE = "dead_units"
SOURCE = "Lu et al. 2019, arXiv 1903.06733"


def dead_units(trace: Trace) -> Iterable[Finding]:
    """Nearly all units of an activation are flat for every input, so that no gradient passes them.

    Of a block with several activations, as one in a residual branch and one behind the sum, that counts which has most.
    Where a bounded activation is driven to its ends, `saturated_activation` says so. An error needs a block in which
    all units are dead, and behind which the signal no longer depends on the input.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    names, share, units = trace.names(), trace["dead_fraction"].nanmean(0).tolist(), dict(facts.units)
    for i, name in enumerate(names):
        if name in facts.silent and not facts.silent[name][0] <= share[i]:
            share[i], units[name] = facts.silent[name]
    driven = saturated(trace)  # at an end of its range, which says more than that it is flat there
    hit = [
        i
        for i, name in enumerate(names)
        if i not in driven and share[i] >= MOSTLY and _tail(units.get(name, 0), share[i]) * len(names) < BY_CHANCE
    ]
    if not hit:
        return
    first = hit[0]
    spread = trace["signal_spread"].nanmean(0)
    ended = share[first] == 1.0 and any(float(spread[i]) == 0.0 for i in range(first, len(names)))
    through = trace["cotangent_rms"][:, first - 1].nanmean() if first > 0 else math.nan
    severity: Severity = "error" if ended else "warn"
    if ended:
        hit = hit[:1]  # behind it the input is a constant: what is dead there follows
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"At {names[first]} {share[first]:.0%} of {units.get(names[first], 0)} "
            "units are flat for every "
            f"input of the batch{'' if len(hit) == 1 else f', as at {len(hit) - 1} more blocks'}."
        ),
        where={"first": names[first], "last": names[hit[-1]]},
        evidence={
            "dead_fraction": {names[i]: share[i] for i in hit},
            "reference": "up to 0.5 in a deep healthy network",
            "gradient_before": float(through) if math.isfinite(float(through)) else None,
            "tests": {"spread_behind": float(spread[first]) if math.isfinite(float(spread[first])) else None},
        },
        consequence=(
            "What comes out of it is the same for every input, and no gradient gets behind it: "
            "training cannot repair it."
            if ended
            else "The weights of those units do not learn on inputs like these."
        ),
        falsify="Measure with more and other batches: a unit that is on for one input in a thousand is not dead.",
        remedies=(
            Proposal(
                "initialise.he",
                f"from levada import initialise\ninitialise.he(model.get_submodule({names[first].partition('#')[0]!r}))"
                "  # also sets the biases to zero",
                {"dead_fraction": share[first]},
                {"dead_fraction": "at most 0.5, for zero-mean pre-activations"},
            ),
        ),
        source=SOURCE,
    )


def _tail(units: int, share: float) -> float:
    """Return the chance that at least this share of units is off when each is with probability one half."""
    least = math.ceil(share * units - 1e-9)
    if units > 1000:  # so far in the tail that its first term bounds it well enough
        return 0.0 if share >= MOSTLY else 1.0
    return float(sum(math.comb(units, k) for k in range(least, units + 1)) / 2**units)
