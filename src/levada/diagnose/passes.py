"""Passes through the model: forward from a known random state, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError
from levada._seeding import reseed
from levada.diagnose.loss import floating_outputs
from levada.diagnose.pace import Pace
from levada.diagnose.preserve import given_copies_if_edited
from levada.inputs import Batch, misfit, raised
from levada.probe.recomputation import activations_kept

__all__ = ["LEAST", "Run", "gradients_of", "random_projection"]

# Forward and backward passes of the smallest measurement, after the first pass of all: one recorded, one for the loss,
# one for a cotangent, and one before and after the optimizer's first step.
LEAST = 5.0, 2.0


@final
@dataclass(slots=True)
class Run:
    """A model on batches: every forward pass goes through here.

    Attributes:
        model: the model.
        batches: at least one.
        seed: of the first draw.
        pace: times the passes; says what still ends within the budget.
        ran: whether every batch went through once.
        notes: what is to be told.
    """

    model: nn.Module
    batches: Sequence[Batch]
    seed: int
    pace: Pace
    ran: bool = False
    notes: list[str] = field(default_factory=list)

    def __call__(self, index: int = 0, draw: int = 0, batch: Batch | None = None) -> Any:
        """Run the model on one batch, or on another in its place, from the random state of that draw.

        Args:
            index: which batch.
            draw: counts the random state on.
            batch: what to run on instead.

        Raises:
            MeasurementError: if the model ran before and now does not.
        """
        batch = self.batches[index] if batch is None else batch
        reseed(self.seed + draw)
        try:
            with activations_kept(self.model), self.pace.pass_forward():
                return self.model(*batch.args, **batch.kwargs)
        except Exception as error:
            if not self.ran or isinstance(error, MeasurementError | UsageError):
                raise
            raise MeasurementError(
                f"check: the model ran on every batch, and in a later pass it raised {raised(error)} Give a batch that "
                "is small enough, and a model that runs again and again."
            ) from error

    def require(self) -> None:
        """Run every batch once with nothing attached, so that what fails is the user's and is said so.

        Batches for which there is no time are left out of all that follows.
        """
        for index, batch in enumerate(self.batches):
            if index and not self.pace.allows("", 2, 1, reserve=LEAST):
                self.batches = self.batches[:index]
                break
            try:
                with given_copies_if_edited(self.model, batch) as edited:
                    self(index)
            except Exception as error:
                what = (
                    f"the inputs inferred for it ({batch.inferred})" if batch.inferred else f"inputs {batch.describe()}"
                )
                hint = " Two inputs and no targets are written ((a, b), None)." if len(batch.args) == 1 else ""
                # A module of levada says what it wants itself.
                advice = f" {misfit(self.model, batch, error)}"
                advice += hint if "shape" in advice else ""
                raise UsageError(
                    f"check: the model must run on the batch; on {what} {type(self.model).__name__} raised "
                    f"{raised(error)}{'' if isinstance(error, UsageError) else advice}"
                ) from error
            if edited:
                self.notes.append("The forward pass edits its inputs in place: it was given copies of the batch.")
        self.ran = True


def random_projection(outputs: Any, seed: int) -> Tensor:
    """Return the sum of all floating outputs, each element times a random number.

    Args:
        outputs: what the model returned.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(())
    for output in floating_outputs(outputs):
        cotangent = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
        total = total.to(output.device) + (output * cotangent).sum()
    return total


def gradients_of(model: nn.Module, target: Tensor) -> dict[str, Tensor | None]:
    """Return the gradient of every parameter that asks for one; None where none arrives.

    Args:
        model: the model.
        target: what is derived.

    Raises:
        MeasurementError: if the backward pass fails.
    """
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not wanted or not target.requires_grad:
        return dict.fromkeys(wanted)
    try:
        found = torch.autograd.grad(target, list(wanted.values()), allow_unused=True)
    except Exception as error:  # a custom autograd function raises what it likes
        if "heckpoint" not in str(error):
            raise MeasurementError(f"check: the backward pass must run, and it raised {raised(error)}") from error
        raise MeasurementError(
            "check: the model checkpoints activations in the reentrant way, which gives gradients to .backward() "
            "alone. Pass use_reentrant=False to torch.utils.checkpoint."
        ) from error
    return dict(zip(wanted, found, strict=True))
