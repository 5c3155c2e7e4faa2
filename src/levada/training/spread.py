"""What can be chosen of how a model is spread over processes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Literal, final

from levada._errors import UsageError, require_at_least

__all__ = ["KINDS", "SCHEDULES", "Parallel"]

KINDS: Final = ("none", "ddp", "fsdp", "pipeline")
SCHEDULES: Final = ("gpipe", "1f1b", "interleaved-1f1b")
# Which kind an option belongs to: one that would be ignored is refused.
_BELONGS: Final = {
    "stages": "pipeline",
    "split": "pipeline",
    "micro_batches": "pipeline",
    "schedule": "pipeline",
    "gather": "fsdp",
    "reshard": "fsdp",
}


@final
@dataclass(frozen=True)
class Parallel:
    """How training is spread over processes.

    Args:
        kind: `"none"`, one process; `"ddp"`, a copy of the model in each process and a share of the batch;
            `"fsdp"`, the same with parameters, gradients and optimizer state in shards, gathered layer by layer;
            `"pipeline"`, a run of layers in each process, through which micro-batches pass.
        stages: of a pipeline; 0 takes one for each process, and two for each where they are interleaved.
        split: number of layers of each stage, for those of a pipeline that are not to have equally many.
        micro_batches: into how many parts a pipeline cuts the batch.
        schedule: of a pipeline. `"gpipe"`, all micro-batches forward, then all backward; `"1f1b"`, one forward, one
            backward, so that a stage keeps the activations of at most `stages` micro-batches;
            `"interleaved-1f1b"`, several shorter stages a process, so that it waits less and sends more.
        checkpoint: as in `Stack`, for a stack that was built without; in a pipeline, segments of each stage.
        compile: compile one layer and use it for all, as in `Stack`.
        stacked: hold the parameters of alike layers as one tensor of each kind, as in `Stack`, once they are
            initialised; not in a pipeline. Under `"fsdp"` all layers of a stack are one unit, gathered together.
        gather: the type in which parameters are gathered and branches compute under `"fsdp"`. The connections' own
            stay float32 (`levada.shard_connections`), and gradients are reduced in float32.
        reshard: let go of a layer's gathered parameters after its forward pass, and gather them again in the backward
            pass, under `"fsdp"`.

    Raises:
        UsageError: if an option is unknown, or belongs to another kind.

    Example:
        >>> Parallel("pipeline", micro_batches=8).schedule
        '1f1b'
        >>> Parallel("ddp", micro_batches=8)
        Traceback (most recent call last):
        levada._errors.UsageError: Parallel: micro_batches belongs to kind='pipeline', and kind is 'ddp'. Leave it out.
    """

    kind: Literal["none", "ddp", "fsdp", "pipeline"] = "none"
    stages: int = 0
    split: tuple[int, ...] = ()
    micro_batches: int = 1
    schedule: Literal["gpipe", "1f1b", "interleaved-1f1b"] = "1f1b"
    checkpoint: int | bool = False
    compile: bool = False
    stacked: bool = False
    gather: Literal["float32", "bfloat16"] = "float32"
    reshard: bool = True

    def __post_init__(self) -> None:
        """Refuse what is unknown, and what would be ignored."""
        known = (("kind", KINDS), ("schedule", SCHEDULES), ("gather", ("float32", "bfloat16")))
        for name, values in known:
            if getattr(self, name) not in values:
                raise UsageError(f"Parallel: {name} must be one of {', '.join(values)}, got {getattr(self, name)!r}.")
        require_at_least("Parallel", "stages", self.stages, 0)
        require_at_least("Parallel", "micro_batches", self.micro_batches, 1)
        if not isinstance(self.checkpoint, bool):
            require_at_least("Parallel", "checkpoint", self.checkpoint, 0)
        object.__setattr__(self, "split", tuple(self.split))  # a configuration file has lists
        for layers in self.split:
            require_at_least("Parallel", "split, in each stage,", layers, 1)
        if self.stacked and (self.compile or self.kind == "pipeline"):
            came = "compile" if self.compile else f"kind={self.kind!r}, where each layer must hold its own parameters"
            raise UsageError(f"Parallel: stacked cannot be together with {came}. Leave one out.")
        for field in fields(self):
            kind = _BELONGS.get(field.name, self.kind)
            if kind != self.kind and getattr(self, field.name) != field.default:
                raise UsageError(
                    f"Parallel: {field.name} belongs to kind={kind!r}, and kind is {self.kind!r}. Leave it out."
                )
