"""Inputs that differ in one direction only, or tokens that are all the same: most of the width is not used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.finding import Finding, Proposal, Severity
from levada.diagnose.relations import COLLAPSED, WIDE, Relation, collapse
from levada.diagnose.tried import evidence_of, proposal_of
from levada.probe.trace import Trace

__all__ = ["rank_collapse"]

RULE = "rank_collapse"
# Gradients of equal rows that differ by less, relative to their size, are equal up to rounding.
EQUAL = 1e-3
# Differences between tokens shrink this much, over the signal's size, in no network whose layers pass them on.
TOKENS = 1e-3
SOURCE = (
    "Roy and Vetterli 2007 (effective rank); Dong et al. 2021, arXiv 2103.03404 (tokens); Giorlandino and Goldt 2025, "
    "arXiv 2505.24333"
)


def rank_collapse(trace: Trace) -> Iterable[Finding]:
    """The differences between inputs lie along one direction, where batch, width and the inputs allow many.

    The effective rank is that of the Gram matrix without its mean, against the smaller of batch and width, and against
    the rank before the block. An error needs one direction or none over the batch and both its halves, a matrix of
    equal rows that explains it, and gradients of those rows that are equal too, so that the step leaves it so: no step
    ever parts them. Equal rows without the fall, as behind a skip, are a warning. A fall at one block that the step
    leaves, as of weights of low rank, is information. It is a warning where the model learns more, in each of three
    orders of the batches, with those weights drawn again at their own size, or, of a layer with an eighth of its
    neighbours' units that passes one direction on, with as many as they have. A rank that falls slowly with depth is
    what products of random matrices have, and is passed over. Tokens of one input that become equal while they differed
    are a warning, and an error if after the optimizer's first step they are the same to rounding still.

    Args:
        trace: of one check, or of a run.
    """
    facts = facts_of(trace)
    yield from _inputs(trace, facts)
    yield from _tokens(trace, facts)


def _inputs(trace: Trace, facts: Facts) -> Iterable[Finding]:
    names = [n for n in trace.names()[:-1] if n in facts.relations]
    start = facts.input_relation.rank if facts.input_relation is not None else math.nan
    if start < WIDE:
        return
    twins = [n for n in names if facts.symmetric.get(n, math.inf) <= EQUAL]
    ended = [n for n in twins if _one(facts.relations, n) and _one(facts.relations_after, n)]
    if twins:
        yield _collapsed(names, names.index((ended or twins)[0]), start, "error" if ended else "warn", facts)
        return
    trial, found = facts.trials.get("directions"), collapse(names, facts.relations, start)
    if trial is not None:
        yield _collapsed(names, names.index(trial.sites[0]), trial.measured["rank_before"], "warn", facts)
    # A rank that falls slowly is what products of random matrices have at any depth that trains.
    elif found is not None and found[1] >= WIDE and _one(facts.relations_after, names[found[0]]):
        yield _collapsed(names, found[0], found[1], "info", facts)


def _one(relations: Mapping[str, Relation], name: str) -> bool:
    """Whether inputs differ along one direction, or none, over the whole batch and both halves."""
    found = relations.get(name)
    return found is not None and (math.isnan(found.rank) or found.high <= COLLAPSED)


def _collapsed(names: Sequence[str], index: int, previous: float, severity: Severity, facts: Facts) -> Finding:
    name = names[index]
    here, after, apart = facts.relations[name], facts.relations_after.get(name), facts.symmetric.get(name)
    trial = facts.trials.get("directions")
    still = [n for n in names[index:] if _one(facts.relations, n)] or [name]
    cause = ""
    if apart is not None and apart <= EQUAL:
        cause = ": the rows of its weights are all equal, and so are their gradients, so that no step parts them"
    rank = "0" if math.isnan(here.rank) else f"{here.rank:.3g}"
    rank += " direction" if rank == "1" else " directions"
    before = f", and in {previous:.3g} before it" if math.isfinite(previous) else ""
    return Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"At {name} the inputs of the batch differ in {rank} of {here.attainable}{before}{cause}."
            f"{f' {trial.told()}.' if trial is not None else ''}"
        ),
        where={"first": name, "last": still[-1]},
        evidence={
            "effective_rank": {"value": here.rank, "low": here.low, "high": here.high},
            "attainable_rank": here.attainable,
            "matrices": _pictured(names, index, facts),
            "rank_before": previous if math.isfinite(previous) else None,
            "rank_of_inputs": facts.input_relation.rank if facts.input_relation is not None else None,
            "correlation": _correlations(facts, name, here),
            "explained_by": "place" if apart is not None else None,
            "tests": {
                "rank_after_first_step": after.rank if after is not None else "not made",
                "learning_with_more_directions": evidence_of(trial) if trial is not None else "not made, or no better",
                "difference_of_gradients_between_rows": apart if apart is not None else "not made: rows differ",
            },
        },
        consequence=(
            "All units of the block are one unit, and stay so: the model has the capacity of one unit there."
            if apart is not None and apart <= EQUAL
            else "What is behind it sees the inputs along one line, until the weights have learned more directions."
        ),
        falsify=f"Compute the singular values of the output of {name} minus its mean over the batch, and count.",
        remedies=_draw(name, here) if trial is None else (proposal_of(trial),),
        source=SOURCE,
    )


def _pictured(names: Sequence[str], index: int, facts: Facts) -> Mapping[str, Any]:
    """Return the cosines between inputs before the block and behind it."""
    before = facts.relations[names[index - 1]] if index else facts.input_relation
    told = {f"before {names[index]}": before.cosines if before is not None else ()}
    told[f"behind {names[index]}"] = facts.relations[names[index]].cosines
    return {name: rows for name, rows in told.items() if rows}


def _correlations(facts: Facts, name: str, here: Relation) -> Mapping[str, Any]:
    """Return the mean cosine between inputs beside what mean-field theory says for that block, where it does."""
    told = next((p for p in facts.predictions if p.site == name), None)
    values: dict[str, Any] = {"value": here.correlation}
    if told is not None and told.signal and told.spread is not None:
        values["predicted"] = 1 - (told.spread / told.signal) ** 2 * (here.attainable + 1) / max(1, here.attainable)
    return values


def _draw(name: str, here: Relation) -> tuple[Proposal, ...]:
    patch = (
        "import torch\n"
        f"for weight in model.get_submodule({name.partition('#')[0]!r}).parameters():\n"
        "    if weight.dim() >= 2:\n"
        "        torch.nn.init.kaiming_normal_(weight)  # rows that differ"
    )
    return (Proposal("draw the weights at random", patch, {"effective_rank": here.rank}, {}),)


def _tokens(trace: Trace, facts: Facts) -> Iterable[Finding]:
    names = [n for n in trace.names() if n in facts.relations and not math.isnan(facts.relations[n].tokens)]
    if len(names) < 2:
        return
    sizes = [facts.relations[n].tokens for n in names]
    start = sizes[0]
    hit = next((i for i, size in enumerate(sizes) if size < TOKENS * start), None)
    if hit is None or start < TOKENS or any(size >= TOKENS * start for size in sizes[hit:]):
        return
    end, after = sizes[-1], facts.relations_after.get(names[-1])
    rounding = 64 * facts.resolution
    after_size = after.tokens if after is not None else math.nan
    severity: Severity = "error" if end <= rounding and after_size <= rounding else "warn"
    factor = (end / start) ** (1 / (len(names) - 1)) if end > 0 else 0.0
    yield Finding(
        rule=RULE,
        severity=severity,
        status="fired",
        claim=(
            f"From {names[0]} to {names[-1]} the tokens of one input become the same: their difference falls from "
            f"{start:.3g} to {end:.3g} of the signal's size, by {factor:.3g} per block."
        ),
        where={"first": names[hit], "last": names[-1]},
        evidence={
            "difference_between_tokens": {"first": start, "last": end},
            "reference": "the same quantity where the tokens enter",
            "explained_by": "theory",
            "tests": {"difference_after_first_step": after_size if math.isfinite(after_size) else "not made"},
        },
        consequence="What is behind it is told the mean of the tokens, and not which token is which.",
        falsify="Change one token of an input: if the outputs there and at other tokens change unlike, this is wrong.",
        remedies=(
            Proposal(
                "residual",
                "# attention averages the tokens: carry them past it\nx = x + attention(norm(x))",
                {"difference_between_tokens": end},
            ),
        ),
        source=SOURCE,
    )
