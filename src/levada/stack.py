"""A stack: layers one after the other, checkpointed by segments and compiled as one."""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import TreeSpec, tree_flatten
from torch.utils.checkpoint import checkpoint as recompute

from levada._errors import UsageError, require_at_least
from levada.connection import Connection, Layer, Outputs, State, require_options
from levada.stacking import StackedParameters, after_loading, as_layers, before_loading, run_recorded

__all__ = ["Extras", "Stack", "run_layers"]

Extras: TypeAlias = list[tuple[int, tuple[Any, ...]]]  # what layers returned beside the state, by place


class Stack(nn.Module):
    """Branches, one after the other, each behind a connection of its own.

    `state = begin(x);  state = write(state, branch_l(read(state))) for l = 0 ... depth - 1;  y = output(end(state))`

    Args:
        branches: modules in order, or a function from the width that a branch reads to a new branch.
        connection: a class such as `Residual`, called as `connection(dim, layer=, depth=, **options)`.
        dim: width of the stream.
        depth: number of layers; needed if, and only if, `branches` is a function (else it must agree).
        checkpoint: number of segments of which only the first state is kept, the rest being computed again in the
            backward pass; True takes `round(sqrt(depth))`, so that memory grows as the square root of the depth.
            A step then takes 1.9 times one without at width 64, 1.4 times at width 512: PyTorch's non-reentrant kind,
            because the reentrant one (1.3 and 1.4) needs an input that requires a gradient and has no
            `torch.autograd.grad`. What a branch counts, such as running statistics, it counts twice.
        compile: compile one layer and use it for all, so that compile time does not grow with depth; a mapping goes to
            `torch.compile`. A layer is one whole graph: what cannot be compiled raises and never runs uncompiled in
            silence. Hooks on a `Layer` run outside of what is compiled.
        stacked: hold the layers' parameters as one tensor of each kind, `[depth, ...]`, and run all layers as one
            autograd function, from a recording of one: for many narrow layers that are alike, where Python and the
            optimizer take most of the time. State dicts stay as they are, by layer. Layers that do not all do the same
            run one by one, and a warning says why.
            Few layers are slower for it: of 64 channels and 64 rows a training step takes 1.4 times one without at 6
            layers, 1.1 at 12, 0.8 at 24; a forward pass alone 1.05 at 24, 0.93 at 32.
        options: further arguments of the connection.

    Shape:
        `(..., dim) -> (..., dim_out)`, where `dim_out` is `dim` except for connections that widen the stream. Where
        branches return tuples, the result is `(y, extras)`: `extras` holds for each layer what came after the tensor
        that was written (attention weights, caches, auxiliary losses), and None for layers that returned a tensor.

    Raises:
        UsageError: if there is no branch, an argument contradicts another, or an option is unknown or missing.

    Example:
        >>> import torch, levada
        >>> stack = Stack([torch.nn.Identity() for _ in range(10)], levada.Residual, dim=2)
        >>> stack(torch.ones(1, 2))
        tensor([[1024., 1024.]])
        >>> len(stack), stack.dim_out
        (10, 2)
    """

    def __init__(
        self,
        branches: Iterable[nn.Module] | Callable[[int], nn.Module],
        connection: Callable[..., Connection],
        *,
        dim: int,
        depth: int | None = None,
        checkpoint: int | bool = False,
        compile: bool | Mapping[str, Any] = False,
        stacked: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        require_options(connection, options, ("dim", "depth", "checkpoint", "compile", "stacked"))
        modules = list(branches) if isinstance(branches, Iterable) else None
        if modules is None and (isinstance(branches, nn.Module) or not callable(branches)):
            raise UsageError(f"Stack: branches must be modules, or a function that makes one, got {branches!r}.")
        depth = _agreed_depth(modules, depth)
        connections = [connection(dim, layer=i, depth=depth, **options) for i in range(depth)]
        if not isinstance(connections[0], Connection):
            raise UsageError(f"Stack: connection must make a Connection, got {type(connections[0]).__name__}.")
        if modules is None:
            modules = [branches(c.dim_in) for c in connections]  # type: ignore[operator]
        for i, module in enumerate(modules):
            if not isinstance(module, nn.Module):
                raise UsageError(f"Stack: a branch must be an nn.Module, got {type(module).__name__} at layer {i}.")
        self.dim = dim
        self.dim_out = connections[-1].dim_out
        self.layers = nn.ModuleList(Layer(c, b) for c, b in zip(connections, modules, strict=True))
        self.output = connections[-1].output(dim)
        self.register_load_state_dict_pre_hook(before_loading)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(after_loading)  # type: ignore[no-untyped-call]
        self.arrange(checkpoint=checkpoint, compile=compile, stacked=stacked)

    def arrange(
        self,
        *,
        checkpoint: int | bool | None = None,
        compile: bool | Mapping[str, Any] | None = None,
        stacked: bool | None = None,
    ) -> Stack:
        """Say how the layers run: what is kept for the backward pass, whether they are compiled, or stacked.

        The constructor's options for a stack that is built; what the layers compute stays the same.

        Args:
            checkpoint: as in the constructor; None leaves it as it is.
            compile: as in the constructor; None leaves it as it is.
            stacked: as in the constructor; None leaves it as it is. The parameters are new ones then: give them to
                a new optimizer.

        Returns:
            The stack.

        Raises:
            UsageError: if there are more segments than layers, or layers cannot be stacked.

        Example:
            >>> import levada
            >>> stack = Stack([nn.Identity() for _ in range(9)], levada.Residual, dim=2)
            >>> stack.arrange(checkpoint=True).segments
            3
        """
        if checkpoint is not None:
            if not 0 <= checkpoint <= self.depth:
                raise UsageError(f"Stack: checkpoint must be in [0, depth] with depth {self.depth}, got {checkpoint}.")
            self.segments = round(math.sqrt(self.depth)) if checkpoint is True else int(checkpoint)
        if compile is not None:
            compiled = None if compile is False else _CompiledAdvance({} if compile is True else compile)
            for layer in self:
                layer.__dict__.pop("compiled", None)
                if compiled is not None:
                    layer.compiled = compiled
        held = self._stacked
        if stacked is False and held is not None:
            held.spread()
            del self._modules["stacked"]
        elif stacked is True and held is None:
            self.add_module("stacked", StackedParameters(self.layers))
        if self._stacked is not None and self[0].compiled is not None:
            raise UsageError(
                "Stack: stacked layers are run from a recording, not compiled. Leave out compile or stacked."
            )
        return self

    @property
    def _stacked(self) -> StackedParameters | None:
        return self._modules.get("stacked")  # type: ignore[return-value]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state by layer, whether the parameters are stacked or not."""
        with as_layers(self, sharded=True, copied=True, written=False):
            return super().state_dict(*args, **kwargs)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)  # type: ignore[arg-type]

    def __getitem__(self, layer: int) -> Layer:
        return self.layers[layer]  # type: ignore[return-value]

    def extra_repr(self) -> str:
        """Say the width, the depth and the segments of checkpointing."""
        return f"dim={self.dim}, depth={self.depth}" + (f", checkpoint={self.segments}" if self.segments else "")

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run all layers; the other arguments go to every branch."""
        state, extras = self._run(self[0].connection.begin(x), args, kwargs)
        y = self.output(self[-1].connection.end(state))
        return (y, _in_order(extras, len(self.layers))) if extras else y

    def _run(self, state: State, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[State, Extras]:
        stacked = self._stacked
        if stacked is None:
            return run_layers(self.layers, state, self.segments, args, kwargs)
        return stacked.around(self._run_stacked, stacked, state, args, kwargs)  # type: ignore[no-any-return]

    def _run_stacked(
        self, stacked: StackedParameters, state: State, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[State, Extras]:
        if not args and not kwargs:
            layers = [*self.layers]

            def as_written(before: State, parameters: Sequence[Tensor]) -> State:
                with stacked.installed(parameters):
                    return run_layers(layers, before)[0]

            recorded = run_recorded(stacked, layers, state, self.segments, as_written)
            if recorded is not NotImplemented:
                return recorded, []
        with stacked.installed():
            return run_layers(self.layers, state, self.segments, args, kwargs)


_spread, _gather = before_loading, after_loading  # what stacks that were pickled before know them by


def run_layers(
    layers: Iterable[nn.Module],
    state: State,
    segments: int = 0,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[State, Extras]:
    """Run some of a stack's layers, one after the other.

    Args:
        layers: the layers.
        state: what the layers before them left, or `begin` made.
        segments: number of segments of which only the first state is kept; 0 keeps all.
        args: go to every branch.
        kwargs: go to every branch.

    Returns:
        The state after the last of them, and what branches returned beside it, with the layer's place among these.

    Raises:
        UsageError: if a state is changed in place that must be kept.

    Example:
        >>> import levada
        >>> stack = Stack([nn.Identity() for _ in range(10)], levada.Residual, dim=2)
        >>> run_layers(stack.layers[:3], torch.ones(1, 2))
        (tensor([[8., 8.]]), [])
    """
    extras: Extras = []
    if not (segments and torch.is_grad_enabled()):
        return _run(layers, state, extras, args, kwargs), extras
    run, eager = [*layers], not torch.compiler.is_compiling()
    for start, stop in itertools.pairwise(i * len(run) // segments for i in range(segments + 1)):
        first, connection = state, run[start].connection
        before = _marks(first, connection) if eager else None
        found: Extras = []
        state = recompute(_run, run[start:stop], first, found, args, kwargs, use_reentrant=False)
        extras += [(start + place, extra) for place, extra in found]
        if eager and _marks(first, connection) != before:
            raise UsageError(
                f"Stack: checkpoint needs a state that later layers leave as it was, but {type(connection).__name__} "
                "changes it in place. Leave checkpoint out."
            )
    return state, extras


@final
class _CompiledAdvance:
    """`Connection.advance` compiled for one stack, whichever its layer.

    Each stack, kind of branch and mode has a code object of its own: the compiler counts what it made by code object,
    up to a limit, and remembers shapes by its name, so that nothing else uses the limit up or makes shapes dynamic.
    """

    _number = itertools.count()

    def __init__(self, options: Mapping[str, Any]) -> None:
        if options.get("fullgraph", True) is not True:
            raise UsageError("Stack: compile needs fullgraph=True: a layer that is not one graph would run uncompiled.")
        self.options = {**options, "fullgraph": True}
        self.compiled: dict[Any, Callable[..., State]] = {}

    def __call__(
        self, connection: Connection, state: State, branch: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> State | Outputs:
        kind = type(connection), type(branch), branch.training, torch.is_grad_enabled()
        if kind not in self.compiled:
            code = _advance.__code__.replace(co_name=f"advance_{next(self._number)}")
            self.compiled[kind] = torch.compile(types.FunctionType(code, globals()), **self.options)
        try:
            return self.compiled[kind](connection, state, branch, args, kwargs)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise UsageError(
                f"Stack: compile is for layers and inputs that are alike, but these differ in more than "
                f"{torch._dynamo.config.recompile_limit} ways (TORCH_LOGS=recompiles lists them). Leave it out, or "
                f"raise torch._dynamo.config.recompile_limit."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:  # what is compiled cannot be pickled; what it was made from can
        return type(self), (self.options,)


def _advance(
    connection: Connection, state: State, branch: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> State | Outputs:
    # The class's own: what sharding puts around it in an instance runs before and after what is compiled.
    return type(connection).advance(connection, state, branch, *args, **kwargs)


def _in_order(extras: Extras, depth: int) -> list[tuple[Any, ...] | None]:
    found = dict(extras)
    return [found.get(place) for place in range(depth)]


_CALL = nn.Module.__call__
_BIRTH_SIZE = len(nn.Module().__dict__)  # a layer adds submodules alone


def _hooked(own: dict[str, Any]) -> bool:
    forward = own["_forward_hooks"] or own["_forward_pre_hooks"]
    return bool(forward or own["_backward_hooks"] or own["_backward_pre_hooks"])


def _is_bare(layer: nn.Module) -> bool:
    """Return whether calling it would only call `Layer.forward`."""
    own = layer.__dict__  # one that grew may hold a `forward` of its own
    return type(layer) is Layer and len(own) == _BIRTH_SIZE and not _hooked(own)


def _run(
    layers: Iterable[nn.Module], state: State, extras: Extras, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> State:
    """Return the state after `state = layer(state, *args, **kwargs)` for each layer; list the rest in `extras`.

    On narrow layers nn.Module.__call__ is most of what a stack costs over a loop by hand: layer and branch are entered
    without it where it would only call `forward`. Of two such layers the second may write for the first.
    """
    layers = [*layers]
    hooked_everywhere = _has_any_global_hook()  # type: ignore[no-untyped-call]
    quiet = nn.Module.__call__ is _CALL and not (torch.compiler.is_compiling() or hooked_everywhere)
    bare = not args and not kwargs
    layer: Any = None
    place = 0
    try:
        for place, layer in enumerate(layers):
            if not quiet or not _is_bare(layer):
                state = layer(state, *args, **kwargs)
            else:
                modules = layer._modules
                connection, branch = modules["connection"], modules["branch"]
                if type(connection).advance is not Connection.advance:
                    after = layers[place + 1] if place + 1 < len(layers) else None
                    defers = after is not None and _is_bare(after) and connection.defers_to(after.connection)
                    step = connection.defer if defers else connection.advance
                    state = step(state, branch, *args, **kwargs)
                else:
                    x, own = connection.read(state), branch.__dict__
                    if type(branch).__call__ is not _CALL or "_compiled_call_impl" in own or _hooked(own):
                        out = branch(x, *args, **kwargs)
                    else:
                        out = branch.forward(x) if bare else branch.forward(x, *args, **kwargs)
                    if type(out) is not Tensor and isinstance(out, tuple):
                        out, extra = connection.first_of(out), out[1:]
                        extras.append((place, extra))
                    if out.shape != x.shape:
                        connection.require_fit(x, out)
                    state = connection.write(state, out)
                    continue
            if type(state) is Outputs:
                extras.append((place, state.extra))
                state = state.state
    except Exception as error:
        names = type(layer.connection).__name__, type(layer.branch).__name__
        error.add_note("In layer {} of a stack: {} around {}.".format(layer.connection.layer, *names))
        raise
    return state


def _marks(state: State, connection: Any) -> tuple[list[Any], TreeSpec]:
    """What a change in place would change: the tensors, their versions and how they are held."""
    leaves, spec = tree_flatten(state)
    for leaf in leaves:
        if not (leaf is None or isinstance(leaf, Tensor | bool | int | float | str)):
            raise UsageError(
                f"Stack: checkpoint needs a state of tensors in tuples, lists or mappings, but "
                f"{type(connection).__name__}'s holds a {type(leaf).__name__}. Leave checkpoint out."
            )
    return [(id(x), x.is_inference() or x._version) if isinstance(x, Tensor) else x for x in leaves], spec


def _agreed_depth(modules: list[Any] | None, depth: int | None) -> int:
    if modules is None:
        require_at_least("Stack", "depth", depth or 0, 1, "Where branches is a function, depth says how often.")
        return depth or 0
    if not modules or depth not in (None, len(modules)):
        raise UsageError(
            f"Stack: branches must hold a module or more, and depth be their number or left out, got {len(modules)} "
            f"branches and depth={depth}."
        )
    return len(modules)
