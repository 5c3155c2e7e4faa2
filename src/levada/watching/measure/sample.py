"""One sampled step of a run, as numbers on the host, and who hears of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, final

from torch import Tensor

from levada._errors import UsageError, require_at_least, require_switch
from levada.watching.measure.coefficients import Taken

__all__ = ["WATCHED", "Continue", "Listener", "Sample"]

WATCHED: Final = (
    "signal_rms",
    "gradient_rms",
    "weight_rms",
    "weight_gradient_rms",
    "update_ratio",
    "zero_fraction",
    "nonfinite",
    "gradient_nonfinite",
)
"""The signals of a sample, in the order in which they are stored; what they mean is in `levada.probe.SIGNALS`."""


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured on one sampled step.

    Attributes:
        step: number of the optimizer step, from 0.
        time: when the step ended, in seconds since the epoch.
        values: signal -> float64 tensor of shape `(sites,)`; what was not measured is NaN.
        scalars: "loss", "lr", "gradient_norm", "loss_scale", "overhead" (share of the training time), "constant_loss"
            (of the best prediction that is the same for every input), "constant_of_batch" (the same over the targets of
            this step alone), "uncleared_steps" (of the last 64, those whose gradients were added to the ones that the
            step before had used), "uncleared_of" (the steps among which they were counted; 0 where that cannot be
            told), "uncleared_optimizer" (whose steps these are, from 1, where there are several), "alike_rows" (of the
            batch, if all are the same one, else 0), "input_rms" (root mean square of the floating-point numbers that
            the model was given in this process), where they are known, and what the user logged.
        losses: step and loss of every step since the sample before this one, as far as it was heard.
        rank: the process that measured it.
        tanh: numbers of the blocks whose output is that of a tanh, as autograd shows.
        taken: what lies inside of layers: how streams are mixed, and gates.
    """

    step: int
    time: float
    values: Mapping[str, Tensor]
    scalars: Mapping[str, float] = field(default_factory=dict)
    losses: tuple[tuple[int, float], ...] = ()
    rank: int = 0
    tanh: frozenset[int] = frozenset()
    taken: Taken | None = None


@final
@dataclass(frozen=True, slots=True)
class Continue:
    """The record of a training that goes on from a checkpoint: `levada.watch(..., run=Continue("runs/mine", 40_000))`.

    Steps that the record holds already, because they were trained after the checkpoint was written, are superseded:
    readers see the later ones.

    Attributes:
        folder: the run; it is begun if there is none yet. None keeps no record.
        step: number of the first optimizer step that follows.
        anew: whether the record must be a new one, whose steps before this one were not watched.
    """

    folder: str | Path | None
    step: int
    anew: bool = False

    def __post_init__(self) -> None:
        require_at_least("Continue", "step", self.step, 0)
        require_switch("Continue", "anew", self.anew)
        if self.step >= 2**62:  # a record holds steps as integers of 64 bits
            raise UsageError(f"Continue: step must be less than 2^62, got {self.step}. Give that of the checkpoint.")


class Listener(Protocol):
    """Who hears of a watched run: the rules, the record, the live view, an exporter.

    One that has a method `found_between_samples(step)` too is called at once where something is found, or is over, and
    no sample tells of it, as in a training that stands still. Of a step that is not finite and is left before its
    update, one that has a method `step_left(step, loss)` hears by that, and not by `before_update`. Of numbers that
    were logged and that no sample brought, one that has a method `logged(step, scalars)` hears before `close`; of each
    as it is logged, with the step under way, one that has a method `noted(step, scalars)`.
    """

    def before_update(self, step: int, loss: Tensor | None) -> None:
        """Hear, before every update that is heard, of the loss that the backward pass began at, on its device.

        Of the updates in a pause of the watch, on short steps, nothing is heard.
        """

    def sampled(self, sample: Sample) -> None:
        """Hear of a sampled step, when its numbers are on the host."""

    def close(self) -> None:
        """Hear that the run is over; again is harmless."""
