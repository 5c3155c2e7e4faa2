"""Watch a training loop: any loop, unchanged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, cast, final

from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError
from levada._names import spelt
from levada.connection import require_module
from levada.diagnose.finding import Finding
from levada.diagnose.report import Report
from levada.probe.trace import Site, Trace
from levada.runs.sampled import nearer, sampling
from levada.runs.standing import Standing
from levada.watching.arguments import (
    optimizers_of,
    require_arguments,
    require_cadence,
    require_left,
    require_listener,
    require_scalars,
)
from levada.watching.engine import Engine
from levada.watching.loop.ends import each_end, undone
from levada.watching.loop.overhead import Cadence
from levada.watching.loop.telling import hears, warn
from levada.watching.measure.sample import Continue, Listener, Sample
from levada.watching.record.since import record_again
from levada.watching.steps.kept_pass import Pass
from levada.watching.steps.partly import Partly
from levada.watching.steps.skipped import RULE as SKIPPED
from levada.watching.surround import surround
from levada.watching.uncopied import Uncopied
from levada.watching.verdict.account import report, trace_of
from levada.watching.verdict.judge import CONFIRMATIONS, WARM_UP, Judge
from levada.watching.verdict.judged import PART, standing_of
from levada.watching.verdict.keeper import require_notes

__all__ = ["Watch", "watch"]

_RECENT: Final = 1000  # samples that are kept
_ENDS: Final = "A step ends with optimizer.step(), or with Watch.step() for a watch without an optimizer."


@final
class Watch(Uncopied):
    """What `levada.watch` returns.

    Attributes:
        samples: the last 1000 samples.
        run: the folder of the record, or None.
        judge: what applies the rules; None if a `Watch` was made without `watch`.
        coefficients: takes with each sample how streams are mixed, and gates; `watch.coefficients.on = False` ends it.
        weights: reads what steps do to them; `watch.weights.copy_bytes` bounds what it copies for that.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Any],
        *,
        cadence: Cadence,
        scaler: Any,
        listeners: Iterable[Listener],
        first: int = 0,
    ) -> None:
        self.model = model
        self.samples: deque[Sample] = deque(maxlen=_RECENT)
        self.run: Path | None = None
        self._record: str | Path | None = None
        self.judge: Judge | None = None
        self._optimizers, self._scaler = optimizers, scaler
        self._listeners, self._fallen = list(listeners), list[Listener]()
        for listener in [one for one in self._listeners if getattr(one, "watch", self) is None]:
            cast(Any, listener).watch = self  # they ask for the names of sites, and for findings
        self._attached, self._entered, self._first, self._deaf = False, False, first, ""  # why the rules hear no more
        before, sampled = self._before_update, self._sampled
        self._engine = Engine(
            model, optimizers, cadence=cadence, scaler=scaler, before_update=before, sampled=sampled, first=first
        )
        self.coefficients, self.weights = self._engine.coefficients, self._engine.weights
        self._partly = Partly(self._engine.tell_unseen)
        self._engine.passes.skips.tell = self._skipped
        self._engine.passes.skips.ended = lambda why: self.judge.ended.update({SKIPPED: why}) if self.judge else None
        self._engine.broke = self._engine.passes.moved.tell = lambda: self._tell_all(self.steps)
        self._engine.left = partial(self._before_update, left=True)
        self.ended_losses: Callable[[], Sequence[tuple[int, Tensor]]] = lambda: self._engine.losses.ended
        self.turn_of: Callable[[int], int | None] = lambda step: self._engine.turn_of(step)
        self.unheard: Callable[[], tuple[str, bool]] = lambda: self._engine.pauses.unheard
        self._attach()

    @property
    def sites(self) -> tuple[Site, ...]:
        """The blocks in order of execution; none before the first sampled step."""
        return self._engine.sites

    @property
    def optimizers(self) -> Sequence[Any]:
        """The optimizers whose steps end a step."""
        return self._optimizers

    @property
    def scaled(self) -> bool:
        """Whether a scaler skips the steps that overflow."""
        return self._scaler is not None and bool(getattr(self._scaler, "is_enabled", lambda: True)())

    @property
    def steps(self) -> int:
        """Number of completed steps, with those before a `Continue`."""
        return self._engine.steps

    @property
    def passed(self) -> int:
        """Forward passes of training: with gradients, in the mode in which the model learns."""
        return self._engine.passes.counted

    @property
    def overhead(self) -> float:
        """Measured share of the training time that watching takes: 0.004 is 0.4 %; NaN until it was measured."""
        return self._engine.cadence.overhead

    @property
    def cost(self) -> str:
        """`overhead` in words; where it is more than was allowed, also after how much more time it is not."""
        return self._engine.cadence.told

    @property
    def sampling(self) -> int:
        """Present distance between sampled steps."""
        return self._engine.cadence.distance

    @property
    def nearer(self) -> str:
        """At which `every` a watch that is over would have had the samples that its verdict lacks; "" if at none."""
        return "" if self._attached else nearer(len(self.samples), self.standing, self._engine.cadence.every)

    @property
    def last_pass(self) -> Pass | None:
        """The last forward pass with gradients, to run it again; None before the first, and after `close`.

        With `run` every pass is kept, for bundles; without it, those that begin after this was asked for once.
        """
        return self._engine.passes.last()

    @property
    def inputs(self) -> dict[int | str, Tensor]:
        """The tensors that the model was last called with in training, by place or name, while the loop holds them."""
        return self._engine.passes.inputs()

    @property
    def findings(self) -> list[Any]:
        """What the rules among the listeners found, in order; also those that an error ended since."""
        return [found for one in (*self._fallen, *self._listeners) for found in getattr(one, "findings", ())]

    @property
    def standing(self) -> Standing:
        """The verdict so far, which rules it rests on, and why others have not judged: what every view of it tells."""
        judge, parts = self.judge or Judge(self), self._engine.micro_batches
        over = self._deaf or ("an error ended the watching" if self._engine.broken else self._engine.passes.moved.why)
        found = {id(finding): finding for finding in (*judge.findings, *self.findings)}  # others may tell some too
        told = standing_of(judge, steps=self.steps, first=self._first, over=over, findings=found.values())
        return told.withheld(over or PART, stages=parts.stages, num_stages=parts.num_stages) if parts.stages else told

    @property
    def dropped(self) -> int:
        """How many samples the record lacks, because the disk was too slow or full."""
        return sum(getattr(listener, "dropped", 0) for listener in self._listeners)

    def listen(self, listener: Listener) -> None:
        """Let one more hear of the samples from now on, behind those that listen already.

        Args:
            listener: one that was made for this watch.
        """
        require_listener(listener, owner="Watch.listen")
        self._listeners.append(listener)

    def _attach(self) -> None:
        self._attached = True
        undone(self._engine.attach, by=lambda: self._close(failed=True))  # after Ctrl-C nobody has this watch

    def __enter__(self) -> Self:
        if self._entered:
            raise UsageError("watch: this watch's with-block was entered already. Leave it first, or make another.")
        if not self._attached:
            if self._record is not None:  # `close` has ended it
                record_again(self, self._listeners, self._record)
            self._attach()
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered = False
        self._close(failed=error is not None)

    def close(self) -> None:
        """Watch no more: take off every hook, hand on the last sample, close the listeners. Again is harmless."""
        self._close(failed=False)

    def _close(self, *, failed: bool) -> None:
        if not self._attached:
            return
        self._attached = self._entered = False
        each_end(lambda: self._engine.detach(failed=failed), self._close_listeners)

    def _close_listeners(self) -> None:
        if logged := self._engine.logged:
            self._engine.logged = {}
            self._tell_all(max(self.steps - 1, 0), logged, method="logged")
        each_end(*[partial(self._tell, listener, "close") for listener in self._listeners])

    def step(self) -> None:
        """End a step where no optimizer does: call it after the update, before the gradients are cleared.

        Raises:
            UsageError: if the watch has an optimizer, or was closed.
        """
        if self._optimizers:
            raise UsageError("Watch.step: this watch counts its optimizer's steps. Leave out the call.")
        if not self._attached:
            raise UsageError("Watch.step: this watch was closed. Enter it again with `with`.")
        if not self._engine.pauses.on:
            self._before_update(self.steps, self._engine.losses.current())
        self._engine.finish()

    def leave(self, again: Callable[[], object] | None = None, loss: Tensor | None = None) -> None:
        """Judge a step whose update is left out because it is not finite, with its bundle; `close` does the same.

        Args:
            again: makes the gradients anew, of the same random numbers, to be sampled; all processes give it, or none.
            loss: of the step, where this process has not seen it, as the first stage of a pipeline.

        Raises:
            UsageError: if one of them is something else.
        """
        require_left(again, loss)
        self._engine.leave(again, loss)

    def log(self, **scalars: float) -> None:
        """Keep numbers with the next sample, which `optimizer.step()` takes; of a name that comes again, the last.

        Args:
            scalars: name -> number; not "loss" or another name of what the watch measures itself.

        Raises:
            UsageError: if a value is no number, or a name is one of the watch's own.
        """
        self._engine.logged.update(found := require_scalars(scalars))
        self._tell_all(self.steps, found, method="noted")

    def trace(self) -> Trace:
        """Return the recent samples as a trace, which every diagnostic reads.

        Raises:
            MeasurementError: if no step was sampled.
        """
        if not self.samples:
            raise MeasurementError(f"Watch.trace: no step was sampled yet. {_ENDS}")
        return trace_of(list(self.samples), self.sites, self._optimizers, every=self.sampling)

    def note(self, **facts: Any) -> None:
        """Tell what the present step is made of, for a bundle that may be kept of it.

        Args:
            facts: `indices` of the batch's rows in the data and its `targets`, to be noted in each step, also where
                they stay the same; the path of the last `checkpoint`, which stands until another is noted.

        Raises:
            UsageError: if it is something else.
        """
        require_notes(facts)
        if self.judge is not None:
            self.judge.note(**facts)

    def report(self) -> Report:
        """Return what is known now: verdict, findings, signals by block, what was not judged, and why."""
        told = report(self.judge or Judge(self), model=self.model, standing=self.standing, findings=self.findings)
        sampled = sampling([sample.step for sample in self.samples], self.steps)
        note = "; ".join(filter(None, (f"Step {self.steps}", sampled, self.nearer, self.cost)))
        return replace(told, notes=(*told.notes, f"{note}." if self.steps else f"{note}. {_ENDS}"))

    # Listeners.

    def _before_update(self, step: int, loss: Tensor | None, *, left: bool = False) -> None:
        before = self.judge.told if self.judge is not None else None
        for listener in list(self._listeners):
            self._tell(listener, "step_left" if left and hears(listener, "step_left") else "before_update", step, loss)
        if self.judge is not None and self.judge.asks:
            self._engine.cadence.ask(step)
        if self.judge is not None and self.judge.told != before:  # a process that is killed must have said it
            self._tell_all(step)

    def _sampled(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._partly.sampled(sample, self.sites)
        for listener in list(self._listeners):
            self._tell(listener, "sampled", sample)
        if self.judge is not None and self.judge.content:
            self._engine.cadence.content()

    def _skipped(self, finding: Finding | None) -> None:
        """Tell at once of what no sample will tell of."""
        if self.judge is not None:
            self.judge.skipped(finding, self.steps)
            self._tell_all(self.steps)

    def _tell_all(self, *args: Any, method: str = "found_between_samples") -> None:
        for listener in [one for one in self._listeners if hears(one, method)]:
            self._tell(listener, method, *args)

    def _tell(self, listener: Listener, method: str, *args: Any) -> None:
        try:
            getattr(listener, method)(*args)
        except Exception as error:  # whatever it is, training goes on
            self._listeners.remove(listener)
            self._fallen.append(listener)  # what it found stays found
            what = f"{type(error).__name__}: {error}"
            who = f"{type(listener).__name__}.{method}"
            warn(f"watch: {who} raised {what}. It hears no more; training goes on.", of=self.model)
            if listener is self.judge:
                self._deaf = f"an error ended it, {what}"
                self._tell_all(self.steps)  # a process that is killed must have said it


@spelt
def watch(
    model: nn.Module,
    optimizer: Any,
    *,
    run: str | Path | Continue | None = None,
    every: int = 20,
    max_overhead: float = 0.01,
    scaler: Any = None,
    live: bool | Literal["plain"] = False,
    listeners: Iterable[Listener] = (),
) -> Watch:
    """Watch a training loop, which stays as it is: signals by block and step, at a cost that nobody minds.

    A step ends with `optimizer.step()`. Sampled are steps at least `every` apart; after the 11 that a verdict needs,
    further apart if more than `max_overhead` of the time would go into it. On others no block has a hook: elements of
    the outermost lists of modules, in the order in which they run in the first sampled step. Where the loss jumps (on a
    GPU if a run is kept), or a block misses its gradient, seven more are sampled: twice, then if paid for. Most steps
    too short to be heard for that share are only counted, once half a second went into it.
    It watches from this call on until `close()`, which the end of a with-block calls; entering the watch again goes on.

    The signals are those of `WATCHED`: of several micro-batches, or calls of one block, the mean square over all
    elements. "nonfinite" and "gradient_nonfinite" are 1 where the sum of squares is NaN or infinite, else 0. What could
    not be measured is NaN; a gradient that does not reach a block is zero. Gradients and losses are divided by the
    scale of `scaler`. The loss is the scalar at which `backward` begins; those of micro-batches are added.

    Args:
        model: any module.
        optimizer: whose `step` ends a step; of several, in a sequence, the last that steps. None: call `Watch.step()`.
        run: a folder that keeps the record, for `levada report`, and holds no run yet; or an address that fsspec knows,
            as "s3://bucket/run": written to a local folder, and mirrored. A training that goes on from a checkpoint
            gives `levada.watching.Continue(folder, step)`.
        every: smallest distance between sampled steps.
        max_overhead: largest share of the training time, in (0, 1], once the first samples, and half a second, are paid
            for; `math.inf` is without a limit.
        scaler: what scales the loss, such as a `torch.amp.GradScaler`.
        live: whether a view is shown on standard error; "plain" for lines even in a terminal.
        listeners: who hears of the samples.

    Raises:
        UsageError: if the model or an optimizer has no parameters, a number is out of range, or `run` holds a run.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with watch(model, optimizer, every=2, max_overhead=1.0) as probe:
        ...     for _ in range(4):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(4, 2)).sum().backward()
        ...         optimizer.step()
        >>> probe.trace().names(), len(probe.samples[0].losses), probe.samples[0].values["gradient_rms"][1].item()
        (['0', '2'], 1, 1.0)
    """
    require_module(model, "watch")
    optimizers = optimizers_of(model, optimizer)
    listeners = require_arguments(run, scaler, live, listeners)
    first = run.step if isinstance(run, Continue) else 0
    cadence = Cadence(*require_cadence(every, max_overhead), regardless=WARM_UP + CONFIRMATIONS)
    made = Watch(model, optimizers, cadence=cadence, scaler=scaler, listeners=listeners, first=first)
    made._record = run.folder if isinstance(run, Continue) else run
    new = not isinstance(run, Continue) or run.anew
    undone(
        lambda: surround(made, made._engine, made._listeners, record=made._record, new=new, live=live), by=made.close
    )
    return made
