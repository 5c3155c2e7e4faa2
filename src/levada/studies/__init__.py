"""The studies: an import line and an entry make one known to the library, the command line and the report."""

from __future__ import annotations

from typing import Any

from levada._errors import UsageError
from levada._names import meant
from levada.runs import Run
from levada.studies.attention_recall import STUDY as ATTENTION_RECALL
from levada.studies.degradation import STUDY as DEGRADATION
from levada.studies.depth_separation import STUDY as DEPTH_SEPARATION
from levada.studies.feature_hierarchy import STUDY as FEATURE_HIERARCHY
from levada.studies.gradient_decay import STUDY as GRADIENT_DECAY
from levada.studies.gradient_through_time import STUDY as GRADIENT_THROUGH_TIME
from levada.studies.highway import STUDY as HIGHWAY
from levada.studies.hyper_connections import STUDY as HYPER_CONNECTIONS
from levada.studies.image_families import STUDY as IMAGE_FAMILIES
from levada.studies.intermediate_losses import STUDY as INTERMEDIATE_LOSSES
from levada.studies.lesions import STUDY as LESIONS
from levada.studies.norm_one import STUDY as NORM_ONE
from levada.studies.receptive_field import STUDY as RECEPTIVE_FIELD
from levada.studies.self_supervised_depth import STUDY as SELF_SUPERVISED_DEPTH
from levada.studies.shattered_gradients import STUDY as SHATTERED_GRADIENTS
from levada.studies.shortcut_ablation import STUDY as SHORTCUT_ABLATION
from levada.studies.ten_thousand_layers import STUDY as TEN_THOUSAND_LAYERS
from levada.studies.thousand_layer_transformers import STUDY as THOUSAND_LAYER_TRANSFORMERS
from levada.studies.trainable_depth import STUDY as TRAINABLE_DEPTH
from levada.studies.very_deep import STUDY as VERY_DEEP
from levada.studies.what_helped import STUDY as WHAT_HELPED
from levada.studies.zero_initialisation import STUDY as ZERO_INITIALISATION
from levada.study import Study, execute

__all__ = ["STUDIES", "find", "run_study"]

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        GRADIENT_DECAY,
        NORM_ONE,
        TRAINABLE_DEPTH,
        DEGRADATION,
        HIGHWAY,
        SHORTCUT_ABLATION,
        LESIONS,
        ZERO_INITIALISATION,
        TEN_THOUSAND_LAYERS,
        VERY_DEEP,
        WHAT_HELPED,
        DEPTH_SEPARATION,
        GRADIENT_THROUGH_TIME,
        RECEPTIVE_FIELD,
        ATTENTION_RECALL,
        INTERMEDIATE_LOSSES,
        FEATURE_HIERARCHY,
        SHATTERED_GRADIENTS,
        HYPER_CONNECTIONS,
        THOUSAND_LAYER_TRANSFORMERS,
        SELF_SUPERVISED_DEPTH,
        IMAGE_FAMILIES,
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
    near = meant(name, [*(study.slug for study in STUDIES.values()), *STUDIES])
    there = f"There are {len(STUDIES)}: `levada list studies` names them."
    raise UsageError(f"study {name!r} is not known.{near} {there}")


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
