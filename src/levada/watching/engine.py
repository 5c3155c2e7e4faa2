"""What watches a loop: it samples optimizer steps, and hands numbers on when they are on the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from levada.probe.trace import Site
from levada.watching.loop.clocks import Spent, StepClock
from levada.watching.loop.closure import before_its_update
from levada.watching.loop.ends import each_end
from levada.watching.loop.losses import Losses, in_backward
from levada.watching.loop.microbatches import MicroBatches
from levada.watching.loop.nested import Nested
from levada.watching.loop.overhead import Cadence
from levada.watching.loop.places import original
from levada.watching.loop.telling import failed, quietly
from levada.watching.loop.tracing import uncompiled
from levada.watching.loop.turns import Turn
from levada.watching.measure.coefficients import Coefficients
from levada.watching.measure.reading import Reading
from levada.watching.measure.sample import Sample
from levada.watching.measure.statistics import Statistics
from levada.watching.measure.structure import Structure
from levada.watching.measure.taps import Taps
from levada.watching.measure.together import Together
from levada.watching.measure.transfer import Sent
from levada.watching.measure.weights import Weights
from levada.watching.steps.left import step_left
from levada.watching.steps.passes import Passes
from levada.watching.steps.pauses import Pauses

__all__ = ["Engine"]

_SEARCHES = 2  # sampled steps before which it is looked for what was compiled since
_SKIPS = 10  # steps in a row that a scaler skipped, after which they are sampled: first it looks for its scale
_TOLD = 3  # updates in a row that did not happen, from which on listeners hear of their losses
_CAP = 64 * 2**20  # bytes of a pass's inputs, and of the gradient at its output, that are kept for a bundle


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
        self.model, self.cadence, self.steps = model, cadence, first
        self.updates, self.broken = 0, False  # steps of optimizers
        self.broke: Callable[[], None] = lambda: None  # called once it is
        self.left = before_update  # called for a step that is left before its update
        self.unfit: Callable[[], bool] = lambda: False  # whether the noted targets are not finite
        self._spent, self._statistics, self._turn, self._nested = Spent(), Statistics(), Turn(optimizers), Nested()
        self._device = next(p.device for p in model.parameters())
        self._clock = StepClock(self._device)
        self.passes = Passes(model, cap=_CAP, begin=self._begin, end=self._end, spent=self._spent.add, fail=self.fail)
        self.counts, self.spend, self._optimizers = self.passes.counts, self._spent.add, optimizers
        self._tell_before_update, self._sampled = before_update, sampled
        self.weights = Weights(structure := Structure(model), optimizers)
        self._structure, self._taps = structure, Taps(model, structure.places, self)
        self.coefficients = Coefficients(model, self._running, self._spent.add)
        self.micro_batches = batches = MicroBatches(original(model), self.restart)
        self.losses = Losses(
            model, optimizers, heard=self, parts=lambda: batches.divided, scaler=scaler, spent=self._spent.add
        )
        self.stepping, self.turn_of = (self._before_step, self._after_step), self._turn.of  # hooks of optimizers
        self.pauses = Pauses(self, cadence, self._clock, self.passes, self.losses, self._turn, self._arm)
        self.passes.awake, self.losses.own.awake = self._stir, partial(self._stir, late=True)
        self._together = Together(model, structure, cadence, sampled)
        self._reading: Reading | None = None
        self._heard = self._within = False  # of this step's update; of one in the backward pass that is running
        self._handles, self.logged = list[RemovableHandle](), dict[str, float]()  # numbers for the next sample

    @property
    def sites(self) -> tuple[Site, ...]:
        """The blocks in order of execution; none before the first sampled step."""
        return self._structure.sites

    # Attaching and detaching.

    def attach(self) -> None:
        """Watch from now."""
        self._together = Together(self.model, self._structure, self.cadence, self._sampled)
        before, after = self.stepping
        for each in self._optimizers:
            self._handles += each.register_step_pre_hook(before), each.register_step_post_hook(after)
        self.passes.attach()
        self.losses.open()
        self._clock.tick(None)
        self._arm()

    def detach(self, *, failed: bool = False) -> None:
        """Take everything off, and hand on what is still on its way.

        Args:
            failed: whether an exception ends the loop, so that other processes perhaps do not come here.
        """
        off = *(handle.remove for handle in self._handles), self._handles.clear, self.passes.detach, self.losses.close
        rest = self._turn.drop, partial(self._disarm, for_good=True), self.micro_batches.close
        told = partial(self._together.deliver, wait=True, leaving=failed), partial(self._together.close, failed=failed)
        ended = () if failed else (self._end_rested,)
        each_end(self.leave, partial(each_end, *off, again=True), *ended, partial(each_end, *rest, again=True), *told)

    def _arm(self, *, anyway: bool = False) -> None:
        self.passes.step(self.steps)
        if self._reading is None and not self.broken and (anyway or self.cadence.due(self.steps)):
            replaced = self._structure.read()
            if replaced:
                self._taps.detach(for_good=True)
                self._taps = Taps(self.model, self._structure.places, self)
            if self._device.type == "cpu":
                self._statistics.load(self.cadence.affords)
            at = self.steps, self._statistics, self.losses.own
            self._reading = Reading(*at, careful=not self.sites, fail=self.fail)
            self._taps.searching = replaced or self.cadence.samples < _SEARCHES
            self.losses.markers.mark(self._structure.parameters)
            self.losses.constant.open()
            self.passes.alike.open()
            self._taps.attach()
            self.coefficients.attach(searching=self._taps.searching)
            self.micro_batches.take()
            self.micro_batches.open()

    def _disarm(self, *, for_good: bool = False) -> None:
        self._taps.detach(for_good=for_good)
        self.coefficients.detach()
        if self._reading is not None:
            self._reading.close()
            self.losses.constant.close()
            self.passes.alike.close()
        self._reading = None
        self.weights.clear()

    def fail(self, error: Exception) -> None:
        """Measure no more, and say so; training goes on."""
        self.broken = True
        self._disarm(for_good=True)
        self._together.close(failed=True)
        failed(error, of=self.model, stacklevel=3)
        self.broke()

    def interrupted(self) -> None:
        """Drop what Ctrl-C broke off in the midst: a loop may go on, as in a notebook."""
        self._disarm(for_good=True)
        self._statistics = Statistics()

    # What the hooks tell.

    @quietly
    def see(self, place: int, tensor: Tensor, activation: bool, block: bool) -> None:
        """Take the output of an activation in a block, of the block, or of what is both."""
        begun = time.perf_counter()
        if self._reading is not None and self._reading.outside and not self.passes.inside():
            self._begin()
        if self._reading is not None:
            self._reading.see(place, tensor, activation=activation, block=block)
        self._spent.add(time.perf_counter() - begun)

    def tell_unseen(self, names: Sequence[str]) -> None:
        """Say why these blocks learn and are not seen to run."""
        self._taps.tell_unseen(names)

    def _running(self) -> int | None:
        """Return the number of the pass that is under way; None if what runs now does not count."""
        if self._reading is None or in_backward() or not self.counts():
            return None
        if self._reading.outside and not self.passes.inside():
            self._begin()
        return None if self._reading is None else self._reading.number

    @quietly
    def _begin(self) -> None:
        self.losses.own.follow()
        if not self.passes.apart():
            self._end_rested()
        if self._reading is not None:
            self._reading.begin()
            self.weights.begin()

    def _end_rested(self, *, late: bool = False) -> None:
        """End a step in which not all optimizers stepped: what follows belongs to the next one."""
        if self._turn.begun:
            self._spent.apart(self.finish)
            if self._reading is not None:  # what is compiled was entered already
                self._reading.late = late or self._taps.traced

    @quietly
    def _end(self, completed: bool) -> None:
        if self._reading is not None:
            self._reading.end(completed)

    @quietly
    def before_backward(self) -> None:
        """Hear of a backward pass that this model's thread is about to begin, of whichever model."""
        self._within = False
        if self._reading is not None:
            self._reading.backward()
            self.weights.begin()

    @quietly
    def learned(self, roots: Sequence[Tensor]) -> None:
        """Hear that a backward pass was this model's."""
        self.passes.learned(roots)
        if not self._within:
            self._end_rested(late=True)

    @quietly
    def ended(self) -> None:
        """Hear that a backward pass is over within which an optimizer stepped."""
        self._within = False
        if self._turn.complete:
            self._spent.apart(self.finish)

    @quietly
    def restart(self) -> None:
        """Hear that the gradients of this step were cleared, or those of one in which an optimizer rested."""
        self.passes.skips.cleared()
        if self._turn.begun:
            self._end_rested(late=True)
        elif self._reading is not None:
            self._reading.restart()
            self._taps.restart()

    # The end of a step.

    @uncompiled
    @quietly
    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if self._nested.enters(optimizer) or self.pauses.before(optimizer, args, kwargs):
            return None
        first = in_backward() and not self._within
        if first or (optimizer in self._turn and not in_backward()):  # the others did not step this time
            self._end_rested(late=True)
            self._spent.restart()  # nothing is being counted here
        if first:
            self._within, self.cadence.pauses = True, False
            self.losses.claim()
        return before_its_update(args, kwargs, lambda: self._ready(optimizer))

    @quietly
    def _ready(self, optimizer: Any) -> None:
        """Take what the update will change, and tell of it."""
        if self.pauses.on:
            return
        begun = time.perf_counter()
        if self._reading is not None:
            self.weights.before(optimizer, within=in_backward(), scaled=self.losses.scale() is not None)
        if not self._heard:
            self._heard = True
            self._tell_before_update(self.steps, self.losses.current())
        self._spent.add(time.perf_counter() - begun)

    @uncompiled
    @quietly
    def _after_step(self, optimizer: Any, args: Any = (), kwargs: Any = None) -> None:
        self.updates += 1
        if self._nested.leaves(optimizer) or self.pauses.pass_by():
            return
        if not self.pauses.stepped(optimizer):
            self.weights.count(optimizer)
        else:
            begun = time.perf_counter()
            self.weights.after(optimizer)
            self.losses.stepped(optimizer)
            self.passes.updated(self.steps)
            self._spent.add(time.perf_counter() - begun)
        if self._turn.complete:
            self.finish()

    @quietly
    def skip(self, optimizer: Any) -> None:
        """Hear that a scaler did not let an optimizer step: its step ends all the same."""
        inner = getattr(optimizer, "optimizer", optimizer)
        self.pauses.part(inner)
        if not self._turn.awaits(inner):
            return
        self.pauses.end()
        self.cadence.hear(self.steps)
        if self._turn.skips + 1 >= _TOLD:
            self._ready(inner)
        begun = time.perf_counter()
        self.weights.after(inner)
        self._spent.add(time.perf_counter() - begun)
        self.pauses.stepped(inner, skipped=True)
        if self._turn.complete:
            self.finish()

    @quietly
    def leave(self, again: Callable[[], object] | None = None, loss: Tensor | None = None) -> None:
        """Tell of a step that is left before its update because its loss or a gradient is not finite.

        Args:
            again: makes the gradients anew, sampled, to know the block; all of several processes give it, or none.
            loss: of the step, if it was not seen.
        """
        paused, asked = self.pauses.on, again is not None
        nothing = self.pauses.leave(anew=asked) and loss is None
        if loss is not None:
            self._end_rested()  # it is of the next step
        if self._heard or nothing:
            return
        bad, loss = step_left(self.losses, self.passes, self.model, loss, self.unfit, asked=asked, paused=paused)
        if bad:
            self.left(self.steps, loss)
        if loss is not None and again is not None:
            self._disarm()
            self._arm(anyway=True)
            again()
        sampled = asked or (bad and not self._together.several)
        if self._reading is not None and loss is not None and sampled:
            self.weights.left()
            self.losses.end(self.steps)
            self._send(self._reading)
            self._together.deliver(wait=True)
            self._disarm()

    def finish(self) -> None:
        """End a step."""
        if self.pauses.on:
            self.pauses.step()
            return
        begun = time.perf_counter()
        reading = self._reading
        self.passes.updated(self.steps)
        self._turn.end(self.steps)
        self._heard = False
        learned = self.losses.current() is not None
        self.losses.end(self.steps)
        self._together.deliver(wait=False)
        if reading is not None and (reading.late or 0 < self._turn.skips < _SKIPS or self._structure.outdated):
            self._disarm()  # the next step is sampled in its place
        elif reading is not None:
            seen = bool(reading.calls) or self._taps.traced
            if seen or self._taps.blind(learned=learned) or self.sites:
                # The distance that all agreed on with the sample before this one.
                self._together.meet(self.steps, sampled=True)
                self._send(reading, learned=learned)
            self._disarm()
        elif self.cadence.meets(self.steps):
            self._together.meet(self.steps, sampled=False)
        self._clock.tick(reading is not None)
        self.steps += 1
        self._arm()
        self._spent.add(time.perf_counter() - begun + (0.0 if reading is None else reading.seconds))
        self.cadence.count(reading is not None, own=self._spent.take())
        self.cadence.take(self._clock)
        if self._reading is None and not (self._together.sent or self._together.several):
            self.pauses.begin()

    @quietly
    def _stir(self, *, late: bool = False) -> None:
        """Hear steps again, as a pass begins: one of an earlier pass is sampled late."""
        self.pauses.stir()
        if self._reading is not None:
            self._reading.late = late or self._taps.traced

    def _send(self, reading: Reading, *, learned: bool = True) -> None:
        self._structure.run(self._taps.order, reading.calls, reading.tanh)
        packed = self.weights.take(learned=learned)
        steps, losses = self.losses.take()
        table, compiled = reading.table(len(self._structure.places), self._device), self._taps.compiled(self._device)
        numbers = [table if compiled is None else table + compiled]
        numbers += [] if packed is None else [packed.values]
        numbers += [torch.stack([loss.to(self._device) for loss in losses])] if losses else []
        lr = self._optimizers[0].param_groups[0]["lr"] if self._optimizers else None
        alike = self.passes.alike.of(self.losses.constant.each or self.losses.constant.targets)
        of = losses[-1] if losses and steps[-1] == reading.step else None
        named = self.losses.known(of, lr=lr, alike_rows=alike, input_rms=self.passes.alike.size())
        also = self.coefficients.pack(reading.counted, self._device), self._structure.where
        sent = Sent(reading.step, numbers, packed, steps, {**named, **self.logged}, *also)
        sent.micro_batches, sent.tanh = self.micro_batches.take(), self._structure.tanh
        self.logged = {}
        self._together.sent.append(sent)
        if self._device.type == "cpu":
            self._together.deliver(wait=not self._together.several)
