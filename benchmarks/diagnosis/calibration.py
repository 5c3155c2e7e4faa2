"""Write down how often each rule spoke of healthy programs, where the library reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import levada.diagnose
from levada.diagnose.calibration import FILE

__all__ = ["SHIPPED", "write_calibration"]

SHIPPED = Path(levada.diagnose.__file__).with_name(FILE)
"""The file that the package holds."""

_COUNTS = "errors", "warnings", "of"


def write_calibration(path: Path, counts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the counts of all rules, sorted by name, so that a new run changes what it counted anew and no more.

    Args:
        path: the file; `SHIPPED` for the one in the package.
        counts: rule -> {"errors", "warnings", "of", "suite"}: programs without a fault of which the rule spoke as an
            error, and as a warning and no error; of how many; and which. Of a rule that was not run there is no entry.

    Raises:
        ValueError: if there is no rule of that name, or its counts are none.
    """
    for rule, told in counts.items():
        if rule not in levada.diagnose.DIAGNOSTICS:
            raise ValueError(f"write_calibration: there is no rule {rule!r}.")
        errors, warnings, of = (told[key] for key in _COUNTS)
        if not (all(isinstance(n, int) for n in (errors, warnings, of)) and min(errors, warnings) >= 0 < of):
            raise ValueError(f"write_calibration: {rule} needs whole numbers of at least 0, of at least 1, got {told}.")
        if errors + warnings > of:
            raise ValueError(f"write_calibration: {rule} speaks of more programs than there are, got {told}.")
    rows = {rule: {**{k: counts[rule][k] for k in _COUNTS}, "suite": counts[rule]["suite"]} for rule in sorted(counts)}
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
