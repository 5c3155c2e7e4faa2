"""Watch a training of Hugging Face's `transformers.Trainer`."""

from __future__ import annotations

import functools
import sys
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, final

from levada._errors import MissingExtraError, UsageError, require_switch
from levada.integrations.training import Watched, is_error
from levada.watching.measure.sample import Continue

try:
    from transformers import Trainer, TrainerCallback
except ModuleNotFoundError as error:
    # transformers says so, too, where a package that it imports is broken, as a torchvision made for another PyTorch.
    if all(map(find_spec, ("transformers", "accelerate"))):
        raise
    raise MissingExtraError(
        "levada.integrations.huggingface needs transformers and accelerate, which are not installed. "
        "Install them with: pip install 'transformers[torch]'"
    ) from error

__all__ = ["LevadaCallback"]


@final
class LevadaCallback(TrainerCallback):
    """Watches the training of a `Trainer`, as `levada.watch` does a loop.

    The watch begins with the training and ends with it, also by an exception: given to `Trainer(callbacks=[...])`, the
    callback closes its watch when `train` is left. Added later, by `add_callback`, it cannot know of an exception; then
    use it in a with-block. What rules find becomes a warning at once; numbers of the last sample are among the
    trainer's own logs, under "levada/...".

    Gradients are read between the backward pass and the update, below what Accelerate wraps around the optimizer, and
    divided by the scale of mixed precision. A step is an update, whatever the number of micro-batches; steps are
    counted from the beginning of this training, also of one that resumes. DeepSpeed, whose engine updates the weights
    itself, is refused.

    Args:
        run: folder or address of the run, or, of a training that goes on from a checkpoint,
            `levada.watching.Continue(folder, step)`; of a second training by the same callback, the name ends in -2.
        every: smallest distance between sampled steps.
        max_overhead: largest share of the training time, once the first 11 samples are paid for.
        stop_on_error: end the training after an update at which a rule finds an error.
        options: others of `levada.watch`.

    Attributes:
        watch: the watch, None before the first training.

    Raises:
        UsageError: if an argument is none of these, or out of range; at the beginning of a training with DeepSpeed, or
            where `levada.watch` raises it.

    Example:
        >>> callback = LevadaCallback(every=10)
        >>> callback.watch is None
        True
    """

    def __init__(
        self,
        run: str | Path | Continue | None = None,
        *,
        every: int = 20,
        max_overhead: float = 0.01,
        stop_on_error: bool = False,
        **options: Any,
    ) -> None:
        self._stop = require_switch("LevadaCallback", "stop_on_error", stop_on_error)
        self._watched = Watched({"run": run, "every": every, "max_overhead": max_overhead, **options})

    @property
    def watch(self) -> Any:
        """The watch of the present training, or of the last one."""
        return self._watched.watch

    def close(self) -> None:
        """Watch no more; again is harmless."""
        self._watched.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See to it that an exception ends the watch, and that reporters hear of its numbers."""
        trainer = self._trainer(sys._getframe(1))
        if trainer is None:
            return
        # Those that report, which the trainer puts first, must find the numbers in the logs.
        callbacks = trainer.callback_handler.callbacks
        callbacks.remove(self)
        callbacks.insert(0, self)
        train = trainer.train

        @functools.wraps(train)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return train(*args, **kwargs)
            finally:
                self.close()

        trainer.train = guarded

    def _trainer(self, frame: FrameType | None) -> Any:
        """Find whose `__init__` is under way: callbacks are not told."""
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, Trainer) and self in owner.callback_handler.callbacks:
                return owner
            frame = frame.f_back
        return None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Begin to watch."""
        if getattr(args, "deepspeed", None):
            raise UsageError(
                "LevadaCallback: DeepSpeed's engine updates the weights itself, which no hook sees. "
                "Leave out the callback, or train with FSDP."
            )
        self._watched.begin(model, [optimizer], getattr(optimizer, "scaler", None))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn of what was found, and stop if that was asked for."""
        if is_error(self._watched.news()) and self._stop:
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Put the last sample's summary among the training's logs."""
        if logs is not None and "loss" in logs:
            numbers = self._watched.numbers()
            logs.update(numbers)
            state.log_history[-1].update(numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the watch."""
        self.close()
        self._watched.news()
