"""What a second training excluded, which differs from the first in what a finding blames."""

from __future__ import annotations

from levada.diagnose.case import Case, Sentences
from levada.diagnose.recurrent import Memory, Rehearsal, site_of
from levada.probe.memory import MemoryCurve

__all__ = ["attention_collapse", "excessive_decay", "exploding_memory", "misscaled_weights", "short_memory", "tried"]


def misscaled_weights(case: Case) -> Sentences:
    """Exclude what a model with weights drawn again shares with the model as it is.

    Args:
        case: a finding of the rule.
    """
    found = case.facts.redrawn
    if found is None:
        return
    ends = sorted(course.end for course in found.courses)
    yield (
        f"Not the learning rate, the loss or the data: with {len(found.suspects)} of the parameters drawn again the "
        f"same steps on the same batch end at {ends[-1]:.3g} or lower, and at {found.plain.end:.3g} as it is."
    )
    yield f"Not one lucky draw: {len(ends)} draws end at {', '.join(f'{end:.3g}' for end in ends)}."
    if len(found.culprits) < len(found.suspects):
        yield (
            f"Not the other parameters of unusual size: the named {len(found.culprits)} of {len(found.suspects)} bring "
            "at least nine tenths of the gain."
        )


def attention_collapse(case: Case) -> Sentences:
    """Exclude masks, what was learned, and what queries and keys share with scaled ones.

    Args:
        case: a finding of the rule.
    """
    seen = case.facts.attending
    one = seen.by_site.get(case.finding.where.get("first", ""))
    if one is not None:
        yield f"Not a mask: entropy is that over the keys which a query sees, {one.keys:.3g} on average."
    plain, scaled = seen.plain, seen.scaled
    if plain is None or scaled is None:
        return
    if scaled.losses[0] - plain.losses[0] <= 0.1 * abs(scaled.losses[0]):
        yield (
            f"Not attention that was learned to be sharp: at logits of deviation about 1 the loss is "
            f"{scaled.losses[0]:.4g}, less than a tenth above that of the model as it is, {plain.losses[0]:.4g}."
        )
    if scaled.gain > 0 and plain.gain < 0.5 * scaled.gain:
        yield (
            f"Not the learning rate, the loss or the data: at logits of deviation about 1 the same steps of "
            f"queries and keys lower the loss by {scaled.gain:.2g}, and by {plain.gain:.2g} as it is."
        )


def _repaired(trial: Rehearsal | None) -> Sentences:
    """Exclude what a copy that differs in its recurrence alone shares with the model."""
    if trial is None or not (trial.confirms or trial.thrown):
        return
    low, low_repaired = trial.lowest
    as_it_is = f"gets to {low:.3g}" if trial.confirms else f"ends at {trial.before[-1]:.3g}"
    yield (
        f"Not the learning rate, the loss or the data: a copy with the remedy {trial.repair!r} gets to a loss of "
        f"{low_repaired:.3g} on the same batch, and the model {as_it_is}."
    )


def _memory_of(case: Case) -> tuple[Memory, list[MemoryCurve]]:
    """Return what is known of memory, and the curves of the block that a finding names."""
    memory = case.facts.memory or Memory()
    return memory, [c for c in memory.curves if site_of(case.trace, c.module) == case.finding.where.get("first")]


def short_memory(case: Case) -> Sentences:
    """Exclude a loss that reads all steps, one draw, and what a copy with a longer memory shares with the model.

    Args:
        case: a finding of the rule.
    """
    if "memory_horizon" not in case.finding.evidence:
        yield from tried(case, "padding")
        return
    told, (memory, curves) = case.finding.evidence, _memory_of(case)
    horizon, half = told["memory_horizon"], told["steps"] / 2
    if case.facts.loss is not None:
        yield (
            f"Not a loss that reads all steps: in the first half of the sequence at most "
            f"{told['gradient_in_first_half']:.1g} of its largest gradient arrives."
        )
    yield f"Not one draw: over random cotangents the horizon's interval ends at {horizon['high']:.3g}, below {half:g}."
    if len(curves) > 1 and all(curve.horizon.value < half for curve in curves):
        longest = max(curve.horizon.value for curve in curves)
        yield f"Not one layer or direction: each of {len(curves)} forgets within {longest:.3g} steps."
    yield from _repaired(memory.rehearsals.get("short_memory"))


def tried(case: Case, *names: str) -> Sentences:
    """Exclude what a changed model shares with the model as it is, where a change was tried.

    Args:
        case: a finding.
        names: of the changes.
    """
    for trial in (case.facts.trials[name] for name in names if name in case.facts.trials):
        lower = min(other.end for _, other in trial.pairs)
        yield (
            f"Not the learning rate, the loss or the data: with {trial.changed} the same steps end at a loss of "
            f"{lower:.3g}."
        )
        yield f"Not one order of the batches: the model learns more in each of {len(trial.pairs)}."


def exploding_memory(case: Case) -> Sentences:
    """Exclude one draw, a growth beside the loss or that passes, and what a copy that keeps the norm shares.

    Args:
        case: a finding of the rule.
    """
    told, (memory, curves) = case.finding.evidence, _memory_of(case)
    growth, exponent = told["growth_per_step"], told["lyapunov_exponent"]
    yield f"Not one draw: over random cotangents the growth per step is at least {growth['low']:.3g}, at 95 %."
    arrivals = [memory.arrival.get(curve.module) for curve in curves]
    # There the rule takes the smaller growth, that of the recurrence or of the loss's gradient.
    if case.facts.loss is not None and arrivals and all(a is not None and float(a[-1]) > 0 for a in arrivals):
        yield f"Not a growth that the loss does not see: its own gradient grows by 10^{told['decades']:.1f} or more."
    if exponent is not None and exponent["value"] > 2 * exponent["error"]:
        yield (
            f"Not these steps alone: the largest Lyapunov exponent is {exponent['value']:.3g} per step, above zero by "
            "more than two standard errors."
        )
    yield from _repaired(memory.rehearsals.get("exploding_memory"))


def excessive_decay(case: Case) -> Sentences:
    """Exclude what the same steps without decay share with those with it.

    Args:
        case: a finding of the rule.
    """
    recipe = case.facts.recipe
    full, free = (recipe.courses.get(name) if recipe is not None else None for name in ("decay", "none"))
    if full is not None and free is not None and free.gain > full.gain:
        yield (
            f"Not the learning rate, the loss or the data: without decay the same steps on the same batch end at "
            f"{free.end:.4g}, and at {full.end:.4g} with it."
        )
