"""Numbers needed at many places: as JSON can hold them, NaN and infinities being strings; Student's quantile."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Final

from levada._errors import UsageError

__all__ = ["NONFINITE", "json_ready", "restore_numbers", "sampled", "student_quantile", "written"]

NONFINITE: Final[Mapping[str, float]] = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def json_ready(value: Any, place: str = "payload") -> Any:
    """Give `value` as what JSON can hold; arrays and tensors become lists, NaN and infinities their names.

    Args:
        value: None, bool, int, float, str, a path, or mappings, lists, tuples, arrays of them.
        place: where the value stands, for the message.

    Raises:
        UsageError: if something is none of these, or a key is not a string.

    Example:
        >>> json_ready({"loss": float("-inf"), "seeds": (0, 1)})
        {'loss': '-inf', 'seeds': [0, 1]}
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UsageError(f"{place}: keys must be strings, got {key!r}. Write {str(key)!r}.")
        return {str(key): json_ready(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(getattr(value, "tolist", None)):
        return json_ready(value.tolist(), place)
    raise UsageError(
        f"{place}: JSON holds numbers, strings, lists and mappings, got {type(value).__name__}. "
        "Convert it to one of these first."
    )


def restore_numbers(value: Any) -> Any:
    """Turn the strings "nan", "inf" and "-inf" into floats, at any depth of lists and mappings.

    Example:
        >>> restore_numbers({"low": ["-inf", 1.0], "name": "infinity"})
        {'low': [-inf, 1.0], 'name': 'infinity'}
    """
    if isinstance(value, str):
        return NONFINITE.get(value, value)
    if isinstance(value, list):
        return [restore_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: restore_numbers(item) for key, item in value.items()}
    return value


def sampled(count: int, most: int) -> list[int]:
    """Give at most `most` of `count` indices, evenly, with the first and the last.

    Args:
        count: how many there are.
        most: at least 2.

    Example:
        >>> sampled(100, 4)
        [0, 33, 66, 99]
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def written(value: float, form: str = ".4g") -> str:
    """Write a number for a sentence; one that is not finite by the name that people and PyTorch's functions use.

    Args:
        value: the number.
        form: of one that is finite.

    Example:
        >>> written(2.5), written(math.nan), written(-math.inf)
        ('2.5', 'NaN', '-Inf')
    """
    if math.isfinite(value):
        return format(value, form)
    return "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"


# The two-sided 97.5 % quantile of Student's t for 1, 2, ... degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def student_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t: a table, then two terms of Cornish and Fisher.

    Args:
        freedom: degrees of freedom, at least 1.

    Example:
        >>> student_quantile(5), round(student_quantile(30), 2)
        (2.571, 2.04)
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
