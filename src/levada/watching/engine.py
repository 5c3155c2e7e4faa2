"""What watches a loop: it samples optimizer steps, and hands numbers on when they are on the host."""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from levada.probe.trace import Site
from levada.watching.losses import Losses
from levada.watching.microbatches import MicroBatches
from levada.watching.overhead import Cadence, StepClock
from levada.watching.parameters import ParameterNorms, pairs
from levada.watching.passes import Passes
from levada.watching.places import find_places, in_order, original, plain_name
from levada.watching.reading import Reading, Statistics
from levada.watching.sample import Sample
from levada.watching.taps import Taps
from levada.watching.together import Measured, Together
from levada.watching.transfer import Sent

__all__ = ["Engine"]

_SEARCHES = 2  # sampled steps before which it is looked for what was compiled since
_CAP = 64 * 2**20  # bytes of a pass's inputs, and of the gradient at its output, that are kept for a bundle


def _quietly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let an error in a hook end the watching and not the training."""

    @functools.wraps(method)
    def run(self: Engine, *args: Any) -> Any:
        if self.broken:
            return None
        try:
            return method(self, *args)
        except Exception as error:  # whatever it is, training goes on
            return self.fail(error)

    return run


@final
class Engine:
    """Samples the steps of one model.

    Args:
        model: the model.
        optimizers: whose steps end a step; none, if `finish` is called.
        cadence: which steps are sampled.
        scaler: what scales the loss, or None.
        before_update: hears of a step's loss before the update.
        sampled: hears of each sample.
        first: number of the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Any],
        *,
        cadence: Cadence,
        scaler: Any,
        before_update: Callable[[int, Tensor | None], None],
        sampled: Callable[[Sample], None],
        first: int = 0,
    ) -> None:
        self.model = model
        self.cadence = cadence
        self.steps = first
        self.broken = False
        self.sites: tuple[Site, ...] = ()
        self.passes = Passes(model, cap=_CAP, begin=self._begin, end=self._end, spent=self._spend, fail=self.fail)
        self._optimizers = optimizers
        self._tell_before_update, self._sampled = before_update, sampled
        self._places = find_places(model)
        self._order: list[int] = []
        self._names = {id(p): plain_name(name) for name, p in original(model).named_parameters()}
        self._device = next(p.device for p in model.parameters())
        self._taps = Taps(model, self._places, self)
        self._statistics = Statistics()
        self._norms = ParameterNorms((self._names[id(p)], p) for p in original(model).parameters())
        self.losses = self._losses = Losses(
            model, restart=self._restart, parts=lambda: self._micro_batches.divided, scaler=scaler
        )
        self._clock = StepClock(self._device)
        self._micro_batches = MicroBatches(original(model), self._restart)
        self._together = Together(model)
        self._reading: Reading | None = None
        self._read_before = False
        self._stepped: set[int] = set()
        self._waited = {id(optimizer) for optimizer in optimizers}
        self._handles: list[RemovableHandle] = []
        self._pending: list[Sent] = []
        self._logged: dict[str, float] = {}
        self._own = 0.0
        self._where = pairs((), {})

    # Attaching and detaching.

    def attach(self) -> None:
        """Watch from now."""
        self._together = Together(self.model)
        for optimizer in self._optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        self.passes.attach()
        self._losses.open()
        self._clock.tick(None)
        self._arm()

    def detach(self, *, failed: bool = False) -> None:
        """Take everything off, and hand on what is still on its way.

        Args:
            failed: whether an exception ends the loop, so that other processes perhaps do not come here.
        """
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._disarm(for_good=True)
        self.passes.detach()
        self._losses.close()
        self._stepped.clear()
        self._micro_batches.close()
        self._deliver(wait=True, leaving=failed)
        self._together.close(failed=failed)

    def _arm(self) -> None:
        self.passes.step(self.steps)
        if self._reading is None and not self.broken and self.cadence.due(self.steps):
            self._reading = Reading(self.steps, self._statistics, careful=not self.sites, fail=self.fail)
            self._taps.searching = self.cadence.samples < _SEARCHES
            self._losses.mark()
            self._taps.attach()
            self._micro_batches.take()
            self._micro_batches.open()

    def _disarm(self, *, for_good: bool = False) -> None:
        self._taps.detach(for_good=for_good)
        if self._reading is not None:
            self._reading.close()
        self._reading = None
        self._read_before = False

    def _before_update(self, step: int, loss: Tensor | None) -> None:
        begun = time.perf_counter()
        self._tell_before_update(step, loss)
        self._own += time.perf_counter() - begun

    def fail(self, error: Exception) -> None:
        """Measure no more, and say so; training goes on."""
        self.broken = True
        self._disarm(for_good=True)
        self._together.close(failed=True)
        warnings.warn(
            f"watch: measuring raised {type(error).__name__}: {error}. Nothing more is measured; training goes on.",
            stacklevel=3,
        )

    # What the hooks tell.

    @_quietly
    def see(self, place: int, tensor: Tensor) -> None:
        """Take a block's output."""
        reading = self._reading
        if reading is not None and (torch.is_grad_enabled() or self.passes.inside()):  # else it is an evaluation
            begun = time.perf_counter()
            reading.see(place, tensor)
            self._own += time.perf_counter() - begun

    @_quietly
    def see_activation(self, place: int, tensor: Tensor) -> None:
        """Take the output of an activation."""
        reading = self._reading
        if reading is not None and (torch.is_grad_enabled() or self.passes.inside()):
            begun = time.perf_counter()
            reading.see_activation(place, tensor)
            self._own += time.perf_counter() - begun

    @_quietly
    def _begin(self) -> None:
        if self._reading is not None:
            self._reading.passes += 1
            if not self._optimizers and not self._read_before:
                self._norms.before()
                self._read_before = True

    @_quietly
    def _end(self, completed: bool) -> None:
        if self._reading is not None:
            self._reading.end(completed)

    def _spend(self, seconds: float) -> None:
        self._own += seconds

    @_quietly
    def _restart(self) -> None:
        if self._reading is not None:
            self._reading.restart()
            self._taps.restart()

    # The end of a step.

    @_quietly
    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if id(optimizer) in self._stepped:  # the others did not step this time
            self._waited = set(self._stepped)
            self.finish()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            return self._ready(optimizer)
        first = iter((True,))

        def evaluated() -> Any:  # the passes are inside of the step: what comes before the update comes after them
            result = closure()
            if next(first, False):
                self._ready(optimizer)
            return result

        return ((args[0], evaluated, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": evaluated})

    @_quietly
    def _ready(self, optimizer: Any) -> None:
        """Take what the update will change, and tell of it."""
        if self._stepped:
            return
        begun = time.perf_counter()
        if self._reading is not None and not self._read_before:
            self._norms.before(getattr(optimizer, "grad_scale", None))
            self._read_before = True
        self._own += time.perf_counter() - begun
        self._before_update(self.steps, self._losses.current())

    @_quietly
    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._stepped.add(id(optimizer))
        if self._waited <= self._stepped:
            self.finish()

    def finish(self) -> None:
        """End a step."""
        begun = time.perf_counter()
        reading = self._reading
        self._waited = set(self._stepped) or self._waited
        self._stepped.clear()
        learned = self._losses.current() is not None
        self._losses.end(self.steps)
        self._deliver(wait=False)
        if reading is not None:
            seen = bool(reading.calls) or self._taps.traced
            if not seen and learned:
                self._taps.tell("no block of the model was seen running, because something compiled it before")
            if seen or learned or self.sites:
                if self._together.several:  # the distance that all agreed on with the sample before this one
                    self._deliver(wait=True)
                    self.cadence.plan(self.steps, self._together.distance or self.cadence.every)
                else:
                    self.cadence.plan(self.steps)
                self._send(reading)
            self._disarm()
        self._clock.tick(reading is not None)
        self.steps += 1
        self._arm()
        self._own += time.perf_counter() - begun
        self._own += 0.0 if reading is None else reading.seconds
        self.cadence.count(reading is not None, own=self._own)
        self._own = 0.0
        for sampled, seconds in self._clock.read():
            self.cadence.timed(sampled, seconds)

    def _send(self, reading: Reading) -> None:
        if not self.sites:
            self._find_sites(reading)
        packed = self._norms.after() if self._read_before else None
        steps, losses = self._losses.take()
        scale = self._losses.scale()
        table, compiled = reading.table(len(self._places), self._device), self._taps.compiled(self._device)
        numbers = [table if compiled is None else table + compiled]
        numbers += [] if packed is None else [packed.values]
        numbers += [torch.stack([loss.to(self._device) for loss in losses])] if losses else []
        numbers += [] if scale is None else [scale.reshape(1)]
        lr = self._optimizers[0].param_groups[0]["lr"] if self._optimizers else None
        scalars = {} if lr is None or isinstance(lr, Tensor) else {"lr": float(lr)}
        numbers += [lr.detach().reshape(1)] if isinstance(lr, Tensor) else []
        names = ["loss_scale"] * (scale is not None) + ["lr"] * isinstance(lr, Tensor)
        sent = Sent(reading.step, numbers, packed, steps, names, {**scalars, **self._logged})
        sent.micro_batches = self._micro_batches.take()
        self._logged = {}
        self._pending.append(sent)
        if self._device.type == "cpu":
            self._deliver(wait=not self._together.several)

    def loss(self) -> Tensor | None:
        """Return the loss of the step that is under way."""
        return self._losses.current()

    def log(self, scalars: Mapping[str, float]) -> None:
        """Keep numbers for the next sample."""
        self._logged.update(scalars)

    def _find_sites(self, reading: Reading) -> None:
        seen = [i for i in self._taps.order if i >= 0]
        self._order = in_order(self._places, seen) if seen else list(range(len(self._places)))
        places = [self._places[i] for i in self._order]
        shapes = [reading.calls.get(i, ()) for i in self._order]
        owned = [tuple(dict.fromkeys(self._names[id(p)] for p in place.parameters())) for place in places]
        self.sites = tuple(
            Site(place.name, order, place.kind, shape, names)
            for order, (place, shape, names) in enumerate(zip(places, shapes, owned, strict=True))
        )
        at: dict[str, list[int]] = {}
        sizes = {self._names[id(p)]: p.dim() for p in original(self.model).parameters()}
        for site in self.sites:
            for name in site.parameters:
                if sizes[name] >= 2:
                    at.setdefault(name, []).append(site.order)
        self._where = pairs(self._norms.names, at)

    def _deliver(self, *, wait: bool, leaving: bool = False) -> None:
        while True:
            if self._together.pending:
                sample = self._together.receive(wait=wait, leaving=leaving)
                if sample is None:
                    return
                self._sampled(sample)
            elif self._pending and (wait or self._pending[0].ready()):
                self._together.send(self._measured(self._pending.pop(0)), self.sites)
            else:
                return

    def _measured(self, sent: Sent) -> Measured:
        table, packed, losses, named = sent.host(len(self._places))
        scalars = {**sent.scalars, **named}
        if not math.isnan(overhead := self.cadence.overhead):
            scalars["overhead"] = overhead
        return Measured(
            sent.step,
            sent.time,
            table[self._order],
            scalars.get("loss_scale", 1.0) * sent.micro_batches,
            packed,
            self._where,
            tuple(losses),
            scalars,
            self.cadence.wanted(),
        )
