"""How a training stops by itself: the step is judged, the weights of before are kept, and it is said what to do."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, final

import torch

from levada._errors import MeasurementError
from levada._names import CALLED
from levada._numbers import written
from levada.runs import Run
from levada.runs.findings import gravity
from levada.runs.processes import Together
from levada.training.checkpoint import Checkpoints
from levada.training.config import Config
from levada.training.engine import Engine, WholeNetwork
from levada.training.processes import Processes, SaidMeasurementError
from levada.training.record import CONFIG, Progress, Record
from levada.watching.measure.broken import broken_parameters
from levada.watching.verdict.stages import over_depth
from levada.watching.watch import Watch

__all__ = ["NotFiniteError", "say_found", "stop"]

_ANEW: Final = "Begin anew in another run.folder, with a smaller optimizer.lr or a longer schedule.warmup"


@final
@dataclass(slots=True)
class NotFiniteError(Exception):
    """A step whose update must not be made.

    Attributes:
        step: its number.
        loss: its loss.
        norm: the norm of its gradient.
        again: makes the gradient once more.
    """

    step: int
    loss: float
    norm: float
    again: Callable[[], object]


def say_found(watching: Watch, progress: Progress, processes: Processes | None = None) -> None:
    """Say what holds of what was found, how much is over, and the verdict: of a pipeline's stages, all of theirs.

    Args:
        watching: what looked on.
        progress: where it is said.
        processes: those that trained together, once their records are complete; without them this process speaks of
            what it saw.
    """
    standing, found = watching.standing, sorted(map(asdict, watching.findings), key=gravity)
    # Whoever asks waits until all records are complete.
    staged = processes is not None and processes.any(bool(standing.stages))
    if staged and processes.rank == 0 and watching.run is not None:  # type: ignore[union-attr]
        run = Run(watching.run)
        together = Together(run, list(run.events()), over_depth=over_depth)
        standing, found = together.standing(watching.steps), together.findings
    for one in found:
        if one["status"] == "fired":
            progress.say(f"{CALLED.get(one['severity'], one['severity'])}: {one['claim']}")
    over = sum(one["status"] == "clear" for one in found)
    rest = f"; findings that are over: {over:,}" if over else ""
    progress.say(f"watched: {standing.called}, {standing.basis}{rest}; {watching.cost}")


def stop(
    bad: NotFiniteError,
    config: Config,
    engine: Engine,
    optimizer: torch.optim.Optimizer,
    checkpoints: Checkpoints,
    record: Record,
    progress: Progress,
    watching: Watch | None,
) -> MeasurementError:
    """Keep the weights as they were before the update that would spoil them; return what is to be raised.

    Args:
        bad: the step.
        config: of the training.
        engine: holds the network.
        optimizer: of the training.
        checkpoints: of the training.
        record: of the training.
        progress: where it is said what was found.
        watching: what looks on; None if nothing does.
    """
    kept = _keep(bad.step, engine, optimizer, checkpoints)
    bundle: Path | None = None
    if watching is not None:
        if checkpoints.holds(bad.step):
            watching.note(checkpoint=Path(config.run.folder) / "checkpoints" / f"step-{bad.step:08d}")
        watching.leave(bad.again, torch.tensor(bad.loss))  # behind the checkpoint, as it may spoil running statistics
        say_found(watching, progress)
        folders = watching.judge.keeper.folders if watching.judge is not None and watching.judge.keeper else []
        if isinstance(engine, WholeNetwork):  # what one stage is given is none of the network
            bundle = next((folder for folder in reversed(folders) if f"{bad.step:06d}" in folder.name), None)
    value = f"loss is {written(bad.loss)}"
    if math.isfinite(bad.loss):
        value = f"gradient's norm is {written(bad.norm)}, the loss {written(bad.loss)}"
    words = shlex.join(["levada", "replay", str(bundle), "--model", str(Path(config.run.folder) / CONFIG)])
    again = f"`{words}` runs the step again"
    told = (
        f"train: the {value} at step {bad.step}; the run is kept{kept}. Continued with --resume it takes the same step "
        f"and comes to the same. {_ANEW}; "
        f"{again if bundle is not None else '`levada check` says what is wrong with a model'}."
    )
    record.event("stopped", step=bad.step, told=told)
    return SaidMeasurementError(told) if checkpoints.processes.rank else MeasurementError(told)


def _keep(step: int, engine: Engine, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints) -> str:
    """Save a checkpoint from before the step, and say whether there is one."""
    checkpoints.finish()
    engine.settle()
    # Running statistics have seen this step already, in one stage or in all: they must not have been spoilt.
    spoilt = checkpoints.processes.any(not all(bool(b.isfinite().all()) for b in engine.module.buffers()))
    broken = broken_parameters(engine.module)
    if checkpoints.processes.any(bool(broken)):  # since the update before, or as they were loaded
        first = "".join(f": {name} holds {kind}" for name, kind in list(broken.items())[:1])
        return f", and its weights are not finite before the step already{first}"
    if step and checkpoints.saved != step and not spoilt:
        checkpoints.save(step, engine.module, optimizer)
        checkpoints.finish()
    if checkpoints.holds(step):
        return ", with the weights of before in its newest checkpoint"
    if not step:
        return "; its weights are those that it began with"
    return ", and the weights of before could not be: " + (
        "running statistics are not finite either" if spoilt else "see what was said of their checkpoint"
    )
