"""What a remedy is: a function that writes one change to a model or its training as code, which is then run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import nn

from levada.diagnose.facts import Facts
from levada.diagnose.loss import Loss, main_output
from levada.diagnose.report import Report
from levada.inputs import Batch

__all__ = ["Call", "Patch", "Remedy", "Subject", "adjusted", "calls"]

_PARTS = (
    ("build", "After building the model:"),
    ("loss", "Where `loss`, a function of outputs and targets, is chosen:"),
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
        loss: code that replaces `loss`, a function of outputs and targets; it may call the one that was there.
        measure: code that makes of `loss` what outputs without the change are judged by, where the change gives them
            another meaning; no part of the text.
        says: what it does, with its numbers, if that is more than its remedy says of itself.
        judged: what both sides are judged by, in words, where it is not the loss that was given.

    Example:
        >>> print(Patch(optimizer="optimizer.param_groups[0]['lr'] = 0.1"))
        # After building the optimizer:
        optimizer.param_groups[0]['lr'] = 0.1
    """

    build: str = ""
    optimizer: str = ""
    step: str = ""
    loss: str = ""
    measure: str = ""
    says: str = ""
    judged: str = ""

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

    def adjust(self, loss: Loss) -> Loss:
        """Run the code for the loss, and return what `loss` names after it.

        Args:
            loss: left as it is.
        """
        return adjusted(loss, self.loss)

    def loss_function(self, loss: Loss) -> Callable[[Any, Any], torch.Tensor]:
        """Return what `loss` names after the code for it has run, as a training loop calls it.

        Args:
            loss: left as it is.
        """
        return _made(loss, self.loss)

    def then(self, other: Patch) -> Patch:
        """Return this change with another one after it.

        Args:
            other: written for what this one leaves.

        Example:
            >>> print(Patch(build="model.train()").then(Patch(build="model.half()")))
            # After building the model:
            model.train()
            model.half()
        """
        joined = {name: "\n".join(filter(None, (getattr(self, name), getattr(other, name)))) for name, _ in _PARTS}
        marks = (self.measure or self.loss, other.measure or other.loss)
        measure = "\n".join(filter(None, marks)) if self.measure or other.measure else ""
        says = " ".join(filter(None, (self.says, other.says)))
        return Patch(**joined, measure=measure, says=says, judged=self.judged or other.judged)

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


def adjusted(loss: Loss, code: str) -> Loss:
    r"""Return what `loss` names after code has run, for outputs and targets as the given one takes them.

    Args:
        loss: left as it is.
        code: replaces `loss`, a function of outputs and targets.

    Example:
        >>> given = Loss("mse", lambda outputs, batch: (outputs - batch.targets).square().mean())
        >>> code = "def loss(outputs, targets, given=loss):\n    return 2 * given(outputs, targets)"
        >>> adjusted(given, code)(torch.ones(2), Batch(targets=torch.zeros(2))).item()
        2.0
    """
    if not code:
        return loss
    made = _made(loss, code)
    return Loss("loss", lambda outputs, batch: made(outputs, batch.targets), takes_tensor=True)


def _made(loss: Loss, code: str) -> Callable[[Any, Any], torch.Tensor]:
    names: dict[str, Any] = {"loss": lambda outputs, targets: loss.function(outputs, Batch(targets=targets))}
    exec(compile(code, "<remedy>", "exec"), names)
    made: Callable[[Any, Any], torch.Tensor] = names["loss"]
    return made


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
        loss: what is lowered; None if not known.
    """

    model: nn.Module
    report: Report
    facts: Facts
    batches: Sequence[Batch]
    calls: tuple[Call, ...]
    seed: int = 0
    loss: Loss | None = None

    @property
    def outputs(self) -> torch.Tensor | None:
        """What the model returns for the first batch, if that is one floating tensor."""
        batch = self.batches[0]
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            found = self.model(*batch.args, **batch.kwargs)
        return found if isinstance(found, torch.Tensor) and found.is_floating_point() else None

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
