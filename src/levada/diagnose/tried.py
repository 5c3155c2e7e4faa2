"""What a rule says where a change of the model was tried, and helped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levada.diagnose.finding import Finding, Proposal
from levada.diagnose.trials import Trial

__all__ = ["evidence_of", "finding_of", "proposal_of"]


def finding_of(rule: str, trial: Trial, seen: str, consequence: str, source: str) -> Finding:
    """Return a warning: what is lost is measured and can be explained, and the model learns in spite of it.

    Args:
        rule: that speaks.
        trial: of what mends it.
        seen: what was measured, a sentence without its full stop.
        consequence: for what is learned.
        source: authors, year, arXiv id.
    """
    return Finding(
        rule=rule,
        severity="warn",
        status="fired",
        claim=f"{seen}. {trial.told()}.",
        where={"first": trial.sites[0], "last": trial.sites[1]},
        evidence={**trial.measured, "explained_by": "place", "tests": evidence_of(trial)},
        consequence=consequence,
        falsify=f"Train to the end with and without {trial.changed}: if both learn alike, it is wrong.",
        remedies=(proposal_of(trial),),
        source=source,
    )


def evidence_of(trial: Trial) -> Mapping[str, Any]:
    """Return the losses with and without the change, for a finding's tests.

    Args:
        trial: of the change.
    """
    return {"changed": trial.changed, "share_of_gain_as_it_is": trial.share, **trial.losses()}


def proposal_of(trial: Trial) -> Proposal:
    """Return the change as a proposal, with the losses that it was seen to bring.

    Args:
        trial: of the change.
    """
    plain, other = trial.ends
    return Proposal("change", trial.code, {"loss": plain}, {"loss": other}, verified=False)
