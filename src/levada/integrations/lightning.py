"""Watch a training of Lightning's `Trainer`: of lightning.pytorch, or of pytorch_lightning where that is used."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from levada._errors import MissingExtraError, UsageError, require_switch
from levada.integrations.training import Watched, is_error
from levada.watching.measure.sample import Continue

__all__ = ["LevadaCallback"]

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:

    def _base() -> type:
        """The two packages are one code under two names, and each wants callbacks of its own."""
        both = ("lightning.pytorch", "pytorch_lightning")
        for name in sorted(both, key=lambda name: name not in sys.modules):
            try:
                return importlib.import_module(name).Callback
            except ModuleNotFoundError as error:
                if error.name is None or not name.startswith(error.name):
                    raise
        raise MissingExtraError(
            "levada.integrations.lightning needs lightning, which is not installed. "
            "Install it with: pip install lightning"
        )

    Callback = _base()


@final
class LevadaCallback(Callback):
    """Watches a Lightning training, as `levada.watch` does a loop.

    With automatic and manual optimization, one optimizer or several, accumulated gradients, mixed precision. The watch
    begins with the training, after the check of the validation, and ends with it, also by an exception. What rules find
    becomes a warning at once; a summary of each sample is logged under "levada/...".

    A step is an update of the weights (of several optimizers that take turns, each after a pass of its own, each makes
    a step). The model that a batch passes
    through is the module itself: where `training_step` does not call the module (`self(batch)`), signals and gradients
    are the same, but the inputs of the last pass are not known.

    Args:
        run: folder or address of the run, or, of a training that goes on from a checkpoint,
            `levada.watching.Continue(folder, step)`; of a second training by the same callback, the name ends in -2.
        every: smallest distance between sampled steps.
        max_overhead: largest share of the training time, once the first 11 samples are paid for.
        stop_on_error: end the training after a batch at which a rule finds an error.
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

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch."""
        if "deepspeed" in type(trainer.strategy).__name__.lower():
            raise UsageError(
                "LevadaCallback: DeepSpeed's engine updates the weights itself, which no hook sees. "
                "Leave out the callback, or train with FSDP."
            )
        self._watched.begin(pl_module, trainer.optimizers, getattr(trainer.precision_plugin, "scaler", None))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Log the summary of a new sample, warn of what was found, and stop if that was asked for."""
        numbers = self._watched.numbers(once=True)
        if numbers:
            pl_module.log_dict(numbers, on_step=True, on_epoch=False, rank_zero_only=True, batch_size=1)
        if is_error(self._watched.news()) and self._stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the watch."""
        self._watched.close()
        self._watched.news()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the watch."""
        self._watched.close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the watch, should nothing else have done so."""
        self._watched.close()
