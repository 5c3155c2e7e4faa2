"""Initialisations of what carries a memory through time: gates' biases, and the recurrent weights.

A module of one's own takes part by methods: `carry_bias(logit) -> bool` sets the biases of the gate that keeps, and
says whether there is one, in which case what is inside of the module is left to it; `recurrent_weights()` returns the
square matrices from one state to the next, to be set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from levada._errors import UsageError, require_number
from levada.initialise._weights import orthogonal_matrix

__all__ = ["chrono", "kind_of", "orthogonal_recurrence"]

_GATED = nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell
_ALL = nn.RNNBase | nn.RNNCellBase


@torch.no_grad()
def chrono(module: nn.Module, horizon: float, *, generator: Generator | None = None) -> nn.Module:
    r"""Let gated cells start with memories of 1 to `horizon` steps: $b_f = \ln U(1, T - 1)$, $b_i = -b_f$.

    A forget gate of bias $b_f$ holds $1 - 1/T$ for $b_f = \ln(T - 1)$, and the input gate, $1/T$, keeps the cell from
    growing over that time. Of a GRU the update gate gets $b_f$: torch's keeps $z$ of the old state and takes
    $1 - z$ of the new. The second bias of these gates, which torch adds, becomes zero.

    A skip in time counts: of a `Dilated` cell the steps are those of the sequence, and a `Leaky` one remembers at least
    as long as its skip. `ResidualInTime` keeps all; its cell is set as if alone.

    Args:
        module: changed in place: every LSTM, GRU, LSTMCell and GRUCell that has biases, and every gated cell of
            `levada.cells`.
        horizon: $T$, the longest memory wanted, in steps; above 2.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if the horizon is no finite number above 2, or there is nothing to set.

    Example:
        >>> cell = chrono(nn.LSTMCell(2, 1000), 101.0, generator=torch.Generator().manual_seed(0))
        >>> steps = 1 + cell.bias_ih[1000:2000].exp()
        >>> round(steps.min().item()), round(steps.mean().item(), -1), round(steps.max().item())
        (2, 50.0, 101)

    Source: Tallec and Ollivier 2018, arXiv 1804.11188.
    """
    require_number("chrono", "horizon", horizon)
    if not 2 < horizon < math.inf:
        raise UsageError(f"chrono: horizon must be {'finite' if horizon > 2 else 'above 2 steps'}, got {horizon}.")

    def drawn(like: Tensor) -> Tensor:
        return torch.empty_like(like).uniform_(1.0, horizon - 1.0, generator=generator).log()

    rest, set_here = _set_by_themselves(module, drawn)
    found = [m for m in rest if isinstance(m, _GATED) and m.bias]
    if not found and not set_here:
        raise UsageError(f"chrono: {kind_of(module)} must hold an LSTM or GRU with biases, and has none.")
    for one in found:
        size = one.hidden_size
        for name, bias in one.named_parameters():
            if not name.startswith("bias"):
                continue
            gates = bias.view(-1, size)
            carry, fill = gates[1], gates[0] if len(gates) == 4 else None
            carry.zero_()
            if name.startswith("bias_ih"):
                carry.copy_(drawn(carry))
            if fill is not None:
                fill.copy_(-carry)
    return module


@torch.no_grad()
def orthogonal_recurrence(module: nn.Module, *, gain: float = 1.0, generator: Generator | None = None) -> nn.Module:
    r"""Let recurrent weights keep the norm of a state: orthogonal, $W^\top W = g^2 I$; the identity for rectifiers.

    Args:
        module: changed in place: every RNN, LSTM, GRU and cell of torch and of `levada.cells`; of gated ones the block
            of each gate. Plain networks of rectifiers get $g I$. The biases of plain networks become zero.
        gain: $g$.
        generator: where the random numbers come from.

    Returns:
        The module.

    Raises:
        UsageError: if the gain is no finite number, or there is nothing to set: weights that are computed from other
            parameters, as of a constrained RNN, are left alone.

    Example:
        >>> rnn = orthogonal_recurrence(nn.RNN(2, 5))
        >>> bool(torch.allclose(rnn.weight_hh_l0 @ rnn.weight_hh_l0.T, torch.eye(5), atol=1e-5))
        True

    Source: Saxe, McClelland and Ganguli 2014, arXiv 1312.6120; Le, Jaitly and Hinton 2015, arXiv 1504.00941 (identity).
    """
    require_number("orthogonal_recurrence", "gain", gain)
    if not math.isfinite(gain):
        raise UsageError(f"orthogonal_recurrence: gain must be finite, got {gain}.")
    found = [m for m in module.modules() if isinstance(m, _ALL) and not _computed(m)]
    set_here = [_redrawn(m, gain, generator) for m in module.modules()]
    if not found and not any(set_here):
        held = [name for m in module.modules() for name in _computed(m)]
        if held:
            raise UsageError(
                f"orthogonal_recurrence: recurrent weights must be parameters, got {kind_of(module)} whose {held[0]} "
                "is computed from others. A constrained RNN is orthogonal as it is; take other parametrizations off."
            )
        raise UsageError(f"orthogonal_recurrence: {kind_of(module)} must hold a recurrent module, and has none.")
    for one in found:
        plain = isinstance(one, nn.RNN | nn.RNNCell)
        for name, value in one.named_parameters():
            if name.startswith("weight_hh"):
                for block in torch.split(value, one.hidden_size):
                    block.copy_(gain * _square(block, plain and one.nonlinearity == "relu", generator))
            elif plain and name.startswith("bias"):
                value.zero_()
    return module


def kind_of(module: nn.Module) -> str:
    """Return the name of a module's class as the user knows it, without what a parametrization makes of it.

    Args:
        module: any.
    """
    kind = type(module)
    return (kind.__bases__[0] if parametrize.is_parametrized(module) else kind).__name__


def _computed(module: nn.Module) -> list[str]:
    """Return the recurrent weights of a module that are parametrized."""
    held: Any = module.parametrizations if parametrize.is_parametrized(module) else ()
    return [name for name in held if name.startswith("weight_hh")]


def _set_by_themselves(module: nn.Module, drawn: Callable[[Tensor], Tensor]) -> tuple[list[nn.Module], bool]:
    """Let modules set their gates, the outer before what is in them; return the modules left, and whether one did."""
    left: dict[nn.Module, None] = {}
    done = False
    seen: set[nn.Module] = set()
    waiting = [module]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        if _carries(one, drawn):
            done = True
            seen.update(one.modules())
        else:
            left[one] = None
            waiting.extend(reversed(list(one.children())))
    return list(left), done


def _carries(module: nn.Module, drawn: Callable[[Tensor], Tensor]) -> bool:
    """Draw the bias of a gate that keeps, of a module that says how; return whether it has one."""
    own: Any = getattr(module, "carry_bias", None)
    if not callable(own):
        return False
    width: Any = module.dim
    return bool(own(drawn(next(module.parameters()).new_empty(width))))


def _redrawn(module: nn.Module, gain: float, generator: Generator | None) -> bool:
    """Draw the recurrent matrices of a module that names them; return whether it has some."""
    own: Any = getattr(module, "recurrent_weights", None)
    blocks = list(own()) if callable(own) else []
    nonlinearity = getattr(module, "nonlinearity", None)
    for block in blocks:
        block.copy_(gain * _square(block, nonlinearity == "relu", generator))
    if blocks and nonlinearity is not None:  # a plain network
        for name, value in module.named_parameters(recurse=False):
            if name.startswith("bias"):
                value.zero_()
    return bool(blocks)


def _square(like: Tensor, identity: bool, generator: Generator | None) -> Tensor:
    if identity:
        return torch.eye(*like.shape, dtype=like.dtype, device=like.device)
    return orthogonal_matrix(len(like), like.shape[1], like, generator)
