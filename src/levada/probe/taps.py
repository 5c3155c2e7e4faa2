"""Hooks at the block boundaries alone, so that a sampled step pays for what it measures and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from levada.probe.functions import canonical_name
from levada.probe.hook import Hook
from levada.probe.operation import Execution
from levada.probe.recorder import Recorder, first_floating
from levada.probe.statistics import Limits, limits

__all__ = ["Listener", "Plan", "Taps", "Target", "plan_from", "targets_of"]


@dataclass(frozen=True, slots=True)
class Target:
    """What to measure on one value.

    Attributes:
        site: index of the site.
        signal: whether the value is the site's boundary.
        activation: limits and channel dimension, if the value came out of an activation.
        at_once: whether something overwrites the value later.
    """

    site: int
    signal: bool
    activation: tuple[Limits, int] | None
    at_once: bool


Calls: TypeAlias = dict[int, list[Target]]


@dataclass(slots=True)
class Plan:
    """Where the values to measure can be seen.

    Attributes:
        execution: the blocks.
        outputs: module -> call -> targets in its output.
        inputs: module -> call -> (argument, target).
        functions: (module, call) -> (function, ordinal among its calls there) -> targets.
        shields: modules whose own functions must not be counted as those of the module that calls them.
    """

    execution: Execution
    outputs: dict[str, Calls] = field(default_factory=dict)
    inputs: dict[str, dict[int, list[tuple[int | str, Target]]]] = field(default_factory=dict)
    functions: dict[tuple[str, int], dict[tuple[str, int], list[Target]]] = field(default_factory=dict)
    shields: set[str] = field(default_factory=set)


def targets_of(recorder: Recorder, execution: Execution) -> dict[int, list[Target]]:
    """Return what to measure, by number of the value."""
    found: dict[int, list[Target]] = {}
    for site in execution.sites:
        boundary = execution.output_of[site.name]
        if boundary >= 0:
            found.setdefault(boundary, []).append(Target(site.order, True, None, boundary in recorder.changed))
        for operation in execution.operations[site.name]:
            if operation.kind == "activation" and operation.output in recorder.channel_dim:
                activation = limits(operation.name, operation.options), recorder.channel_dim[operation.output]
                target = Target(site.order, False, activation, operation.output in recorder.changed)
                found.setdefault(operation.output, []).append(target)
    return found


def plan_from(recorder: Recorder, execution: Execution, wanted: Mapping[int, Sequence[Target]] | None = None) -> Plan:
    """Choose for each value the cheapest place to see it: a module's output, an argument, a function's result.

    Args:
        recorder: after the model's forward.
        execution: the blocks found in it.
        wanted: what to measure, by number of the value; the blocks' signals and activations if None.
    """
    plan = Plan(execution)
    for number, targets in (targets_of(recorder, execution) if wanted is None else wanted).items():
        sightings = recorder.sightings.get(number, [])
        output = next((s for s in sightings if s.key is None), None)
        argument = next((s for s in sightings if s.key is not None), None)
        if output is not None:
            plan.outputs.setdefault(output.module, {}).setdefault(output.call, []).extend(targets)
        elif argument is not None and argument.key is not None:
            seen = plan.inputs.setdefault(argument.module, {}).setdefault(argument.call, [])
            seen.extend((argument.key, target) for target in targets)
        elif number in recorder.producers:
            event = recorder.producers[number]
            frame = event.frame
            plan.functions.setdefault((frame.name, frame.call), {})[event.function, event.ordinal] = list(targets)
            plan.shields.update(inner.name for inner in frame.frames())
            plan.shields.add(frame.name)
    return plan


class Listener(Protocol):
    """Who is told."""

    def begin(self) -> bool:
        """Say whether to measure the pass that begins."""

    def end(self, completed: bool) -> None:
        """Hear that the pass ended."""

    def see(self, target: Target, tensor: Tensor) -> None:
        """Hear of a value, in a pass."""

    def see_again(self, target: Target, tensor: Tensor) -> None:
        """Hear of a value outside a pass: recomputed in the backward pass, or not ours."""


class Taps(TorchFunctionMode):
    """The hooks of a plan. The function mode is entered only if the plan has functions.

    Args:
        model: the model.
        plan: where to look.
        listener: who is told.
    """

    def __init__(self, model: nn.Module, plan: Plan, listener: Listener) -> None:
        super().__init__()
        self._model = model
        self._plan = plan
        self._listener = listener
        self._names = {function for seen in plan.functions.values() for function, _ in seen}
        self._handles: list[RemovableHandle] = []
        self._calls: Counter[tuple[Literal["in", "out", "frame"], str]] = Counter()
        self._stack: list[tuple[str, int, Counter[str]]] = []
        self._depth = 0
        self._active = False
        self._entered = False

    def attach(self) -> None:
        """Put the hooks on the modules."""
        modules = dict(self._model.named_modules())
        keep = self._handles.append
        keep(self._model.register_forward_pre_hook(Hook(self._begin)))
        for name, inputs in self._plan.inputs.items():
            keep(
                modules[name].register_forward_pre_hook(
                    Hook(self._input(modules[name], name, inputs)), with_kwargs=True
                )
            )
        for name in self._plan.shields:
            keep(modules[name].register_forward_pre_hook(Hook(self._push(modules[name], name))))
        for name, outputs in self._plan.outputs.items():
            keep(modules[name].register_forward_hook(Hook(self._output(modules[name], name, outputs))))
        for name in self._plan.shields:
            keep(modules[name].register_forward_hook(Hook(self._pop(modules[name])), always_call=True))
        keep(self._model.register_forward_hook(Hook(self._end), always_call=True))

    def detach(self) -> None:
        """Remove the hooks and leave the function mode."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._close()

    def _close(self) -> None:
        self._active, self._depth = False, 0
        self._stack.clear()
        if self._entered:
            self._entered = False
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _begin(self, module: nn.Module, args: Any) -> None:
        if module is not self._model:
            return
        self._depth += 1
        if self._depth > 1 or not self._listener.begin():
            return
        self._active = True
        self._calls.clear()
        if self._names:
            self._entered = True
            self.__enter__()  # type: ignore[no-untyped-call]

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is not self._model or self._depth == 0:
            return
        self._depth -= 1
        if self._depth == 0 and self._active:
            self._close()
            self._listener.end(output is not None)

    def _tell(self, target: Target, tensor: Tensor | None) -> None:
        if tensor is None:
            return
        if self._active:
            entered, self._entered = self._entered, False
            self._listener.see(target, tensor)
            self._entered = entered
        else:
            self._listener.see_again(target, tensor)

    def _output(self, own: nn.Module, name: str, seen: Calls) -> Callable[..., None]:
        key: tuple[Literal["out"], str] = ("out", name)

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if module is not own:
                return
            if self._active:
                self._calls[key] += 1
            for target in (
                seen.get(self._calls[key] if self._active else 1, ()) if self._active or len(seen) == 1 else ()
            ):
                self._tell(target, first_floating(output))

        return hook

    def _input(self, own: nn.Module, name: str, seen: dict[int, list[tuple[int | str, Target]]]) -> Callable[..., None]:
        key: tuple[Literal["in"], str] = ("in", name)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is not own or not self._active:
                return
            self._calls[key] += 1
            for argument, target in seen.get(self._calls[key], ()):
                if isinstance(argument, int):
                    value = args[argument] if argument < len(args) else None
                else:
                    value = kwargs.get(argument)
                self._tell(target, value if isinstance(value, Tensor) else None)

        return hook

    def _push(self, own: nn.Module, name: str) -> Callable[..., None]:
        key: tuple[Literal["frame"], str] = ("frame", name)

        def hook(module: nn.Module, args: Any) -> None:
            if module is own and self._active:
                self._calls[key] += 1
                self._stack.append((name, self._calls[key], Counter()))

        return hook

    def _pop(self, own: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if module is own and self._stack:
                self._stack.pop()

        return hook

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the function, and look at what it returned if the plan says so."""
        result = function(*args, **(kwargs or {}))
        if not self._stack or not self._entered:
            return result
        name = canonical_name(function)
        if name in self._names:
            module, call, counts = self._stack[-1]
            counts[name] += 1
            for target in self._plan.functions.get((module, call), {}).get((name, counts[name]), ()):
                self._tell(target, first_floating(result))
        return result
