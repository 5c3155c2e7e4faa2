"""What a check knows beside the signals: settings, and what single functional tests on this model showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from levada.diagnose.attending import Attending
from levada.diagnose.directions import Directions
from levada.diagnose.neighbours import Neighbours
from levada.diagnose.noise import Noise
from levada.diagnose.objective import Objective
from levada.diagnose.pairing import Pairing
from levada.diagnose.prediction import Prediction
from levada.diagnose.recipe import Recipe
from levada.diagnose.recurrent import Memory
from levada.diagnose.redraw import Redrawn
from levada.diagnose.rehearsal import Course
from levada.diagnose.relations import Relation
from levada.diagnose.rounding import Broken, Rounding
from levada.diagnose.rows import Mixed
from levada.diagnose.surroundings import InputScale, Mode
from levada.diagnose.trials import Trial
from levada.probe.origin import Origin
from levada.probe.trace import Trace

__all__ = ["Cut", "Facts", "facts_of"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the graph ends for parameters that ask for a gradient and act on the loss.

    Attributes:
        parameters: their names.
        sites: their blocks, in order of execution.
        operations: the operations at which the graph ends, in words; empty if none was seen.
        quiet: whether those ran with gradients disabled, which somebody wrote on purpose.
        around: whether what enters those operations reaches the loss on another way too.
        flat: whether those are operations without a slope, as rounding, so that there is a gradient, but of zeros.
        paused: whether gradients were enabled where the parameters act, and disabled where what they give is read.
        at: block in which the first of those operations ran, where it is the culprit; "" otherwise.
    """

    parameters: tuple[str, ...]
    sites: tuple[str, ...]
    operations: tuple[str, ...] = ()
    quiet: bool = False
    around: bool = False
    flat: bool = False
    paused: bool = False
    at: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """One check's facts; None where a test was not made.

    Attributes:
        optimizer: class name of the optimizer.
        lr: its learning rate.
        eps: what it adds to the root of its second moment.
        loss: name of the loss.
        resolution: distance from 1 to the next number of the parameters' type.
        loss_value: loss on the first batch.
        loss_constant: loss of outputs that are zero for every input.
        loss_after: loss on the same batch and random numbers after the optimizer's first step.
        output_spread: difference between inputs at the output, over the output's size; both as root mean squares.
        output_spread_exact: whether `output_spread` was measured in double precision.
        output_spread_after: as `output_spread`, after the optimizer's first step.
        nonfinite_parameters: parameters that hold NaN or Inf.
        cuts: where the graph ends for parameters that should learn and change the objective.
        flat: what the inputs lack, "size" if all are zero, "spread" if they are all the same, "" if nothing.
        fixed: parameters that do not ask for a gradient.
        activations: site -> names of its activation functions.
        units: site -> number of units of its last activation.
        silent: site with several activations -> share of the units of one of them that are flat for every input, and
            their number: of that which has most.
        batch_normalised: sites that normalise over the batch.
        chain: whether every operation reads one signal: no skip, gate or attention.
        normalised: whether any operation normalises.
        predictions: theory's word on each site.
        cotangent_log10: log10 of `cotangent_rms`, which a float64 cannot hold at any depth.
        cotangent_log10_after: the same after the optimizer's first step, if it fell by decades across one block.
        stream_gradients: how much the gradients of reading, mixing and writing differ between streams, relative to the
            largest; measured where streams are equal and are treated alike.
        objective: how the loss answers to outputs that are put in by hand.
        input_relation: how the inputs of the first batch lie to each other.
        relations: site -> how they lie to each other there.
        relations_after: the same after the optimizer's first step.
        symmetric: site with a matrix of equal rows -> difference of the gradients of its rows, relative to them.
        neighbours: how alike the gradients of two close inputs are; not measured in shallow models.
        inputs: how large the floating input is that a linear map reads first.
        rounding: the first step with and without rounding, where rounding takes most of it.
        behind: the operation that makes the first NaN or Inf, where it runs behind a block whose output is finite.
        broken: what the optimizer's first step makes NaN or Inf, though weights and gradients are finite.
        flushed: share of gradient elements that float16 loses, and would not if the loss were larger.
        courses: losses of a few steps of training, by what was changed: "lr" is the training as it is, "lower",
            "higher" and "highest" are other rates, "standardised" other inputs. Made where somebody chose the rate, or
            the inputs gave a reason; without those that fall steadily.
        shrunk: size of the gradients that the first step used, over that of those it was given.
        mode: which modules are in training mode.
        recipe: what the optimizer was told beside its rate; None if nobody chose it.
        redrawn: what drawing parameters of an unusual size again does to training, if it helps.
        attending: what attention attends to.
        rows: number of rows of the first batch.
        floating: whether there are floating inputs.
        unmade: test -> why it was not made, of those that were asked for.
        untested: rule -> why a test that it needs was not made, where there was a reason to make it.
        memory: how far back recurrences remember; None without any.
        directions: how many directions a gradient keeps between the last block and the first.
        mixed: modules that take the rows of the batch for time; None without any.
        noise: what heavy dropout makes of the outputs; None without any.
        trials: name of a change -> trainings with and without it, of those that help the model to learn.
        pairing: whether targets follow from inputs; None where that was not tested.
    """

    optimizer: str | None = None
    lr: float | None = None
    eps: float | None = None
    loss: str | None = None
    resolution: float = 2.0**-23
    loss_value: float | None = None
    loss_constant: float | None = None
    loss_after: float | None = None
    output_spread: float | None = None
    output_spread_exact: bool = False
    output_spread_after: float | None = None
    nonfinite_parameters: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    flat: str = ""
    fixed: tuple[str, ...] = ()
    activations: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    silent: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    batch_normalised: frozenset[str] = frozenset()
    chain: bool = False
    normalised: bool = False
    predictions: tuple[Prediction, ...] = ()
    cotangent_log10: Tensor | None = None
    cotangent_log10_after: Tensor | None = None
    stream_gradients: Mapping[str, float] | None = None
    objective: Objective | None = None
    input_relation: Relation | None = None
    relations: Mapping[str, Relation] = field(default_factory=dict)
    relations_after: Mapping[str, Relation] = field(default_factory=dict)
    symmetric: Mapping[str, float] = field(default_factory=dict)
    neighbours: Neighbours | None = None
    inputs: InputScale | None = None
    rounding: Rounding | None = None
    behind: Origin | None = None
    broken: Broken | None = None
    flushed: float | None = None
    courses: Mapping[str, Course] = field(default_factory=dict)
    shrunk: float = 1.0
    mode: Mode | None = None
    recipe: Recipe | None = None
    redrawn: Redrawn | None = None
    attending: Attending = field(default_factory=Attending)
    rows: int = 0
    floating: bool = False
    unmade: Mapping[str, str] = field(default_factory=dict)
    untested: Mapping[str, str] = field(default_factory=dict)
    memory: Memory | None = None
    directions: Directions | None = None
    mixed: Mixed | None = None
    noise: Noise | None = None
    trials: Mapping[str, Trial] = field(default_factory=dict)
    pairing: Pairing | None = None


def facts_of(trace: Trace) -> Facts:
    """Return the facts that came with a trace; empty ones if it came without."""
    found = trace.context.get("facts")
    return found if isinstance(found, Facts) else Facts()
