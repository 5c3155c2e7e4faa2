"""Weights whose layer computes with them and gets a gradient, and that never get one themselves."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from levada.probe.hook import Hook
from levada.watching.compiled import find_regions
from levada.watching.glances import sums_of_sizes
from levada.watching.places import original, plain_name
from levada.watching.reading import plain
from levada.watching.transfer import OnItsWay
from levada.watching.unoptimised import some_of
from levada.watching.view import rests

__all__ = ["PASSES", "Severed"]

LOOKS: Final = 8  # updates at which a weight has no gradient, before its layer is looked at
PASSES: Final = 3
"""Updates in a row for which a layer shows that its weight should have had a gradient."""

_EVERY: Final = 16  # updates between two looks, later
_TRIES: Final = 6  # updates for which hooks stay; next when there were four times as many
_AGAIN: Final = 4
_MOST: Final = 32  # layers that are looked at
# A product of an input and a gradient, below which the weight's own may underflow.
_LEAST: Final = 1e-20


@dataclass(slots=True, eq=False)
class _Weight:
    """A weight that never had a gradient."""

    name: str
    held: weakref.ref[nn.Parameter]
    layer: weakref.ref[nn.Module]
    numbers: Tensor | None = None  # of it, as it was when it was first known to have none
    shown: int = 0  # updates in a row for which it should have had one
    bounds: list[Tensor] = field(default_factory=list)  # of what it should have had, since the last update
    got: list[Tensor] = field(default_factory=list)  # and what autograd brought it
    handles: list[RemovableHandle] = field(default_factory=list)


@final
class Severed:
    r"""Finds weights that a layer computes with and that its gradient never gets to, as of a step function around them.

    Where $y = Q(W) x$ and $Q$ has a derivative of zero (`sign`, `round`, a comparison) or is cut (`detach`), the layer
    passes gradients on, its bias learns, and $W$ gets exactly zero for ever. So does a weight that is as it should be:
    behind a gate that is closed, under inputs of zero, in an expert that is not asked. To tell, the layer itself is
    looked at: the gradient of $W$ is a sum of products of its input $x$ with the gradient $g$ of its output, so that
    a row of which both are other than zero should have brought one.

    Of what optimizers hold, weights with two or more dimensions that have a gradient of zero at the first update are
    followed, and left once they have another. That costs nothing where all have one. Of those that are left at the
    eighth update the layers get hooks, for six updates and later, when there were four times as many, again.

    A layer counts that has one such weight and takes and gives numbers: no embedding, no recurrent layer. So does no
    weight that has hooks of its own, is pruned as a whole, changes otherwise than towards zero, as by a moving
    average, is sharded or runs compiled.

    Attributes:
        names: those that were shown, in the model's order.
        shown: whether the update that was heard last has shown another.

    Example:
        >>> class Binary(nn.Linear):
        ...     def forward(self, x):
        ...         return nn.functional.linear(x, self.weight.sign(), self.bias)
        >>> model, looking = nn.Sequential(Binary(2, 2), nn.Linear(2, 1)), Severed()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for step in range(12):
        ...     model.zero_grad()
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     looking.before_update(model, [optimizer])
        >>> looking.names
        ('0.weight',)
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.shown = False
        self._updates = 0
        self._next, self._left = LOOKS, 0
        self._weights: list[_Weight] = []
        self._sent: tuple[OnItsWay, Tensor, int] | None = None

    @property
    def waits(self) -> bool:
        """Whether a weight that has had no gradient so far is to be looked at, or is looked at."""
        return bool(self._weights) and (self._updates < LOOKS or self._left > 0)

    def before_update(self, model: nn.Module | None, optimizers: Sequence[Any]) -> None:
        """Look before an update, while gradients are there.

        Args:
            model: the model; None if it is not at hand.
            optimizers: those that are known.
        """
        self.shown = False
        if model is None or not optimizers:
            return
        self._updates += 1
        if self._updates == 1:
            self._weights = _without_gradient(model, optimizers)
        elif not self._weights:
            return
        self._read()
        if any(weight.handles for weight in self._weights):
            self._judge()
        if self._sent is None and (self._updates <= 2 * LOOKS or self._updates % _EVERY == 0):
            self._send()
            self._read()
        if self._weights and self._updates >= self._next:
            self._next, self._left = _AGAIN * self._updates, _TRIES
            self._attach(model)

    def close(self) -> None:
        """Take every hook off."""
        self._left = 0
        for weight in self._weights:
            _let_go(weight)

    def _send(self) -> None:
        """Send the sum of sizes of each weight's gradient to the host."""
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[int]]] = {}
        for i, weight in enumerate(self._weights):
            p = weight.held()
            if p is not None and p.grad is not None and p.grad.numel():
                gradients, at = groups.setdefault((p.grad.device, p.grad.dtype), ([], []))
                gradients.append(plain(p.grad))
                at.append(i)
        sums, rows = sums_of_sizes(groups)
        self._sent = OnItsWay(sums), rows, len(self._weights)

    def _read(self) -> None:
        """Leave what has a gradient."""
        if self._sent is None or not self._sent[0].ready():
            return
        (way, rows, count), self._sent = self._sent, None
        if count != len(self._weights):  # some were left meanwhile
            return
        sizes = torch.zeros(count, dtype=torch.float64).index_add_(0, rows, way.host()).tolist()
        self._leave(weight for weight, size in zip(self._weights, sizes, strict=True) if size != 0)
        for weight in self._weights:
            if weight.numbers is None and (p := weight.held()) is not None:
                weight.numbers = some_of(p.detach()).clone()

    def _leave(self, those: Iterable[_Weight]) -> None:
        gone = {id(weight): weight for weight in those}
        for weight in gone.values():
            _let_go(weight)
        self._weights = [weight for weight in self._weights if id(weight) not in gone]
        self._tell()

    def _tell(self) -> None:
        names = tuple(weight.name for weight in self._weights if weight.shown >= PASSES)
        self.shown = bool(set(names) - set(self.names))
        self.names = names

    def _attach(self, model: nn.Module) -> None:
        if find_regions(model)[0] or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            return
        for weight in [weight for weight in self._weights if weight.shown < PASSES][:_MOST]:
            layer, p = weight.layer(), weight.held()
            if layer is not None and p is not None and p.requires_grad and not p._backward_hooks:
                weight.shown, weight.bounds, weight.got = 0, [], []
                look = _Look(weight)
                weight.handles = [layer.register_forward_hook(Hook(look)), look.on(p)]

    def _judge(self) -> None:
        """Take what the passes since the last update have shown."""
        self._left -= 1
        learned = []
        for weight in [weight for weight in self._weights if weight.handles]:
            bounds, got, weight.bounds, weight.got = weight.bounds, weight.got, [], []
            p = weight.held()
            if p is None or any(float(one) != 0 for one in got):
                learned.append(weight)
            elif any(float(one) > 0 for one in bounds):
                weight.shown += 1
            if weight.shown >= PASSES and p is not None and not _only_decays(weight.numbers, p):
                learned.append(weight)
            elif weight.shown >= PASSES or self._left <= 0:
                _let_go(weight)
        self._leave(learned)


@final
class _Look:
    """The hooks of one layer: what its weight should get, and what it does."""

    def __init__(self, weight: _Weight) -> None:
        self._weight = weight

    def __call__(self, layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        """Take the rows of the input that are other than zero, and wait for the gradient of the output."""
        with suppress(Exception):  # what a layer takes and gives is the user's
            if layer is not self._weight.layer() or torch.compiler.is_compiling():
                return
            x = next((one for one in given if isinstance(one, Tensor) and one.is_floating_point()), None)
            if x is None or not isinstance(output, Tensor) or not output.requires_grad:
                return
            alike = x.dim() == output.dim() and x.shape[:-1] == output.shape[:-1]
            if x.dim() == 0 or not x.numel() or not (alike or x.shape[:1] == output.shape[:1]):
                return
            size = _rows(x, alike)
            output.register_hook(lambda gradient: self._came(size, gradient, alike))  # type: ignore[no-untyped-call]

    def _came(self, size: Tensor, gradient: Tensor, alike: bool) -> None:
        with suppress(Exception):
            least = max(_LEAST, torch.finfo(gradient.dtype).tiny)
            largest = (size * _rows(gradient, alike)).amax()
            self._weight.bounds.append(torch.where(largest > least, largest, 0.0))

    def on(self, p: nn.Parameter) -> Any:
        """Take what autograd brings the weight from now on."""
        return p.register_hook(self._arrived)  # type: ignore[no-untyped-call]

    def _arrived(self, gradient: Tensor) -> None:
        with suppress(Exception):
            self._weight.got.append(gradient.detach().abs().amax())


def _rows(tensor: Tensor, alike: bool) -> Tensor:
    """Return the largest size in each row: along the last dimension, or of all but the first."""
    size = tensor.detach().abs().float()
    return size.amax(-1) if alike else size.flatten(1).amax(1)


def _let_go(weight: _Weight) -> None:
    for handle in weight.handles:
        handle.remove()
    weight.handles = []


def _without_gradient(model: nn.Module, optimizers: Sequence[Any]) -> list[_Weight]:
    """Return the weights that optimizers hold, have no gradient as far as is known, and are the only one of a layer."""
    groups = [group for each in optimizers for group in each.param_groups if not rests(group)]
    held = {id(p) for group in groups for p in group["params"]}
    found: list[_Weight] = []
    whole = original(model)
    modules = dict(whole.named_modules())
    for path, module in modules.items():
        own = [(name, p) for name, p in module._parameters.items() if p is not None and p.requires_grad and p.dim() > 1]
        if len(own) != 1 or isinstance(module, torch.jit.ScriptModule):
            continue
        (name, p), layer = own[0], module
        if ".parametrizations." in f".{path}":  # it is the weight of the layer around it
            layer = modules[f".{path}".rpartition(".parametrizations.")[0].removeprefix(".")]
        mask = module._buffers.get(f"{name.removesuffix('_orig')}_mask")
        if id(p) not in held or hasattr(p, "placements") or nn.parameter.is_lazy(p) or not p.is_floating_point():
            continue
        if mask is not None and not bool(mask.any()):
            continue
        full = plain_name(f"{path}.{name}" if path else name)
        if p.grad is None or p.grad.layout is torch.strided:
            found.append(_Weight(full, weakref.ref(p), weakref.ref(layer)))
    return found


def _only_decays(before: Tensor | None, p: nn.Parameter) -> bool:
    """Return whether a weight is what it was, or nearer to zero, as weight decay makes it."""
    now = some_of(p.detach())
    if before is None or now.shape != before.shape:
        return False
    nearer = (now * before >= 0) & (now.abs() <= before.abs())
    return bool((nearer | (now.abs() <= 0.01 * before.abs().amax())).all())
