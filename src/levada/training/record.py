"""What a training leaves behind: the configuration, the loss of every step, evaluations, checkpoints."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO, final

from levada._errors import MeasurementError, UsageError
from levada._termination import Terminated, before_end
from levada.runs import Run, RunWriter
from levada.runs.curves import curve
from levada.runs.manifest import write_atomically
from levada.runs.reader import runs_in
from levada.training.config import Config
from levada.training.files import content_hash, differences, read_tables, to_dict, to_toml

__all__ = ["CONFIG", "Progress", "Record", "begin", "evaluations", "losses"]

CONFIG = "config.toml"
_BATCH, _SECONDS = 256, 1.0
_LONGEST = 2000  # letters of an error
# What is kept of the data, and how it is told.
_EXAMPLES: Final = {
    "train": "the number of examples that are trained on is",
    "held_out": "the number of examples that are held out is",
    "shape": "the shape of an example is",
    "outputs": "the number of classes or tokens is",
    "targets": "the checksum of the targets is",
    "content": "the checksum of the files is",
}


def begin(
    config: Config,
    *,
    resume: bool,
    restarted: bool = False,
    launch: str = "",
    examples: Mapping[str, Any] | None = None,
) -> tuple[RunWriter, bool]:
    """Open a training's run folder: a new one, or to continue the one that is there.

    Args:
        config: the configuration; it is kept in the folder.
        resume: whether a run that is there is continued; where none is, one begins.
        restarted: whether torchrun restarted the process, which continues what the same launch began.
        launch: the launch's name, as `levada.training.processes.launch` gives it.
        examples: what `levada.training.data.described` says of the data; None compares nothing.

    Returns:
        The run's writer, and whether a run is continued.

    Raises:
        UsageError: if the folder holds a run that is not to be continued, or one of another configuration or of other
            data, or checkpoints of no run.
        MeasurementError: if the same launch stopped before at what stops it again.
    """
    folder = Path(config.run.folder)
    continued = (folder / "run.json").exists()
    known: Mapping[str, Any] = {}
    if continued and restarted:
        resume = _is_of(folder, launch) or resume
    if not continued:
        if any(folder.glob("checkpoints/step-*")):
            raise UsageError(
                f"train: run.folder {str(folder)!r} holds checkpoints, and no run that they belong to. Name another "
                "folder, or remove them."
            )
        _require_free(folder)
        writer = RunWriter.create(
            folder, kind="train", name=folder.name, config={"hash": content_hash(config), **to_dict(config)}
        )
    elif (kind := Run(folder).manifest.kind) != "train":
        raise UsageError(f"train: run.folder {str(folder)!r} holds a run of kind {kind!r}. Name another folder.")
    elif not resume:
        raise UsageError(f"train: run.folder {str(folder)!r} holds a run. Continue it with --resume, or name another.")
    else:
        known = {key: value for event in Run(folder).events("examples") for key, value in event.items()}
        if (began := _began_with(folder)) is not None:
            # Data that are compared themselves may lie elsewhere.
            _require_same(began, config, folder, free=("data.path",) if known and examples is not None else ())
        _require_steps(folder, config.run.steps)
        _require_examples(known, examples, folder)
        writer = RunWriter.open(folder)
    try:
        write_atomically(folder / CONFIG, to_toml(config).encode())
        if launch:
            writer.append("launched", name=launch)
        if examples is not None and not examples.keys() <= known.keys():
            writer.append("examples", **examples)
    except BaseException:
        writer.close()  # nobody else has it, and this process would keep itself out
        raise
    return writer, continued


def _require_free(folder: Path) -> None:
    """Raise if a folder holds other runs, or files under the names that a training's own have."""
    if held := runs_in(folder):
        came = f"{str(folder)!r}, which holds {held}"
        raise UsageError(f"train: run.folder must be one run's, got {came}. Name a folder in it.")
    taken = [name for name in (CONFIG, "watch") if (folder / name).exists()]
    if taken:
        raise UsageError(
            f"train: run.folder must be a new folder, or one in which nothing is called as a training's files are, got "
            f"{str(folder)!r}, which holds {taken[0]}. Name another folder, or move that."
        )


def _is_of(folder: Path, launch: str) -> bool:
    """Return whether a launch began or continued a run, which it may then take up after a restart.

    Raises:
        MeasurementError: if the run stopped by itself in this launch.
    """
    own = False
    for event in Run(folder).events():
        if event["type"] == "launched":
            own = bool(launch) and event["name"] == launch
        elif event["type"] == "stopped" and own:
            raise MeasurementError(f"{event['told']} It is not tried again in this launch.")
    return own


def _require_steps(folder: Path, steps: int) -> None:
    whole = [path.parent.name.removeprefix("step-") for path in folder.glob("checkpoints/step-*/complete.json")]
    done = max((int(name) for name in whole if name.isdecimal()), default=0)
    if done > steps:
        raise UsageError(
            f"train: run.steps must be at least the {done} that the newest complete checkpoint of a continued run has, "
            f"got {steps}. Name another run.folder to train for fewer."
        )


def _require_examples(known: Mapping[str, Any], now: Mapping[str, Any] | None, folder: Path) -> None:
    """Raise if the data are other ones than those of which a run says something."""
    if now is None:
        return
    rule = "train: the data must stay what they are in a run that is continued"
    if not known and now.get("hidden"):  # begun by a levada that read them
        raise UsageError(
            f"{rule}: the number of hidden files among them, which were read when {folder} began and are not now, is "
            f"{now['hidden']}. Take them out to go on without them, or name another run.folder to begin anew."
        )
    for key, what in _EXAMPLES.items():
        if key in known and known[key] != now.get(key):
            raise UsageError(
                f"{rule}: {what} {known[key]} in {folder}, got {now.get(key)}. Put them back as they were, or name "
                "another run.folder to begin anew."
            )


def _began_with(folder: Path) -> Mapping[str, Any] | None:
    """Return the tables that a run began with; None where nothing says it.

    The manifest's, which is written once: `config.toml` is what a user edits to go on with. Today's rules are not asked
    of them: no user could change what the manifest says.
    """
    tables = {name: table for name, table in Run(folder).manifest.config.items() if name != "hash"}
    return tables or (read_tables(folder / CONFIG) if (folder / CONFIG).is_file() else None)


def _require_same(before: Mapping[str, Any], now: Config, folder: Path, *, free: Sequence[str]) -> None:
    for path, (was, came) in differences(before, now).items():
        if path in free:
            continue
        raise UsageError(
            f"train: {path} must stay what it is in a run that is continued: {folder} has {was!r}, got {came!r}. "
            "Name another run.folder to begin anew."
        )


@final
class Record:
    """Writes a training's events; where it is not opened, as in processes other than the first, it writes nothing.

    Losses are stored in batches, at least once a second and before every checkpoint.
    """

    def __init__(self) -> None:
        self._writer: RunWriter | None = None
        self._first = 0
        self._rows: list[tuple[float, float, float]] = []
        self._stored = time.monotonic()
        self._told = False

    def open(
        self,
        config: Config,
        *,
        resume: bool,
        restarted: bool = False,
        launch: str = "",
        examples: Mapping[str, Any] | None = None,
    ) -> bool:
        """Open the run's folder; see `begin`.

        Args:
            config: the configuration.
            resume: whether a run that is there is continued.
            restarted: whether torchrun restarted the process.
            launch: the launch's name.
            examples: what is said of the data.

        Returns:
            Whether a run is continued.
        """
        self._writer, continued = begin(config, resume=resume, restarted=restarted, launch=launch, examples=examples)
        before_end(self.terminate)
        return continued

    def step(self, step: int, loss: float, gradient_norm: float, lr: float) -> None:
        """Keep what a step gave.

        Args:
            step: its number.
            loss: mean over the batch, before the update.
            gradient_norm: before clipping.
            lr: the learning rate.
        """
        if self._writer is None:
            return
        if not self._rows:
            self._first = step
        self._rows.append((loss, gradient_norm, lr))
        if len(self._rows) >= _BATCH or time.monotonic() - self._stored > _SECONDS:
            self.flush()

    def event(self, type: str, **payload: Any) -> None:
        """Store an event, after the steps before it.

        Args:
            type: what it is.
            **payload: its fields.
        """
        if self._writer is not None:
            self.flush()
            self._writer.append(type, **payload)
            self._told = type in ("stopped", "end")

    def end(self, error: BaseException | None = None) -> None:
        """Store how the training ended; what stopped by itself, or was ended, has said so.

        Args:
            error: what ended it; None if it came to its end.
        """
        if error is None:
            self.event("end", state="ended")
        elif not self._told:
            stopped = isinstance(error, KeyboardInterrupt | Terminated)
            told = "ended by SIGTERM" if isinstance(error, Terminated) else "interrupted"
            told = told if stopped else " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
            with suppress(OSError, UsageError):  # the disk may be what failed
                self.event("end", state="stopped" if stopped else "failed", error=told)

    def terminate(self) -> None:
        """Store that SIGTERM came: by another thread than the training's, which may wait for other processes."""
        self.end(Terminated())
        writer, self._writer = self._writer, None  # where the training goes on, it stores nothing behind that
        if writer is not None:
            writer.close()

    def flush(self) -> None:
        """Store what was kept."""
        if self._writer is not None and self._rows:
            loss, gradient_norm, lr = (list(column) for column in zip(*self._rows, strict=True))
            self._rows = []
            self._writer.append("losses", first=self._first, loss=loss, gradient_norm=gradient_norm, lr=lr)
        self._stored = time.monotonic()

    def close(self) -> None:
        """Store what was kept and let the next writer in."""
        if self._writer is not None:
            self.flush()
            self._writer.close()


def losses(run: Run | str | Path) -> dict[int, float]:
    """Return the loss of every step that led to the run's last weights.

    A run that was killed and continued from a checkpoint has some steps twice: those after the checkpoint count as they
    were done again.

    Args:
        run: of kind "train", or its folder or address.

    Raises:
        UsageError: if there is no run.

    Example:
        >>> import tempfile
        >>> writer = RunWriter.create(tempfile.mkdtemp() + "/run", kind="train", name="example")
        >>> writer.append("losses", first=0, loss=[3.0, 2.0, 1.0])
        >>> writer.append("resumed", step=1)
        >>> writer.append("losses", first=1, loss=[2.5])
        >>> losses(writer.path)
        {0: 3.0, 1: 2.5}
    """
    return curve(_opened(run).events(numbers=("loss",)), "losses")


def evaluations(run: Run | str | Path) -> dict[int, float]:
    """Return the held-out losses by the number of steps done, of the steps that led to the run's last weights.

    Args:
        run: of kind "train", or its folder or address.

    Raises:
        UsageError: if there is no run.
    """
    return curve(_opened(run).events(numbers=("loss",)), "evaluation")


def _opened(run: Any) -> Run:
    if isinstance(run, Run):
        return run
    if not isinstance(run, str | Path):
        raise UsageError(f"run must be a Run, or the path of its folder, got {type(run).__name__}.")
    return Run(run)


@final
class Progress:
    """One line about a training, with its present pace: rewritten on a terminal, else twenty times in all.

    Args:
        steps: of the whole training.
        stream: where it is shown; None shows nothing.
    """

    def __init__(self, steps: int, stream: TextIO | None) -> None:
        self._steps, self._stream = steps, stream
        self._terminal = stream is not None and stream.isatty()
        self._shown = time.monotonic()
        self._done = self._length = 0
        # When lines were shown, and steps done by then: the pace is that of the last 50 lines, or since the last one.
        self._marks = deque([(self._shown, 0)], maxlen=50 if self._terminal else 1)
        self.evaluation: tuple[int, float] | None = None  # after how many steps, and what it gave

    def step(self, step: int, loss: float, gradient_norm: float, lr: float) -> None:
        """Show a step, if it is time to.

        Args:
            step: its number.
            loss: mean over the batch.
            gradient_norm: before clipping.
            lr: the learning rate.
        """
        if self._stream is None:
            return
        self._done += 1
        last, now = step + 1 == self._steps, time.monotonic()
        due = now - self._shown > 0.1 if self._terminal else (step + 1) % max(self._steps // 20, 1) == 0
        if last or due:
            then, before = self._marks[0]
            rate = (self._done - before) / max(now - then, 1e-9)
            self._marks.append((now, self._done))
            line = f"step {step + 1}/{self._steps}  loss {loss:.4f}  gradient {gradient_norm:.3g}  lr {lr:.3g}"
            held_out = ""
            if self.evaluation is not None:
                at, value = self.evaluation
                held_out = f"  held out {value:.4f}" + (f" at step {at}" if at != step + 1 else "")
            if not self._terminal:  # where it stays in the one line that there is
                self.evaluation = None
            end = "\n" if last or not self._terminal else ""
            line += f"{held_out}  {rate:.1f} steps/s"
            if self._terminal:  # over the whole line of before
                line, self._length = f"\r{line.ljust(self._length)}", len(line)
            self._stream.write(line + end)
            self._stream.flush()
            self._shown = now

    def say(self, sentence: str) -> None:
        """Show a sentence on a line of its own.

        Args:
            sentence: it.
        """
        if self._stream is not None:
            self._stream.write(f"{chr(10) if self._terminal and self._done else ''}{sentence}\n")
            self._stream.flush()
