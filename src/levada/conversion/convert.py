"""Put a connection into a model that someone else wrote, without changing its function."""

from __future__ import annotations

import copy as copying
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError
from levada.connection import Connection, SingleStream, require_options
from levada.connections.streams import MultiStream, Streams
from levada.connections.value_residual import ValueResidual
from levada.conversion.plan import Chain, Plan, describe, plan
from levada.conversion.preserved import difference, in_float64, outputs, quiet, run, same_precision, without_epsilon
from levada.conversion.recording import FORMAL, record
from levada.conversion.stacks import replace_in_stack, stacks_of, start
from levada.conversion.stream import Place, Route, begin_after, enter, finish
from levada.inputs import Batch, raised, read_batches, require_model

__all__ = ["Conversion", "convert"]

# What a precision keeps of a function that is the same: the sums are made in another order.
EXACT = {torch.float64: 1e-12, torch.float32: 1e-4}
# What is left of a change of scale behind normalisations whose epsilon is next to nothing.
SCALED = {torch.float64: 1e-6, torch.float32: 1e-4}
# What the epsilon of a normalisation may change where the stream is scaled down by the number of layers.
NORMALISED = 1e-2


@final
@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` did to a model: `model.levada_conversion`.

    Attributes:
        connection: name of the connection.
        sites: qualified names of the blocks whose additions it replaced, one for each addition.
        description: one line for each chain of additions.
        left_out: a sentence for each addition that stays as it was.
        difference: largest difference of the outputs before and after, relative to the largest output; None if it was
            not measured.
        precision: in which it was measured: float64, or float32 where the model cannot run in float64.
    """

    connection: str
    sites: tuple[str, ...]
    description: str
    left_out: tuple[str, ...]
    difference: float | None
    precision: torch.dtype | None


def convert(
    model: nn.Module,
    connection: Callable[..., Connection],
    *,
    batch: Any = None,
    preserve: bool = True,
    verify: bool = True,
    copy: bool = True,
    **options: Any,
) -> nn.Module:
    """Replace the residual connections of a model by another one, so that its function stays what it was.

    `x + f(norm(x))` becomes `write(state, f(norm(read(state))))`, at each place where the model adds to a tensor what
    it computed from it. The places are found by running the model once on a batch and following what is added to what;
    the model's own code goes on running, with a `Stream` in the place of the tensor. So
    `torch.compile(fullgraph=True)`, `torch.export`, sharding by block, non-reentrant checkpointing, `copy.deepcopy`,
    `pickle` and `state_dict` work as before; the parameters that the model had keep their names.

    The connections start as the residual one (`Connection.start_as_residual`), which several streams can do while they
    all read differently: reading them alike would be a point at which they never part.

    Args:
        model: a model with residual connections; in a `levada.Stack` those of `Residual` are replaced.
        connection: a class such as `ManifoldHyperConnection`.
        batch: what the model is run on, as for `check`: inputs, `(inputs, targets)`, or a mapping of keyword arguments.
            Left out, it is inferred from the first layer or the configuration.
        preserve: False allows a connection that changes the function, and starts it as it starts by itself.
        verify: whether to compare first the outputs of a copy in float64 before and after; takes the memory for it.
        copy: whether to leave the model as it is and convert a copy.
        **options: further arguments of the connection, such as `streams`.

    Returns:
        The converted model; `model.levada_conversion` says what was done.

    Raises:
        UsageError: if no residual connection is found, one cannot be followed (the message names the block), the
            connection cannot preserve the function, or an option does not fit. The model is then as it was.

    Example:
        >>> import torch, levada
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
        >>> model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        >>> net = convert(model, levada.HyperConnection, batch=torch.randn(2, 5, 8), streams=4)
        >>> print(net.levada_conversion.description)
        6 additions in layers.0 to layers.2, width 8
        >>> net.levada_conversion.difference < 1e-12
        True

    Source: Zhu et al., 2024, arXiv 2409.19606 (hyper-connections start as the pre-norm network).
    """
    require_options(connection, options, ("batch", "preserve", "verify", "copy"))
    _require_preserving(connection, preserve)
    _require_one_input(connection, options)
    options = _defaults(connection, options, preserve)
    with torch.random.fork_rng():
        given = read_batches(require_model(model, "convert"), batch, "convert")[0]
        measured, precision = None, None
        if preserve and verify:
            measured, scaled, precision = _measured(model, given, connection, options)
            _require_same(connection, measured, scaled, precision)
    net = _copied(model) if copy else model
    undo: list[Callable[[], None]] = []
    random = torch.get_rng_state()
    try:
        sites, description, left_out, routes = _put_in(net, connection, given, preserve, options, undo)
        _require_written(net, given, routes)
    except Exception:
        for step in reversed(undo):
            step()
        torch.set_rng_state(random)
        raise
    done = Conversion(_name(connection), sites, description, left_out, measured, precision)
    net.levada_conversion = done  # type: ignore[assignment]
    return net


def _measured(
    model: nn.Module, given: Batch, connection: Callable[..., Connection], options: dict[str, Any]
) -> tuple[float, float, torch.dtype]:
    """Return how far a converted copy is from the model, how far without epsilons, and in which precision."""
    error: UsageError | None = None
    for precision in (torch.float64, torch.float32):
        twin, exact = (
            in_float64(_copied(model), given) if precision == torch.float64 else (_copied(model).float(), given)
        )
        try:
            before = outputs(twin, exact, "convert")
        except UsageError as failed:  # some operators exist in float32 alone
            error = error or failed
            continue
        with without_epsilon(twin):
            ideal = outputs(twin, exact, "convert")
        _put_in(twin, connection, exact, True, options, [])
        measured = difference(before, outputs(twin, exact, "convert"))
        with without_epsilon(twin):
            return measured, difference(ideal, outputs(twin, exact, "convert")), precision
    assert error is not None
    raise error


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copying.deepcopy(model)
    except Exception as error:
        raise UsageError(
            f"convert: {type(model).__name__} cannot be copied: {raised(error)} Pass copy=False and verify=False."
        ) from error


def _put_in(
    net: nn.Module,
    connection: Callable[..., Connection],
    batch: Batch,
    preserve: bool,
    options: dict[str, Any],
    undo: list[Callable[[], None]],
) -> tuple[tuple[str, ...], str, tuple[str, ...], list[Route]]:
    if any(hasattr(module, "levada_conversion") for module in net.modules()):
        raise UsageError("convert: the model was converted already. Convert the one it was made from.")
    stacks = stacks_of(net)
    found = plan(_recorded(net, batch), frozenset(stacks.values()))
    if _carries_streams(connection):
        _leave_out_single(found)
    if not stacks and not found.chains:
        raise UsageError(
            "convert: no block of the model adds what it computes to what it was given, so that there is no residual "
            f"connection to replace. {' '.join([*found.left_out, 'Build the model with levada.Stack.'])}"
        )
    sites = [name for chain in found.chains for _, name in chain.owners]
    lines = [describe(found.chains)] if found.chains else []
    for name, stack in stacks.items():
        replace_in_stack(stack, connection, preserve, options, undo)
        sites += [f"{name}.layers.{i}".removeprefix(".") for i in range(stack.depth)]
        lines.append(f"{stack.depth} layers of the stack {name or '(the model)'}, width {stack.dim}")
    routes = [_register(net, chain, connection, preserve, options, undo) for chain in found.chains]
    if routes:
        undo.append(net.register_forward_hook(finish).remove)
    for module in net.modules():
        if isinstance(module, nn.TransformerEncoder) and module.use_nested_tensor:
            module.use_nested_tensor = False  # a nested tensor has no streams
            undo.append(lambda module=module: setattr(module, "use_nested_tensor", True))  # type: ignore[misc]
    return tuple(sites), "\n".join(lines), tuple(found.left_out), routes


def _carries_streams(connection: Callable[..., Connection]) -> bool:
    kind = getattr(connection, "func", connection)  # of functools.partial
    return isinstance(kind, type) and issubclass(kind, Streams)


def _leave_out_single(found: Plan) -> None:
    """Leave out chains of one addition: its streams would begin equal, end at once, and never part."""
    for chain in [chain for chain in found.chains if len(chain.sites) == 1]:
        found.chains.remove(chain)
        name = chain.owners[0][1] or "the model"
        found.left_out.append(f"The addition of {name} stays: it is the only one of its stream, and streams need two.")


def _recorded(net: nn.Module, batch: Batch) -> Any:
    # Inside a gradient's reach no fused fast path hides the additions.
    with quiet(net), torch.inference_mode(False), torch.enable_grad(), record(net) as recording, same_precision(net):
        run(net, batch.args, batch.kwargs, "convert")
    return recording


def _require_written(net: nn.Module, batch: Batch, routes: Sequence[Route]) -> None:
    """Raise unless each addition reaches its connection: a connection that nothing writes to changes nothing either."""
    for route in routes:
        route.written = set()
    try:
        with quiet(net), torch.no_grad():
            run(net, batch.args, batch.kwargs, "convert")
        for route in routes:
            for position, place in enumerate(route.places):
                if position not in (route.written or ()):
                    raise UsageError(
                        f"convert: the addition of {place.block or 'the model'}, number {position + 1} of "
                        f"{len(route.places)}, is not made on the stream: between it and the one before, the model "
                        "does something to the stream that cannot be followed. Convert the model without it."
                    )
    finally:
        for route in routes:
            route.written = None


def _made(
    chain: Chain, connection: Callable[..., Connection], preserve: bool, options: dict[str, Any], like: Tensor | None
) -> tuple[list[Connection], nn.Module]:
    """Return a chain's connections, started, and what follows the last one."""
    name = chain.owners[0][1] or "the model"
    options = dict(options)
    takes = inspect.signature(connection).parameters
    if chain.axis != -1 and "axis" in takes:
        options.setdefault("axis", chain.axis)
    depth = len(chain.sites)
    made = [connection(chain.dim, layer=i, depth=depth, **options) for i in range(depth)]
    first = made[0]
    if isinstance(first, ValueResidual):
        raise UsageError(
            "convert: ValueResidual mixes values inside an attention, after their projection, and what convert "
            f"replaces is the additions of {name}: nothing would be mixed. Build a levada.Stack of "
            "branches that take mix_values, or convert one whose branches do."
        )
    if chain.axis != -1 and "axis" not in takes and not isinstance(first, SingleStream):
        raise UsageError(
            f"convert: the channels of {name} are at axis 1, where {type(first).__name__} cannot have "
            "them. Use another connection."
        )
    through = dict.fromkeys(f.__name__ for site in chain.sites for f in site.after if f not in FORMAL)
    if through and not isinstance(first, MultiStream | SingleStream):
        raise UsageError(
            f"convert: after the additions of {name} the stream itself goes through {', '.join(through)}, which "
            f"{type(first).__name__} has no place for. Use a connection of streams, such as HyperConnection."
        )
    if first.dim_in != chain.dim or first.dim_out != chain.dim:
        raise UsageError(f"convert: {type(first).__name__} changes the width that branches read, which are built.")
    output = made[-1].output(chain.dim)
    start([*made, output], like, preserve)
    return made, output


def _register(
    net: nn.Module,
    chain: Chain,
    connection: Callable[..., Connection],
    preserve: bool,
    options: dict[str, Any],
    undo: list[Callable[[], None]],
) -> Route:
    made, output = _made(chain, connection, preserve, options, next(net.parameters(), None))
    places = []
    for (owner, block), one in zip(chain.owners, made, strict=True):
        name = _held_under(owner, "connections", undo, nn.ModuleList)
        held: nn.ModuleList = getattr(owner, name)
        places.append(Place(owner, name, len(held), block))
        held.append(one.train(owner.training))
    last, ending = chain.owners[-1][0], None
    if any(True for _ in output.parameters()):
        ending = _held_under(last, "stream_output", undo, lambda: output.train(last.training), anew=True)
    for owner, _ in chain.owners:
        _hook_before(owner, undo)
    assert chain.entry is not None
    route = Route(places, [site.after for site in chain.sites], ending, chain.entry.place)
    module, kept = chain.entry.module, "levada_routes" if route.entry else "levada_streams"
    if not hasattr(module, kept):
        setattr(module, kept, [])
        undo.append(lambda: delattr(module, kept))
        if route.entry is None:
            undo.append(module.register_forward_hook(begin_after).remove)
    getattr(module, kept).append(route)
    if route.entry:
        _hook_before(module, undo)
    return route


def _held_under(
    owner: nn.Module, wish: str, undo: list[Callable[[], None]], make: Callable[[], nn.Module], anew: bool = False
) -> str:
    """Return the name under which a block holds what conversion puts in: the wish, or the next that is free."""
    ours = owner.__dict__.setdefault("levada_held", {})
    if wish in ours and not anew:
        return str(ours[wish])
    name = next(n for n in (wish, *(f"{wish}_{i}" for i in range(2, 1000))) if not hasattr(owner, n))
    setattr(owner, name, make())
    ours[wish] = name
    undo.append(lambda: delattr(owner, name))
    undo.append(lambda: owner.__dict__.pop("levada_held", None) and None)
    return name


def _hook_before(module: nn.Module, undo: list[Callable[[], None]]) -> None:
    if enter not in module._forward_pre_hooks.values():
        undo.append(module.register_forward_pre_hook(enter, with_kwargs=True).remove)


def _defaults(connection: Callable[..., Connection], options: dict[str, Any], preserve: bool) -> dict[str, Any]:
    """Choose the head that keeps the scale of the stream, where there is a choice and none was made."""
    if preserve and "head" in inspect.signature(connection).parameters and "head" not in options:
        return {**options, "head": "mean"}
    return options


def _require_preserving(connection: Any, preserve: bool) -> None:
    if preserve and getattr(connection, "residual_start", "exact") == "none":
        raise UsageError(
            f"convert: {_name(connection)} cannot compute what the residual connection does, so that the model's "
            "function would change. Pass preserve=False if that is meant."
        )


def _require_one_input(connection: Any, options: dict[str, Any]) -> None:
    inputs = options.get("inputs", getattr(connection, "keywords", {}).get("inputs", 1))
    if inputs != 1:
        raise UsageError(
            f"convert: {_name(connection)} must have inputs=1, got {inputs!r}: the additions that convert replaces "
            "have branches of one input. Leave inputs out, or build a levada.Stack of branches that take several."
        )


def _require_same(connection: Any, measured: float, scaled: float, precision: torch.dtype) -> None:
    """Raise unless outputs stay what they were; where the scale may change, the epsilons alone may be felt."""
    exact = getattr(connection, "residual_start", "exact") == "exact"
    preserves = scaled <= SCALED[precision]
    if measured <= EXACT[precision] or (not exact and preserves and measured <= NORMALISED):
        return
    must, came, remedy = f"within {EXACT[precision]:g} of what they were", measured, "Use another connection"
    if exact:
        why = "its additions are made in a way that convert did not see"
    elif not preserves:
        must, came = "what they were but for the epsilon of the normalisations, and without it", scaled
        why = "it scales the stream, and not every branch and the output begin with a normalisation"
    else:
        must = f"within {NORMALISED:g} of what they were"
        why = f"it scales the stream, and the epsilon of the normalisations is felt, without which it is {scaled:.0e}"
        if "scale" in inspect.signature(connection).parameters:
            remedy = "Pass scale='sum', which keeps the scale"
    raise UsageError(
        f"convert: with {_name(connection)} the model's outputs must stay {must}{'' if came is scaled else ', and'} "
        f"they differ by {came:.3g}: {why}. {remedy}, or pass preserve=False."
    )


def _name(connection: Any) -> str:
    return getattr(connection, "__name__", None) or type(connection).__name__
