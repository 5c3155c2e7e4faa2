"""What a remedy is: a function that writes one change to a model or its training as code, which is then run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import nn

from levada.diagnose.facts import Facts
from levada.diagnose.loss import main_output
from levada.diagnose.report import Report
from levada.inputs import Batch

__all__ = ["Call", "Patch", "Remedy", "Subject", "calls"]

_PARTS = (
    ("build", "After building the model:"),
    ("optimizer", "After building the optimizer:"),
    ("step", "Between loss.backward() and optimizer.step():"),
)


@final
@dataclass(frozen=True, slots=True)
class Patch:
    """A change in code. The text is what is tried: there is no other form of it.

    Attributes:
        build: code that changes or replaces `model`; it may read `inputs`.
        optimizer: code that changes `optimizer`.
        step: code that runs once a step, when gradients are there.

    Example:
        >>> print(Patch(optimizer="optimizer.param_groups[0]['lr'] = 0.1"))
        # After building the optimizer:
        optimizer.param_groups[0]['lr'] = 0.1
    """

    build: str = ""
    optimizer: str = ""
    step: str = ""

    def __str__(self) -> str:
        parts = [(words, getattr(self, name)) for name, words in _PARTS]
        return "\n".join(f"# {words}\n{code}" for words, code in parts if code)

    def change(self, model: nn.Module, inputs: Any = None) -> nn.Module:
        """Run the code for the model, and return what `model` names after it.

        Args:
            model: changed in place, or replaced.
            inputs: what the model is called with, for code that reads it.
        """
        names = {"model": model, "inputs": inputs}
        exec(compile(self.build, "<remedy>", "exec"), names)
        changed: nn.Module = names["model"]
        return changed

    def prepare(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Run the code for the optimizer, and let each of its steps run the code for a step first.

        Args:
            optimizer: changed in place.
            parameters: what it was built on.
        """
        names = {"model": _Holder(parameters), "optimizer": optimizer}
        exec(compile(self.optimizer, "<remedy>", "exec"), names)
        if self.step:
            code = compile(self.step, "<remedy>", "exec")
            optimizer.register_step_pre_hook(lambda *_: exec(code, names))
        return optimizer


@final
@dataclass(frozen=True, slots=True)
class _Holder:
    """What code for a step may ask a model for."""

    held: Sequence[nn.Parameter]

    def parameters(self) -> Iterable[nn.Parameter]:
        return iter(self.held)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module in a forward pass.

    Attributes:
        name: the module's qualified name.
        module: the module.
        given: shape of its first input; () if that is no tensor.
        shape: shape of its output; () if that is no tensor.
        ends: whether its output is the model's own.
    """

    name: str
    module: nn.Module
    given: tuple[int, ...]
    shape: tuple[int, ...]
    ends: bool


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """What a remedy may look at before it writes a change.

    Attributes:
        model: the model as it is; a remedy writes code, and changes nothing itself.
        report: what the check found.
        facts: what it knows beside the signals.
        batches: what the model is run on.
        calls: the modules that ran, in the order in which they finished.
        seed: of what the change draws.
    """

    model: nn.Module
    report: Report
    facts: Facts
    batches: Sequence[Batch]
    calls: tuple[Call, ...]
    seed: int = 0

    @property
    def inputs(self) -> Any:
        """What `inputs` names in a patch: a tensor, a tuple of arguments, or a mapping; None if there are both."""
        first = self.batches[0]
        if first.args and first.kwargs:
            return None
        return dict(first.kwargs) if first.kwargs else first.args[0] if len(first.args) == 1 else first.args

    @property
    def generator(self) -> str:
        """Code for the random numbers of a change, which leaves the global ones alone."""
        device = next(self.model.parameters()).device
        return f"torch.Generator({'' if device.type == 'cpu' else repr(str(device))}).manual_seed({self.seed % 2**63})"

    @property
    def activations(self) -> frozenset[str]:
        """Names of the activation functions in use."""
        return frozenset(name for names in self.facts.activations.values() for name in names)

    @property
    def largest_update(self) -> float | None:
        """The optimizer's first step over the weights, at the block where it is largest; None if not known."""
        ratios = [block["update_ratio"] for block in self.report.blocks if block.get("update_ratio", 0.0) > 0]
        return max(ratios, default=None)

    def places(self, rule: str) -> list[str]:
        """Return where a rule first fired."""
        found = [f.where["first"] for f in self.report.findings if f.rule == rule and f.status == "fired" and f.where]
        return [place.partition("#")[0] for place in found]


Write: TypeAlias = Callable[[Subject], Patch | None]


@final
@dataclass(frozen=True, slots=True)
class Remedy:
    """A repair: the rules that it answers, how much it changes, and the function that writes it.

    Attributes:
        causes: names of rules.
        size: how much it changes: 1 a number of the training recipe, 2 one place of the model, 3 all weights, 4 what
            the model computes, 5 how its blocks are connected.
        write: returns the change for a subject, or None where it does not apply.
    """

    causes: frozenset[str]
    size: int
    write: Write

    @property
    def sentence(self) -> str:
        """What it does: the first line of its function's docstring."""
        return (self.write.__doc__ or "").strip().split("\n")[0].replace("`", "")


def calls(model: nn.Module, batch: Batch) -> tuple[Call, ...]:
    """Run a model once and return which modules ran.

    Args:
        model: a copy: its buffers may change.
        batch: what to run it on.

    Example:
        >>> [call.name for call in calls(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), Batch((torch.zeros(4, 2),)))]
        ['0', '1', '']
    """
    found: list[tuple[str, nn.Module, Any, Any]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, out: found.append((name, module, args[0] if args else None, out))

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            outputs = model(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    end = main_output(outputs)
    return tuple(Call(name, module, _shape(given), _shape(out), out is end) for name, module, given, out in found)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
