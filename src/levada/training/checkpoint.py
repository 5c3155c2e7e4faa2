"""Checkpoints that a kill at any moment leaves usable, for any number of processes, by torch.distributed.checkpoint."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, final

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save
from torch.optim import Optimizer

from levada._errors import MeasurementError
from levada.runs.checkpoints import MARKER, NAME, Stored, aside, checksums, put_aside, stored, verify
from levada.runs.manifest import write_atomically
from levada.training.config import Checkpoint
from levada.training.processes import Processes

__all__ = ["Checkpoints", "complete", "load_weights"]

# It is meant, and need not be said.
_ALONE: Final = "torch.distributed is disabled, unavailable or uninitialized"
# Names of parameters instead of their numbers, so that other processes may hold other ones.
_OPTIONS: Final = StateDictOptions(flatten_optimizer_state_dict=True)


def complete(folder: Path) -> list[tuple[int, Path]]:
    """Return the complete checkpoints of a folder, the newest first: step and path.

    A checkpoint is complete if its marker, which is written last, is there and every file has the size that it says.

    Args:
        folder: where they are.
    """
    return [(one.step, one.path) for one in stored(folder) if not one.damage]


def load_weights(path: Path, model: nn.Module) -> None:
    """Put the weights of a checkpoint into a whole network, in one process.

    Args:
        path: a complete checkpoint, of any number of processes.
        model: the network.

    Raises:
        MeasurementError: if the checkpoint cannot be read, or is not of this network.
    """
    if damage := verify(path):
        raise MeasurementError(f"{path} is damaged: {damage}. Take another checkpoint.")
    weights = model.state_dict()
    warnings.filterwarnings("ignore", _ALONE, UserWarning)
    try:
        load({"model": weights}, checkpoint_id=path, no_dist=True)
    except (Exception, CheckpointException) as error:
        raise MeasurementError(f"{path} cannot be loaded: {_told(error)}") from error
    model.load_state_dict(weights)


@final
class Checkpoints:
    """Saves and loads model and optimizer; steps, random numbers and the data's position follow from the step.

    The files are written by every process, beside the training where `asynchronous`; when all are on the disk, the
    first process writes the marker, and removes what is older than the `keep` newest. What is being written when a
    process dies has no marker, is not loaded, and is removed when the run is continued.

    Args:
        folder: where they are.
        checkpoint: when to save, and how.
        processes: those that save together.
        say: told when something goes otherwise than asked.
    """

    def __init__(
        self, folder: Path, checkpoint: Checkpoint, processes: Processes, say: Callable[[str], None] = print
    ) -> None:
        self.saved: int | None = None
        self._folder, self._settings, self.processes, self._say = folder, checkpoint, processes, say
        self._asynchronous = checkpoint.asynchronous
        self._writing: tuple[int, Future[Any]] | None = None
        self._failure: BaseException | None = None
        if self._asynchronous and processes.size > 1 and not dist.is_gloo_available():
            self._asynchronous = False
            say("checkpoints are written while training waits: writing beside it needs PyTorch with gloo.")

    def resumable(self) -> tuple[int, Path] | None:
        """Return step and path of the newest checkpoint that is as it was written; None where none was ever completed.

        What was never completed is removed. What is damaged is said, and set aside where an older one can be used.

        Raises:
            MeasurementError: if all that were completed are damaged; they stay as they are.
        """
        damaged: list[Stored] = []
        found = None
        whole = stored(self._folder)
        for one in whole:
            # Every byte of those that might be loaded; of older ones the sizes.
            damage = one.damage or ("" if found is not None else verify(one.path))
            if damage:
                damaged.append(Stored(one.step, one.path, damage))
            elif found is None:
                found = one
        before = aside(self._folder) if found is None else []
        if found is None and (damaged or before):
            told = ", ".join([one.told for one in damaged] or [path.name for path in before])
            raise MeasurementError(
                f"train: a checkpoint must be as it was written to continue from it, and none in {self._folder} is: "
                f"{told}. Put one back from a copy; or move that folder away, and the training begins again at step 0."
            )
        for one in damaged:
            kept = put_aside(one.path).name
            self._say(f"the checkpoint of step {one.step} is damaged, and is kept as {kept}: {one.damage}")
        self._clean({one.path for one in whole})
        return None if found is None else (found.step, found.path)

    def _clean(self, declared: set[Path]) -> None:
        """Remove what was never completed."""
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if NAME.fullmatch(path.name) and path not in declared:
                shutil.rmtree(path)

    def load(self, path: Path, model: nn.Module, optimizer: Optimizer) -> None:
        """Put a checkpoint's values into a model and its optimizer.

        Args:
            path: a complete checkpoint, of any number of processes.
            model: what this process holds of the network.
            optimizer: its optimizer; what its groups say stays as it is.

        Raises:
            MeasurementError: if the checkpoint cannot be read, or is not of this model.
        """
        weights, whole = get_state_dict(model, optimizer, options=_OPTIONS)
        try:
            # A parameter that had no gradient yet has no moments in the file, and must have none afterwards.
            moved = self.processes.agree(lambda: _moved(path))
            state = {name: value for name, value in _moments(whole).items() if _owner(name) in moved}
            load({"model": weights, "optimizer": state}, checkpoint_id=path, **self._surroundings())
        except (Exception, CheckpointException) as error:
            raise MeasurementError(f"{path} cannot be loaded: {_told(error)}") from error
        set_state_dict(
            model, optimizer, model_state_dict=weights, optim_state_dict={**whole, **state}, options=_OPTIONS
        )
        unmoved = {_owner(name) for name in _moments(whole)} - moved
        for name, parameter in model.named_parameters():
            if f"state.{name.removeprefix('module.')}" in unmoved:  # DDP's prefix is not in a checkpoint
                optimizer.state.pop(parameter, None)

    def save(self, step: int, model: nn.Module, optimizer: Optimizer) -> None:
        """Save the state after `step` steps; what is being written yet is waited for.

        Args:
            step: number of steps done.
            model: what this process holds of the network.
            optimizer: its optimizer.
        """
        self.finish()
        weights, whole = get_state_dict(model, optimizer, options=_OPTIONS)
        state = {"model": weights, "optimizer": _moments(whole)}
        path = self._folder / f"step-{step:08d}"
        self.saved = step
        if self._asynchronous:
            future: Any = async_save(state, checkpoint_id=path, **self._surroundings())
        else:
            future = Future()
            try:
                future.set_result(save(state, checkpoint_id=path, **self._surroundings()))
            except (Exception, CheckpointException) as error:
                future.set_exception(error)
        self._writing = step, self._summed(future, path)
        self.poll()

    def poll(self) -> None:
        """Declare complete what has been written meanwhile."""
        if self._writing is None or not self._writing[1].done():
            return
        (step, future), self._writing = self._writing, None
        self._failure = future.exception()
        if self._failure is not None:
            told = _told(self._failure)
            self._say(f"the checkpoint of step {step} was not written, those before it are as they were: {told}")
        elif self.processes.rank == 0:
            self._declare(step, self._folder / f"step-{step:08d}", future.result())

    def finish(self) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            self._writing[1].exception()
            self.poll()

    def holds(self, step: int) -> bool:
        """Return whether the state after `step` steps is on the disk, as far as this process knows.

        Args:
            step: number of steps done.
        """
        return self.saved == step and self._failure is None

    def require_saved(self) -> None:
        """Raise if the last checkpoint could not be written.

        Raises:
            MeasurementError: if so.
        """
        if self._failure is not None:
            raise MeasurementError(f"train: the last checkpoint could not be written: {_told(self._failure)}")

    def _summed(self, written: Future[Any], path: Path) -> Future[dict[str, int]]:
        """Give what is done once all is written and, by the first process, read again: in the thread that wrote it."""
        summed: Future[dict[str, int]] = Future()

        def read(done: Future[Any]) -> None:
            try:
                done.result()
                summed.set_result(checksums(path) if self.processes.rank == 0 else {})
            except BaseException as error:  # whoever asks is told
                summed.set_exception(error)

        written.add_done_callback(read)
        return summed

    def _declare(self, step: int, path: Path, sums: dict[str, int]) -> None:
        sizes = {name: (path / name).stat().st_size for name in sums}
        marker = {"step": step, "processes": self.processes.size, "files": sizes, "crc32": sums}
        write_atomically(path / MARKER, json.dumps(marker, indent=1).encode())
        for _, old in complete(self._folder)[self._settings.keep :]:
            (old / MARKER).unlink()  # first: half a checkpoint must not look like one
            shutil.rmtree(old)

    def _surroundings(self) -> dict[str, Any]:
        if self.processes.saving is not None:
            return {"process_group": self.processes.saving}
        warnings.filterwarnings("ignore", _ALONE, UserWarning)
        return {"no_dist": True}


def _told(error: BaseException) -> str:
    """Say what went wrong first, in whichever process, without its traceback."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (error, _) = next(iter(error.failures.items()))
        return f"process {rank}: {_told(error)}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _moved(path: Path) -> set[str]:
    """Return the parameters of which a checkpoint holds moments."""
    keys = FileSystemReader(path).read_metadata().state_dict_metadata
    return {_owner(key.removeprefix("optimizer.")) for key in keys if key.startswith("optimizer.")}


def _owner(name: str) -> str:
    """Return a parameter's name of a moment's: `state.head.weight` of `state.head.weight.exp_avg`."""
    return name.rpartition(".")[0]


def _moments(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the configuration says of the parameters: learning rates, decay, and the like."""
    return {name: value for name, value in state.items() if name.startswith("state.")}
