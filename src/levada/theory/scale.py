r"""What a process needs where a network is spread over many, and what runs out first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Final, final

from levada._errors import UsageError, require_at_least
from levada.theory.cost import (
    NetworkSize,
    boundary_bytes,
    gather_bytes,
    loss_bytes,
    operations,
    parameters,
    probe_bytes,
    reduce_bytes,
    run_values,
    saved_bytes,
    stage_bytes,
    stage_parameters,
    training_state_bytes,
)

__all__ = ["Machine", "Plan", "extrapolated", "split_layers"]

_KINDS: Final = ("ddp", "fsdp", "pipeline")


def split_layers(depth: int, stages: int, split: Sequence[int] = ()) -> list[range]:
    """Return which layers each stage of a pipeline has.

    Args:
        depth: number of layers.
        stages: number of stages.
        split: number of layers of each; equally many if left out, the first ones having one more.

    Raises:
        UsageError: if there are fewer layers than stages, or `split` does not fit.

    Example:
        >>> split_layers(5, 2)
        [range(0, 3), range(3, 5)]
    """
    counts = list(split) or [depth // stages + (place < depth % stages) for place in range(stages)]
    if len(counts) != stages or sum(counts) != depth or min(counts) < 1:
        raise UsageError(
            f"Pipeline: {stages} stages must share {depth} layers, at least one each, got {counts}. Change stages or "
            "split."
        )
    return [range(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]


@final
@dataclass(frozen=True)
class Machine:
    """What a process has: assumptions, to be replaced by what is measured on the machines in question.

    Args:
        memory: bytes.
        operations: operations per second that a training step attains.
        link: bytes per second that a process sends and receives.
    """

    memory: float = 80e9
    operations: float = 400e12
    link: float = 50e9


@final
@dataclass(frozen=True)
class Plan:
    """A network spread over processes.

    Args:
        size: the network.
        kind: `"ddp"`, `"fsdp"` or `"pipeline"`, as in `levada.training.Parallel`.
        processes: number of processes; of a pipeline, of stages.
        sequences: number of sequences in the batch of all processes.
        micro_batches: into how many parts a pipeline cuts it.
        checkpoint: keep the states of round(sqrt(layers)) segments alone.
        element: bytes of an element of activations and messages.

    Raises:
        UsageError: if a number does not fit.

    Example:
        >>> size = NetworkSize(96, 1024, 50_000, 1024, connection="ManifoldHyperConnection")
        >>> plan = Plan(size, "pipeline", processes=8, sequences=64, micro_batches=32)
        >>> round(plan.idle, 3), round(plan.sent / 1e9, 2)
        (0.179, 2.15)
    """

    size: NetworkSize
    kind: str
    processes: int
    sequences: int
    micro_batches: int = 1
    checkpoint: bool = False
    element: int = 4

    def __post_init__(self) -> None:
        """Refuse what cannot be shared out."""
        if self.kind not in _KINDS:
            raise UsageError(f"Plan: kind must be one of {', '.join(_KINDS)}, got {self.kind!r}.")
        require_at_least("Plan", "processes", self.processes, 1)
        require_at_least("Plan", "micro_batches", self.micro_batches, 1)
        parts = self.micro_batches if self.kind == "pipeline" else self.processes
        if self.sequences % parts or self.sequences < 1:
            raise UsageError(f"Plan: {parts} parts must share sequences evenly, got {self.sequences}.")
        if self.kind == "pipeline" and self.processes > self.size.depth:
            raise UsageError(
                f"Plan: each stage needs a layer, got {self.processes} stages and depth {self.size.depth}."
            )

    def stage(self, place: int) -> range:
        """Return the layers of a stage, as `levada.training.Pipeline` shares them out.

        Args:
            place: which of the pipeline's.
        """
        return self._stages[place]

    @cached_property
    def _stages(self) -> list[range]:
        return split_layers(self.size.depth, self.processes)

    @property
    def part(self) -> int:
        """Number of sequences that a process computes at once."""
        return self.sequences // (self.micro_batches if self.kind == "pipeline" else self.processes)

    @property
    def memory(self) -> dict[str, float]:
        """Bytes in the process that needs most, of all of them; of a pipeline's stages as 1F1B runs them.

        "state" is parameters, gradients and AdamW's moments in float32; "gathered" the parameters that are whole at
        once, all in `element`; "saved" what is kept for the backward pass, with what a cross-entropy keeps; "arriving"
        the memory that `torch.distributed.pipelining` sets apart for what arrives, activations and gradients of every
        micro-batch. Workspaces are not counted.
        """
        if self.kind == "pipeline":
            places = range(self.processes)
            return max((self.stage_memory(place) for place in places), key=lambda parts: sum(parts.values()))
        size, part, element = self.size, self.part, self.element
        shares = self.processes if self.kind == "fsdp" else 1
        segments, longest = self._segments(range(size.depth))
        again = saved_bytes(size, part, element=element, layers=longest)
        saved = saved_bytes(size, part, segments=segments, element=element)
        saved += max(loss_bytes(size, part, element=element), again)  # the loss's is gone when layers run again
        state = training_state_bytes(parameters(size), shares)
        return {"state": state, "gathered": self._gathered(longest), "saved": saved, "arriving": 0.0}

    def _segments(self, layers: range) -> tuple[int, range]:
        """Return the number of segments of some layers, and those that run again at once: the last segment's."""
        segments = round(math.sqrt(len(layers))) if self.checkpoint else 0
        return segments, range(layers.stop - -(-len(layers) // segments) if segments else layers.stop, layers.stop)

    def _gathered(self, longest: range) -> float:
        """Return the bytes of the parameters that are whole at once under FSDP.

        A segment that runs again stays gathered until its backward pass has ended; else there are a layer and the next
        on its way. Norm and head are one unit, with the last layer on its way.
        """
        if self.kind != "fsdp" or self.processes == 1:
            return 0.0
        depth = self.size.depth
        layers = longest if len(longest) > 1 else range(max(depth - 2, 0), depth)
        head = stage_parameters(self.size, range(depth - 1, depth))
        return float(self.element * max(parameters(self.size, layers), head))

    def stage_memory(self, place: int) -> dict[str, float]:
        """Return the bytes that a stage of a pipeline needs, by the names of `memory`.

        Args:
            place: which of the pipeline's.
        """
        layers, size, part, element = self.stage(place), self.size, self.part, self.element
        last = place == self.processes - 1
        waiting = min(self.micro_batches, self.processes - place)
        segments, longest = self._segments(layers)
        again = saved_bytes(size, part, element=element, layers=longest)
        saved = waiting * stage_bytes(size, layers, part, segments=segments, element=element)
        if last:  # the schedule holds the output until its backward pass has ended
            saved += part * size.tokens * size.vocabulary * element
            again = max(again, loss_bytes(size, part, element=element))
        before = boundary_bytes(size, layers.start, part, element=element) if place else 0
        after = 0 if last else boundary_bytes(size, layers.stop, part, element=element)
        state = training_state_bytes(stage_parameters(size, layers))
        arriving = self.micro_batches * (before + after)
        return {"state": state, "gathered": 0.0, "saved": saved + again, "arriving": arriving}

    @property
    def operations(self) -> float:
        """Operations of a step in each process, if they are shared out evenly."""
        return operations(self.size, self.sequences, recompute=self.checkpoint) / self.processes

    @property
    def sent(self) -> float:
        """Bytes that the busiest process sends in a step: over its boundaries, or for its shards or copies."""
        if self.kind == "pipeline":
            if self.processes == 1:
                return 0.0
            place = max(self.processes - 2, 0)  # where layers read all outputs, the later boundaries carry most
            before, after = (
                boundary_bytes(self.size, cut, self.part, element=self.element) * self.micro_batches
                for cut in (self.stage(place).start, self.stage(place).stop)
            )
            return float(after + (before if place else 0))
        count = parameters(self.size)
        if self.kind == "ddp":
            return reduce_bytes(count, self.processes, sharded=False)
        gathered = gather_bytes(count, self.processes, element=self.element)
        return gathered + reduce_bytes(count, self.processes, sharded=True)

    @property
    def idle(self) -> float:
        r"""Share of the time in which a stage waits, $(P - 1) / (M + P - 1)$, if all stages take equally long."""
        if self.kind != "pipeline":
            return 0.0
        return (self.processes - 1) / (self.micro_batches + self.processes - 1)

    @property
    def sites(self) -> int:
        """Number of layers that a process watches: its stage's, or all."""
        return len(self.stage(0)) if self.kind == "pipeline" else self.size.depth

    def limits(self, machine: Machine) -> dict[str, float]:
        """Return what a step needs as a multiple of what there is, or of the time that it computes; 1 is the limit.

        Args:
            machine: what each process has.

        Returns:
            "memory", of the machine's; "messages", the time that messages take alone, of the time that operations take;
            "waiting", the time that a stage waits, of the same.
        """
        computing = self.operations / machine.operations
        return {
            "memory": sum(self.memory.values()) / machine.memory,
            "messages": self.sent / machine.link / computing,
            "waiting": self.idle / (1 - self.idle),
        }


def extrapolated(
    plans: Sequence[Plan], machine: Machine | None = None, *, steps: int = 100_000, every: int = 20
) -> str:
    """Make a table of what each process needs and what runs out first.

    Args:
        plans: networks spread over processes.
        machine: what each process has.
        steps: of the run that is recorded.
        every: steps from one sample to the next.

    Returns:
        A table in Markdown. Nothing in it was measured: it is what the formulas say.

    Example:
        >>> size = NetworkSize(96, 1024, 50_000, 1024)
        >>> print(extrapolated([Plan(size, "fsdp", processes=8, sequences=64)]).splitlines()[0][:50])
        | layers | width | connection | processes | batch,
    """
    machine = machine or Machine()
    head = (
        "layers | width | connection | processes | batch, micro-batches | parameters | memory, GB (state, gathered, "
        "saved, arriving) | sent, GB a step | waits | probe, KB a sample | run, GB | first limit"
    )
    lines = [f"| {head} |", "|" + "---|" * len(head.split(" | "))]
    for plan in plans:
        size, memory, limits = plan.size, plan.memory, plan.limits(machine)
        first = max(limits, key=lambda name: limits[name])
        n = f", n = {size.streams}" if size.connection in ("HyperConnection", "ManifoldHyperConnection") else ""
        n = f", S = {size.block_size}" if size.connection == "AttentionResidual" else n
        cells = (
            f"{size.depth:,}",
            f"{size.dim:,}",
            size.connection + n,
            f"{plan.processes:,} {plan.kind}" + (", checkpointed" if plan.checkpoint else ""),
            f"{plan.sequences:,}" + (f", {plan.micro_batches:,}" if plan.kind == "pipeline" else ""),
            f"{parameters(size) / 1e9:.3g} G",
            f"{sum(memory.values()) / 1e9:.3g} ({', '.join(f'{part / 1e9:.3g}' for part in memory.values())})",
            f"{plan.sent / 1e9:.3g}",
            f"{plan.idle:.0%}",
            f"{probe_bytes(plan.sites) / 1e3:.3g}",
            f"{2 * run_values(steps // every, plan.sites) / 1e9:.2g}",
            f"{first}, {limits[first]:.2g} x",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
