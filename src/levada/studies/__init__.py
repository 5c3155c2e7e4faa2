"""The studies: an entry makes one known to the library, the command line and the report.

They load on first use, so that a name that is none is refused without torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, Final

from levada._errors import UsageError
from levada._names import meant

if TYPE_CHECKING:
    from levada.runs import Run
    from levada.study import Study

    STUDIES: dict[str, Study]

__all__ = ["SLUGS", "STUDIES", "find", "require_study", "run_study"]

SLUGS: Final = {
    "R1": "gradient_decay",
    "R2": "norm_one",
    "R3": "trainable_depth",
    "R4": "degradation",
    "R5": "highway",
    "R6": "shortcut_ablation",
    "R7": "lesions",
    "R8": "zero_initialisation",
    "R9": "ten_thousand_layers",
    "R10": "very_deep",
    "R11": "what_helped",
    "R12": "depth_separation",
    "R13": "gradient_through_time",
    "R14": "receptive_field",
    "R15": "attention_recall",
    "R16": "intermediate_losses",
    "R17": "feature_hierarchy",
    "R18": "shattered_gradients",
    "R19": "hyper_connections",
    "R20": "thousand_layer_transformers",
    "R21": "self_supervised_depth",
    "R22": "image_families",
}


def __getattr__(name: str) -> Any:
    if name != "STUDIES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = (importlib.import_module(f"{__name__}.{slug}") for slug in SLUGS.values())
    found = globals()[name] = {module.STUDY.name: module.STUDY for module in modules}
    return found


def require_study(name: str) -> str:
    """Return the number of a study, "R1", that is named by it or by its slug, in any case.

    Args:
        name: such as "R1" or "gradient_decay".

    Raises:
        UsageError: if there is none of this name.

    Example:
        >>> require_study("Gradient_decay")
        'R1'
    """
    for number, slug in SLUGS.items():
        if name.lower() in (number.lower(), slug):
            return number
    near = meant(name, [*SLUGS.values(), *SLUGS])
    there = f"There are {len(SLUGS)}: `levada list studies` names them."
    raise UsageError(f"study {name!r} is not known.{near} {there}")


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
    studies: dict[str, Study] = sys.modules[__name__].STUDIES
    return studies[require_study(name)]


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
    from levada.study import execute

    return execute(find(name), **options)
