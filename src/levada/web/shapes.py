"""The shapes of questions and answers: what is not written here is neither asked nor answered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from levada.report.words import number
from levada.runs.ending import State

__all__ = [
    "Change",
    "Claim",
    "Fact",
    "Found",
    "News",
    "Nothing",
    "Number",
    "Problem",
    "Row",
    "Runs",
    "Shape",
    "Signal",
    "Site",
    "Summary",
    "Table",
    "TableRow",
    "Verdict",
    "plain",
    "told",
]

_DEEPEST: Final = 16  # of what a run's own JSON may nest before it is cut

Named: TypeAlias = Literal["nan", "inf", "-inf"]
Number: TypeAlias = float | Named | None
"""A number; what JSON has no number for by its name; null where nothing was measured."""
Verdict: TypeAlias = Literal["healthy", "warn", "error", "unknown"]
Part: TypeAlias = Literal["loss", "held_out", "heat", "mixing", "gates", "memory", "drawings"]
Decided: TypeAlias = Literal["held", "not held", "not held, corrected", "not decided"]
Id: TypeAlias = Annotated[str, Field(pattern=r"^[a-z2-7]{20}$", description="Opaque; the same for the same folder.")]


def told(value: Any) -> Number:
    """Give a number as JSON can hold it.

    Args:
        value: a number, its name, or anything else, which is none.

    Example:
        >>> told(0.5), told(float("-inf")), told("nan"), told("high")
        (0.5, '-inf', 'nan', None)
    """
    amount = number(value)
    if amount is None or math.isfinite(amount):
        return amount
    return "nan" if math.isnan(amount) else "inf" if amount > 0 else "-inf"


def plain(value: Any, depth: int = 0) -> Any:
    r"""Give what a run holds as JSON that every reader takes: no lone surrogates, no NaN, not nested without end.

    Args:
        value: of the JSON of a run.
        depth: how deep it stands.

    Example:
        >>> plain({"name": "a\ud800", "lr": float("inf")})
        {'name': 'a\\ud800', 'lr': 'inf'}
    """
    if isinstance(value, str):
        return value.encode("utf-8", errors="backslashreplace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return told(value)
    if isinstance(value, bool | int | float) or value is None:
        return value
    if depth == _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, Sequence):
        return [plain(one, depth + 1) for one in value]
    return plain(str(value))


class Shape(BaseModel):
    """A shape without unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Problem(Shape):
    """Why there is no answer, in a sentence."""

    detail: str


class Nothing(Shape):
    """It is done, and there is nothing to say."""


class Row(Shape):
    """A run of the list."""

    id: Id
    name: str = Field(description="Path of the run's folder, from the served folder on.")
    title: str = Field(description="Its own name.")
    kind: str = Field(description="watch, check, study, train, or what else wrote it.")
    state: State = Field(description="A training that its process left is stopped; a run elsewhere is not ended.")
    verdict: Verdict | None = Field(description="null where nothing is judged, as of a study.")
    until: str = Field(description="Up to which step one that is called healthy was seen; empty if to its end.")
    steps: int = Field(description="Optimizer steps that were made, as far as is known.")
    depth: int = Field(description="Number of sites.")
    loss: Number = Field(description="The last that is known; of several processes the last that is a mean over all.")
    modified: float = Field(description="Seconds since 1970.")
    problem: str = Field(description="Why the run cannot be read; empty if it can.")


class Runs(Shape):
    """All runs below the served folder, the last modified first."""

    runs: list[Row]
    waiting: int = Field(description="Runs that were found and are not yet read: ask again.")
    left_out: int = Field(description="Runs that were found beyond the limit.")
    version: str = Field(description="Of levada.")
    folder: str = Field(description="As it was given to the server; empty where the server has none to show.")


class News(Shape):
    """What happened to a run."""

    event: Literal["appeared", "grew", "ended", "gone"]
    run: Row


class Fact(Shape):
    """A number in words."""

    label: str
    value: str
    note: str = ""


class Claim(Shape):
    """A claim of a study: what was said, when it holds, and how it ended."""

    name: str
    status: Decided
    statement: str
    criterion: str = Field(description="It holds if this does.")
    reason: str = Field(description="Why it ended so.")
    correction: str = Field(description="What is true instead; empty without one.")
    correction_label: str
    paper_value: str
    source: str
    compared: str = Field(description="What the last cell of `pairs` is.")
    pairs: list[tuple[str, str, str, str]] = Field(description="What, measured, predicted, and how they compare.")
    numbers: list[Fact]
    statistic: str
    seeds: str


class Site(Shape):
    """A block boundary."""

    name: str
    kind: str
    shape: list[int] = Field(description="Of what the block returns; empty where it is not known.")


class Signal(Shape):
    """A signal that was kept."""

    name: str
    label: str


class Change(Shape):
    """A repair."""

    name: str
    patch: str
    verified: bool
    trust: str
    rows: list[tuple[str, str, str]] = Field(description="What, before, after.")


class Found(Shape):
    """A finding."""

    rule: str
    severity: Literal["error", "warn", "info"]
    status: Literal["fired", "clear", "unknown"]
    title: str
    claim: str
    first: str = Field(description="The first site, or empty.")
    last: str
    came: int | None = Field(description="The step at which it was told; null of a check.")
    renewed: int | None = Field(
        description="The step of which its numbers are, if another than the one at which it came."
    )
    over: int | None = Field(description="The step at which it ended.")
    evidence: list[Fact]
    ruled_out: list[str]
    consequence: str
    falsify: str
    calibration: str
    source: str
    remedies: list[Change]


class TableRow(Shape):
    """A row of the table of blocks."""

    site: str
    kind: str
    cells: list[str]


class Table(Shape):
    """The blocks' numbers: at the last sample, or of a check."""

    head: list[str]
    rows: list[TableRow]
    total: int = Field(description="Number of blocks; of many, an even choice has rows.")


class Summary(Row):
    """What is known of a run, without its curves."""

    created: str
    command: str
    versions: dict[str, str] = Field(description="Of levada, Python, torch and the platform.")
    config: dict[str, Any] = Field(description="As the run wrote it.")
    told: str = Field(description="State in a sentence.")
    headline: str
    claim: str
    facts: list[Fact]
    sites: list[Site]
    signals: list[Signal]
    logged: list[str] = Field(description="Names that the training loop logged.")
    first_step: int | None = Field(description="The first sampled step; null without samples.")
    last_step: int | None
    reached: list[int] = Field(description="The last sampled step of each process that holds blocks.")
    rewritten: int = Field(description="How often the record was mended, or gone on with from an earlier step.")
    samples: int
    overhead: Number = Field(description="Share of the training time that watching took.")
    ranks: list[int]
    findings: list[Found]
    claims: list[Claim] = Field(description="Of a study.")
    notes: list[str]
    damage: list[str] = Field(description="What of the run cannot be read.")
    table: Table | None
    has: list[Part] = Field(description="What there is to ask for beside this.")
    lacks: dict[Literal["mixing", "gates"], str] = Field(
        description="Of a watched run, what of the inside of its layers is not recorded, and why not."
    )
