"""What the functional tests of one check start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from levada.diagnose.cut import Graph
from levada.diagnose.loss import Loss
from levada.diagnose.objective import Objective
from levada.diagnose.passes import Run, random_projection
from levada.diagnose.update import Factory, Update
from levada.inputs import Batch
from levada.probe import Execution
from levada.probe.noise import Noise

__all__ = ["Material"]


@dataclass(slots=True)
class Material:
    """What was measured before.

    Attributes:
        run: the model on its batches.
        execution: the blocks.
        graph: the recorded pass.
        loss: the loss; None without targets.
        factory: builds the optimizer.
        objective: how the loss answers to outputs.
        gradients: of the first batch, by parameter.
        value: loss of the first batch.
        update: the optimizer's first step; None if none was made.
        first: site -> gradient of the recorded pass at the first boundary that has one.
        noise: how the gradients of the parameters differ between batches.
        unmade: test -> why it was not made.
    """

    run: Run
    execution: Execution
    graph: Graph
    loss: Loss | None
    factory: Factory
    objective: Objective | None = None
    gradients: Mapping[str, Tensor | None] = field(default_factory=dict)
    value: float | None = None
    update: Update | None = None
    first: Mapping[str, Tensor] = field(default_factory=dict)
    noise: Noise = field(default_factory=Noise)
    unmade: dict[str, str] = field(default_factory=dict)

    def loss_of(self, outputs: Any, batch: Batch | None = None) -> Tensor:
        """Return the loss of outputs, or a random projection where there is none."""
        if self.loss is None:
            return random_projection(outputs, self.run.seed)
        return self.loss(outputs, self.run.batches[0] if batch is None else batch)
