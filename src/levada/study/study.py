"""A study: what to run, what is claimed about it, what to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from levada._errors import UsageError
from levada._names import meant
from levada.study.claim import Claim
from levada.study.figure import Figure
from levada.study.picture import Picture
from levada.study.results import Cell, Results

__all__ = ["SCALES", "Cost", "Settings", "Study"]

SCALES = ("smoke", "small", "full")
_MOST: Final = 1000  # times the largest number of its scales: what is planned then, of every seed, takes seconds

# Settings are one flat mapping: what a user changes with `--set key=value`.
Settings = Mapping[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Cost:
    """What a study takes at one scale.

    Attributes:
        hours: hours of the hardware, all configurations together.
        hardware: what they are hours of, "one CPU core" or a device such as "one H100".
        measured: whether it was measured; else it is extrapolated from what was.

    Example:
        >>> print(Cost(0.05, measured=True), Cost(9, "one H100"), sep="; ")
        3 minutes on one CPU core; about 9 hours on one H100 (estimated)
    """

    hours: float
    hardware: str = "one CPU core"
    measured: bool = False

    def __str__(self) -> str:
        minutes = 60 * self.hours
        unit, count = ("hour", self.hours) if minutes >= 90 else ("minute", minutes)
        number = f"{count:.0f}" if count >= 1 else f"{count:.1g}"
        span = f"{number} {unit}{'' if number == '1' else 's'} on {self.hardware}"
        return span if self.measured else f"about {span} (estimated)"


@final
@dataclass(frozen=True, slots=True)
class Study:
    """Configurations, a function that runs one, claims and figures.

    Attributes:
        name: short name, such as "R1".
        slug: the module's name, which a user may type as well.
        title: a few words.
        question: the question it answers.
        sources: the papers, each with its arXiv id.
        settings: the settings of the scale "small"; their types hold for every scale.
        configurations: (settings, seeds) -> the grid, the most expensive cells first.
        run: (config, seeds) -> the values of each seed; a function of a module, so that other processes find it.
        claims: settings -> what is decided.
        figures: results -> what is drawn; results may be missing.
        scales: what the scales "smoke" and "full" change; "seeds" is their number.
        notes: what a reader must know, each a sentence; or settings -> these, where they depend on the settings.
        method: what is done, in three sentences.
        costs: what the scales take.
        check: fields of those configurations of the scale smoke of which one is computed again as a check of a result;
            of all, where there are none. A study that trains names one that does.
        answer: what the reported run says to the question, in one sentence, written after it.
        known: setting -> the names that it may have, where the study reads a few, such as data sets.
    """

    name: str
    slug: str
    title: str
    question: str
    sources: tuple[str, ...]
    settings: Settings
    configurations: Callable[[Settings, Sequence[int]], Iterable[Cell]]
    run: Callable[[Mapping[str, Any], Sequence[int]], list[dict[str, Any]]]
    claims: Callable[[Settings], Sequence[Claim]]
    figures: Callable[[Results], Sequence[Figure | Picture]]
    scales: Mapping[str, Settings] = field(default_factory=dict)
    notes: tuple[str, ...] | Callable[[Settings], Sequence[str]] = ()
    method: str = ""
    costs: Mapping[str, Cost] = field(default_factory=dict)
    check: Mapping[str, Any] = field(default_factory=dict)
    answer: str = ""
    known: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def resolve(self, scale: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the settings of a scale, with changes.

        Args:
            scale: "smoke", "small" or "full".
            changes: settings to change; strings are read as the setting's type.

        Raises:
            UsageError: if the scale or a setting is not known, or a value is not of the setting's type, or not above 0
                where the setting's own is, or a whole number above a thousand times the largest of the scales, or a
                name that the study does not know, or knows in another case.
        """
        if scale not in SCALES:
            raise UsageError(f"study {self.name}: scale must be one of {', '.join(SCALES)}, got {scale!r}.")
        settings = {**self.settings, **self.scales.get(scale, {})}
        for key, value in (changes or {}).items():
            if key not in settings:
                known = ", ".join(sorted(settings))
                raise UsageError(f"study {self.name} has no setting {key!r}; it has: {known}.{meant(key, settings)}")
            settings[key] = self._read(key, value)
            self._require_positive(key, settings[key])
            self._require_bounded(key, settings[key])
            self._require_case(key, settings[key])
            self._require_known(key, settings[key])
        return settings

    def _read(self, key: str, value: Any) -> Any:
        default = self.settings[key]
        try:
            return _convert(value, default)
        except (TypeError, ValueError, OverflowError) as error:
            kind = f"{type(default[0]).__name__}, with commas" if _is_list(default) else type(default).__name__
            raise UsageError(f"study {self.name}: setting {key!r} is of type {kind}; got {value!r}.") from error

    def _require_case(self, key: str, value: Any) -> None:
        """Raise where a name is one that the study knows, but for its case; of a folder any case may be meant."""
        tables = (self.settings, *self.scales.values())
        known = {name for table in tables for name in _names(table.get(key))} if key != "folder" else set[str]()
        for name in _names(value):
            near = next((one for one in sorted(known - {name}) if one.lower() == name.lower()), "")
            if near and name not in known:
                raise UsageError(
                    f"study {self.name}: {key} must be one of {', '.join(sorted(known))}, got {name!r}. "
                    f"Did you mean {near!r}?"
                )

    def _require_known(self, key: str, value: Any) -> None:
        """Raise where a study reads a few names alone, and this is none of them."""
        known = self.known.get(key, ())
        if known and value not in known:
            rule = f"study {self.name}: {key} must be one of {', '.join(known)}, got {value!r}."
            raise UsageError(f"{rule}{meant(value, known)}")

    def _require_positive(self, key: str, value: Any) -> None:
        """Raise where a number is not above 0 and the study's own is: it counts or measures something."""
        usual, values = (self.settings[key][0], value) if _is_list(value) else (self.settings[key], (value,))
        if (
            isinstance(usual, int | float)
            and not isinstance(usual, bool)
            and usual > 0
            and not all(number > 0 for number in values)
        ):
            raise UsageError(f"study {self.name}: {key} must be above 0, got {value}.")

    def _require_bounded(self, key: str, value: Any) -> None:
        """Raise where a count is so large that the study would be planned without end, or take all memory."""
        known = [number for table in (self.settings, *self.scales.values()) for number in _counts(table.get(key))]
        most = _MOST * max(known, default=0)
        over = next((number for number in _counts(value) if number > most > 0), None)
        if over is not None:
            rule = f"study {self.name}: {key} must be at most {most}, a thousand times the largest of its scales"
            raise UsageError(f"{rule}, got {over}.")


def _counts(value: Any) -> list[int]:
    """Give the whole numbers of a setting."""
    return [one for one in (value if _is_list(value) else (value,)) if isinstance(one, int) and type(one) is not bool]


def _names(value: Any) -> tuple[str, ...]:
    """Give the texts of a setting."""
    return tuple(one for one in (value if _is_list(value) else (value,)) if isinstance(one, str))


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple)


def _convert(value: Any, default: Any) -> Any:
    if _is_list(default):
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(_convert(part.strip() if isinstance(part, str) else part, default[0]) for part in parts)
    if isinstance(default, bool):
        known = {"true": True, "false": False, "1": True, "0": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() not in known:
            raise ValueError(value)
        return known[str(value).lower()]
    if isinstance(default, int) and (isinstance(value, bool) or float(value) != int(float(value))):
        raise ValueError(value)
    if isinstance(default, str) and not isinstance(value, str):
        raise TypeError(value)
    return type(default)(value)
