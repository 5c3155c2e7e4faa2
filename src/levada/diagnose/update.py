"""The optimizer's first update, computed on copies: how far each parameter would move, and which bits would change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada._names import meant
from levada.inputs import raised
from levada.probe.damping import damped, eps_fraction
from levada.probe.trace import Trace

__all__ = [
    "DEFAULT",
    "Assumed",
    "Named",
    "OptimizerLike",
    "Update",
    "altered",
    "first_update",
    "parameter_signals",
    "require_rate",
    "resolve_optimizer",
    "warmed",
]

Factory: TypeAlias = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OptimizerLike: TypeAlias = str | Factory | None
DEFAULT = "AdamW"
SPARSE = "SGD"  # of the optimizers for dense and sparse gradients, the plainest


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer step from the measured gradients, without weight decay, which carries no learning signal.

    Attributes:
        optimizer: the optimizer's class name.
        lr: its learning rate, of the first group.
        eps: what it adds to the root of its second moment; None if it has no such term.
        after: parameter name -> its value after the step.
        squares: parameter name -> (sum of squared updates, sum of squared values, elements that have a gradient and are
            left as they were, elements that have a gradient).
        damped: parameter name -> (elements that eps holds back, elements that have a gradient), where it has a second
            moment.
        peak: the largest learning rate of the first group that a scheduler keeps there; `lr` without one.
        shrunk: size of the gradients that the step used, over that of those it was given; 1 unless a hook clips them.
    """

    optimizer: str
    lr: float
    eps: float | None
    after: Mapping[str, Tensor]
    squares: Mapping[str, tuple[float, float, int, int]]
    damped: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    peak: float = 0.0
    shrunk: float = 1.0

    def ratio(self, names: Iterable[str]) -> float:
        """Return the root mean square of the update over that of the values, for all the named parameters together."""
        moved, held, _, _ = self._total(names)
        return math.sqrt(moved / held) if held > 0 else math.nan

    def lost(self, names: Iterable[str]) -> float:
        """Return the share of the elements with a gradient that the update leaves as they were, bit for bit."""
        _, _, same, count = self._total(names)
        return same / count if count else math.nan

    def _total(self, names: Iterable[str]) -> tuple[float, float, int, int]:
        known = [self.squares[name] for name in names if name in self.squares]
        return (sum(k[0] for k in known), sum(k[1] for k in known), sum(k[2] for k in known), sum(k[3] for k in known))


def require_rate(lr: float | None) -> None:
    """Raise unless `lr` is None or a positive number.

    Raises:
        UsageError: otherwise.

    Example:
        >>> require_rate(0.0)
        Traceback (most recent call last):
        levada._errors.UsageError: check: lr must be a positive finite number, got 0.0.
    """
    if lr is not None and not (isinstance(lr, int | float) and not isinstance(lr, bool) and 0 < lr < math.inf):
        raise UsageError(f"check: lr must be a positive finite number, got {lr!r}.")


def resolve_optimizer(optimizer: OptimizerLike, lr: float | None) -> Factory:
    """Return a function that builds the optimizer on given parameters.

    Args:
        optimizer: a name in `torch.optim`, a callable of parameters, or None for AdamW (SGD for sparse gradients).
        lr: learning rate; the optimizer's own default if None.

    Raises:
        UsageError: if the name is unknown, or the argument is neither.

    Example:
        >>> resolve_optimizer("sgd", 0.1)([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"]
        0.1
    """
    require_rate(lr)
    if optimizer is None:
        return Assumed(lr)
    if isinstance(optimizer, str):
        kind = _named(optimizer)
        return Named(kind, lr)
    if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
        raise UsageError(
            "check: optimizer must be a name in torch.optim or a callable that builds one from parameters, got "
            f"{type(optimizer).__name__}. For example: lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
        )
    factory = optimizer

    def build(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        built = factory(parameters)
        if lr is not None:
            for group in built.param_groups:
                group["lr"] = lr
        return built

    return build


@final
@dataclass(frozen=True, slots=True)
class Assumed:
    """Builds the optimizer that nobody chose: AdamW, or SGD for parameters of which some have sparse gradients."""

    lr: float | None

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Build it on parameters that hold their gradients."""
        given = list(parameters)
        kind = _named(SPARSE if any(p.grad is not None and p.grad.is_sparse for p in given) else DEFAULT)
        built: torch.optim.Optimizer = kind(given, **({} if self.lr is None else {"lr": self.lr}))
        return built


def warmed(factory: Factory) -> Factory:
    """Return a function that builds the same optimizer at the rates to which a warm-up leads.

    Args:
        factory: builds the optimizer; where it makes a scheduler, that one keeps the rates in the groups.

    Example:
        >>> def build(parameters):
        ...     optimizer = torch.optim.SGD(parameters, lr=0.1)
        ...     torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)
        ...     return optimizer
        >>> weights = [nn.Parameter(torch.ones(1))]
        >>> build(weights).param_groups[0]["lr"], warmed(build)(weights).param_groups[0]["lr"]
        (0.0, 0.1)
    """
    return altered(factory, lambda group: {"lr": _peak(group)})


def altered(factory: Factory, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Factory:
    """Return a function that builds the same optimizer with other settings.

    Args:
        factory: builds the optimizer.
        change: settings of a group -> those that are to be others; what a group does not have is left out.

    Example:
        >>> slower = altered(torch.optim.SGD, lambda group: {"lr": 0.1 * group["lr"], "betas": (0.0, 0.0)})
        >>> slower([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"]
        0.0001
    """

    def build(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = factory(parameters)
        for group in optimizer.param_groups:
            group.update({key: value for key, value in change(group).items() if key in group})
        return optimizer

    return build


def _peak(group: Mapping[str, Any]) -> float:
    """Return the largest of the rate, that from which a scheduler starts, and that to which a cycle rises."""
    return max(float(group[key]) for key in ("lr", "initial_lr", "max_lr") if group.get(key) is not None)


@final
@dataclass(frozen=True, slots=True)
class Named:
    """Builds an optimizer of `torch.optim`, at its own default rate if none was chosen."""

    kind: Any
    lr: float | None

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Build it."""
        built: torch.optim.Optimizer = self.kind(parameters, **({} if self.lr is None else {"lr": self.lr}))
        return built


def _named(name: str) -> Any:
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    lowered = {key.lower(): key for key in known}
    if name.lower() in lowered:
        return known[lowered[name.lower()]]
    hint = meant(name, known)
    raise UsageError(f"check: optimizer must be one of {', '.join(sorted(known))}, or a callable, got {name!r}.{hint}")


def first_update(model: nn.Module, gradients: Mapping[str, Tensor], factory: Factory) -> Update:
    """Step a fresh optimizer on copies of the parameters.

    Args:
        model: the model, which is not touched.
        gradients: parameter name -> gradient; parameters left out get none.
        factory: builds the optimizer on the copies.

    Raises:
        UsageError: if the optimizer cannot be built on them, reaches for other parameters, or cannot step.
    """
    originals = {name: p for name, p in model.named_parameters() if p.requires_grad}
    copies = {name: nn.Parameter(p.detach().clone()) for name, p in originals.items()}
    for name, gradient in gradients.items():
        copies[name].grad = gradient.detach().clone().to(copies[name].dtype)
    try:
        optimizer = factory(list(copies.values()))
    except Exception as error:
        raise UsageError(
            f"check: the optimizer must be buildable on the parameters; it raised {raised(error)} "
            "Give a name in torch.optim, or another callable."
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(
            f"check: the optimizer callable must return a torch.optim.Optimizer, got {type(optimizer).__name__}."
        )
    ours = {id(copy) for copy in copies.values()}
    if any(id(p) not in ours for group in optimizer.param_groups for p in group["params"]):
        raise UsageError(
            "check: the optimizer must be built on the parameters it is given, and this one holds others. "
            "Write: lambda parameters: Optimizer(parameters, ...)."
        )
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
    try:
        optimizer.step()
    except Exception as error:
        raise UsageError(
            f"check: the first step of {type(optimizer).__name__} must follow from gradients alone; it raised "
            f"{raised(error)} Choose another with optimizer=..., for example 'SGD'."
        ) from error
    group = optimizer.param_groups[0]
    after = {name: copy.detach() for name, copy in copies.items() if name in gradients}
    squares = {name: _squares(originals[name].detach(), value, gradients[name]) for name, value in after.items()}
    counts = {name: damped(optimizer, copies[name]) for name in after}
    held = {name: count for name, count in counts.items() if count is not None}
    lr, given = float(group["lr"]), _norm(gradients.values())
    used = _norm(p.grad for name in gradients if (p := copies[name]).grad is not None)
    shrunk = used / given if given > 0 else 1.0
    kind = type(optimizer).__name__
    eps = group.get("eps") if isinstance(group.get("eps"), int | float) else None  # of Adafactor it is a pair
    return Update(kind, lr, eps, after, squares, held, peak=_peak(group), shrunk=shrunk)


def _norm(tensors: Iterable[Tensor | None]) -> float:
    return math.sqrt(sum(_square_sum(t.to_dense() if t.is_sparse else t) for t in tensors if t is not None))


def _squares(before: Tensor, after: Tensor, gradient: Tensor) -> tuple[float, float, int, int]:
    if before.dtype in (torch.float16, torch.bfloat16):
        moved = _square_sum(after.float() - before.float())
    else:  # the difference of two close numbers is exact
        moved = _square_sum(after - before)
    reached = (gradient.to_dense() if gradient.is_sparse else gradient) != 0
    return moved, _square_sum(before), int(((after == before) & reached).sum()), int(reached.sum())


def _square_sum(tensor: Tensor) -> float:
    # Summed in float64 without a copy: squares of vanishing updates are below the smallest float32.
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def parameter_signals(
    trace: Trace, gradients: Mapping[str, Tensor | None], update: Update | None, rows: int
) -> dict[str, Tensor]:
    """Return what the step on copies would do, by site, in the first of `rows` rows.

    Args:
        trace: whose sites say which parameters act where.
        gradients: parameter name -> its gradient.
        update: the step; None if none was made.
        rows: how many rows there are.
    """
    names = ("weight_gradient_rms", "update_ratio", "lost_fraction", "eps_fraction")
    result = {name: torch.full((rows, len(trace.sites)), torch.nan, dtype=torch.float64) for name in names}
    wide = {name for name, g in gradients.items() if g is not None and g.dim() >= 2}
    for i, site in enumerate(trace.sites):
        own = [name for name in site.parameters if name in wide] or [
            n for n in site.parameters if gradients.get(n) is not None
        ]
        grads = [g.to_dense() if g.is_sparse else g for g in (gradients[name] for name in own) if g is not None]
        if grads:
            square = sum(float(torch.linalg.vector_norm(g, dtype=torch.float64)) ** 2 for g in grads)
            result["weight_gradient_rms"][0, i] = (square / sum(g.numel() for g in grads)) ** 0.5
        if update is not None:
            result["update_ratio"][0, i] = update.ratio(own)
            result["lost_fraction"][0, i] = update.lost(own)
            result["eps_fraction"][0, i] = eps_fraction(update.damped, own)
    return result
