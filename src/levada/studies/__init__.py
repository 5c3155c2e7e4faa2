"""The studies: an import line and an entry make one known to the library, the command line and the report."""

from __future__ import annotations

from typing import Any

from levada._errors import UsageError
from levada.runs import Run
from levada.studies.attention_recall import STUDY as ATTENTION_RECALL
from levada.studies.degradation import STUDY as DEGRADATION
from levada.studies.gradient_decay import STUDY as GRADIENT_DECAY
from levada.studies.gradient_through_time import STUDY as GRADIENT_THROUGH_TIME
from levada.studies.hyper_connections import STUDY as HYPER_CONNECTIONS
from levada.studies.intermediate_losses import STUDY as INTERMEDIATE_LOSSES
from levada.studies.receptive_field import STUDY as RECEPTIVE_FIELD
from levada.studies.ten_thousand_layers import STUDY as TEN_THOUSAND_LAYERS
from levada.studies.zero_initialisation import STUDY as ZERO_INITIALISATION
from levada.study import Study, execute

__all__ = ["STUDIES", "find", "run_study"]

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        GRADIENT_DECAY,
        DEGRADATION,
        ZERO_INITIALISATION,
        TEN_THOUSAND_LAYERS,
        GRADIENT_THROUGH_TIME,
        RECEPTIVE_FIELD,
        ATTENTION_RECALL,
        INTERMEDIATE_LOSSES,
        HYPER_CONNECTIONS,
    )
}


def find(name: str) -> Study:
    """Return a study by its name or slug, in any case.

    Args:
        name: such as "R1" or "gradient_decay".

    Raises:
        UsageError: if there is none of this name.

    Example:
        >>> find("r1") is find("gradient_decay")
        True
    """
    for study in STUDIES.values():
        if name.lower() in (study.name.lower(), study.slug):
            return study
    known = ", ".join(f"{study.name} ({study.slug})" for study in STUDIES.values())
    raise UsageError(f"study {name!r} is not known; there are: {known}.")


def run_study(name: str, **options: Any) -> Run:
    """Run a study by name; options are those of `levada.study.execute`.

    Args:
        name: such as "R1" or "gradient_decay".
        **options: `scale`, `out`, `seeds`, `executor`, `settings`, `progress`.

    Returns:
        The run: its claims are `levada.study.claims(run)`.

    Raises:
        UsageError: if the name, the scale or a setting is not known.
    """
    return execute(find(name), **options)
