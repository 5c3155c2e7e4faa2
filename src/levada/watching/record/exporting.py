"""Export while training: a listener that passes numbers on, on a thread of its own."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time as clock
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, final

from torch import Tensor

from levada._errors import UsageError
from levada._ranks import is_first
from levada.diagnose import Finding
from levada.probe.trace import Site
from levada.runs.exporters import Exporter, chosen, open_exporter, tag, told
from levada.runs.exporters.exporter import loss_tag
from levada.runs.losses import optimizers_in
from levada.watching.measure.sample import Sample
from levada.watching.record.news import News
from levada.watching.verdict.series import kinds_apart

__all__ = ["Exporting"]

# A tracker that hangs costs numbers, not memory; and not more than this many seconds at the end.
_WAITING: Final = 1000
_PATIENCE: Final = 30.0


class _Watched(Protocol):
    @property
    def sites(self) -> Sequence[Site]: ...

    @property
    def findings(self) -> Sequence[Finding]: ...


@final
class Exporting:
    """Passes each sample to a tracker: loss, learning rate, gradient norm, overhead, findings, signals of some sites.

    The training loop only puts numbers into a queue. A tracker that fails costs one warning and what it would have
    been told; training goes on. Of several processes, the first exports, the others do nothing.

    Args:
        to: "tensorboard", "wandb", "mlflow", "trackio", or an `Exporter`.
        out: the folder that is written to.
        name: the run's name.
        sites: how many sites' signals are exported: the first, the last, and evenly between them.
        config: the run's settings.
        watch: what names the sites and has the findings; `levada.watch` sets it on the listeners that it is given.

    Attributes:
        dropped: how many messages were not passed on because the tracker was slow, or failed.

    Raises:
        UsageError: if the tracker is unknown or not installed, or `sites` is negative.

    Example:
        >>> import tempfile, torch
        >>> exporting = Exporting("tensorboard", tempfile.mkdtemp(), name="first")
        >>> exporting.sampled(Sample(0, 0.0, {"signal_rms": torch.ones(2)}, {"loss": 0.7}))
        >>> exporting.close()
        >>> exporting.dropped
        0
    """

    def __init__(
        self,
        to: str | Exporter,
        out: str | Path = "exports",
        *,
        name: str = "watch",
        sites: int = 8,
        config: Mapping[str, Any] | None = None,
        watch: _Watched | None = None,
    ) -> None:
        if not isinstance(sites, int) or sites < 0:
            raise UsageError(f"Exporting: sites must be an integer of at least 0, got {sites!r}.")
        self.watch = watch
        self.dropped = 0
        self._number = sites
        self._step, self._time = 0, 0.0
        self._news = News()
        self._failed = False
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        if not is_first():
            return
        self.exporter = open_exporter(to, out, name=name, config=config or {}) if isinstance(to, str) else to
        self._thread = threading.Thread(target=self._run, name="levada-export", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            if self._failed:
                self.dropped += 1
                continue
            try:
                message()
            except Exception as error:
                self._failed = True
                self.dropped += 1
                problem = f"{type(error).__name__}: {error}"
                self._warn(f"the export to {self.exporter.where} ended; training goes on ({problem}).")
        with contextlib.suppress(Exception):
            self.exporter.close()

    @staticmethod
    def _warn(sentence: str) -> None:
        try:
            warnings.warn(f"levada: {sentence}", RuntimeWarning, stacklevel=3)
        except RuntimeWarning:
            # Where warnings are errors, this one has no caller to go to.
            return

    def _pass_on(self, message: Callable[[], None]) -> None:
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self.dropped += 1

    def before_update(self, step: int, loss: Tensor | None) -> None:
        """Nothing: samples bring the losses of the steps before them."""

    def sampled(self, sample: Sample) -> None:
        """Queue the losses since the sample before, this sample's numbers, and new findings."""
        if self._thread is None:
            return
        self._step, self._time = sample.step, sample.time
        kinds, turn_of = kinds_apart(self.watch), getattr(self.watch, "turn_of", lambda step: 0)
        numbers = dict(sample.scalars)
        for step, loss in sample.losses:
            turn = turn_of(step) if kinds else None
            own = {} if turn is None else {loss_tag(optimizers_in(turn, kinds)): loss}
            if step < sample.step:
                self._write(step, sample.time, {"loss": loss, **own})
            else:
                numbers = {"loss": loss, **own, **numbers}
        count = max((len(values) for values in sample.values.values()), default=0)
        known = self.watch.sites if self.watch is not None else ()
        names = [site.name for site in known] if len(known) == count else [f"site.{i}" for i in range(count)]
        some = chosen(names, self._number)
        for signal, values in sample.values.items():
            # NaN is what was not measured; what is not finite in the model is counted by a signal of its own.
            rows = values.tolist()
            numbers.update((tag(signal, names[i]), rows[i]) for i in some if not math.isnan(rows[i]))
        self._write(sample.step, sample.time, numbers)
        self._tell()

    def logged(self, step: int, scalars: Mapping[str, float]) -> None:
        """Queue what the loop logged behind the last sample.

        Args:
            step: the last one.
            scalars: name -> number.
        """
        if self._thread is not None:
            self._write(step, clock.time(), dict(scalars))

    def found_between_samples(self, step: int) -> None:
        """Queue new findings.

        Args:
            step: the present one.
        """
        if self._thread is not None:
            self._step, self._time = step, clock.time()
            self._tell()

    def _write(self, step: int, time: float, numbers: Mapping[str, float]) -> None:
        self._pass_on(lambda: self.exporter.write(step, time, numbers))

    def _tell(self) -> None:
        step, time = self._step, self._time
        for finding in self._news.of(self.watch.findings if self.watch is not None else ()):
            rule, text = told(finding)
            self._pass_on(lambda rule=rule, text=text: self.exporter.tell(step, time, rule, text))  # type: ignore[misc]

    def close(self) -> None:
        """Pass on what is left, for at most half a minute; again is harmless."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._tell()
        try:
            self._queue.put(None, timeout=_PATIENCE)
        except queue.Full:
            self.dropped += 1
        thread.join(_PATIENCE)
        if thread.is_alive():
            self._warn(f"the export to {self.exporter.where} hangs; {self._queue.qsize()} messages were not passed on.")
