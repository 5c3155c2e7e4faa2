"""Which form each entry of a bundle's table has: one that was forged, or written by a broken disk, is told by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

__all__ = ["SCHEMA", "strange_entry"]

SCHEMA: Final = 1
_LONGEST: Final = 60  # characters of an entry that a message shows

_Fits = Callable[[Any], bool]


def strange_entry(table: Mapping[str, Any]) -> str:
    """Say of a bundle's table which entry is missing or of another form than it must be; "" if none is.

    Args:
        table: what the table says, of the schema that this levada writes.

    Example:
        >>> facts = {"autocast": 3}
        >>> table = {"schema": 1, "step": 7, "rule": "r", "reason": "", "loss": "nan", "values": {}, "missing": {}}
        >>> strange_entry({**table, "training": {}, "checkpoint": None, "finding": {}, "facts": facts})
        'its entry facts.autocast must be a mapping of names to names, got 3'
    """
    for name, (fits, words) in _TOP.items():
        if name not in table:
            return f"it has no entry {name}"
        if not fits(table[name]):
            return _told(name, words, table[name])
    for (top, name), (fits, words) in _INNER.items():
        if name in table[top] and not fits(table[top][name]):
            return _told(f"{top}.{name}", words, table[top][name])
    for name, value in table["values"].items():
        if name not in _VALUES and not _is_encoded(value):
            return _told(f"values.{name}", _NEST, value)
    return ""


def _told(name: str, words: str, value: object) -> str:
    text = repr(value)
    return f"its entry {name} must be {words}, got {text if len(text) <= _LONGEST else f'{text[:_LONGEST]} ...'}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any, least: int = 0) -> bool:
    return type(value) is int and value >= least


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool


def _is_number(value: Any) -> bool:
    return _is_finite(value) or value in ("nan", "inf", "-inf")


def _or_none(fits: _Fits) -> _Fits:
    return lambda value: value is None or fits(value)


def _mapping_to(fits: _Fits) -> _Fits:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _list_of(fits: _Fits) -> _Fits:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_inputs_before(value: Any) -> bool:
    fits = _mapping_to(_is_finite)
    return isinstance(value, dict) and _is_count(value.get("step")) and fits(value.get("rms"))


def _is_evidence(value: Any) -> bool:
    blame = value.get("learning_rate_too_high") if isinstance(value, dict) else {}
    told = isinstance(value, dict) and (blame is None or isinstance(blame, dict))
    return told and (not blame or blame.get("lower") is None or _is_finite(blame["lower"]))


# Values, as `levada.watching.verdict.bundle.encode` writes them: {"tensor": NAME}, {"tuple": [...]}, ...


def _is_encoded(value: Any) -> bool:
    if not isinstance(value, dict) or len(value) != 1:
        return False
    ((kind, held),) = value.items()
    if kind == "value":
        return held is None or isinstance(held, bool | int | float | str)
    if kind == "tensor":
        return isinstance(held, str)
    if kind == "mapping":
        return isinstance(held, list) and all(
            isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) and _is_encoded(pair[1])
            for pair in held
        )
    return kind in ("tuple", "list") and isinstance(held, list) and all(map(_is_encoded, held))


def _is_tensor(value: Any) -> bool:
    return _is_encoded(value) and "tensor" in value


def _is_none(value: Any) -> bool:
    return isinstance(value, dict) and value == {"value": None}


def _is_sequence(value: Any) -> bool:
    return _is_encoded(value) and not value.keys().isdisjoint(("tuple", "list"))


def _is_named(fits: _Fits) -> _Fits:
    def named(value: Any) -> bool:
        if not _is_encoded(value) or "mapping" not in value:
            return False
        return all(isinstance(key, str) and fits(item) for key, item in value["mapping"])

    return named


_NEST: Final = "a nest of tensors, numbers and texts"
_TENSORS: Final = "tensors by name"

_TOP: Final[Mapping[str, tuple[_Fits, str]]] = {
    "step": (_is_count, "the number of a step"),
    "rule": (_is_text, "the name of a rule"),
    "reason": (_is_text, "a sentence"),
    "loss": (_is_number, "a number"),
    "values": (lambda value: isinstance(value, dict), "a mapping"),
    "missing": (_mapping_to(_is_text), "a mapping of names to reasons"),
    "training": (_mapping_to(lambda value: isinstance(value, bool)), "a mapping of modules to true or false"),
    "checkpoint": (_or_none(_is_text), "a path or null"),
    "finding": (lambda value: isinstance(value, dict), "a mapping"),
    "facts": (lambda value: isinstance(value, dict), "a mapping"),
}
_VALUES: Final[Mapping[str, tuple[_Fits, str]]] = {
    "args": (_is_sequence, "a list of values"),
    "kwargs": (lambda value: _is_none(value) or _is_named(_is_encoded)(value), "values by name"),
    "output_gradient": (lambda value: _is_none(value) or _is_tensor(value), "a tensor"),
    "random_state": (_is_named(_is_tensor), "tensors by device"),
    "weights": (_is_named(_is_tensor), _TENSORS),
    "optimizer": (_is_sequence, "a list of states"),
    "targets": (_is_encoded, _NEST),
}
_FACTS: Final[Mapping[str, tuple[_Fits, str]]] = {
    "model": (_is_text, "the name of a class"),
    "autocast": (_mapping_to(_is_text), "a mapping of names to names"),
    "pass": (lambda value: _is_count(value, 1), "a number of passes"),
    "loss_of": (_or_none(lambda value: type(value) is int), "the number of a step"),  # -1 where none was seen
    "inputs_before": (_or_none(_is_inputs_before), "a step and numbers by name"),
    "optimizers": (_list_of(_is_text), "a list of names"),
    "optimizer_parameters": (_list_of(_list_of(_list_of(_is_text))), "names in groups in optimizers"),
    "lower_rate": (_is_finite, "a number"),
}
# Not all of these are in every bundle.
_INNER: Final[Mapping[tuple[str, str], tuple[_Fits, str]]] = {
    **{("values", name): form for name, form in _VALUES.items()},
    **{("facts", name): form for name, form in _FACTS.items()},
    ("finding", "evidence"): (_is_evidence, "a mapping, with numbers for rates"),
}
