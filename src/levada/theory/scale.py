r"""What a process needs where a network is spread over many, and what runs out first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from levada._errors import UsageError, require_at_least
from levada.theory.cost import (
    NetworkSize,
    boundary_bytes,
    gather_bytes,
    operations,
    parameters,
    probe_bytes,
    reduce_bytes,
    run_values,
    saved_bytes,
    training_state_bytes,
)

__all__ = ["Machine", "Plan", "extrapolated"]

_KINDS: Final = ("ddp", "fsdp", "pipeline")


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
        """Return the layers of a stage.

        Args:
            place: which of the pipeline's.
        """
        depth, stages = self.size.depth, self.processes
        return range(place * depth // stages, (place + 1) * depth // stages)

    @property
    def part(self) -> int:
        """Number of sequences that a process computes at once."""
        return self.sequences // (self.micro_batches if self.kind == "pipeline" else self.processes)

    @property
    def memory(self) -> dict[str, float]:
        """Bytes in the process that needs most: the first, the middle or the last stage of a pipeline (1F1B).

        "state" is parameters, gradients and AdamW's moments in float32; "gathered" two layers' parameters; "saved"
        what is kept for the backward pass; "arriving" the memory that `torch.distributed.pipelining` sets apart for
        what arrives, activations and gradients of every micro-batch. Workspaces are not counted.
        """
        if self.kind == "pipeline":
            places = sorted({0, self.processes // 2, self.processes - 1})
            return max((self._stage_memory(place) for place in places), key=lambda parts: sum(parts.values()))
        count, shares = parameters(self.size), self.processes if self.kind == "fsdp" else 1
        segments = round(math.sqrt(self.size.depth)) if self.checkpoint else 0
        saved = saved_bytes(self.size, self.part, segments=segments, element=self.element)
        if segments:
            longest = range(self.size.depth - -(-self.size.depth // segments), self.size.depth)
            saved += saved_bytes(self.size, self.part, element=self.element, layers=longest)
        gathered = 4.0 * parameters(self.size, range(2)) if shares > 1 else 0.0
        return {"state": training_state_bytes(count, shares), "gathered": gathered, "saved": saved, "arriving": 0.0}

    def _stage_memory(self, place: int) -> dict[str, float]:
        layers, size = self.stage(place), self.size
        count = parameters(size, layers)
        if place in (0, self.processes - 1):
            count += size.vocabulary * size.dim
        waiting = min(self.micro_batches, self.processes - place)
        segments = round(math.sqrt(len(layers))) if self.checkpoint else 0
        saved = waiting * saved_bytes(size, self.part, segments=segments, element=self.element, layers=layers)
        if segments:
            longest = range(layers.stop - -(-len(layers) // segments), layers.stop)
            saved += saved_bytes(size, self.part, element=self.element, layers=longest)
        before = boundary_bytes(size, layers.start, self.part, element=self.element) if place else 0
        after = boundary_bytes(size, layers.stop, self.part, element=self.element)
        after = after if place < self.processes - 1 else 0
        arriving = self.micro_batches * (before + after)
        return {"state": training_state_bytes(count), "gathered": 0.0, "saved": saved, "arriving": arriving}

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
        "layers | width | connection | processes | batch, micro-batches | parameters | memory, GB (state, saved, "
        "arriving) | sent, GB a step | waits | probe, KB a sample | run, GB | first limit"
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
            f"{sum(memory.values()) / 1e9:.3g} ({memory['state'] / 1e9:.3g}, {memory['saved'] / 1e9:.3g}, "
            f"{memory['arriving'] / 1e9:.3g})",
            f"{plan.sent / 1e9:.3g}",
            f"{plan.idle:.0%}",
            f"{probe_bytes(plan.sites) / 1e3:.3g}",
            f"{2 * run_values(steps // every, plan.sites) / 1e9:.2g}",
            f"{first}, {limits[first]:.2g} x",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
