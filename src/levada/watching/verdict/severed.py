"""Weights whose layer computes with them and gets a gradient, and that never get one themselves."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle, unserializable_hook

from levada.probe.hook import Hook
from levada.probe.recorder import tensors
from levada.watching.loop.places import original, plain_name
from levada.watching.loop.tracing import uncompiled
from levada.watching.measure.compiled import find_regions
from levada.watching.measure.reading import plain
from levada.watching.measure.transfer import OnItsWay
from levada.watching.steps.unoptimised import some_of
from levada.watching.verdict.glances import sums_of_sizes
from levada.watching.verdict.graph import STEP_FUNCTIONS, lost_in
from levada.watching.verdict.view import rests

__all__ = ["PASSES", "Severed"]

LOOKS: Final = 8  # updates at which a weight has no gradient, before its layer is looked at
PASSES: Final = 3
"""Updates on which a gradient came back to what is made of a weight, and none to the weight."""

_EVERY: Final = 16  # updates between two looks, later
_TRIES: Final = 6  # updates for which hooks stay; next when there were four times as many
_AGAIN: Final = 4
_MOST: Final = 32  # weights that are looked at
_CALLS: Final = 8  # of a layer that are looked at between two updates


@dataclass(slots=True, eq=False)
class _Weight:
    """A weight that never had a gradient."""

    name: str
    held: weakref.ref[nn.Parameter]
    layer: weakref.ref[nn.Module]  # whose output shows what is made of it
    around: weakref.ref[nn.Module]  # which may compute with it and not call the layer
    holder: weakref.ref[nn.Module]  # which has it under this key
    key: str
    numbers: Tensor | None = None  # of it, as it was when it was first known to have none
    through: str = ""  # what the gradient is lost in
    looks: int = 0  # times that its layer had hooks
    shown: int = 0  # updates of the last look on which it should have had one
    calls: int = 0  # of its layer since the last update
    # The largest gradient of what is made of it since then, by the function that it is lost in.
    made: dict[str, Tensor] = field(default_factory=dict)
    got: Tensor | None = None  # and the largest that autograd brought it
    handles: list[RemovableHandle] = field(default_factory=list)
    stepped: Tensor | None = None  # numbers of it behind the last step of an optimizer that decays weights
    alone: int = 0  # updates between which nothing but such steps has moved it; -1 once something else has

    def begin(self) -> None:
        """Forget what the passes since the last update have shown."""
        self.calls, self.made, self.got = 0, {}, None

    def follow(self, moved: float) -> None:
        """Take by how much it was moved since the last step of an optimizer that decays weights."""
        if self.stepped is not None and self.alone >= 0:
            self.alone = self.alone + 1 if moved == 0 else -1


@final
class Severed:
    r"""Finds weights that a layer computes with and that its gradient never gets to, as of a step function around them.

    Where $y = Q(W) x$ and $Q$ has a derivative of zero (`sign`, `round`, a comparison) or is cut (`detach`), the layer
    passes gradients on, its bias learns, and $W$ gets exactly zero for ever. So does a weight that is as it should be:
    behind a gate that is closed, under inputs of zero, in an expert that is not asked, or of no use in this training.
    To tell, autograd's graph of the layer is read, from its output back to its inputs. Either each way from there to
    $W$ leads through a function whose derivative is zero, or that a class of its own gives; or none leads to $W$, and
    the layer multiplies by a constant of its shape. To that function, or product, a gradient other than zero must come.

    Of what optimizers hold, weights with two or more dimensions that have a gradient of zero at the first update are
    followed, and left once they have another. That costs nothing where all have one. Of those that are left at the
    eighth update, and whose rate is not 0, the layers get hooks, for six updates and later, when there were four times
    as many, again.

    No weight counts that changes otherwise than by its decay, as by a moving average, is sharded or runs compiled. By
    its decay it comes nearer to zero; or past it, where the decay is part of a gradient with momentum (Adam's
    `weight_decay`), and then nothing but the optimizer's step moves it.

    Args:
        spent: told the seconds that the hooks of layers and weights take.

    Attributes:
        names: those that were shown, in the model's order, and what their gradient is lost in; "" if it is not known.
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
        {'0.weight': 'sign'}
    """

    def __init__(self, spent: Callable[[float], None] = lambda seconds: None) -> None:
        self._spent = spent
        self._steps: list[RemovableHandle] = []
        self.names: dict[str, str] = {}
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
        if self._left > 0:
            self._judge()
        if self._sent is None and (self._updates <= 2 * LOOKS or self._updates % _EVERY == 0):
            self._send()
            self._read()
        if self._weights and self._updates >= self._next:
            self._next = _AGAIN * self._updates
            self._attach(model, optimizers)

    def close(self) -> None:
        """Take every hook off."""
        self._end()
        for weight in self._weights:
            _let_go(weight)

    def _end(self) -> None:
        self._left = 0
        while self._steps:
            self._steps.pop().remove()

    def _send(self) -> None:
        """Send the sum of sizes of each weight's gradient to the host."""
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[int]]] = {}
        for i, weight in enumerate(self._weights):
            p = weight.held()
            if p is not None and p.grad is not None and p.grad.numel():
                gradients, at = groups.setdefault((p.grad.device, p.grad.dtype), ([], []))
                gradients.append(_numbers(p.grad))
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
        names = {weight.name: weight.through for weight in self._weights if weight.shown >= PASSES}
        self.shown = not names.keys() <= self.names.keys()
        self.names = names

    def _attach(self, model: nn.Module, optimizers: Sequence[Any]) -> None:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return
        _, inside, whole = find_regions(model)
        compiled = whole | inside.keys()
        moved = _held(group for each in optimizers for group in each.param_groups if not rests(group))
        those = [weight for weight in self._weights if weight.shown < PASSES and id(weight.held()) in moved]
        for weight in sorted(those, key=lambda weight: weight.looks)[:_MOST]:  # the others have their turn later
            layer, p = weight.layer(), weight.held()
            weight.shown, weight.looks, weight.alone, weight.stepped = 0, weight.looks + 1, 0, None
            if layer is not None and p is not None and p.requires_grad and id(layer) not in compiled:
                weight.begin()
                around = weight.around()
                outer = [around] if around not in (None, layer) and id(around) not in compiled else []
                weight.handles = _Look(weight, self._spent).on([layer, *outer], p)
                self._left = _TRIES
        if self._left > 0 and not self._steps:
            decaying = [each for each in optimizers if any(group.get("weight_decay") for group in each.param_groups)]
            self._steps = [each.register_step_post_hook(self._stepped) for each in decaying]

    @uncompiled
    def _stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Take what the weights that are looked at are behind a step, to know if anything else moves them."""
        begun = time.perf_counter()
        with suppress(Exception):  # what a parameter is made of is the user's
            decayed = _held(group for group in optimizer.param_groups if group.get("weight_decay"))
            for weight in [weight for weight in self._weights if weight.handles]:
                if (p := weight.held()) is not None and id(p) in decayed:
                    weight.stepped = some_of(p.detach()).clone()
        self._spent(time.perf_counter() - begun)

    def _judge(self) -> None:
        """Take what the passes since the last update have shown."""
        self._left -= 1
        learned = []
        looked = [weight for weight in self._weights if weight.handles]
        sizes = iter(_to_host([x for weight in looked for x in (weight.got, *weight.made.values(), _since(weight))]))
        for weight in looked:
            got, lost = next(sizes), [name for name in weight.made if next(sizes) > 0]
            weight.follow(next(sizes))
            weight.begin()
            p = weight.held()
            if lost and got == 0:
                weight.shown, weight.through = weight.shown + 1, " and ".join(sorted(lost))
            decays = weight.alone >= PASSES or _only_decays(weight.numbers, p)
            if p is None or got != 0 or (weight.shown >= PASSES and not decays):
                learned.append(weight)
            elif weight.shown >= PASSES or self._left <= 0:
                _let_go(weight)
        self._leave(learned)
        if self._left <= 0 or not any(weight.handles for weight in self._weights):
            self._end()


@final
class _Look:
    """The hooks of one layer: what comes back to what is made of its weight, and to the weight."""

    def __init__(self, weight: _Weight, spent: Callable[[float], None]) -> None:
        self._weight, self._spent = weight, spent

    def on(self, layers: Iterable[nn.Module], p: nn.Parameter) -> list[RemovableHandle]:
        """Look from now on."""
        # Before hooks of others, which may give another output than the layer does.
        hooks = [one.register_forward_hook(Hook(self._called), prepend=True, with_kwargs=True) for one in layers]
        return [*hooks, p.register_hook(unserializable_hook(lambda g: self._arrived(g)))]  # type: ignore[no-untyped-call]

    def _called(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        begun = time.perf_counter()
        self._see(layer, args, kwargs, output)
        self._spent(time.perf_counter() - begun)

    def _see(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        weight, p = self._weight, self._weight.held()
        with suppress(Exception):  # what a layer takes and gives is the user's
            holder = weight.holder()
            own = layer is weight.layer()
            if not (own or layer is weight.around()) or p is None or weight.calls >= _CALLS:
                return
            if torch.compiler.is_compiling():
                return
            if holder is None or holder._parameters.get(weight.key) is not p:  # as within torch.func.functional_call
                return
            weight.calls += 1
            given = {one.grad_fn for one in tensors((args, kwargs))}
            begin = [one.grad_fn for one in tensors(output) if one.requires_grad]
            for node, name in lost_in(begin, given, p, layer):
                if not own and name not in STEP_FUNCTIONS:
                    continue  # of a larger part too little is known to blame a class of its own, or a constant
                node.register_hook(partial(self._came, name))

    def _came(self, name: str, on: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> None:
        """Take what comes to a node, if nothing of it goes on to what a function was given."""
        begun = time.perf_counter()
        with suppress(Exception):
            come, gone = _largest(gradients), _largest(on) if name else None
            if come is not None:
                lost = come if gone is None else torch.where(gone == 0, come, 0.0)
                known = self._weight.made.get(name)
                self._weight.made[name] = lost if known is None else torch.maximum(known, lost)
        self._spent(time.perf_counter() - begun)

    def _arrived(self, gradient: Tensor) -> None:
        begun = time.perf_counter()
        with suppress(Exception):
            self._weight.got = _largest([self._weight.got, gradient])
        self._spent(time.perf_counter() - begun)


def _numbers(gradient: Tensor) -> Tensor:
    value = plain(gradient.detach())
    return value._values() if value.layout is torch.sparse_coo else value


def _largest(gradients: Iterable[Tensor | None]) -> Tensor | None:
    """Return the largest size of all; None if there are none."""
    there = [_numbers(one) for one in gradients if one is not None and one.numel()]
    sizes = [torch.linalg.vector_norm(one, math.inf).float() for one in there]
    return torch.stack(sizes).amax() if sizes else None


def _since(weight: _Weight) -> Tensor | None:
    """Return by how much a weight was moved since the last step of an optimizer that decays it, if there was one."""
    p = weight.held()
    now = None if p is None or weight.stepped is None else some_of(p.detach())
    if now is None or weight.stepped is None or now.shape != weight.stepped.shape:
        return None
    return _largest([now - weight.stepped])


def _to_host(sizes: Sequence[Tensor | None]) -> list[float]:
    """Return sizes, 0 for those that are not there, by one copy that is waited for."""
    there = [size for size in sizes if size is not None]
    numbers = iter(torch.stack([size.to(there[0].device) for size in there]).tolist() if there else ())
    return [0.0 if size is None else next(numbers) for size in sizes]


def _let_go(weight: _Weight) -> None:
    for handle in weight.handles:
        handle.remove()
    weight.handles = []


def _held(groups: Iterable[Any]) -> set[int]:
    return {id(p) for group in groups for p in group["params"]}


def _without_gradient(model: nn.Module, optimizers: Sequence[Any]) -> list[_Weight]:
    """Return the weights that optimizers hold and that have no gradient as far as is known."""
    held = _held(group for each in optimizers for group in each.param_groups)  # a rate of 0 may rise
    found: list[_Weight] = []
    modules = dict(original(model).named_modules())
    for path, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        layer = module
        if ".parametrizations." in f".{path}":  # it is the weight of the layer around it
            layer = modules[f".{path}".rpartition(".parametrizations.")[0].removeprefix(".")]
        for name, p in module._parameters.items():
            if p is None or id(p) not in held or hasattr(p, "placements") or nn.parameter.is_lazy(p):
                continue
            if p.requires_grad and p.dim() > 1 and p.is_floating_point():
                full = plain_name(f"{path}.{name}" if path else name)
                parent = path.rpartition(".")[0]
                around = modules[parent] if layer is module and parent in modules else layer
                parts = weakref.ref(layer), weakref.ref(around), weakref.ref(module)
                found.append(_Weight(full, weakref.ref(p), *parts, name))
    return found


def _only_decays(before: Tensor | None, p: nn.Parameter | None) -> bool:
    """Return whether a weight is what it was, or nearer to zero, as weight decay makes it."""
    if p is None:
        return False
    now = some_of(p.detach())
    if before is None or now.shape != before.shape:
        return False
    nearer = (now * before >= 0) & (now.abs() <= 1.001 * before.abs())  # or scaled back to its norm
    return bool((nearer | (now.abs() <= 0.01 * before.abs().amax())).all())
