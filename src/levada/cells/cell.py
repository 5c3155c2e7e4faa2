"""The cell protocol: a state that one step turns into the next, at one input.

state = begin(batch);   (state = step(project(x)[t], state)) for t = 0 ... steps - 1;   h = state[0]
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from levada._errors import UsageError, require_at_least, require_number
from levada.initialise.recurrent import kind_of

__all__ = ["Cell", "State", "detach", "require_finite", "traced", "transformed"]

State: TypeAlias = tuple[Tensor, ...]

_interpreter = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: None)  # private: without it, none is seen
_mode = getattr(torch._C, "_get_dispatch_mode", lambda key: None)  # these are private, too
_keys = getattr(torch._C, "_TorchDispatchModeKey", None)
_TRACERS = [getattr(_keys, name) for name in ("FAKE", "PROXY") if hasattr(_keys, name)]


class Cell(nn.Module, ABC):
    """One step of a recurrence.

    A subclass is final. It implements `project` and `step`; it says `state_shapes` where its state is more than one h,
    `unroll` where a whole sequence has a faster form than the loop, and the rest where it has a meaning: `carry` and
    `gate` for what the memory is measured against, `carry_bias` and `recurrent_weights` for initialisations.

    A learned scalar has shape `(1,)`, never `()`: sharded training needs it. Rows of a batch are independent of each
    other: sequences of several lengths rely on it.

    Args:
        dim_in: width of the input.
        dim: width of what the cell gives out, h.

    Shape:
        `step`: `(batch, k dim)` and a state -> a state, whose first tensor is h, `(batch, dim)`.

    Raises:
        UsageError: if a width is below 1 or no integer.
    """

    gate: str = ""
    """What `carry` returns: "forget gate", "update gate"; "" for the gain of weights that are independent."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        name = type(self).__name__
        require_at_least(name, "dim_in", dim_in, 1)
        require_at_least(name, "dim", dim, 1)
        self.dim_in = dim_in
        self.dim = dim

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Return what the steps need of the inputs, of all steps at once: `(..., dim_in) -> (..., k dim)`."""

    @abstractmethod
    def step(self, projected: Tensor, state: State) -> State:
        """Return the state after one step; `projected` is `project(x)` at that step, `(batch, k dim)`."""

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each tensor of a state, without the batch; the first is `(dim,)`."""
        return ((self.dim,),)

    def unroll(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run a whole sequence, which was checked: a loop of `step`, or a faster form.

        Returns:
            Each h, `(steps, batch, dim)`, and the last state.
        """
        outputs = []
        for projected in self.project(x).unbind(0):
            state = self.step(projected, state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def carry(self, projected: Tensor, state: State) -> Tensor | None:
        """Return the factor on each unit's own memory in one step, `(batch, dim)`; None if it is not known."""
        return None

    def carry_bias(self, logit: Tensor) -> bool:
        """Let the memory start at a factor of `sigmoid(logit)`, `(dim,)`, where inputs are zero, by biases alone.

        Returns:
            Whether the cell has a bias of that kind.
        """
        return False

    def recurrent_weights(self) -> Iterable[Tensor]:
        """Return the square matrices `(dim, dim)` from one state to the next, as views that can be set."""
        return ()

    def begin(self, batch: int, *, device: Any = None, dtype: torch.dtype | None = None) -> State:
        """Return the state before the first step: zeros.

        Args:
            batch: number of rows.
            device: of the state.
            dtype: of the state.
        """
        return tuple(torch.zeros(batch, *shape, device=device, dtype=dtype) for shape in self.state_shapes)

    def forward(self, x: Tensor, state: State | None = None) -> State:
        """Take one step at one input.

        Args:
            x: `(batch, dim_in)`.
            state: from the step before; zeros if left out.

        Raises:
            UsageError: if the input or the state does not fit, or they and the parameters differ in dtype; or, on a
                CPU, if a parameter is not finite and h neither.
        """
        given = self._fitting(x, state, 2, "(batch, dim_in)")
        try:
            state = self.step(self.project(x), given)
        except RuntimeError as error:
            self._require_one_dtype(x, given, error)
            raise
        if _looked_at(x) and not math.isfinite(state[0].detach().sum()):
            self._require_finite()
        return state

    def run(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run a whole sequence.

        Args:
            x: `(steps, batch, dim_in)`.
            state: before the first step; zeros if left out.

        Returns:
            Each h, `(steps, batch, dim)`, and the last state.

        Raises:
            UsageError: if the input has no step or does not fit, or the state does not, or they and the parameters
                differ in dtype; or, on a CPU, if a parameter is not finite. (On other devices nobody waits to look, and
                in a trace nobody can.)
        """
        state = self._fitting(x, state, 3, "(steps, batch, dim_in)")
        if not x.shape[0]:
            raise UsageError(f"{kind_of(self)}: a sequence must have a step or more, got {tuple(x.shape)}.")
        if _looked_at(x):
            self._require_finite()
        try:
            with self._weights_held():
                return self.unroll(x, state)
        except RuntimeError as error:
            self._require_one_dtype(x, state, error)
            raise

    def extra_repr(self) -> str:
        """Say the widths."""
        return f"{self.dim_in}, {self.dim}"

    def _fitting(self, x: Tensor, state: State | None, ndim: int, shape: str) -> State:
        """Return the state to begin with, if it and the input fit."""
        name = kind_of(self)
        if not x.is_floating_point():
            raise UsageError(f"{name}: the input must be of floating point, got {x.dtype}. Embed or convert it first.")
        if x.ndim != ndim or x.shape[-1] != self.dim_in:
            raise UsageError(
                f"{name}: the input must be {shape} with dim_in {self.dim_in}, got {tuple(x.shape)}. "
                f"{'forward takes one step, run a sequence' if x.ndim != ndim else 'Change dim_in or the input'}."
            )
        batch = x.shape[-2]
        if state is None:
            return self.begin(batch, device=x.device, dtype=x.dtype)
        expected = [(batch, *rest) for rest in self.state_shapes]
        if not isinstance(state, tuple | list) or not all(isinstance(s, Tensor) for s in state):
            raise UsageError(f"{name}: a state must be a tuple of tensors, got {type(state).__name__}. See begin.")
        if [tuple(s.shape) for s in state] != expected:
            got = [tuple(s.shape) for s in state]
            raise UsageError(f"{name}: a state must hold tensors of shapes {expected}, got {got}. See begin.")
        return tuple(state)

    def _require_one_dtype(self, x: Tensor, state: State, cause: RuntimeError) -> None:
        """Say what was the matter after something has failed: a cell of one's own may well mix dtypes."""
        kinds = [(x.dtype,), *(tuple(dict.fromkeys(t.dtype for t in of)) for of in (state, self.parameters()))]
        if len({dtype for kind in kinds for dtype in kind}) > 1:
            told = [" and ".join(map(str, kind)) or "none" for kind in kinds]
            raise UsageError(
                f"{kind_of(self)}: the input, the state and the parameters must be of one dtype, got {told[0]}, "
                f"{told[1]} and {told[2]}. Convert what differs by .to(dtype)."
            ) from cause

    def _require_finite(self) -> None:
        for name, value in self.named_parameters():
            # A sum that overflows is looked at again.
            if not math.isfinite(value.detach().sum()) and not bool(value.isfinite().all()):
                bad = int((~value.isfinite()).sum())
                raise UsageError(
                    f"{kind_of(self)}: parameters must be finite, got {bad} of {value.numel()} numbers in {name} "
                    "that are not. Load or draw them again, and lower the learning rate."
                )

    def _weights_held(self) -> AbstractContextManager[Any]:
        """What is computed from other parameters is computed once for all steps."""
        if torch.compiler.is_compiling() or not any(parametrize.is_parametrized(m) for m in self.modules()):
            return nullcontext()
        held: AbstractContextManager[Any] = parametrize.cached()
        return held


def transformed() -> bool:
    """Whether this runs inside of vmap, grad or another function transform of `torch.func`."""
    return _interpreter() is not None


def traced(x: Tensor) -> bool:
    """Whether values are unknown: while compiling, inside of `torch.func` and `make_fx`, and of fake tensors."""
    if torch.compiler.is_compiling() or transformed():
        return True
    return type(x) not in (Tensor, nn.Parameter) or any(_mode(key) is not None for key in _TRACERS)


def require_finite(owner: str, name: str, value: Any) -> None:
    """Raise unless `value` is a finite number."""
    require_number(owner, name, value)
    if not math.isfinite(value):
        raise UsageError(f"{owner}: {name} must be finite, got {value}.")


def _looked_at(x: Tensor) -> bool:
    """Whether values may be looked at: not where one would wait for a device, nor in a trace."""
    return x.device.type == "cpu" and not traced(x)


def detach(states: Sequence[Any]) -> Any:
    """Return states without their past: what one stretch of a long sequence hands to the next.

    Args:
        states: a state, or any nest of them in tuples and lists, such as `Recurrent` returns.

    Raises:
        UsageError: if it is none.

    Example:
        >>> state = (torch.ones(1, 2, requires_grad=True) * 2,)
        >>> detach(state)[0].requires_grad
        False
    """
    if not isinstance(states, tuple | list):
        raise UsageError(
            f"detach: states must be tensors in tuples or lists, got {type(states).__name__}. Hand on what a cell or "
            "Recurrent returned."
        )
    return tuple(s.detach() if isinstance(s, Tensor) else detach(s) for s in states)
