"""The shapes of what is drawn of a run: losses, heat pictures, mixing matrices, memory, figures of a check."""

from __future__ import annotations

from typing import Final

from pydantic import ConfigDict, Field

from levada.web.shapes import Number, Shape

__all__ = [
    "Bins",
    "Chain",
    "Drawing",
    "Drawings",
    "Gate",
    "Gates",
    "GatesOf",
    "Heat",
    "HeatOf",
    "Layer",
    "Loss",
    "LossOf",
    "Memory",
    "Mixing",
    "MixingOf",
    "Numbers",
    "OptimizerLoss",
    "Recurrence",
]

LARGEST_STEP: Final = 2**53
"""The largest number that a page can count to."""


class _Span(Shape):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    start: int = Field(0, alias="from", ge=0, le=LARGEST_STEP, description="The first step.")
    stop: int = Field(LARGEST_STEP, alias="to", ge=0, le=LARGEST_STEP, description="The last step.")


class LossOf(_Span):
    """Which losses are asked for."""

    bins: int = Field(600, ge=1, le=4096, description="At most so many bins.")


class Bins(Shape):
    """A series in bins: in each, equally many neighbouring steps of which the loss is known."""

    first: list[int] = Field(description="First step of each bin.")
    last: list[int]
    low: list[float | None] = Field(description="Least of the finite losses; null without any.")
    mean: list[float | None]
    high: list[float | None]
    count: list[int] = Field(description="Number of losses.")
    nonfinite: list[int] = Field(description="How many of them are NaN or infinite.")


class OptimizerLoss(Shape):
    """The losses of steps that some of several optimizers made."""

    name: str = Field(description="Which optimizers.")
    bins: Bins


class Loss(Shape):
    """The losses of a run."""

    training: Bins
    held_out: Bins = Field(description="By the number of steps done; without bins where none was measured.")
    by_optimizer: list[OptimizerLoss] = Field(
        description="The same as `training`, apart, where optimizers that take turns have losses of their own; else "
        "empty."
    )


class HeatOf(_Span):
    """Which part of which signal is asked for, and how large the picture is."""

    signal: str = Field(max_length=100, description="Its name, as the summary has it.")
    first: int = Field(0, ge=0, le=2**31, description="The first site, from 0.")
    last: int = Field(2**31, ge=0, le=2**31, description="The last site.")
    columns: int = Field(400, ge=1, le=1024, description="At most so many columns: stretches of samples.")
    rows: int = Field(200, ge=1, le=512, description="At most so many rows: stretches of sites.")


class Heat(Shape):
    """A signal by site and step. Planes are base64, row by row; float32 is little-endian."""

    signal: str
    steps: list[int] = Field(description="First step of each column.")
    last_steps: list[int]
    sites: list[int] = Field(description="First site of each row.")
    last_sites: list[int]
    resolution: int = Field(
        description="Samples in the blocks that were read: 1, 16 or 256; more where detail is gone."
    )
    mean: str = Field(description="float32: mean of log10 of the size; NaN where no number is finite and not zero.")
    low: str = Field(description="float32: log10 of the smallest size that is finite and not zero.")
    high: str = Field(description="float32: log10 of the largest.")
    flags: str = Field(
        description="uint8, sums of what is in a cell: 1 a zero, 2 Inf, 4 a tensor with NaN or Inf, 8 a number that "
        "was not measured, 16 a negative number."
    )
    least: float | None = Field(description="Least of `low`; null without any.")
    greatest: float | None


class MixingOf(Shape):
    """Which record is asked for."""

    step: int | None = Field(
        None, ge=0, le=LARGEST_STEP, description="The newest up to this one; the last if left out."
    )


class Layer(Shape):
    """How a layer mixes its streams."""

    name: str
    matrix: list[list[Number]] = Field(description="Row i: what stream i gets of each.")
    forward_gain: Number = Field(description="Largest row sum of the product up to here; null where it is not known.")
    backward_gain: Number = Field(description="Largest column sum of the product from here.")
    row_deviation: Number = Field(description="How far a row's sum is from 1, at most over rows and tokens.")
    column_deviation: Number = Field(description="The same of columns.")


class Chain(Shape):
    """Layers that hand their streams on."""

    layers: list[str]
    forward_gain: Number
    backward_gain: Number


class Mixing(Shape):
    """The mixing matrices of a run."""

    watched: bool = Field(description="Whether it was taken while the model trained; else by checks.")
    steps: list[int] = Field(
        description="What is recorded: of a watched run the sampled steps, of very many an even choice; of checks "
        "their number in the run, from 0."
    )
    step: int
    last_step: int = Field(description="Beyond `step` where of several samples only the mean is kept.")
    layers: list[Layer]
    chains: list[Chain]
    total: int = Field(description="Number of layers; of many, an even choice is given.")


class GatesOf(_Span):
    """Which part of the gates is asked for."""

    points: int = Field(512, ge=1, le=2048, description="At most so many samples, evenly chosen.")


class Gate(Shape):
    """What the gates of one recurrence were, by sampled step."""

    site: str
    gate: str = Field(description="forget gate, update gate or carry gate: 1 keeps all of the memory.")
    steps: list[int]
    mean: list[Number] = Field(description="Over units, of the means over steps of the sequence and rows.")
    low: list[Number] = Field(description="5 % quantile over units.")
    high: list[Number] = Field(description="95 % quantile over units.")
    horizon: list[Number] = Field(description="Steps of the sequence after which the gates alone leave 1/1000.")


class Gates(Shape):
    """The gates of a watched run's recurrences."""

    recurrences: list[Gate]
    total: int = Field(description="Number of recurrences; of many, an even choice is given.")


class Recurrence(Shape):
    """What a finding says of the memory of one recurrence."""

    site: str
    title: str
    drawn: bool = Field(description="Whether it is the evidence of a finding, whose figure has these numbers.")
    back: list[int] = Field(description="Steps back.")
    memory: list[Number] = Field(description="What a change of the state so many steps back does to the last one.")
    predicted: list[Number]
    steps: list[int] = Field(description="Steps of the sequence.")
    gradient: list[Number] = Field(description="What of the loss's gradient arrives there.")


class Memory(Shape):
    """How far back the gradient of a model reaches."""

    value: Number = Field(description="Steps after which 1/1000 of the memory is left.")
    low: Number
    high: Number
    predicted: Number
    steps: Number = Field(description="Length of the sequences.")
    recurrences: list[Recurrence]


class Numbers(Shape):
    """The numbers of a figure, in words."""

    head: list[str]
    rows: list[list[str]] = Field(description="The first cell is what a row is of.")
    total: int = Field(description="Number of rows; of many, an even choice is given.")


class Image(Shape):
    """An image of a study."""

    label: str
    alternative: str = Field(description="What it shows, for who does not see it.")
    png: str = Field(description="A PNG in base64: its type is not asked of the run.")
    width: int = Field(description="Pixels, as the file says.")
    height: int


class Drawing(Shape):
    """A figure of lines, or images, as the report shows them."""

    title: str
    caption: str
    data: str = Field(
        description="Its numbers as the report holds them: base64 of a deflated block, a header in JSON and planes of "
        "numbers. Empty where it has bars or names, which the report alone draws, and where it has images."
    )
    table: Numbers
    finding: int | None = Field(description="The place of the finding whose evidence it shows; null of the others.")
    images: list[Image] = Field(description="From left to right; empty of a figure of lines.")
    missing: str = Field(description="Why a picture has no images, or not all of them; else empty.")


class Drawings(Shape):
    """The figures of a check, or of a study."""

    drawings: list[Drawing]
    total: int = Field(description="Number of figures; of many, the first are given.")
