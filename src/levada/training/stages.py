"""The stages of a pipeline that one process holds, under the names that the whole network has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

from torch import Tensor, nn

from levada._errors import UsageError
from levada.connection import Connection
from levada.networks import Network
from levada.stack import Stack, run_layers
from levada.stacking import require_by_layer
from levada.training.boundary import Crossing, state_from, tensors_of

__all__ = ["Entry", "Stages"]


@final
class Stages(nn.Module):
    """Some stages of a network: what a process of a pipeline trains, saves and watches.

    Parameters have the names that they have in the network, `stack.layers.17.branch.weight`, so that a checkpoint of
    all processes is one of the network.

    Args:
        network: stem, stack and head.
        layers: which layers each stage has, of all stages.
        places: the stages that this process holds.
        segments: number of segments of which a stage keeps the first state; None takes as many layers to a segment as
            the stack does.
    """

    def __init__(self, network: Network, layers: Sequence[range], places: Sequence[int], segments: Any) -> None:
        super().__init__()
        require_by_layer(network, "Pipeline")
        longest = max(map(len, layers))
        if not isinstance(segments, bool) and segments is not None and segments > longest:
            raise UsageError(
                f"Pipeline: checkpoint must be at most the layers of a stage, {longest}, got {segments}. Use a smaller "
                "number, or True."
            )
        stack = network.stack
        self.ranges = {place: layers[place] for place in places}
        self.last = len(layers) - 1
        self.segments = {place: _segments(stack, layers[place], segments) for place in places}
        self.crossings: dict[int, Crossing] = {}  # what leaves a stage, once it is known
        if 0 in places:
            self.stem = network.stem
        self.stack = nn.Module()
        own = {str(layer): stack[layer] for place in places for layer in layers[place]}
        self.stack.layers = nn.ModuleDict(own)
        if self.last in places:
            self.stack.output = stack.output
            self.head = network.head

    def connection(self, place: int, layer: int) -> Connection:
        """Return the connection of a stage's first or last layer."""
        return self._layers(place)[layer].connection  # type: ignore[return-value]

    def forward(self, place: int, *given: Tensor) -> Any:
        """Run a stage: from a batch, or what crossed from the stage before, to what crosses, or the output."""
        return self.run(place, given, self.crossings.get(place - 1))[0]

    def run(self, place: int, given: Sequence[Tensor], came: Crossing | None) -> tuple[Any, Crossing | None]:
        """Run a stage, and say what crosses to the next.

        Args:
            place: the stage.
            given: a batch, or the tensors that crossed.
            came: what they are.
        """
        layers = self._layers(place)
        if place == 0:
            state = layers[0].connection.begin(self.stem(*given))  # type: ignore[operator, union-attr]
        else:
            assert came is not None
            state = state_from(given, came)
        state, extras = run_layers(layers, state, self.segments[place])
        if extras:
            raise UsageError(
                "Pipeline: branches must return a tensor alone, for nothing beside the state crosses from stage to "
                "stage. Wrap the branches that return a tuple."
            )
        last = self.connection(place, -1)
        if place == self.last:
            return self.head(self.stack.output(last.end(state))), None  # type: ignore[operator]
        return tensors_of(state, type(last).__name__, self.crossings.get(place))

    def _layers(self, place: int) -> list[nn.Module]:
        held: Any = self.stack.layers
        return [held[str(layer)] for layer in self.ranges[place]]

    def extra_repr(self) -> str:
        """Say which layers each stage has."""
        return ", ".join(f"stage {place}: layers {r.start} to {r.stop - 1}" for place, r in self.ranges.items())


@final
class Entry(nn.Module):
    """One stage, as `torch.distributed.pipelining` calls it.

    Args:
        stages: all of the process.
        place: which one.
    """

    def __init__(self, stages: Stages, place: int) -> None:
        super().__init__()
        self.stages = stages
        self.place = place

    def forward(self, *given: Tensor) -> Any:
        """Run the stage."""
        return self.stages(self.place, *given)


def _segments(stack: Stack, layers: range, segments: Any) -> int:
    """Return into how many segments a stage is cut."""
    if segments is True:
        return round(math.sqrt(len(layers)))
    wanted: float = stack.segments * len(layers) / stack.depth if segments is None else segments
    return min(len(layers), max(round(wanted), 1)) if wanted else 0
