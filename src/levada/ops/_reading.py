"""Operations that read streams: what PyTorch knows of each, there and back, and which function is called when."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from levada.ops._define import Kernel, define, empty_like, is_direct, one_by_one, triton_or_reference
from levada.ops._fitting import Signature, requirement

__all__ = ["Reading", "Schema", "Sizes", "go_back"]


class Schema(NamedTuple):
    """What a reading takes and gives.

    Attributes:
        tensors: names of those that it takes, the streams first, with `?` where None may come.
        options: types and names of the numbers behind them.
        results: names of what it returns, what the branch reads first, with `?` where the gradient's kernels take None
            as zeros.
        kept: names of what it returns behind that, for the way back.
    """

    tensors: Sequence[str]
    options: str
    results: Sequence[str]
    kept: Sequence[str]


class Sizes(NamedTuple):
    """Shapes of what a reading takes and gives, tokens first.

    Attributes:
        given: of the tensors that it takes.
        results: of what it returns.
        kept: of what it returns behind that, for the way back.
    """

    given: tuple[tuple[int, ...], ...]
    results: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...] = ()


class Reading:
    """An operation that reads streams, and its gradient.

    Called, it returns the results and the streams themselves: a gradient that comes by these is added in the same pass
    as the others. An operation's result may not be its argument: only a function can hand the streams on.

    Args:
        name: with which `operation` is registered; `gradient` has `_backward` behind it.
        schema: what they take and give.
        reference: has `read_and_keep`, and `read_backward` with derivatives, which makes again what it is not given.
        cpu: has `read` and `read_backward`.
        triton: name of a module that has both, too; None where there is none, and a GPU gets the reference.
        sizes: `Sizes`, of the same arguments.
        vmap: the operation's rule, if it has a better one than to call it for each entry.
        fits: whether whoever calls it has looked at all shapes.
    """

    def __init__(
        self,
        name: str,
        schema: Schema,
        *,
        reference: ModuleType,
        cpu: ModuleType,
        triton: str | None,
        sizes: Callable[..., Sizes],
        vmap: Kernel | None = None,
        fits: bool = False,
    ) -> None:
        tensors, options, results, kept = schema
        self.tensors, self.results, self.keeps = len(tensors), len(results), len(kept)
        self.required = [k for k, result in enumerate(results) if not result.endswith("?")]
        self.reference, self.cpu, self.sizes = reference, cpu, sizes
        self.fits = fits
        self._alone = len([*results, *kept]) == 1  # an operation returns a single tensor as no tuple
        as_given = _first if self._alone else _same
        given = [*map(_typed, tensors)]
        by = [_typed(f"by_{result}") for result in (*results, "new?")]
        written = f"({_listed(*given, options)}) -> ({_listed(*['Tensor'] * len([*results, *kept]))})"
        signature = Signature(written, lambda *arguments: sizes(*arguments).given)
        self.require = requirement(name, signature)
        on_gpu = functools.partial(triton_or_reference, triton or "")
        registered = define(
            name,
            signature,
            reference=as_given(reference.read_and_keep),
            kernels={
                "CPU": as_given(cpu.read),
                **({} if triton is None else {"CUDA": as_given(on_gpu("read", reference.read_and_keep))}),
            },
            fake=as_given(self.fake),
            vmap=vmap or self._one_by_one,
            setup_context=self.context,
            backward=self.derivative,
        )
        self.operation: Kernel = (lambda *arguments: (registered(*arguments),)) if self._alone else registered
        self.gradient = define(
            f"{name}_backward",
            Signature(
                f"({_listed(*by, *given, *map(_typed, kept), options)}) -> ({_listed(*['Tensor'] * self.tensors)})",
                self._gradient_shapes,
                self._gradient_types,
            ),
            reference=reference.read_backward,
            kernels={
                "CPU": cpu.read_backward,
                **({} if triton is None else {"CUDA": on_gpu("read_backward", reference.read_backward)}),
            },
            fake=self._gradient_fake,
            vmap=lambda info, dims, *arguments: one_by_one(self.gradient, info, dims, *arguments),
            setup_context=None,
            backward=None,
        )

    def __call__(self, state: Tensor, *others: Any) -> tuple[Tensor, ...]:
        """Return the results, and the streams to write to."""
        if torch.compiler.is_compiling():
            return self.by(self.operation, state, *others)
        own = self.tensors - 1
        found: tuple[Tensor, ...] = _Read.apply(self, others[own:], state, *others[:own])  # type: ignore[no-untyped-call]
        return found

    def fake(self, state: Tensor, *others: Any) -> tuple[Tensor, ...]:
        """Return memory for all that is returned: weights and what is kept are of float32 at least."""
        _, (x, *results), kept = self.sizes(state, *others)
        full = torch.promote_types(state.dtype, torch.float32)
        return state.new_empty(x), *(state.new_empty(shape, dtype=full) for shape in (*results, *kept))

    def by(self, function: Kernel, state: Tensor, *others: Any) -> tuple[Tensor, ...]:
        """Return the same by a function of streams with tokens first, such as the operation."""
        *leading, n, width = state.shape
        found = function(state.reshape(-1, n, width), *others)[: self.results]
        return *(y.view(*leading, *y.shape[1:]) for y in found), state

    def keep(self, ctx: Any, tensors: Sequence[Any], options: Sequence[Any], kept: Sequence[Tensor]) -> None:
        """Keep for the way back the arguments, and what was returned for it."""
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *kept)

    def context(self, ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        """Set up what `derivative` needs."""
        kept = () if isinstance(output, Tensor) else output[self.results :]
        ctx.mark_non_differentiable(*kept)
        self.keep(ctx, inputs[: self.tensors], inputs[self.tensors :], kept)

    def derivative(self, ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients by the operation's arguments."""
        found = self.gradients(ctx.saved_tensors, ctx.options, (*cotangents[: self.results], None))
        return *found, *(None for _ in ctx.options)

    def gradients(
        self, saved: Sequence[Any], options: Sequence[Any], by: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients by the tensors among the arguments.

        Args:
            saved: the tensors, and what was returned for the way back.
            options: that they came with.
            by: gradients by results and streams, None for zeros.
        """
        state, others, kept = saved[0], saved[1 : self.tensors], saved[self.tensors :]
        flat, leading = state, state.ndim - 2
        if leading != 1:
            flat = state.reshape(-1, *state.shape[-2:])
            tokens = flat.shape[0]  # -1 stands for no axis beside one of 0
            by = tuple(None if y is None else y.reshape(tokens, *y.shape[leading:]) for y in by)
        if [k for k in self.required if by[k] is None]:
            like = self.fake(flat, *others, *options)
            by = tuple(like[k].zero_() if y is None and k in self.required else y for k, y in enumerate(by))
        given = *by, flat, *others
        found = go_back("read_backward", self.reference, self.cpu, self.gradient, given, kept, options)
        by_state = found[0] if leading == 1 else found[0].view(state.shape)
        by_others = [None if x is None else y for x, y in zip(others, found[1:], strict=True)]
        return by_state, *by_others

    def _one_by_one(self, *given: Any) -> tuple[Any, Any]:
        found, axes = one_by_one(self.operation, *given)
        return (found[0], axes[0]) if self._alone else (found, axes)

    def _gradient_shapes(self, *arguments: Any) -> tuple[tuple[int, ...], ...]:
        first = self.results + 1  # behind what arrives
        last = first + self.tensors
        given, results, kept = self.sizes(*arguments[first:last], *arguments[last + self.keeps :])
        return *results, given[0], *given, *kept

    def _gradient_types(self, *arguments: Any) -> tuple[torch.dtype | None, ...]:
        state = arguments[self.results + 1].dtype
        full = torch.promote_types(state, torch.float32)
        by = state, *(full,) * (self.results - 1), state
        return *by, *(None,) * self.tensors, *(full,) * self.keeps

    def _gradient_fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        first = self.results + 1  # behind what arrives
        state, parameter, *others = arguments[first : first + self.tensors]
        nothing = (parameter.new_empty(0) if x is None else empty_like(x) for x in others)
        return empty_like(state), empty_like(parameter), *nothing


class _Read(torch.autograd.Function):
    """A reading, whose kernel is called without the dispatcher on a CPU, where nobody looks at operations.

    The dispatcher would take as long as the work on few tokens. Tokens become the first axis, and leading axes again,
    in here: each would be a node of the graph out there.
    """

    @staticmethod
    def forward(ctx: Any, reading: Reading, options: Sequence[Any], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.reading = reading
        state, *others = tensors
        assert state is not None
        *leading, n, width = state.shape
        flat = state if len(leading) == 1 else state.reshape(-1, n, width)
        given = flat, *others, *options
        if is_direct(*tensors):
            if not reading.fits:
                reading.require(given)  # as the dispatcher's kernels do
            found = reading.cpu.read(*given)
        else:
            found = reading.operation(*given)
        reading.keep(ctx, tensors, options, found[reading.results :])
        results = found[: reading.results]
        if len(leading) == 1:
            return *results, state
        with torch._C._AutoDispatchBelowADInplaceOrView():  # else they are views, and FSDP2 warns of these
            return *(y.view(*leading, *y.shape[1:]) for y in results), state

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.reading.gradients(ctx.saved_tensors, ctx.options, cotangents)


def go_back(
    name: str,
    reference: ModuleType,
    cpu: ModuleType,
    operation: Kernel,
    given: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    options: Sequence[Any],
) -> tuple[Tensor, ...]:
    """Return gradients, by the function of this name that is right here.

    Args:
        name: in both modules.
        reference: has all derivatives, and makes again what was kept.
        cpu: is called where nobody looks at operations.
        operation: elsewhere.
        given: tensors, of which none was kept for the way back alone.
        kept: those that were.
        options: behind them.
    """
    found: tuple[Tensor, ...]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # this backward pass has one itself
        found = getattr(reference, name)(*given, *(None for _ in kept), *options)
    else:
        function = getattr(cpu, name) if is_direct(*given, *kept) else operation
        found = function(*given, *kept, *options)
    return found


def _first(function: Kernel) -> Kernel:
    """Return a function that returns the only result of another."""

    @functools.wraps(function)
    def first(*arguments: Any) -> Tensor:
        result: Tensor
        (result,) = function(*arguments)
        return result

    return first


def _same(function: Kernel) -> Kernel:
    return function


def _listed(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _typed(name: str) -> str:
    return f"Tensor{'?' if name.endswith('?') else ''} {name.removesuffix('?')}"
