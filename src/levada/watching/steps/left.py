"""A step that a loop leaves before its update: whether its loss, its gradients or its outputs are not finite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from levada.watching.loop.losses import Losses
from levada.watching.measure.broken import broken_gradients, broken_parameters
from levada.watching.measure.reading import plain
from levada.watching.steps.passes import Passes

__all__ = ["step_left"]


def step_left(
    losses: Losses,
    passes: Passes,
    model: nn.Module,
    loss: Tensor | None,
    unfit: Callable[[], bool],
    *,
    asked: bool,
    paused: bool = False,
) -> tuple[bool, Tensor | None]:
    """Return whether a step that is left before its update is not finite, and its loss, on the host.

    One that has no backward pass yet is known by the output of its forward pass, while the loop holds it, of which NaN
    alone counts, as masks make Inf; or by the targets that were noted. What a loop leaves out in its course is none, if
    it went on before from a step whose loss was not finite.

    Args:
        losses: of the training.
        passes: of the model.
        model: what is watched.
        loss: of the step, if it was not seen.
        unfit: says whether the targets that were noted are not finite.
        asked: whether it was said that the step is left.
        paused: whether the watch heard nothing of this step: the gradients that are left are all that is known of it.
    """
    try:
        seen = losses.left()
        loss = loss if seen is None else seen
        if losses.guarded() and not asked:
            return False, None
        if loss is None and paused:
            # With weights that are not finite they were those of an update.
            unused = losses.scale() is None and not broken_parameters(model)
            return unused and bool(broken_gradients(model)), None
        if loss is None:
            if not passes.waits:  # it left out one before
                passes.look()
            output = passes.waiting()
            bad = output is not None and bool(torch.isnan(plain(output.detach())).any())
            return bad or (passes.waits and unfit()), None
        scaled = losses.scale() is not None
        return not bool(loss.isfinite()) or (not scaled and bool(broken_gradients(model))), loss.cpu()
    except RuntimeError:  # a device that failed has nothing to tell
        return False, None
