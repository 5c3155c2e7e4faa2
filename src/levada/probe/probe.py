"""The probe: attach it to a model and an optimizer, run any training loop, read the trace."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from levada._errors import MeasurementError, UsageError, require_at_least
from levada.connection import require_module
from levada.probe.bookkeeping import Clearing, acts_by_mode
from levada.probe.collector import Collector
from levada.probe.compiled import eager, is_compiled
from levada.probe.damping import damped, eps_fraction
from levada.probe.noise import Noise
from levada.probe.operation import Execution, Operation
from levada.probe.parameters import ParameterReading
from levada.probe.reading import Reading, Readings
from levada.probe.recorder import Recorder
from levada.probe.sites import execution_from
from levada.probe.statistics import activity, limits, moments
from levada.probe.streams import Mixing
from levada.probe.taps import Plan, Taps, Target, plan_from, targets_of
from levada.probe.trace import Trace
from levada.stacking import LayerSlice, parameters_of

__all__ = ["Probe"]

_graph_task = getattr(torch._C, "_current_graph_task_id", None)  # private: without it, recomputation goes unmeasured


@final
class Probe:
    """Measure the signals of `SIGNALS` at every block boundary of a model, in any training loop.

    Run the loop, unchanged, inside `with Probe(model, optimizer, every=20) as probe`, and read `probe.trace()` after.

    A step ends with `optimizer.step()`; the forward passes before it (more than one under gradient accumulation) are
    averaged. Sampled are the steps 0, `every`, 2 `every`, ...; on the others nothing is attached to the model. The
    first sampled step also finds the blocks, as `record` does, and is slower. Passes without gradients (evaluation)
    are not counted, unless there are no others. A gradient or update that does not reach a place is zero there; what
    could not be measured is NaN, such as the gradients inside layers that recompute, in the first sampled step.
    Gradients are read as they arrive, and divided by the scale of `scaler`; passes whose step it skipped, because it
    lowered the scale, are left out. Where a loss was scaled and no scaler was given, `context["loss_scale"]` says so.

    Of layers that carry several streams the signals of `MIXING_SIGNALS` are measured too, at up to 64 tokens of each
    pass at an even stride, and the trace's context has, of the last sampled step and averaged over tokens, the `mixing`
    matrices and the `stream_weights` of reading and writing, by block. Layers that run compiled are left out of that;
    a sampled pass runs them as they are written, since compiled code has no boundaries to look at.

    Args:
        model: any module. It must be called as `model(...)`, and not only from inside a compiled function.
        optimizer: whose `step` ends a step; left out, call `probe.step()` after each backward pass.
        every: distance between sampled steps.
        scaler: what scales the loss, such as a `torch.amp.GradScaler`: anything with `get_scale()`. Reading it waits
            for the device, on sampled steps.
        noise: whether to measure `gradient_snr` over the sampled steps, which holds one copy of the gradients.

    Raises:
        UsageError: if `every` is below 1; on entering it, if parameters whose updates are to be read, or that are
            stacked, are divided among processes.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with Probe(model, optimizer) as probe:
        ...     for _ in range(2):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(4, 2)).sum().backward()
        ...         optimizer.step()
        >>> trace = probe.trace()
        >>> trace.steps, trace.names(), trace["gradient_rms"][0, 1].item()
        ((0, 1), ['0', '2'], 1.0)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 1,
        scaler: Any = None,
        noise: bool = False,
    ) -> None:
        require_module(model, "Probe")
        require_at_least("Probe", "every", every, 1)
        self.model = model
        self.optimizer = optimizer
        self.every = every
        self.steps = 0
        self.active = False
        self._plan: Plan | None = None
        self._recorder: Recorder | None = None
        self._taps: Taps | None = None
        self._reading: Reading | None = None
        self._readings = Readings()
        self._parameters: ParameterReading | None = None
        self._mixing = Mixing(model)
        self._clearing = Clearing(model) if optimizer is not None else None
        self._evaluated = 0  # passes without gradients in training mode
        self._signal = Collector(lambda stack: moments(stack, spread=True))
        self._activity = Collector(activity)
        self._gradient = Collector(lambda stack: moments(stack, spread=False))
        self._scaler = scaler
        self._noise = Noise() if noise else None
        self._handles: list[RemovableHandle] = []
        self._as_written: AbstractContextManager[object] | None = None

    @property
    def execution(self) -> Execution:
        """The blocks that the first sampled step found.

        Raises:
            MeasurementError: if the model was not called yet.
        """
        if self._plan is None:
            raise MeasurementError(
                f"Probe: no forward pass of the model ({type(self.model).__name__}) was seen on a sampled step. "
                "Enter the probe before the loop, and call the module that you gave to it; hooks added after "
                "torch.compile are not seen, so enter the probe before the first compiled call."
            )
        return self._plan.execution

    def __enter__(self) -> Self:
        if self.active:
            raise UsageError("Probe: this probe is already active. Leave its with-block first, or make another Probe.")
        self._require_whole()
        self.active = True
        if self.optimizer is not None:
            self._handles.append(self.optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(self.optimizer.register_step_post_hook(self._after_step))
        self._arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._disarm()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.active = False

    def step(self) -> None:
        """End a step, when the probe has no optimizer: call it after the update, before the gradients are zeroed.

        Raises:
            UsageError: if the probe has an optimizer, or is not active.
        """
        if self.optimizer is not None:
            raise UsageError(
                "Probe.step: this probe counts its optimizer's steps. Leave out the call, or the optimizer."
            )
        if not self.active:
            raise UsageError("Probe.step: the probe is not active. Call it inside `with Probe(model) as probe:`.")
        self._finish()

    def trace(self) -> Trace:
        """Return what was measured so far, in completed steps.

        Raises:
            MeasurementError: if no step was measured.
        """
        context: dict[str, Any] = {"optimizer": self._optimizer_name(), "every": self.every}
        if self._clearing is not None:
            context["accumulated"] = self._clearing.told()
            context["acting"] = tuple(name for name, m in self.model.named_modules() if acts_by_mode(m))
            context["evaluated_in_training"] = self._evaluated
            context["loss_scale"] = self._clearing.scale if self._scaler is None else 1.0
        trace = self._readings.trace(self.execution, context)
        return replace(trace, values={**trace.values, **self._at_the_end(trace)})

    def _at_the_end(self, trace: Trace) -> dict[str, Tensor]:
        """Return what is known of all steps together, in the row of the last: eps from the optimizer as it is now."""
        parameters = dict(parameters_of(self.model))
        counts = {n: damped(self.optimizer, p) for n, p in parameters.items()} if self.optimizer is not None else {}
        known = {name: count for name, count in counts.items() if count is not None and parameters[name].dim() >= 2}
        owned = [[n for n in site.parameters if n in parameters] for site in trace.sites]
        values = {name: torch.full_like(trace["signal_rms"], math.nan) for name in ("eps_fraction", "gradient_snr")}
        values["eps_fraction"][-1] = torch.tensor([eps_fraction(known, names) for names in owned], dtype=torch.float64)
        if self._noise is not None:
            values["gradient_snr"][-1] = self._noise.by_site(owned)
        return values

    def _optimizer_name(self) -> str | None:
        return None if self.optimizer is None else type(self.optimizer).__name__

    def _require_whole(self) -> None:
        """Raise if weights are to be read, or told apart by layer, of which each process has a part."""
        for name, parameter in parameters_of(self.model):
            divided = hasattr(parameter, "placements")
            if divided and (self.optimizer is not None or isinstance(parameter, LayerSlice)):
                raise UsageError(
                    f"Probe: parameters must be whole in this process, and {name} is divided among several, as by "
                    "fully_shard. Use levada.watch, which adds up what each has; or probe the model before."
                )

    # Arming: what is attached, and when.

    def _arm(self) -> None:
        if self.steps % self.every:
            return
        self._reading = Reading(self.steps, self.model.training)
        self._mixing.attach()
        if self._clearing is not None and self.steps:  # what was there before the first step is not known
            self._clearing.attach()
        if self._plan is None:
            self._search()
        elif self._taps is None:
            self._tap(self._plan)

    def _search(self) -> None:
        self._recorder = Recorder(
            self.model,
            on_start=self.begin,
            on_value=self._candidate,
            on_activation=self._candidate_activation,
            on_end=self._found,
        )
        self._recorder.attach()

    def _tap(self, plan: Plan) -> None:
        self._taps = Taps(self.model, plan, self)
        self._taps.attach()

    def _disarm(self, *, keep_taps: bool = False) -> None:
        if self._recorder is not None:
            self._recorder.detach()
        if self._taps is not None and not keep_taps:
            self._taps.detach()
            self._taps = None
        if keep_taps:
            self._mixing.clear()
        else:
            self._mixing.detach()
        if self._clearing is not None:
            self._clearing.detach()
        if self._reading is not None:
            self._reading.close()
        self._recorder = self._reading = self._parameters = None
        for collector in (self._signal, self._activity, self._gradient):
            collector.clear()

    # The first sampled pass: every value is a candidate, named by ~number.

    def _candidate(self, number: int, tensor: Tensor) -> None:
        self._watch(~number, tensor, at_once=True)

    def _candidate_activation(self, number: int, tensor: Tensor, operation: Operation, channel: int) -> None:
        if self._reading is not None:
            slot = self._reading.passes, ~number
            self._activity.add(slot, tensor, limits(operation.name, operation.options), channel, at_once=True)

    def _found(self, completed: bool) -> None:
        recorder = self._recorder
        if recorder is None or self._reading is None or not completed:
            self.end(completed)
            return
        execution = execution_from(recorder)
        self._plan = plan_from(recorder, execution)
        for number, targets in targets_of(recorder, execution).items():
            self._reading.assign(~number, targets)
        recorder.detach()
        self._recorder = None
        self.end(True)
        self._tap(self._plan)  # for further passes of this step

    # The passes of a sampled step.

    def begin(self) -> bool:
        """Say whether the pass that begins is to be measured: an evaluation without gradients is not."""
        if self._reading is None:
            return False
        if self.optimizer is None and self._parameters is None:
            self._read_parameters()
        if not torch.is_grad_enabled() and self.optimizer is not None:
            self._evaluated += self.model.training
            return False
        self._reading.begin(1.0 if self._scaler is None else float(self._scaler.get_scale()))
        self._mixing.begin(self._reading.passes)
        self._as_written = eager(any(is_compiled(m) for m in self.model.modules()))
        self._as_written.__enter__()
        return True

    def end(self, completed: bool) -> None:
        """Measure what is still held of the pass; forget the pass if it failed."""
        if self._as_written is not None:
            self._as_written.__exit__(None, None, None)
            self._as_written = None
        self._mixing.end()
        if self._reading is not None:
            self._signal.flush()
            self._activity.flush()
            if not completed:
                self._reading.abandon()

    def see(self, target: Target, tensor: Tensor) -> None:
        """Take a value of the current pass."""
        if target.signal:
            self._watch(target.site, tensor, at_once=target.at_once)
        elif target.activation is not None and self._reading is not None:
            slot = self._reading.passes, target.site
            self._activity.add(slot, tensor, *target.activation, at_once=target.at_once)

    def see_again(self, target: Target, tensor: Tensor) -> None:
        """Take the gradient of a value that only the recomputation of a checkpoint gives a graph."""
        reading = self._reading
        if reading is None or not target.signal or _graph_task is None or _graph_task() < 0:
            return
        slot = reading.passes, target.site
        if slot in reading.without_graph and tensor.requires_grad:
            reading.without_graph.discard(slot)
            self._watch_gradient(slot, tensor)

    def _watch(self, site: int, tensor: Tensor, *, at_once: bool) -> None:
        reading = self._reading
        if reading is None:
            return
        slot = reading.passes, site
        self._signal.add(slot, tensor, at_once=at_once)
        reading.values.append((slot, tensor.numel()))
        if tensor.requires_grad and torch.is_grad_enabled():
            self._watch_gradient(slot, tensor)
        else:
            reading.without_graph.add(slot)

    def _watch_gradient(self, slot: tuple[int, int], tensor: Tensor) -> None:
        reading, collector = self._reading, self._gradient
        assert reading is not None  # callers checked

        def hook(gradient: Tensor | None) -> None:
            if (
                reading.open and gradient is not None
            ):  # none comes where several outputs of one function are not all used
                reading.arrived.add(slot)
                collector.add(slot, gradient)

        reading.expected.add(slot)
        handle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]
        if tensor.is_leaf:  # no graph to die with
            reading.handles.append(handle)

    # The end of a step.

    def _read_parameters(self) -> None:
        self._parameters = ParameterReading(dict(parameters_of(self.model)))
        self._parameters.before()

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._reading is not None:
            if self._clearing is not None:
                self._clearing.before_step()
            self._read_parameters()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._finish()

    def _finish(self) -> None:
        reading, plan = self._reading, self._plan
        if reading is not None:
            if plan is not None and reading.passes:
                for collector in (self._signal, self._activity, self._gradient):
                    collector.flush()
                reading.take(self._signal.rows, self._activity.rows, self._gradient.rows)
                reading.take_mixing(self._mixing.samples)
                if self._noise is not None:
                    self._noise.add({n: p.grad for n, p in parameters_of(self.model) if p.dim() >= 2})
                if self._parameters is not None:
                    reading.take_parameters(*self._parameters.after())
                reading.lr = None if self.optimizer is None else self.optimizer.param_groups[0]["lr"]
                self._readings.add(reading, plan.execution.sites)
            self._disarm(keep_taps=(self.steps + 1) % self.every == 0)
        self.steps += 1
        self._arm()
