"""Run a kept step again: the same weights, inputs and random numbers, with everything measured."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError
from levada._names import NONFINITE
from levada.diagnose import Report
from levada.diagnose.loss import LossLike, resolve_loss
from levada.inputs import Batch, each_tensor, raised, require_model
from levada.ops._define import plain_operations
from levada.probe import Probe, Trace
from levada.probe.origin import Origin, Origins, behind
from levada.probe.recorder import first_floating
from levada.runs.bundles import require_runnable
from levada.watching.measure.broken import broken_parameters
from levada.watching.measure.given import Unfit, listed
from levada.watching.rerun.replayed import far_off, found_again, unfit_data
from levada.watching.rerun.retried import retried, unjudged
from levada.watching.verdict.bundle import Bundle, read_bundle

__all__ = ["Replay", "replay", "require_alone"]

_SIGNALS: Final = (
    "signal_rms",
    "signal_spread",
    "gradient_rms",
    "weight_rms",
    "weight_gradient_rms",
    "zero_fraction",
    "nonfinite",
    "gradient_nonfinite",
)
_NAMED: Final = 3  # parameters that a message names


@final
@dataclass(frozen=True, slots=True)
class Replay:
    """A step that was run again.

    Attributes:
        bundle: what was kept of it.
        loss: its loss now; NaN also if no loss function was given.
        trace: every signal of `SIGNALS` at every block.
        origin: the operation that makes the first NaN or Inf; None if all is finite, or it was there from the start.
        report: the verdict, the findings and the signals by block.
    """

    bundle: Bundle
    loss: float
    trace: Trace
    origin: Origin | None
    report: Report


def replay(bundle: str | Path | Bundle, model: nn.Module, loss: LossLike = None, *, as_built: bool = False) -> Replay:
    """Run the forward and backward pass of a kept step again, with a full probe.

    The model is given the bundle's weights and modes. The backward pass starts at the loss, or, without a loss
    function, at the gradient that arrived at the model's output.

    Args:
        bundle: its folder, its address, or what `read_bundle` returned.
        model: a model of the same class and shapes.
        loss: callable of outputs and the noted targets, or of outputs alone where none were noted; "cross_entropy",
            "mse" or "output", as for `check`.
        as_built: run with the model's weights, which are left as they are: for a bundle that names a checkpoint, which
            the model has loaded already.

    Raises:
        UsageError: if it is no bundle, or damaged, or the model does not fit, or weights or inputs were not kept.
        MeasurementError: if the forward pass raises.
    """
    begun = time.perf_counter()
    kept = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    model = require_model(model, "replay")
    require_runnable(kept.values, kept.missing, kept.checkpoint, as_built=as_built)
    run = _Run(kept, model, loss, as_built=as_built)
    with plain_operations(), run.prepared(), Origins(model) as origins:
        value = run.once()
    broken = broken_parameters(model)  # of the weights as they were loaded: nothing moves them here
    with run.prepared(), Probe(model) as probe:
        run.once()
        probe.step()
    trace = probe.trace()
    now = None if run.loss is None else value
    data = unfit_data(kept, model)
    bad = bool((trace["gradient_nonfinite"] > 0).any() or (trace["nonfinite"] > 0).any())
    origin = origins.first if bad or not (now is None or math.isfinite(now)) else None
    between = behind(origins, trace)
    findings = found_again(kept, trace, now, origin, broken, data, between)
    again = retried(kept, model, run.once, run.prepared) if run.loss is not None and not data else None
    if again is not None and (shown := again.finding(kept)) is not None:
        findings = (*findings, shown)
    fired = {finding.severity for finding in findings}
    untried = {} if any(finding.rule == kept.rule for finding in findings) else unjudged(kept, again)
    report = Report(
        verdict="error" if "error" in fired else "warn" if "warn" in fired else "unknown" if untried else "healthy",
        findings=findings,
        blocks=tuple(block if between is None else between.own(block) for block in _blocks(trace)),
        summary={"depth": len(trace.sites)},
        notes=(
            *_notes(kept, value, run, broken, data),
            *([between.told()] if between is not None else []),
            *([again.told] if again is not None and kept.rule not in untried else []),
            *(f"Not judged: {rule}: {why.rstrip('.')}." for rule, why in untried.items()),
        ),
        model=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=time.perf_counter() - begun,
        settings={"step": kept.step, "loss_value": now},
        unknown=untried,
    )
    return Replay(kept, value, trace, origin, report)


@final
class _Run:
    """The step, as often as it is asked for."""

    def __init__(self, bundle: Bundle, model: nn.Module, loss: LossLike, *, as_built: bool) -> None:
        self.bundle, self.model, self.loss = bundle, model, loss
        # Those of a model that has its own are put back as they were: passes write buffers, and steps weights.
        own = {name: copy.deepcopy(value) for name, value in model.state_dict().items()} if as_built else None
        self._weights = bundle.values["weights"] if own is None else own
        device = next(model.parameters()).device
        names = ("args", "kwargs", "targets", "output_gradient")
        self._given = {name: each_tensor(bundle.values.get(name), lambda t: t.to(device)) for name in names}
        self._device = device
        if not as_built:
            _require_fit(model, self._weights)

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """Give the model weights and modes, and the generators their state; put the weights and the generators back."""
        self.model.load_state_dict(self._weights)
        for name, mode in self.bundle.training.items():
            with contextlib.suppress(AttributeError):  # a module that a wrapper had, and the model does not
                self.model.get_submodule(name).train(mode)
        self.model.zero_grad()
        states = self.bundle.values.get("random_state", {})
        here = {d: s for d, s in states.items() if d == "cpu" or torch.cuda.is_available()}
        with torch.random.fork_rng([int(d.partition(":")[2]) for d in here if d != "cpu"]):
            for device, state in here.items():
                _set_random_state(device, state)
            try:
                yield
            finally:
                self.model.load_state_dict(self._weights)

    def once(self) -> float:
        """Run forward and backward; return the loss, NaN where there is no loss function."""
        fresh = each_tensor(self._given["args"], Tensor.clone), each_tensor(self._given["kwargs"] or {}, Tensor.clone)
        types: Mapping[str, str] = self.bundle.facts.get("autocast", {})
        with torch.enable_grad(), contextlib.ExitStack() as stack:
            for device, dtype in types.items():
                if device == self._device.type:
                    stack.enter_context(torch.autocast(device, _precision(dtype)))
            try:
                outputs = self.model(*fresh[0], **fresh[1])
                loss = self._loss(outputs, *fresh)
            except UsageError as error:
                raise UsageError(str(error).replace("check:", "replay:", 1)) from error
            except Exception as error:
                raise MeasurementError(f"replay: the forward pass raised {raised(error)}") from error
        if loss is not None:
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())
        gradient, main = self._given["output_gradient"], first_floating(outputs)
        if gradient is not None and main is not None and main.requires_grad:
            if gradient.shape != main.shape:
                raise UsageError(
                    f"replay: the kept gradient is of an output of shape {tuple(gradient.shape)}, and the model gives "
                    f"{tuple(main.shape)}. Give the model that was trained."
                )
            main.backward(gradient.to(main.dtype))  # type: ignore[no-untyped-call]
        return math.nan

    def _loss(self, outputs: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        if self.loss is None:
            return None
        targets = self._given["targets"]
        if targets is None and callable(self.loss):
            function: Callable[[Any], Tensor] = self.loss  # type: ignore[assignment]
            require_alone(function)
            try:
                return function(outputs)
            except TypeError as error:
                raise UsageError(
                    f"replay: the bundle holds no targets, so that loss is given the outputs alone, and it raised "
                    f"{raised(error)} Watch.note(targets=targets) keeps them with the next bundle."
                ) from error
        batch = Batch(args, kwargs, targets)
        resolved = resolve_loss(self.loss, outputs, batch)
        return None if resolved is None else resolved(outputs, batch)


def require_alone(loss: Callable[..., Any]) -> None:
    """Raise unless a loss takes the outputs alone, as it must where no targets were noted.

    Args:
        loss: the function; one that Python cannot read is not judged.

    Raises:
        UsageError: if it takes more.
    """
    try:
        taken = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):
        return
    try:
        taken.bind(None)
    except TypeError:
        name = getattr(loss, "__name__", type(loss).__name__)
        raise UsageError(
            "replay: the bundle holds no targets, so that the loss must be a function of the outputs alone, got "
            f"{name}{taken}. Leave it out: the backward pass then begins at the gradient that was kept, if one was. "
            "Watch.note(targets=targets) keeps them with the next bundle."
        ) from None


def _set_random_state(device: str, state: Tensor) -> None:
    try:
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UsageError(
            f"replay: the bundle's random state of {device} must be one of this PyTorch's generator, which refused "
            f"it ({error}). Replay it with the version that facts.versions in its bundle.json names."
        ) from error


def _precision(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UsageError(
            f"replay: the bundle's facts.autocast must name floating types of PyTorch, as bfloat16, got {name!r}. "
            "Its bundle.json is damaged."
        )
    return dtype


def _require_fit(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    other = [name for name in weights if name in own and own[name].shape != weights[name].shape]
    if other:
        first = other[0]
        raise UsageError(
            f"replay: the model's shapes must be the bundle's, and {len(other)} differ: {first} is "
            f"{tuple(own[first].shape)} here and {tuple(weights[first].shape)} in the bundle. "
            "Build it as it was trained."
        )
    lacking, unknown = [n for n in weights if n not in own], [n for n in own if n not in weights]
    if lacking or unknown:
        what = [
            f"{', '.join(names[:_NAMED])} {where}"
            for names, where in ((lacking, "only in the bundle"), (unknown, "only in the model"))
            if names
        ]
        raise UsageError(
            f"replay: the model's parameters must be the bundle's, and there are {' and '.join(what)}. "
            "Build it as it was trained."
        )


def _blocks(trace: Trace) -> Iterator[dict[str, Any]]:
    means = {signal: trace[signal].nanmean(0).tolist() for signal in _SIGNALS}
    for i, site in enumerate(trace.sites):
        block: dict[str, Any] = {"site": site.name, "order": site.order, "kind": site.kind, "shape": list(site.shape)}
        hurt = {signal: means[bad][i] > 0 for signal, bad in NONFINITE.items()}
        # What is NaN was not measured, unless the numbers themselves are not finite.
        yield block | {s: values[i] for s, values in means.items() if not math.isnan(values[i]) or hurt.get(s)}


def _notes(kept: Bundle, loss: float, run: _Run, broken: Mapping[str, str], data: list[Unfit]) -> Iterator[str]:
    yield f"Step {kept.step} again. It was kept because: {kept.reason}"
    if len(broken) == 1:
        yield f"The parameter {next(iter(broken))} held NaN or Inf before the step."
    elif broken:
        yield f"{len(broken)} parameters held NaN or Inf before the step, {next(iter(broken))} first."
    if data:
        yield f"Of what the step was given, {listed(data)}."
    elif off := far_off(kept, run.model):
        yield off
    if run.loss is not None and not math.isnan(kept.loss):
        number = int(kept.facts.get("pass", 1))
        part = f" Here it is that of pass {number} of the step alone, and was that of the whole step." * (number > 1)
        yield f"The loss is {loss:.8g}, and was {kept.loss:.8g}.{part}"
    elif run.loss is None and "output_gradient" in kept.values:
        yield "The backward pass began at the kept gradient of the output; with --loss it begins at the loss."
    elif run.loss is None:
        yield "No gradient of the output was kept and no loss given: the forward pass alone was run."
    for name, why in kept.missing.items():
        yield f"Not kept: {name}, {why}."
