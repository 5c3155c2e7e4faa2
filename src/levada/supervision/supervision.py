"""Losses inside a network: heads at named sites, trained together with the output, gone in evaluation."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada.connection import require_module
from levada.supervision.head import Head, Loss, find_site, select_from, shape_of
from levada.supervision.schedules import Schedule, constant
from levada.supervision.taps import Taps

__all__ = ["Supervised", "Supervision"]


class Supervised(NamedTuple):
    """What a supervised model returns when it is given targets.

    Attributes:
        output: what the model returned.
        loss: the loss to train with.
        losses: its parts, unweighted and without gradient: "output", then in training each head by its site, also
            where its factor is 0.
    """

    output: Any
    loss: Tensor
    losses: dict[str, Tensor]


@final
class Supervision(nn.Module):
    """A model with intermediate losses.

    `loss = loss(model(x), targets) + sum_s weight_s schedule_s(progress, depth_s) loss_s(head_s(h_s), targets_s)`

    Here `h_s` is the output of site s. Call it with `targets=` where you called the model, and train its parameters,
    which are those of the model and of the heads. The model stays as it is, state dict and all: a forward hook lies on
    each site only while `supervised(..., targets=)` runs in training mode, behind the site's other hooks. So the model
    itself, a copy of it and a file of it have no hooks, in any mode. In evaluation the model alone runs, and the loss
    is the output's alone. The mode begins as the model's; model and supervision must be in the same one.

    Code that `torch.compile` traces through `supervised` cannot register hooks: they are put on the sites when it is
    traced, do nothing in other passes, and stay until `supervised.eval()`. Copies and files of the model that are made
    before have a function of Python's own in their place, which does nothing.

    A site that is called several times in a forward pass has its head at every call, and the mean of these losses. At a
    layer of a `Stack` a head is given what the stream would end in there, in a converted model what the next branch
    reads. A head whose factor is 0 runs without gradient: its loss is told, and its parameters get none (compiled they
    get zeros). With checkpointing the outputs of sites are kept. Under `torch.compile`, a site lies outside of segments
    that are checkpointed. Passes may run in several threads, as in `DataParallel`, if not compiled.

    Args:
        model: any module.
        heads: site -> head; sites are qualified names of modules, from the input to the output. A head is a module, or
            a `Head` where it has a task of its own.
        loss: `(output, targets) -> scalar`, for the output and for the heads without a loss of their own.
        weight: factor on each head's loss.
        schedule: `(progress, depth) -> factor` on each weight, finite and at least 0. `depth` is `i / (n + 1)` for
            head i of n in the order given, counted from 1: `l / L` for heads that lie evenly spaced in L layers.
        steps: number of training steps, which a schedule that is not constant needs; call `step()` after each.
        target: key of the output's target in the targets; left out, all targets.

    Raises:
        UsageError: if there is no such site, no head, an argument does not fit, or a schedule returns no factor.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> supervised = Supervision(model, {"1": nn.LazyLinear(3)}, nn.functional.cross_entropy)
        >>> output, loss, losses = supervised(torch.randn(5, 4), targets=torch.tensor([0, 1, 2, 0, 1]))
        >>> torch.allclose(loss, losses["output"] + 0.3 * losses["1"])
        True
        >>> supervised.eval()(torch.randn(5, 4)).shape, list(model.state_dict())[:2]
        (torch.Size([5, 3]), ['0.weight', '0.bias'])

    Source: Lee et al. 2015, arXiv 1409.5185; Szegedy et al. 2014, arXiv 1409.4842 (weight 0.3).
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Mapping[str, nn.Module | Head],
        loss: Loss,
        *,
        weight: float = 0.3,
        schedule: Schedule = constant,
        steps: int | None = None,
        target: Any = None,
    ) -> None:
        super().__init__()
        require_module(model, "Supervision")
        if not isinstance(heads, Mapping) or not heads:
            raise UsageError('Supervision: heads must map at least one site to a module, as {"layers.4": head}.')
        if not callable(loss):
            raise UsageError(
                f"Supervision: loss must be a function (output, targets) -> scalar, got {type(loss).__name__}. "
                "Pass one such as torch.nn.functional.cross_entropy."
            )
        given = {
            site: h if isinstance(h, Head) else Head(require_module(h, "Supervision")) for site, h in heads.items()
        }
        self._tasks = {site: head.completed(loss, weight, schedule) for site, head in given.items()}
        self._loss = loss
        self._target = target
        self._steps = steps
        self._step = 0
        for site in heads:
            find_site(model, site)
        if steps is None and any(head.schedule is not constant for head in self._tasks.values()):
            raise UsageError("Supervision: a schedule needs steps=, the number of training steps.")
        if steps is not None:
            require_at_least("Supervision", "steps", steps, 1)
        self.model = model
        self.heads = nn.ModuleDict({_key(site): head.module for site, head in self._tasks.items()})
        self.factors = self._factors_after(0)
        self._make_taps()
        self.train(model.training)

    def extra_repr(self) -> str:
        """Say the sites and their factors."""
        return ", ".join(f"{site}: {factor:g}" for site, factor in self.factors.items())

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return self._progress(self._step)

    def _progress(self, step: int) -> float:
        return 0.0 if self._steps is None else min(1.0, step / self._steps)

    def step(self) -> None:
        """End a training step: move the schedules on. Call it after the optimizer's step.

        Raises:
            UsageError: if a schedule returns what is no factor.
        """
        self._go_to(self._step + 1)

    def _go_to(self, step: int) -> None:
        self.factors = self._factors_after(step)
        self._step = step

    def _factors_after(self, step: int) -> dict[str, float]:
        factors = {}
        for place, (site, head) in enumerate(self._tasks.items(), 1):
            assert head.weight is not None  # both were completed
            assert head.schedule is not None
            progress, depth = self._progress(step), place / (len(self._tasks) + 1)
            factor = float(head.schedule(progress, depth))
            if not 0 <= factor < math.inf:
                raise UsageError(
                    f"Supervision: a schedule must return a finite number that is at least 0, and that of {site!r} "
                    f"returned {factor:g} at progress {progress:g} and depth {depth:g}."
                )
            factors[site] = float(head.weight * factor)
        return factors

    def get_extra_state(self) -> dict[str, int]:
        """Return how many steps are done: a part of the state dict."""
        return {"step": self._step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on from a state dict's step."""
        self._go_to(state["step"])

    def train(self, mode: bool = True) -> Self:
        """Put the model and the heads in training mode, or in evaluation mode."""
        super().train(mode)
        if not mode:
            self._traced.take_down()
        elif self._traced.handles:
            self._traced.hang(self.model)
        return self

    def _make_taps(self) -> None:
        self._idle: list[Taps] = []  # one set for each pass that runs at the same time, to be used again
        self._traced = Taps(self._tasks)  # what compiled code knows
        weakref.finalize(self, self._traced.take_down).atexit = False  # the model outlives it

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_idle", "_traced")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._make_taps()

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _hang_for_tracing(self) -> None:
        """Called while a compiler traces, which cannot register hooks in a graph."""
        self._traced.hang(self.model)

    def forward(self, *inputs: Any, targets: Any = None, **options: Any) -> Any:
        """Run the model on `inputs` and `options`.

        Args:
            *inputs: what the model is given.
            targets: of the output and the heads; left out, the model's output alone is returned.
            **options: what the model is given by name.

        Returns:
            The model's output; with targets, `Supervised(output, loss, losses)`.

        Raises:
            UsageError: if a site did not run, a head or loss does not fit, or the model is in another mode.
        """
        if targets is None:
            return self.model(*inputs, **options)
        self._require_one_mode()
        if not self.training:
            return self._add(self.model(*inputs, **options), {}, targets)
        compiling = torch.compiler.is_compiling()
        if compiling:
            self._hang_for_tracing()
        taps = self._traced if compiling else self._idle_taps()
        try:
            if not compiling:
                taps.hang(self.model)
            taps.begin(None if compiling else threading.get_ident())
            output = self.model(*inputs, **options)
            found = {site: taps.take(site, head.select, self.model) for site, head in self._tasks.items()}
        finally:
            taps.end()
            if not compiling:
                taps.take_down()
                self._idle.append(taps)
        return self._add(output, found, targets)

    def _idle_taps(self) -> Taps:
        try:
            return self._idle.pop()  # in one operation: passes may run in several threads
        except IndexError:
            return Taps(self._tasks)

    def _require_one_mode(self) -> None:
        if self.training != self.model.training:
            model, own = ("training", "evaluation") if self.model.training else ("evaluation", "training")
            raise UsageError(
                f"Supervision: the model is in {model} mode, and its supervision in {own} mode. Put both in one mode "
                "by supervised.train() or supervised.eval(); modules inside of the model may have another."
            )

    def output_loss(self, output: Any, targets: Any) -> Tensor:
        """Return the loss of the output alone.

        Args:
            output: what the model returned.
            targets: as `forward` takes them.
        """
        return _loss("the output", self._loss, output, _target(targets, self._target, "the output"))

    def _add(self, output: Any, found: Mapping[str, list[Any]], targets: Any) -> Supervised:
        loss = self.output_loss(output, targets)
        losses = {"output": loss.detach()}
        for site, values in found.items():
            factor, head = self.factors[site], self._tasks[site]
            own = _target(targets, head.target, f"the head at {site!r}")
            adds = factor != 0 or torch.compiler.is_compiling()
            with torch.set_grad_enabled(adds and torch.is_grad_enabled()):
                parts = [self._predict(site, value, head.loss, own) for value in values]
                mean = parts[0] if len(parts) == 1 else torch.stack(parts).mean()
            if adds:
                loss = loss + factor * mean
            losses[site] = mean.detach()
        return Supervised(output, loss, losses)

    def _predict(self, site: str, value: Any, loss: Loss | None, target: Any) -> Tensor:
        who, head = f"the head at {site!r}", self.heads[_key(site)]
        told = f"{who} cannot be given what its site returns, {shape_of(value)}; a part is chosen by Head(select=)"
        return _loss(who, loss, _called(told, head, value), target)


def _key(site: str) -> str:
    return "/" + site.replace(".", "/")  # names in a ModuleDict have no dots, and are none of its methods'


def _target(targets: Any, key: Any, who: str) -> Any:
    if key is None:
        return targets
    try:
        return select_from(targets, key, "targets") if not callable(key) else key(targets)
    except UsageError as error:
        raise UsageError(f"Supervision: the targets have no {key!r}, which {who} asks for.") from error


def _loss(who: str, loss: Loss | None, prediction: Any, target: Any) -> Tensor:
    assert loss is not None  # it was completed
    told = f"the loss of {who} cannot compare {shape_of(prediction)} with targets that are {shape_of(target)}"
    value = _called(told, loss, prediction, target)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UsageError(f"Supervision: the loss of {who} must return a scalar, got {shape_of(value)}. Take its mean.")
    return value if value.dim() == 0 else value.squeeze()


def _called(told: str, function: Callable[..., Any], *args: Any) -> Any:
    if torch.compiler.is_compiling():
        return function(*args)
    try:
        return function(*args)
    except UsageError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UsageError(f"Supervision: {told}: {str(error).splitlines()[0] if str(error) else error!r}.") from error
